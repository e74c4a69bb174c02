"""Which texts go through the model, which together, and how they are laid out: pure functions of tokens.

Of equal texts one goes. Texts of one window are sorted by length, so that equal lengths lie side by side and little
padding is computed where there is any. They are cut into batches whose padded size stays within a budget of tokens, so
that memory does not depend on how long the texts happen to be. The plan is a pure function of the window: a resumed run
forms the same batches and so gets the same bits.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmindex.records import Tokens


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


def distinct(tokens: Tokens) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Find equal rows.

    Returns:
        ``(m,) int64`` row numbers, of the first row of each kind; ``(n,) int64``, for each row its place among these.
    """
    first: list[int] = []
    seen: dict[tuple[bytes, bytes], int] = {}
    same = np.empty(len(tokens), np.int64)
    for row in range(len(tokens)):
        ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
        same[row] = seen.setdefault((ids.tobytes(), tokens.text_spans[row].tobytes()), len(first))
        if same[row] == len(first):
            first.append(row)
    return np.array(first, np.int64), same


def padded(tokens: Tokens, batch: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Lay rows below each other, padded on the right.

    Args:
        tokens: the window's.
        batch: ``(B,) int64`` row numbers.

    Returns:
        each ``(B, T) int64``: the ids, 0 on padding; 1 on the rows' tokens; 1 on the texts' own.
    """
    lengths = tokens.lengths[batch]
    positions = np.arange(lengths.max())
    mask = positions < lengths[:, None]
    spans = tokens.text_spans[batch]
    span = (positions >= spans[:, :1]) & (positions < spans[:, 1:])
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]] for row in batch])
    return ids, mask.astype(np.int64), span.astype(np.int64)
