"""The k nearest neighbours of every vector: the graph that the spanning tree starts from.

Distances are euclidean and kept squared: nothing here or in the tree's search needs the root, and comparing squares is
the same. Matrix products (:mod:`~llmindex.cluster.lookup`) give a squared distance as a small difference of large
numbers, so close pairs are computed again from their difference.
"""

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.cells import Cells
from llmindex.cluster.lookup import Lookup
from llmindex.cluster.lookup import NeighborGraph as NeighborGraph
from llmindex.cluster.lookup import Squares as Squares
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors

_BLOCK = 2048
_CLOSE = 1e-2
"""Squared distance, as a share of the mean squared norm, below which float32 products are not trusted."""


def neighbor_graph(
    vectors: Vectors,
    k: int,
    cells: Cells | None = None,
    *,
    exact: bool,
    on_progress: ProgressCallback | None = None,
) -> NeighborGraph:
    """Find the k nearest neighbours of every vector, or all others where there are no more than k.

    Args:
        vectors: ``(n, dim) float32`` of any length, n >= 1, pairwise different.
        k: neighbours of each, itself not counted.
        cells: of the vectors; None to divide them.
        exact: compare every pair; otherwise look into the cells around each vector, which finds nearly all.
        on_progress: told of the stage "neighbors".
    """
    count = len(vectors)
    k = min(k, count - 1)
    rows = np.empty((count, k), np.int64)
    squared = np.empty((count, k), np.float32)
    close = _CLOSE * float(np.einsum("ij,ij->", vectors, vectors, dtype=np.float64)) / count
    done = 0
    for own, found in Lookup(vectors, cells or Cells.of(vectors), k + 1, exact=exact).own(k):
        rows[own], squared[own] = _recompute_close(vectors, own, found, close)
        done += len(own)
        if on_progress is not None:
            on_progress(Progress("neighbors", done, count, "vectors"))
    return NeighborGraph(rows, squared)


def squared_distances(vectors: Vectors, left: Rows, right: Rows) -> NDArray[np.float64]:
    """Return the squared distances of the pairs ``(left[i], right[i])``, from their differences in float64."""
    result = np.empty(len(left), np.float64)
    for start in range(0, len(left), _BLOCK):
        part = slice(start, start + _BLOCK)
        difference = vectors[left[part]].astype(np.float64) - vectors[right[part]]
        result[part] = np.einsum("ij,ij->i", difference, difference)
    return result


def _recompute_close(vectors: Vectors, own: Rows, found: NeighborGraph, close: float) -> tuple[Rows, Squares]:
    rows, squared = found.rows, found.squared
    row, place = np.nonzero(squared < close)
    if len(row):
        squared[row, place] = squared_distances(vectors, own[row], rows[row, place])
        order = np.argsort(squared, axis=1, kind="stable")
        rows, squared = np.take_along_axis(rows, order, 1), np.take_along_axis(squared, order, 1)
    return rows, squared
