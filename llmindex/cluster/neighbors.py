"""The k nearest neighbours of every vector: the graph that the spanning tree starts from.

Distances are euclidean and kept squared: nothing here or in the tree's search needs the root, and comparing squares is
the same. FAISS multiplies blocks of vectors (exact), or searches an inverted file where n² products are too many. Both
get a squared distance as a small difference of large numbers, so close pairs are computed again from their difference.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.index.planner import require_faiss
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors

_BLOCK = 2048
_CLOSE = 1e-2
"""Squared distance, as a share of the mean squared norm, below which float32 products are not trusted."""


@dataclass(frozen=True, slots=True)
class NeighborGraph:
    """The nearest neighbours of every row, nearest first, the row itself left out.

    Attributes:
        rows: ``(n, k) int64``; -1 where the search found fewer.
        squared: ``(n, k) float32`` squared euclidean distances; infinite where the row is -1.
    """

    rows: Rows
    squared: NDArray[np.float32]


def neighbor_graph(
    vectors: Vectors, k: int, *, exact: bool, on_progress: ProgressCallback | None = None, stage: str = "neighbors"
) -> NeighborGraph:
    """Find the k nearest neighbours of every vector, or all others where there are no more than k.

    Args:
        vectors: ``(n, dim) float32`` of any length, n >= 1, pairwise different.
        k: neighbours of each, itself not counted.
        exact: compare every pair; otherwise an inverted file, which finds about 95 % of them.
        on_progress: told after each block.
        stage: as what.
    """
    count = len(vectors)
    k = min(k, count - 1)
    rows = np.empty((count, k), np.int64)
    squared = np.empty((count, k), np.float32)
    search = _exact_search(vectors) if exact else _inverted_file(vectors)
    close = _CLOSE * float(np.einsum("ij,ij->", vectors, vectors, dtype=np.float64)) / count
    for start in range(0, count, _BLOCK):
        stop = min(start + _BLOCK, count)
        found_squared, found_rows = search(vectors[start:stop], k + 1)
        block = _without_self(found_squared, found_rows, start)
        squared[start:stop], rows[start:stop] = _recompute_close(vectors, start, *block, close)
        if on_progress is not None:
            on_progress(Progress(stage, stop, count, "vectors"))
    return NeighborGraph(rows, squared)


def squared_distances(vectors: Vectors, left: Rows, right: Rows) -> NDArray[np.float64]:
    """Return the squared distances of the pairs ``(left[i], right[i])``, from their differences in float64."""
    result = np.empty(len(left), np.float64)
    for start in range(0, len(left), _BLOCK):
        part = slice(start, start + _BLOCK)
        difference = vectors[left[part]].astype(np.float64) - vectors[right[part]]
        result[part] = np.einsum("ij,ij->i", difference, difference)
    return result


_SearchBlock = Callable[[Vectors, int], tuple[NDArray[np.float32], Rows]]


def _exact_search(vectors: Vectors) -> _SearchBlock:
    faiss = require_faiss()

    return lambda queries, k: faiss.knn(queries, vectors, k, metric=faiss.METRIC_L2)


def _inverted_file(vectors: Vectors) -> _SearchBlock:
    faiss = require_faiss()

    count, dim = vectors.shape
    lists = min(count, int(2 ** np.round(np.log2(4 * np.sqrt(count)))))
    index = faiss.index_factory(dim, f"IVF{lists},Flat", faiss.METRIC_L2)
    index.nprobe = 16
    # Eight rounds of k-means on 48 vectors a list: more trains for longer and finds no more.
    index.cp.niter, index.cp.min_points_per_centroid, index.cp.max_points_per_centroid = 8, 1, 48
    sample = np.random.default_rng(0).permutation(count)[: 48 * lists]
    index.train(vectors[np.sort(sample)])
    index.add(vectors)
    return lambda queries, k: index.search(queries, k)


def _without_self(squared: NDArray[np.float32], rows: Rows, start: int) -> tuple[NDArray[np.float32], Rows]:
    """Drop each row's own hit, or its farthest one where the search did not return the row itself."""
    own = rows == np.arange(start, start + len(rows))[:, None]
    own[~own.any(axis=1), -1] = True
    shape = (len(rows), rows.shape[1] - 1)
    rows, squared = rows[~own].reshape(shape), squared[~own].reshape(shape)
    return np.where(rows < 0, np.float32(np.inf), np.maximum(squared, 0)), rows


def _recompute_close(
    vectors: Vectors, start: int, squared: NDArray[np.float32], rows: Rows, close: float
) -> tuple[NDArray[np.float32], Rows]:
    row, place = np.nonzero(squared < close)
    if len(row):
        squared[row, place] = squared_distances(vectors, row + start, rows[row, place])
        order = np.argsort(squared, axis=1, kind="stable")
        squared, rows = np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)
    return squared, rows
