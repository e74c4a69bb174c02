"""Exact scores for what coarse codes found: many candidates, of which the stored vectors pick the nearest."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmindex.records import Rows, Vectors
from llmindex.store.reader import VectorStore

# Candidates whose vectors are in memory at once: 25 MB of 384 numbers.
_AT_ONCE: Final = 16_384


def nearest_of(
    store: VectorStore, queries: Vectors, candidates: Rows, k: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The nearest of each query's candidates: scores and rows, ``(q, k)``; -inf and -1 where there are not so many.

    Args:
        store: where the vectors are.
        queries: ``(q, dim)``.
        candidates: their rows, ``(q, m)``, each but once; -1 for none.
        k: at most m.
    """
    scores = np.empty((len(queries), k), np.float32)
    rows = np.empty((len(queries), k), np.int64)
    step = max(1, _AT_ONCE // max(1, candidates.shape[1]))
    for start in range(0, len(queries), step):
        some = candidates[start : start + step]
        distinct, where = np.unique(np.maximum(some, 0), return_inverse=True)
        vectors = store.take_vectors(distinct)[where.reshape(some.shape)]
        exact = np.einsum("qd,qmd->qm", queries[start : start + step], vectors)
        exact[some < 0] = -np.inf
        best = np.lexsort((some, -exact), axis=1)[:, :k]
        scores[start : start + step] = np.take_along_axis(exact, best, 1)
        rows[start : start + step] = np.take_along_axis(some, best, 1)
        store.release()  # what was read is mapped, a page for each row
    return scores, rows
