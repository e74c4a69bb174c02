"""Attention over rows of different lengths at once, as a GPU wants it: one kernel, not one for each length.

FlashAttention where torch has it for rows end to end, which takes 16 bits and compute capability 8.0; else
FlexAttention, which torch compiles for rows like these. Both want queries, keys and values end to end.

Shapes: B rows, N tokens of queries and M of keys in all; P tokens before every row; H heads of queries, K of keys and
values, C values in each.
"""

import logging
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from llmindex.encode.pack import Pack

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

logger = logging.getLogger(__name__)

Kernel = Callable[[Tensor, Tensor, Tensor, Pack, float, bool], Tensor]
"""From queries, keys, values, pack, scale and causal to ``(N, H, C)``; keys have what stands before each row, too."""

_HALF = (torch.bfloat16, torch.float16)
# For so many lengths or fewer, as in a question or what a model is probed with at load time, nothing is compiled.
_FEW_LENGTHS = 8
_BLOCK = 128  # queries, and keys, that FlexAttention computes or leaves out together


def kernel(query_HNC: Tensor, key_KNC: Tensor, pack: Pack) -> Kernel | None:
    """What computes these rows at once on their device; None where nothing does."""
    device, dtype = query_HNC.device, query_HNC.dtype
    if dtype in _HALF and has_varlen(device):
        return by_varlen
    if query_HNC.requires_grad or len(set(pack.lengths)) <= _FEW_LENGTHS:
        return None
    return by_flex if has_flex(device, dtype, len(query_HNC), len(key_KNC), query_HNC.shape[2]) else None


