"""The order in which Prim's algorithm finds a spanning tree's edges: it decides ties the way the hdbscan package does.

Ties are the rule in mutual reachability, not the exception: all edges that a point's core distance decides have that
weight. Which of them a tree holds, and in which order they merge, changes no distance at which two points come
together, but it does change into which of two clusters a small group falls; for "leaf" selection of small clusters
that moves one label in ten. The package walks from row 0, always to the nearest point, the lowest row among equals, and
sorts what it found with NumPy's default sort. The same walk over the tree and its ties alone gives the same labels.
"""

import heapq
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from llmindex.records import Rows


def prim_order(
    edges: Rows, weights: NDArray[np.float64], starts: Rows, partners: NDArray[np.int32], core: NDArray[np.float64]
) -> tuple[Rows, NDArray[np.float64]]:
    """Return the spanning tree of the same weights that Prim's algorithm finds from row 0, and its weights, as found.

    Args:
        edges: ``(n - 1, 2)``, a minimum spanning tree.
        weights: of its edges.
        starts: ``(n + 1,)``, where in ``partners`` those of each row begin.
        partners: rows that may be joined as well instead, for the greater of both core distances; each pair both ways.
        core: ``(n,)``, core distances; those that decide a weight of the tree are equal numbers.
    """
    around = _Around(edges, weights, starts, partners, core)
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
        for end, length in around(row):
            if length < nearest[end] and not reached[end]:
                nearest[end] = length
                heapq.heappush(heap, (length, end, len(found), row))
        while reached[row]:
            length, row, _, start = heapq.heappop(heap)
        found.append((start, row))
        found_weights.append(length)
    return np.array(found, np.int64).reshape(-1, 2), np.array(found_weights, np.float64)


class _Around:
    """The edges of each row."""

    def __init__(
        self,
        edges: Rows,
        weights: NDArray[np.float64],
        starts: Rows,
        partners: NDArray[np.int32],
        core: NDArray[np.float64],
    ) -> None:
        left, right = np.concatenate([edges, edges[:, ::-1]]).T
        order = np.argsort(left, kind="stable")
        self._starts = np.searchsorted(left[order], np.arange(len(edges) + 2)).tolist()
        self._ends = right[order].tolist()
        self._lengths = np.tile(weights, 2)[order].tolist()
        self._weights = set(weights.tolist())
        self._tie_starts = starts.tolist()
        self._partners = partners  # an array: as a list, these alone would be ten times as large
        self._core = core.tolist()

    def __call__(self, row: int) -> Iterator[tuple[int, float]]:
        """Return the ends and weights of a row's edges: those of the tree, and those that may stand for one of them."""
        part = slice(self._starts[row], self._starts[row + 1])
        yield from zip(self._ends[part], self._lengths[part], strict=True)
        core, own = self._core, self._core[row]
        for end in self._partners[self._tie_starts[row] : self._tie_starts[row + 1]].tolist():
            length = max(own, core[end])
            if length in self._weights:
                yield end, length
