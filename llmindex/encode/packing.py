"""Rows end to end instead of padded: nothing is computed that no vector needs.

All of a decoder but its attention treats each token by itself. So a batch can go through it as one long row without
padding, if attention keeps to the rows. transformers lets a model's attention be replaced by name; ours learns where
each row begins and ends from a :class:`~llmindex.encode.pack.Pack`, which travels through the model as a keyword.

What all rows begin with needs to be computed once alone: its keys and values are then given beside the rows'.

Shapes: B rows of at most T tokens, N tokens in all; n rows of the same length L; P tokens before every row; H heads of
queries, K of keys and values, C values in each.
"""

from functools import cache

import torch
from torch import Tensor, nn

from llmindex.encode import ragged
from llmindex.encode.pack import Pack

NAME = "llmindex_packed"
"""What transformers knows this attention by."""

_HALF = (torch.bfloat16, torch.float16)
# Queries that are compared with keys at a time: their scores stay in the cache, most that is hidden is not computed.
_QUERIES = 128
# Tokens of a row from which no mask hides the later ones: it has the square of their number, and all of it is read.
_LONG = 512
# Where the fused attention takes fewer heads of keys than of queries: on a GPU of Apple's torch 2.6 ends the process.
_GROUPED = ("cpu", "cuda")
# What other models' attention does beside the plain one, under the keywords that transformers has for it.
_UNKNOWN = ("sliding_window", "softcap", "s_aux", "position_bias")


class CannotPack(Exception):
    """A model's attention is another than ours."""


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
    if not dropout and (kernel := ragged.kernel(query_HNC, key_KNC, pack)):
        if before is not None:
            key_KNC, value_KNC = ragged.interleaved(before, (key_KNC, value_KNC), pack)
        return kernel(query_HNC, key_KNC, value_KNC, pack, scale, causal)
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
    mask = None
    if before and length >= _LONG:  # with as many queries as keys the kernel hides them by itself
        query_nHLC = nn.functional.pad(query_nHLC, (0, 0, before, 0))
    elif before:
        mask = nn.functional.pad(_causal(length, query_nHLC), (before, 0))
    if query_nHLC.device.type not in _GROUPED:
        copies = query_nHLC.shape[1] // key_nKLC.shape[1]
        key_nKLC, value_nKLC = (each.repeat_interleave(copies, dim=1) for each in (key_nKLC, value_nKLC))
    mixed_nHLC = nn.functional.scaled_dot_product_attention(
        query_nHLC,
        key_nKLC,
        value_nKLC,
        attn_mask=mask,
        dropout_p=dropout,
        is_causal=causal and mask is None,
        scale=scale,
        enable_gqa=query_nHLC.shape[1] != key_nKLC.shape[1],
    )
    return mixed_nHLC[:, :, -length:]


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
