"""Which texts go through the model together: a pure plan over lengths.

Texts of one window are sorted by length, so that little padding is computed, and cut into batches whose padded size
stays within a budget of tokens, so that memory does not depend on how long the texts happen to be. The plan is a pure
function of the lengths: a resumed run forms the same batches and so gets the same bits.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


def plan(lengths: NDArray[np.int64], budget: int) -> Iterator[NDArray[np.int64]]:
    """Cut row numbers into batches, longest rows first.

    Args:
        lengths: ``(n,) int64``, tokens of each row, all at least 1.
        budget: the most tokens of a batch, padding counted; a single longer row is a batch of its own.

    Yields:
        ``(batch,) int64`` row numbers, by falling length; each row in exactly one batch.
    """
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        size = max(1, budget // longest)
        yield order[start : start + size]
        start += size
