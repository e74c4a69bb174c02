"""Rows end to end instead of padded: nothing is computed that no vector needs.

All of a decoder but its attention treats each token by itself. So a batch can go through it as one long row without
padding, if attention keeps to the rows. transformers lets a model's attention be replaced by name; ours learns where
each row begins and ends from a :class:`Pack`, which travels through the model as a keyword.

What all rows begin with needs to be computed once alone: its keys and values are then given beside the rows'.

Shapes: B rows of at most T tokens, N tokens in all; n rows of the same length L; P tokens before every row; H heads of
queries, K of keys and values, C values in each.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import torch
from torch import Tensor, nn

from llmindex.encode.device import send

NAME = "llmindex_packed"
"""What transformers knows this attention by."""

_HALF = (torch.bfloat16, torch.float16)
# Queries that are compared with keys at a time: their scores stay in the cache, most that is hidden is not computed.
_QUERIES = 128
# What other models' attention does beside the plain one, under the keywords that transformers has for it.
_UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias")


class CannotPack(Exception):
    """A model's attention is another than ours."""


@dataclass(frozen=True, slots=True)
class Pack:
    """Where the tokens of a batch are once its padding is gone.

    Attributes:
        lengths: tokens of each row.
        ids_1N: the tokens, row by row.
        positions_1N: how far each is from the beginning of its text.
        places_BT: of each token in the pack; what padding has there means nothing.
        ends_B1: zero, then the end of each row, ``int32``.
        before: P, the tokens that stand before every row and are not in the pack.
    """

    lengths: list[int]
    ids_1N: Tensor
    positions_1N: Tensor
    places_BT: Tensor
    ends_B1: Tensor
    before: int = 0

    @classmethod
    def of(cls, ids_BT: Tensor, mask_BT: Tensor, device: torch.device, before: int = 0) -> "Pack":
        """Pack right-padded rows, which are on the CPU, for a device; ``before`` tokens stand before each."""
        real_BT = mask_BT.bool()
        lengths_B = mask_BT.sum(dim=1)
        positions_BT = torch.arange(before, before + mask_BT.shape[1]).expand_as(mask_BT)
        places_BT = (mask_BT.flatten().cumsum(0) - 1).view_as(mask_BT)
        ends_B1 = nn.functional.pad(lengths_B.cumsum(0), (1, 0)).to(torch.int32)
        return cls(
            lengths=lengths_B.tolist(),
            ids_1N=send(ids_BT[real_BT][None], device),
            positions_1N=send(positions_BT[real_BT][None], device),
            places_BT=send(places_BT, device),
            ends_B1=send(ends_B1, device),
            before=before,
        )

    def unpack(self, hidden_1ND: Tensor) -> Tensor:
        """The rows as they were, ``hidden_BTD``."""
        return hidden_1ND[0, self.places_BT]

    def runs(self) -> Iterator[tuple[slice, int]]:
        """Neighbours of the same length: where their tokens are, and how many rows they are."""
        start = 0
        for length, equal in groupby(self.lengths):
            rows = len(list(equal))
            yield slice(start, start + rows * length), rows
            start += rows * length


def register() -> None:
    """Tell transformers of this attention."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attend)


def attend(
    module: nn.Module,
    query_1HNC: Tensor,
    key_1KNC: Tensor,
    value_1KNC: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    is_causal: bool | None = None,
    pack: Pack | None = None,
    **others: object,
) -> tuple[Tensor, None]:
    """Attention within the rows of a pack, ``(1, N, H, C)``, in the form that transformers calls.

    Raises:
        CannotPack: the model wants more than plain attention, or is called without a pack.
    """
    if unknown := [name for name in _UNKNOWN if others.get(name) is not None]:
        raise CannotPack(f"its attention has {', '.join(unknown)}")
    if pack is None or attention_mask is not None:
        raise CannotPack("it is called without a pack, or with a mask")
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    scale = query_1HNC.shape[-1] ** -0.5 if scaling is None else scaling
    return mix(query_1HNC[0], key_1KNC[0], value_1KNC[0], pack, scale=scale, causal=causal, dropout=dropout)[None], None


def mix(
    query_HNC: Tensor,
    key_KNC: Tensor,
    value_KNC: Tensor,
    pack: Pack,
    *,
    scale: float,
    causal: bool,
    dropout: float = 0.0,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Attention within the rows of a pack, ``(N, H, C)``.

    Args:
        query_HNC: queries of the pack's tokens.
        key_KNC: their keys.
        value_KNC: their values.
        pack: where the rows are.
        scale: of the scores.
        causal: whether a token sees those alone that come before it.
        dropout: of the weights.
        before: keys and values ``(K, P, C)`` of what stands before every row; only with ``causal``.
    """
    if _has_varlen(query_HNC.device) and query_HNC.dtype in _HALF and not dropout:
        return _by_varlen(query_HNC, key_KNC, value_KNC, pack, scale, causal, before)
    halves = query_HNC.device.type == "cpu" and query_HNC.dtype in _HALF
    by_products = halves and not query_HNC.requires_grad and not _has_tiles(query_HNC.dtype)
    mixed = []
    for run, rows in pack.runs():
        query, key, value = (
            states[:, run].view(len(states), rows, -1, states.shape[-1]).transpose(0, 1)
            for states in (query_HNC, key_KNC, value_KNC)
        )
        if before is not None:
            key, value = (
                torch.cat([first_KPC.expand(rows, -1, -1, -1), own_nKLC], dim=2)
                for first_KPC, own_nKLC in zip(before, (key, value), strict=True)
            )
        if by_products:
            mixed_nHLC = _by_products(query, key, value, scale, causal)
        else:
            mixed_nHLC = _fused(query, key, value, scale, causal, dropout)
        mixed.append(mixed_nHLC.transpose(1, 2).flatten(0, 1))
    return torch.cat(mixed)