@cache
def has_varlen(device: torch.device) -> bool:
    """Whether torch has a kernel for rows end to end, and the device is one that it runs on."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return False
    try:
        from torch.nn.attention import varlen  # noqa: F401
    except ImportError:  # torch before 2.10
        return False
    return True


def by_varlen(query_HNC: Tensor, key_KMC: Tensor, value_KMC: Tensor, pack: Pack, scale: float, causal: bool) -> Tensor:
    """FlashAttention; its causal mask ends where both queries and keys end."""
    from torch.nn.attention.varlen import varlen_attn

    longest = max(pack.lengths)
    mixed = varlen_attn(
        query_HNC.transpose(0, 1),
        key_KMC.transpose(0, 1),
        value_KMC.transpose(0, 1),
        pack.ends_B1,
        ends_of_keys(pack),
        longest,
        longest + pack.before,
        scale=scale,
        window_size=(-1, 0) if causal else (-1, -1),
        enable_gqa=len(query_HNC) != len(key_KMC),
    )
    assert isinstance(mixed, Tensor)
    return mixed


@cache
def has_flex(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> bool:
    """Whether FlexAttention runs on this device for such heads."""
    return device.type == "cuda" and compiles(device, dtype, heads, key_heads, size)


def compiles(device: torch.device, dtype: torch.dtype, heads: int, key_heads: int, size: int) -> bool:
    """Try FlexAttention on a few tokens, of which the result is known: what compiles it wants more than torch."""
    mask_BT = (torch.arange(3) < torch.tensor([[3], [1], [2]])).long()
    pack = Pack.of(mask_BT, mask_BT, device)
    query, key = (torch.ones(count, 6, size, dtype=dtype, device=device) for count in (heads, key_heads))
    value = torch.arange(6, dtype=dtype, device=device)[:, None].expand_as(key).contiguous()
    means_N11 = torch.tensor([0, 0.5, 1, 3, 4, 4.5])[:, None, None]  # of each row so far
    try:
        with torch.inference_mode():
            mixed_NHC = by_flex(query, key, value, pack, 1.0, True).float().cpu()
            return bool(torch.allclose(mixed_NHC, means_N11.expand_as(mixed_NHC), atol=0.05))
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # the compiler's own: of many kinds, from many modules
        logger.info("attention is computed length by length, for FlexAttention cannot be compiled here: %s", error)
        return False


def by_flex(query_HNC: Tensor, key_KMC: Tensor, value_KMC: Tensor, pack: Pack, scale: float, causal: bool) -> Tensor:
    """FlexAttention (Dong et al. 2024, arXiv 2412.05496)."""
    if causal not in pack.masks:  # it is the same in every layer
        pack.masks[causal] = _block_mask(pack, causal)
    mixed = _flex(query_HNC.device.type)(
        query_HNC[None],
        key_KMC[None],
        value_KMC[None],
        block_mask=pack.masks[causal],
        scale=scale,
        enable_gqa=len(query_HNC) != len(key_KMC),
    )
    return mixed[0].transpose(0, 1)


@cache
def _flex(device_type: str) -> Callable[..., Tensor]:
    """FlexAttention; compiled, unless on a CPU, where all scores are computed, which does for a test."""
    from torch.nn.attention.flex_attention import flex_attention

    if device_type == "cpu":
        return flex_attention
    compiled: Callable[..., Tensor] = torch.compile(flex_attention, dynamic=True)
    return compiled


def _block_mask(pack: Pack, causal: bool) -> "BlockMask":
    """Which keys a query sees: those of its row, which do not come later where it is causal.

    Rows follow each other, so that a block of queries and one of keys have a row in common if neither ends before the
    other begins; no mask of all queries by all keys is made.
    """
    from torch.nn.attention.flex_attention import BlockMask

    ends = ends_of_keys(pack)
    place_N = pack.positions_1N[0]
    row_N = _rows(pack.ends_B1, len(place_N))
    row_M = _rows(ends, len(place_N) + pack.before * len(pack.lengths))
    place_M = torch.arange(len(row_M), device=ends.device) - ends[row_M]

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        same = row_N[query] == row_M[key]
        return same & (place_M[key] <= place_N[query]) if causal else same

    first_Q, last_Q = _first_and_last(row_N)
    first_V, last_V = _first_and_last(row_M)
    shared_QV = (first_Q[:, None] <= last_V) & (first_V <= last_Q[:, None])
    return BlockMask.from_kv_blocks(
        shared_QV.sum(dim=1, dtype=torch.int32)[None, None],
        shared_QV.to(torch.int8).argsort(dim=1, descending=True, stable=True).to(torch.int32)[None, None],
        BLOCK_SIZE=_BLOCK,
        mask_mod=sees,
        seq_lengths=(len(row_N), len(row_M)),
    )


def _rows(ends_B1: Tensor, tokens: int) -> Tensor:
    """Row of each of so many tokens, from zero and the ends of the rows; a GPU is not waited for."""
    return torch.searchsorted(ends_B1[1:], torch.arange(tokens, device=ends_B1.device), right=True)


def _first_and_last(row_N: Tensor) -> tuple[Tensor, Tensor]:
    """First and last row of each block of tokens."""
    last_N = torch.arange(_BLOCK - 1, len(row_N) + _BLOCK - 1, _BLOCK, device=row_N.device).clamp(max=len(row_N) - 1)
    return row_N[::_BLOCK], row_N[last_N]


def ends_of_keys(pack: Pack) -> Tensor:
    """Zero, then where the keys of each row end, ``(B + 1,) int32``: what stands before a row counts as its own."""
    counts_B1 = torch.arange(len(pack.ends_B1), dtype=torch.int32, device=pack.ends_B1.device)
    return pack.ends_B1 + pack.before * counts_B1


def interleaved(before: tuple[Tensor, Tensor], own: tuple[Tensor, Tensor], pack: Pack) -> tuple[Tensor, Tensor]:
    """Keys and values ``(K, M, C)`` with what stands before every row, ``(K, P, C)``, at the head of each."""
    size, rows = pack.before, len(pack.lengths)
    device, tokens = pack.ends_B1.device, own[0].shape[1]
    # A row's own tokens move behind as many others as there are rows up to it.
    own_N = torch.arange(tokens, device=device) + size * (_rows(pack.ends_B1, tokens) + 1)
    first_BP = ends_of_keys(pack)[:-1, None] + torch.arange(size, device=device)
    made = []
    for first_KPC, own_KNC in zip(before, own, strict=True):
        both_KMC = own_KNC.new_empty(len(own_KNC), tokens + rows * size, own_KNC.shape[2])
        both_KMC[:, own_N] = own_KNC
        both_KMC[:, first_BP.flatten()] = first_KPC.repeat(1, rows, 1)
        made.append(both_KMC)
    return made[0], made[1]
