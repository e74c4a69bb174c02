"""From token states to one vector a text: pure functions.

Shapes: B texts, T tokens (padding included), D hidden size. ``mask_BT`` is 1 on a text's tokens, prompt included, and
0 on padding, which may stand on either side; ``span_BT`` is 1 on the text's own tokens alone. Everything is computed
in float32: half precision overflows in a sum over tokens.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmindex.encode.spec import Pooling


def last_position(mask_BT: Tensor) -> Tensor:
    """Position of each row's last token, ``(B,)``: right for padding on either side."""
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return (mask_BT * (positions_T + 1)).argmax(dim=1)


def first_position(mask_BT: Tensor) -> Tensor:
    """Position of each row's first token, ``(B,)``."""
    return mask_BT.to(torch.int64).argmax(dim=1)


def last(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """State of the last token; with a causal model the only one that has seen everything."""
    return _at(hidden_BTD, last_position(mask_BT))


def first(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """State of the first token; of use with bidirectional attention."""
    return _at(hidden_BTD, first_position(mask_BT))


def mean(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """Mean over all tokens, prompt included."""
    return _weighted(hidden_BTD, mask_BT.float())


def mean_text(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """Mean over the text's own tokens; over all tokens for a text that has none."""
    empty_B1 = span_BT.sum(dim=1, keepdim=True) == 0
    return _weighted(hidden_BTD, torch.where(empty_B1, mask_BT, span_BT).float())


def weighted_mean(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """Mean with weights 1, 2, 3, ... along the tokens (SGPT, Muennighoff 2022, section 3.1)."""
    return _weighted(hidden_BTD, mask_BT * mask_BT.cumsum(dim=1).float())


def suffix_mean(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """Mean with weights 1, 2, 3, ... over the prompt's tokens after the text, each of which has read all of it.

    With a prompt that ends with its text, or for an empty text, the last token.
    """
    return _weighted(hidden_BTD, _suffix_weights(mask_BT, span_BT).float())


def max_(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """Largest value of each dimension over all tokens."""
    return hidden_BTD.float().masked_fill(mask_BT.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)


def last_mean(hidden_BTD: Tensor, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """Last token and mean side by side, each of unit length first: ``(B, 2 D)``."""
    halves = (last(hidden_BTD, mask_BT, span_BT), mean(hidden_BTD, mask_BT, span_BT))
    return torch.cat([torch.nn.functional.normalize(half, dim=1) for half in halves], dim=1)


def read_positions(pooling: Pooling, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """``(B, T) bool``: the states that a pooling reads; what stands elsewhere does not change its vector."""
    if pooling == "suffix_mean":
        return _suffix_weights(mask_BT, span_BT) > 0
    if pooling in ("last", "eos", "first"):
        position_B = first_position(mask_BT) if pooling == "first" else last_position(mask_BT)
        return torch.arange(mask_BT.shape[1], device=mask_BT.device) == position_B.unsqueeze(1)
    return mask_BT.bool()


def _suffix_weights(mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """1, 2, 3, ... on the tokens after the text; 1 on the last token where there are none."""
    last_B = last_position(mask_BT)
    after_B = torch.where(span_BT.sum(dim=1) > 0, last_position(span_BT) + 1, last_B)
    positions_T = torch.arange(mask_BT.shape[1], device=mask_BT.device)
    return (positions_T - torch.minimum(after_B, last_B).unsqueeze(1) + 1).clamp(min=0) * mask_BT


def _at(hidden_BTD: Tensor, position_B: Tensor) -> Tensor:
    rows = torch.arange(hidden_BTD.shape[0], device=hidden_BTD.device)
    return hidden_BTD[rows, position_B].float()


def _weighted(hidden_BTD: Tensor, weight_BT: Tensor) -> Tensor:
    total_BD = torch.einsum("btd,bt->bd", hidden_BTD.float(), weight_BT)
    return total_BD / weight_BT.sum(dim=1, keepdim=True)


POOLERS: dict[Pooling, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "last": last,
    "eos": last,  # the encoder has appended the EOS token, so the last token is it
    "mean": mean,
    "mean_text": mean_text,
    "weighted_mean": weighted_mean,
    "suffix_mean": suffix_mean,
    "max": max_,
    "first": first,
    "last_mean": last_mean,
}
"""Function ``(hidden_BTD, mask_BT, span_BT) -> (B, D or 2 D) float32`` of each pooling."""


def pooled_width(pooling: Pooling, hidden_size: int) -> int:
    """Length of the vectors that a pooling gives."""
    return 2 * hidden_size if pooling == "last_mean" else hidden_size
