"""What a search of vectors finds, and the search that compares with every vector."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.index.planner import require_faiss
from llmindex.records import Rows, Vectors


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest stored vectors of some queries, nearest first.

    Attributes:
        rows: ``(q, k) int64``; -1 where fewer than k were found, at the end.
        scores: inner products, ``(q, k) float32``; -inf where there is no row.
    """

    rows: Rows
    scores: NDArray[np.float32]

    @classmethod
    def ordered(cls, scores: NDArray[np.float32], rows: Rows) -> "Neighbors":
        """What FAISS found, by descending score; equal scores by ascending row."""
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)
        return cls(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))


def compare(queries: Vectors, blocks: Iterable[tuple[Rows, Vectors]], k: int) -> Neighbors:
    """The ``k`` nearest of each query, by comparing with every vector.

    Args:
        queries: ``(q, dim) float32``.
        blocks: rows ``(n,) int64`` and vectors ``(n, dim) float32``, a part at a time; k or more in all.
        k: at least 1.
    """
    faiss = require_faiss()
    best = Neighbors(np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32))
    for rows, vectors in blocks:
        scores, places = faiss.knn(queries, vectors, min(k, len(rows)), metric=faiss.METRIC_INNER_PRODUCT)
        found = Neighbors.ordered(np.hstack([best.scores, scores]), np.hstack([best.rows, rows[places]]))
        best = Neighbors(found.rows[:, :k], found.scores[:, :k])
    return best
