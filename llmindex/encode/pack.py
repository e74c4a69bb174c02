"""Where the rows of a batch are once they lie end to end, without padding.

Shapes: B rows of at most T tokens, N tokens in all.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from llmindex.encode.device import send

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


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
        masks: what a kernel has made of the rows, by whether it is causal: the same in every layer.
    """

    lengths: list[int]
    ids_1N: Tensor
    positions_1N: Tensor
    places_BT: Tensor
    ends_B1: Tensor
    before: int = 0
    masks: dict[bool, "BlockMask"] = field(default_factory=dict, compare=False)

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
