"""The exact minimum spanning tree of mutual reachability, by Borůvka's algorithm.

Every component is joined along its lightest edge out until one is left, and that edge is usually in the neighbour
graph: no point outside a row's k neighbours is nearer than the k-th. Only rows for which that bound leaves a doubt are
compared with all points, in tiles of a matrix product. Components with many such rows wait, because their neighbours
usually come to them first: the giant component is almost never searched. Memory is O(n·k).
"""

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.components import Components
from llmindex.cluster.neighbors import NeighborGraph, Squares
from llmindex.progress import ProgressCallback
from llmindex.records import Rows, Vectors

_TILE = (256, 2048)
"""Rows and columns that are compared at a time: what stays in a processor's cache."""

_NEIGHBORS = 1 << 20
"""Neighbours that are looked at again at a time: a small part of the graph."""

_PATIENCE = 0.05
"""Share of all points that are compared with all others in one round; dearer components wait."""


def exact_tree(
    vectors: Vectors, graph: NeighborGraph, core: Squares, on_progress: ProgressCallback | None = None
) -> Rows:
    """Return the edges of the minimum spanning tree, ``(n - 1, 2)``.

    Args:
        vectors: ``(n, dim) float32``, centred, pairwise different.
        graph: their exact neighbours.
        core: ``(n,)``, squared core distances.
        on_progress: told of the stage "spanning tree".
    """
    search = _Search(vectors, graph, core, on_progress)
    while search.components.count > 1:
        search.round()
    return search.components.edges()


class _Search:
    """What is known of each point's lightest edge out of its component.

    ``value[i]`` is the lightest edge known from i to another component and ``target[i]`` its end (infinite and -1 where
    none is known); no edge out of i is lighter than ``bound[i]``. So a value at or below the bound is the lightest.
    """

    def __init__(
        self, vectors: Vectors, graph: NeighborGraph, core: Squares, on_progress: ProgressCallback | None
    ) -> None:
        count = len(vectors)
        self.compared = Compared(vectors, core)
        self.components = Components(count, on_progress)
        self.neighbors = graph.rows
        self.weights: Squares = core[graph.rows]
        np.maximum(self.weights, core[:, None], out=self.weights)
        np.maximum(self.weights, graph.squared, out=self.weights)
        complete = graph.rows.shape[1] == count - 1
        self.bound: Squares = np.full(count, np.inf, np.float32) if complete else graph.squared[:, -1].copy()
        self.value: Squares = np.full(count, np.inf, np.float32)
        self.target: Rows = np.full(count, -1, np.int64)

    def round(self) -> None:
        """Join every component that is not too dear to another."""
        self.refresh()
        component = self.components.of
        lightest = np.full(self.components.count, np.inf, np.float32)
        np.minimum.at(lightest, component, self.value)
        doubtful = self.bound < lightest[component]
        active = self.affordable(doubtful)
        rows = np.flatnonzero(doubtful & active[component])
        self.value[rows], self.target[rows] = self.compared.lightest_out(rows, component)
        self.bound[rows] = self.value[rows]
        self.join(active)

    def refresh(self) -> None:
        """Find the lightest neighbour edge anew where the one known no longer leads out of the component."""
        component = self.components.of
        every = np.flatnonzero((self.target < 0) | (component[self.target] == component))
        size = max(1, _NEIGHBORS // max(1, self.neighbors.shape[1]))
        for start in range(0, len(every), size):
            stale = every[start : start + size]
            neighbors = self.neighbors[stale]
            inside = component[neighbors] == component[stale, None]
            weights = np.where(inside, np.float32(np.inf), self.weights[stale])
            place = weights.argmin(axis=1)
            each = np.arange(len(stale))
            self.value[stale] = weights[each, place]
            self.target[stale] = np.where(np.isinf(self.value[stale]), -1, neighbors[each, place])

    def affordable(self, doubtful: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which components are to be joined in this round: all but the dearest, and at least one."""
        components = self.components
        cost = np.bincount(components.of[doubtful], minlength=components.count)
        order = np.argsort(cost, kind="stable")
        active = np.zeros(components.count, bool)
        active[order[np.cumsum(cost[order]) <= _PATIENCE * len(self.value)]] = True
        active[order[-1]] = False
        active[order[0]] = True
        return active

    def join(self, active: NDArray[np.bool_]) -> None:
        """Join each active component with another along the lightest edge known out of it."""
        component = self.components.of
        order = np.argsort(self.value, kind="stable")
        _, first = np.unique(component[order], return_index=True)
        lightest = order[np.sort(first)]
        starts = lightest[active[component[lightest]]]
        self.components.join(starts, self.target[starts])


class Compared:
    """Points that are compared with others by matrix products: squared mutual reachability, in float32."""

    def __init__(self, vectors: Vectors, core: Squares) -> None:
        """Take vectors, ``(n, dim) float32``, and their squared core distances."""
        norms = np.einsum("ij,ij->i", vectors, vectors)[:, None]
        ones = np.ones_like(norms)
        # The squared distance as one product: |x|² - 2xy + |y|².
        self._left = np.hstack([-2 * vectors, norms, ones])
        self._right = np.hstack([vectors, ones, norms])
        self._core = core

    def lightest_out(self, rows: Rows, component: Rows) -> tuple[Squares, Rows]:
        """Return the lightest edge of each row to any point of another component, and its end, both ``(m,)``."""
        value, target = np.full(len(rows), np.inf, np.float32), np.full(len(rows), -1, np.int64)
        high, wide = _TILE
        tile = np.empty(_TILE, np.float32)
        for start in range(0, len(rows), high):
            part = slice(start, start + high)
            own = rows[part]
            left, each = self._left[own], np.arange(len(own))
            for begin in range(0, len(component), wide):
                columns = slice(begin, begin + wide)
                right = self._right[columns]
                squares = np.matmul(left, right.T, out=tile[: len(own), : len(right)])
                np.maximum(squares, self._core[columns], out=squares)
                np.copyto(squares, np.inf, where=component[own, None] == component[columns])
                place = squares.argmin(axis=1)
                nearest = squares[each, place]
                better = nearest < value[part]
                value[part] = np.where(better, nearest, value[part])
                target[part] = np.where(better, begin + place, target[part])
        return np.maximum(value, self._core[rows]), target