def _fused(
    query_nHLC: Tensor, key_nKLC: Tensor, value_nKLC: Tensor, scale: float, causal: bool, dropout: float
) -> Tensor:
    length, before = query_nHLC.shape[2], key_nKLC.shape[2] - query_nHLC.shape[2]
    mask = nn.functional.pad(_causal(length, query_nHLC), (before, 0)) if before else None
    return nn.functional.scaled_dot_product_attention(
        query_nHLC,
        key_nKLC,
        value_nKLC,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=query_nHLC.shape[1] != key_nKLC.shape[1],
    )


def _by_products(query_nHLC: Tensor, key_nKLC: Tensor, value_nKLC: Tensor, scale: float, causal: bool) -> Tensor:
    """The same as plain products, some queries of a head of keys at a time, each with the keys that they may see.

    In 16 bits a CPU without tiles needs half the time of its fused attention for that, at the lengths of texts.
    """
    rows, heads, length, size = query_nHLC.shape
    # A softmax stays the same when all keys lose the same vector. Scores get small by it, and lose less in rounding.
    key_nKLC = (key_nKLC - key_nKLC.mean(dim=2, keepdim=True)) * scale
    seen = key_nKLC.shape[2]
    key, value = key_nKLC.reshape(-1, seen, size), value_nKLC.flatten(0, 1)
    query = query_nHLC.reshape(len(key), -1, length, size)
    mixed = torch.empty_like(query)
    for start in range(0, length, _QUERIES):
        some = slice(start, min(start + _QUERIES, length))
        upto = seen - length + some.stop if causal else seen
        scores = query[:, :, some].reshape(len(key), -1, size) @ key[:, :upto].transpose(1, 2)
        if causal:
            own = some.stop - start
            scores.view(len(key), -1, own, upto)[..., upto - own :].add_(_causal(own, scores))
        mixed[:, :, some] = (scores.softmax(dim=-1) @ value[:, :upto]).view_as(mixed[:, :, some])
    return mixed.view(rows, heads, length, size)


def _causal(length: int, like: Tensor) -> Tensor:
    """What hides the later tokens of a row of this length from each other: ``(L, L)``, to be added to scores."""
    room = 1 << (length - 1).bit_length()
    return _later(room, like.dtype, like.device)[:length, :length]


@cache
def _later(length: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``(L, L)``: minus infinity where a key comes later than its query, else 0."""
    return torch.full((length, length), float("-inf"), dtype=dtype, device=device).triu(1)


@cache
def _has_tiles(dtype: torch.dtype) -> bool:
    """Whether the CPU multiplies tiles of matrices (AMX): its fused attention is two to five times as fast by that."""
    can: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    return bool(can.get("amx_bf16" if dtype == torch.bfloat16 else "amx_fp16"))


@cache
def _has_varlen(device: torch.device) -> bool:
    """Whether torch has a kernel for rows end to end, and the device is one that it runs on."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:  # torch before 2.10
        return False
    return True


def _by_varlen(
    query_HNC: Tensor,
    key_KNC: Tensor,
    value_KNC: Tensor,
    pack: Pack,
    scale: float,
    causal: bool,
    before: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """FlashAttention over all rows at once, ``(N, H, C)``; its causal mask ends where both queries and keys end."""
    from torch.nn.attention.varlen import varlen_attn

    longest, ends_of_keys = max(pack.lengths), pack.ends_B1
    if before is not None:
        key_KNC, value_KNC = (
            _interleaved(first_KPC, own_KNC, pack)
            for first_KPC, own_KNC in zip(before, (key_KNC, value_KNC), strict=True)
        )
        ends_of_keys = pack.ends_B1 + pack.before * torch.arange(
            len(pack.ends_B1), dtype=torch.int32, device=pack.ends_B1.device
        )
    mixed = varlen_attn(
        query_HNC.transpose(0, 1),
        key_KNC.transpose(0, 1),
        value_KNC.transpose(0, 1),
        pack.ends_B1,
        ends_of_keys,
        longest,
        longest + pack.before,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=query_HNC.shape[0] != key_KNC.shape[0],
    )
    assert isinstance(mixed, Tensor)
    return mixed


def _interleaved(first_KPC: Tensor, own_KNC: Tensor, pack: Pack) -> Tensor:
    """The rows of a pack with the same states before each, ``(K, N + B * P, C)``."""
    size, rows = pack.before, len(pack.lengths)
    both = own_KNC.new_empty(len(own_KNC), own_KNC.shape[1] + rows * size, own_KNC.shape[2])
    # A row's own tokens move behind as many others as there are rows up to it.
    row_N = torch.searchsorted(pack.ends_B1[1:], torch.arange(own_KNC.shape[1], device=own_KNC.device), right=True)
    own_N = torch.arange(own_KNC.shape[1], device=own_KNC.device) + size * (row_N + 1)
    first_BP = (pack.ends_B1[:-1, None] + size * torch.arange(rows, device=own_KNC.device)[:, None]) + torch.arange(
        size, device=own_KNC.device
    )
    both[:, own_N] = own_KNC
    both[:, first_BP.flatten()] = first_KPC.repeat(1, rows, 1)
    return both
