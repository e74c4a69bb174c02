"""How many of the true nearest neighbours an index finds, and the least search effort that finds enough.

Stored vectors stand in for queries, and none counts as its own neighbour. Among documents that are equally near,
as duplicates are, any will do: an index is not blamed for choosing others than exact search did.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from llmindex.index.planner import require_faiss
from llmindex.records import Rows, Vectors
from llmindex.store.reader import VectorStore

NEIGHBORS: Final = 10
"""Recall is measured on so many nearest neighbours."""

SAMPLE: Final = 1_000
"""Queries in a sample: recall is known to a percent or better."""

# Scores closer than this are equal, up to the order in which products were summed.
_EQUAL = 1e-6


@dataclass(frozen=True, slots=True)
class Sample:
    """Stored vectors as queries, and what exact search finds for them.

    Attributes:
        rows: which vectors, ``(q,)``.
        queries: the vectors, ``(q, dim)``.
        nearest: rows of their true neighbours, ``(q, k)``; k is 10, or less where there are not so many.
        scores: score of the last of them, ``(q,)``.
        tied: whether one more document is just as near as the last, ``(q,)``.
    """

    rows: Rows
    queries: Vectors
    nearest: Rows
    scores: NDArray[np.float32]
    tied: NDArray[np.bool_]

    def part(self, start: int, stop: int) -> "Sample":
        """Some of the queries."""
        cut = slice(start, stop)
        return Sample(self.rows[cut], self.queries[cut], self.nearest[cut], self.scores[cut], self.tied[cut])


def draw_sample(store: VectorStore, count: int, seed: int) -> Sample:
    """Draw queries, and find their neighbours in one pass over the store.

    Args:
        store: where the vectors are.
        count: how many queries; all of the vectors if there are not so many.
        seed: of the draw.
    """
    random = np.random.default_rng(seed)
    rows = random.choice(store.count, min(count, store.count), replace=False).astype(np.int64)
    queries = gather(store, rows)
    k = min(NEIGHBORS, store.count - 1)
    nearest, scores = _search_exactly(store, rows, queries, min(k + 1, store.count - 1))
    last = scores[:, k - 1] if k else np.zeros(len(rows), np.float32)
    tied = last - scores[:, k] <= _EQUAL if scores.shape[1] > k else np.zeros(len(rows), bool)
    return Sample(rows, queries, nearest[:, :k], last, tied)


def gather(store: VectorStore, rows: Rows) -> Vectors:
    """Vectors of many rows in one pass over the store, ``(len(rows), dim)``: without a second copy of them."""
    order = np.argsort(rows)
    ascending = rows[order]
    gathered = np.empty((len(rows), store.dim), np.float32)
    start = done = 0
    for block in store.iter_vectors():
        stop = int(np.searchsorted(ascending, start + len(block)))
        gathered[order[done:stop]] = block[ascending[done:stop] - start]
        start, done = start + len(block), stop
    return gathered


def _search_exactly(store: VectorStore, rows: Rows, queries: Vectors, k: int) -> tuple[Rows, NDArray[np.float32]]:
    """The k nearest of each query but itself, nearest first: rows and scores, both ``(q, k)``."""
    faiss = require_faiss()
    nearest = np.empty((len(rows), 0), np.int64)
    scores = np.empty((len(rows), 0), np.float32)
    start = 0
    for block in store.iter_vectors():
        more_scores, more = faiss.knn(queries, block, min(k + 1, len(block)), metric=faiss.METRIC_INNER_PRODUCT)
        more += start
        more_scores[more == rows[:, None]] = -np.inf
        nearest, scores = np.hstack([nearest, more]), np.hstack([scores, more_scores])
        best = np.argsort(-scores, axis=1, kind="stable")[:, : k + 1]
        nearest, scores = np.take_along_axis(nearest, best, 1), np.take_along_axis(scores, best, 1)
        start += len(block)
    return nearest[:, :k], scores[:, :k]


def recalls(sample: Sample, found: Rows, store: VectorStore) -> NDArray[np.float64]:
    """The share of each query's true neighbours that an index found, ``(q,)``.

    Args:
        sample: the queries and their true neighbours.
        found: rows that the index found, nearest first, at least one more than the sample has neighbours, since a
            query finds itself, too; -1 for none; ``(q, m)``.
        store: where the vectors are.
    """
    k = sample.nearest.shape[1]
    if not k:
        return np.ones(len(sample.rows))
    itself = found == sample.rows[:, None]
    others = np.take_along_axis(found, np.argsort(itself, axis=1, kind="stable"), 1)[:, :k]
    hit = (others[:, :, None] == sample.nearest[:, None, :]).any(axis=2)
    doubtful = ~hit & (others >= 0) & sample.tied[:, None]
    if doubtful.any():
        query, place = np.nonzero(doubtful)
        vectors = store.take_vectors(others[query, place])
        exact = np.einsum("nd,nd->n", sample.queries[query], vectors)
        hit[query, place] = exact >= sample.scores[query] - _EQUAL
    shares: NDArray[np.float64] = hit.mean(axis=1)
    return shares


def least_effort(reaches: Callable[[int], bool], start: int, limit: int) -> int:
    """The least effort that reaches the goal, to within an eighth: doubled first, then halved in between.

    Args:
        reaches: whether an effort reaches the goal; more effort never does worse, but for noise.
        start: the least that is tried.
        limit: the most; it is the answer if nothing reaches the goal.
    """
    failed, effort = start - 1, min(start, limit)
    while effort < limit and not reaches(effort):
        failed, effort = effort, min(2 * effort, limit)
    while effort - failed > max(1, effort // 8):
        middle = (failed + effort) // 2
        if reaches(middle):
            effort = middle
        else:
            failed = middle
    return effort
