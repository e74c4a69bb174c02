"""The order in which Prim's algorithm finds a spanning tree's edges: it decides ties the way the hdbscan package does.

Ties are the rule in mutual reachability, not the exception: all edges that a point's core distance decides have that
weight. Which of them a tree holds, and in which order they merge, changes no distance at which two points come
together, but it does change into which of two clusters a small group falls; for "leaf" selection of small clusters
that moves one label in ten. The package walks from row 0, always to the nearest point, the lowest row among equals, and
sorts what it found with NumPy's default sort. The same walk over the tree and its ties alone gives the same labels.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

from llmindex.records import Rows


def prim_order(
    edges: Rows, weights: NDArray[np.float64], ties: Rows, tie_weights: NDArray[np.float64]
) -> tuple[Rows, NDArray[np.float64]]:
    """Return the spanning tree of the same weights that Prim's algorithm finds from row 0, and its weights, as found.

    Args:
        edges: ``(n - 1, 2)``, a minimum spanning tree.
        weights: of its edges.
        ties: ``(m, 2)``, edges of the graph that may weigh as much as one of the tree that they could replace.
        tie_weights: of those; computed as those of the tree, so that equal weights are equal numbers.
    """
    starts, ends, lengths = _adjacency(edges, weights, ties, tie_weights)
    count = len(edges) + 1
    nearest = [np.inf] * count
    reached = [False] * count
    found: list[tuple[int, int]] = []
    found_weights: list[float] = []
    heap: list[tuple[float, int, int, int]] = []
    row = start = 0
    length = 0.0
    while len(found) < count - 1:
        reached[row] = True
        for place in range(starts[row], starts[row + 1]):
            end, length = ends[place], lengths[place]
            if not reached[end] and length < nearest[end]:
                nearest[end] = length
                heapq.heappush(heap, (length, end, len(found), row))
        while reached[row]:
            length, row, _, start = heapq.heappop(heap)
        found.append((start, row))
        found_weights.append(length)
    return np.array(found, np.int64).reshape(-1, 2), np.array(found_weights, np.float64)


def _adjacency(
    edges: Rows, weights: NDArray[np.float64], ties: Rows, tie_weights: NDArray[np.float64]
) -> tuple[list[int], list[int], list[float]]:
    """Return for each row where its edges begin, and all edges' ends and weights (both directions)."""
    useful = np.isin(tie_weights, weights)
    pairs = np.concatenate([edges, ties[useful]])
    lengths = np.tile(np.concatenate([weights, tie_weights[useful]]), 2)
    left, right = np.concatenate([pairs, pairs[:, ::-1]]).T
    order = np.argsort(left, kind="stable")
    starts = np.searchsorted(left[order], np.arange(len(edges) + 2))
    return starts.tolist(), right[order].tolist(), lengths[order].tolist()
