"""Which rows hold equal vectors.

Copies of one text are common, and each stage needs to know of them: their ties would be split at random in the tree,
and three central documents that are the same text say no more than one.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from llmindex.records import Rows, Vectors

_HASHES = 2


def first_rows(blocks: Iterable[Vectors]) -> Rows:
    """Return for each row the first row with the same vector, ``(n,) int64``.

    Args:
        blocks: the vectors in row order, each ``(m, dim) float32``.
    """
    hashes = [_hashes(block) for block in blocks if len(block)]
    if not hashes:
        return np.empty(0, np.int64)
    keys = np.concatenate(hashes).T
    order = np.lexsort(keys)  # stable: of equal ones the first comes first
    begins = np.concatenate([[True], (np.diff(keys[:, order]) != 0).any(axis=0)])
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(begins)[np.cumsum(begins) - 1]]
    return first


def _hashes(vectors: Vectors) -> NDArray[np.uint64]:
    """Return two hashes of each vector, ``(m, 2)``: sums of its bits, times random odd numbers, in 64 bits.

    Two different vectors share one with a chance of 2^-33 at most (of numbers that were float16, 2^-51), and both with
    the square of that: among a million vectors any two do with a chance of 10^-8, in the worst case.
    """
    # Adding zero turns -0.0 into 0.0: equal numbers must be equal bits.
    bits = (vectors + np.float32(0)).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(0).integers(0, 2**64, (_HASHES, bits.shape[1]), np.uint64) | np.uint64(1)
    return np.stack([np.einsum("ij,j->i", bits, each) for each in factors], axis=1)
