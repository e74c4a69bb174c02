"""The minimum spanning tree of mutual reachability: all that HDBSCAN needs to know of the vectors.

The mutual reachability of two points is the largest of their distance and their core distances, where a point's core
distance is that to its ``min_samples``-th neighbour, itself not counted (as the hdbscan package counts).

Up to ``EXACT_LIMIT`` points the tree is exact. Borůvka's algorithm joins every component along its lightest edge out
until one is left, and that edge is usually in the neighbour graph: no point outside a row's k neighbours is nearer than
the k-th. Only rows for which that bound leaves a doubt are compared with all points, in blocks of a matrix product.
Components with many such rows wait, because their neighbours usually come to them first: the giant component is
almost never searched. Above the limit the neighbour graph's own spanning forest is taken as it is, and its components
are joined by the same search from a sample of each one's points. Memory is O(n·k) either way.

The search compares squares in float32; core distances and weights are then computed from differences in float64. Equal
vectors are merged before and hang on their first row afterwards: a thousand copies of one text would otherwise fill
each other's neighbour lists.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.distinct import first_rows
from llmindex.cluster.edge_order import prim_order
from llmindex.cluster.neighbors import NeighborGraph, neighbor_graph, squared_distances
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors

if TYPE_CHECKING:
    from scipy.sparse import coo_array, csr_array

EXACT_LIMIT = 50_000
"""Points up to which every pair is compared: about 80 CPU seconds at 768 dimensions, growing with the square."""

NEIGHBORS = 32
"""Neighbours in the graph, where ``min_samples`` does not ask for more: in a graph of fewer, clusters break apart."""

_BLOCK = 512
_PATIENCE = 0.05
"""Share of all points that are compared with all others in one round; dearer components wait."""

_SAMPLE = 256
"""Points of a component that look for the others where a neighbour graph is in parts."""

Squares = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpanningTree:
    """A minimum spanning tree of n points, lightest edge first.

    Attributes:
        edges: ``(n - 1, 2) int64``, the rows that each edge joins.
        weights: ``(n - 1,) float64``, mutual reachability distances, ascending.
        core: ``(n,) float32``, distances to the neighbour before the ``min_samples``-th: what the hdbscan package
            keeps to place new points, for which a stored point is a neighbour more.
        graph: the neighbours of all rows; of equal vectors only the first is anyone's neighbour.
    """

    edges: Rows
    weights: NDArray[np.float64]
    core: NDArray[np.float32]
    graph: NeighborGraph


def spanning_tree(
    vectors: Vectors,
    min_samples: int,
    *,
    exact: bool | None = None,
    on_progress: ProgressCallback | None = None,
) -> SpanningTree:
    """Compute the minimum spanning tree of the mutual reachability of all vectors.

    Args:
        vectors: ``(n, dim) float32`` of any length, n >= 2.
        min_samples: neighbours that make a point dense, itself not counted; with fewer points, all others.
        exact: whether to compare all pairs; None for up to ``EXACT_LIMIT`` different vectors.
        on_progress: told of the stages "neighbors" and "spanning tree".
    """
    min_samples = min(min_samples, len(vectors) - 1)
    points = _Points.of(vectors)
    if exact is None:
        exact = len(points.vectors) <= EXACT_LIMIT
    # A shift changes no distance, and products of shorter vectors lose fewer digits.
    centred = points.vectors - points.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    graph = neighbor_graph(centred, max(NEIGHBORS, min_samples + 1), exact=exact, on_progress=on_progress)
    core_rows = _core_neighbors(graph, points.copies, min_samples)
    own = np.arange(len(centred))
    core = np.sqrt(squared_distances(points.vectors, own, core_rows))
    search = _Search(centred, graph, (core**2).astype(np.float32), on_progress)
    edges = search.exact() if exact else search.from_graph()
    weights = _weigh(points.vectors, core, edges)
    if exact:
        ties = _ties(graph, core, core_rows)
        edges, weights = _with_copies(points, core, edges, weights)
        tie_weights = np.maximum(core[ties[:, 0]], core[ties[:, 1]])
        edges, weights = prim_order(edges, weights, points.first[ties], tie_weights)
    else:
        edges, weights = _with_copies(points, core, edges, weights)
    order = np.argsort(weights)  # the default sort, as in the package: see edge_order
    before = _core_neighbors(graph, points.copies, min_samples - 1)
    core_before = np.sqrt(squared_distances(points.vectors, own, before))[points.place]
    return SpanningTree(edges[order], weights[order], core_before.astype(np.float32), _of_rows(points, graph))


@dataclass(frozen=True, slots=True)
class _Points:
    """The different vectors among n rows.

    Attributes:
        vectors: ``(m, dim) float32``, each vector once.
        first: ``(m,)``, its first row, ascending.
        copies: ``(m,)``, in how many rows it is.
        place: ``(n,)``, each row's vector.
    """

    vectors: Vectors
    first: Rows
    copies: Rows
    place: Rows

    @classmethod
    def of(cls, vectors: Vectors) -> "_Points":
        first_of = first_rows([vectors])
        first, place, copies = np.unique(first_of, return_inverse=True, return_counts=True)
        return cls(vectors if len(first) == len(vectors) else vectors[first], first, copies, place)


def _core_neighbors(graph: NeighborGraph, copies: Rows, min_samples: int) -> Rows:
    """Return where each point's ``min_samples``-th neighbour is, copies counted; itself where a copy is that."""
    points = np.arange(len(copies))
    found = graph.rows >= 0
    reached = copies[:, None] - 1 + np.cumsum(np.where(found, copies[graph.rows], 0), axis=1)
    # An approximate search may have found too few: the farthest stands in.
    place = np.minimum((reached < min_samples).sum(axis=1), found.sum(axis=1) - 1)
    enough_copies = (copies > min_samples) | (place < 0)
    return np.where(enough_copies, points, graph.rows[points, place] if graph.rows.size else points)


def _weigh(vectors: Vectors, core: NDArray[np.float64], edges: Rows) -> NDArray[np.float64]:
    left, right = edges.T
    weights: NDArray[np.float64] = np.maximum(
        np.sqrt(squared_distances(vectors, left, right)), np.maximum(core[left], core[right])
    )
    return weights


def _ties(graph: NeighborGraph, core: NDArray[np.float64], core_rows: Rows) -> Rows:
    """Return the pairs of neighbours whose mutual reachability is a core distance."""
    within = (graph.rows == core_rows[:, None])[:, ::-1].cumsum(axis=1)[:, ::-1] > 0
    left, place = np.nonzero(within)
    return np.stack([left, graph.rows[left, place]], axis=1)


def _with_copies(
    points: _Points, core: NDArray[np.float64], edges: Rows, weights: NDArray[np.float64]
) -> tuple[Rows, NDArray[np.float64]]:
    """Return the tree of all rows: every copy hangs on the first of its kind, at their core distance."""
    again = np.setdiff1d(np.arange(len(points.place)), points.first, assume_unique=True)
    place = points.place[again]
    copy_edges = np.stack([points.first[place], again], axis=1)
    return np.concatenate([copy_edges, points.first[edges]]), np.concatenate([core[place], weights])


def _of_rows(points: _Points, graph: NeighborGraph) -> NeighborGraph:
    """Return the graph of all rows; a copy's nearest neighbour is the first of its kind."""
    if len(points.first) == len(points.place):
        return graph
    count, width = len(points.place), graph.rows.shape[1]
    rows = np.full((count, width + 1), -1)
    squared = np.full((count, width + 1), np.inf, np.float32)
    rows[:, :width] = np.where(graph.rows < 0, -1, points.first[graph.rows])[points.place]
    squared[:, :width] = graph.squared[points.place]
    first = points.first[points.place]
    again = first != np.arange(count)
    rows[again, 1:], squared[again, 1:] = rows[again, :-1], squared[again, :-1]
    rows[again, 0], squared[again, 0] = first[again], 0
    return NeighborGraph(rows, squared)


class _Search:
    """Borůvka's rounds: the components so far, and what is known of each point's lightest edge out of its own.

    ``value[i]`` is the lightest edge known from i to another component and ``target[i]`` its end (infinite and -1 where
    none is known); no edge out of i is lighter than ``bound[i]``. So a value at or below the bound is the lightest.
    """

    def __init__(
        self, vectors: Vectors, graph: NeighborGraph, core: Squares, on_progress: ProgressCallback | None
    ) -> None:
        count = len(vectors)
        self.vectors = vectors
        self.norms: Squares = np.einsum("ij,ij->i", vectors, vectors)
        self.core = core
        self.on_progress = on_progress
        self.neighbors = graph.rows
        self.weights: Squares = np.maximum(graph.squared, np.maximum(core[:, None], core[graph.rows]))
        complete = graph.rows.shape[1] == count - 1
        self.bound: Squares = np.full(count, np.inf, np.float32) if complete else graph.squared[:, -1].copy()
        self.value: Squares = np.full(count, np.inf, np.float32)
        self.target: Rows = np.full(count, -1, np.int64)
        self.component: Rows = np.arange(count)
        self.components = count
        self.edges: list[Rows] = [np.empty((0, 2), np.int64)]

    def exact(self) -> Rows:
        """Return the edges of the minimum spanning tree, ``(n - 1, 2)``."""
        while self.components > 1:
            self.refresh()
            lightest = np.full(self.components, np.inf, np.float32)
            np.minimum.at(lightest, self.component, self.value)
            doubtful = self.bound < lightest[self.component]
            active = self.affordable(doubtful)
            self.compare(np.flatnonzero(doubtful & active[self.component]))
            self.join(active)
        return np.concatenate(self.edges)

    def from_graph(self) -> Rows:
        """Return the edges of the neighbour graph's spanning forest and of what joins it, ``(n - 1, 2)``."""
        self.take_forest()
        while self.components > 1:
            sizes = np.bincount(self.component)
            active = np.ones(self.components, bool)
            active[sizes.argmax()] = False
            self.value[:], self.target[:] = np.inf, -1
            self.compare(self.sample(active))
            self.join(active)
        return np.concatenate(self.edges)

    def refresh(self) -> None:
        """Find the lightest neighbour edge anew where the one known no longer leads out of the component."""
        stale = np.flatnonzero((self.target < 0) | (self.component[self.target] == self.component))
        neighbors = self.neighbors[stale]
        inside = self.component[neighbors] == self.component[stale, None]
        weights = np.where(inside, np.float32(np.inf), self.weights[stale])
        place = weights.argmin(axis=1)
        each = np.arange(len(stale))
        self.value[stale] = weights[each, place]
        self.target[stale] = np.where(np.isinf(self.value[stale]), -1, neighbors[each, place])

    def affordable(self, doubtful: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Return which components are to be joined in this round: all but the dearest, and at least one."""
        cost = np.bincount(self.component[doubtful], minlength=self.components)
        order = np.argsort(cost, kind="stable")
        active = np.zeros(self.components, bool)
        active[order[np.cumsum(cost[order]) <= _PATIENCE * len(self.vectors)]] = True
        active[order[-1]] = False
        active[order[0]] = True
        return active

    def compare(self, rows: Rows) -> None:
        """Find the lightest edge out of these rows' components among all points."""
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            squares = self.vectors[block] @ self.vectors.T
            squares *= -2
            squares += self.norms[block, None]
            squares += self.norms
            np.maximum(squares, self.core, out=squares)
            np.copyto(squares, np.inf, where=self.component[block, None] == self.component)
            target = squares.argmin(axis=1)
            value = np.maximum(squares[np.arange(len(block)), target], self.core[block])
            self.value[block] = self.bound[block] = value
            self.target[block] = target

    def take_forest(self) -> None:
        """Join the points along the minimum spanning forest of the neighbour graph."""
        from scipy.sparse import csr_array

        count, width = self.neighbors.shape
        starts = np.repeat(np.arange(count), width)
        ends = np.where(self.neighbors < 0, np.arange(count)[:, None], self.neighbors).ravel()
        # Plus one, because SciPy takes a weight of zero for no edge.
        weights = self.weights.ravel().astype(np.float64) + 1
        forest = self.merge(csr_array((weights, (starts, ends)), (count, count)))
        self.edges.append(np.stack([forest.row, forest.col], axis=1))

    def join(self, active: NDArray[np.bool_]) -> None:
        """Join each active component with another along the lightest edge known out of it."""
        from scipy.sparse import csr_array

        order = np.argsort(self.value, kind="stable")
        _, first = np.unique(self.component[order], return_index=True)
        lightest = order[np.sort(first)]
        starts = lightest[active[self.component[lightest]]]
        ends = self.target[starts]
        # Ranks instead of weights: of equally light edges that close a circle, one has to go.
        ranks = np.arange(1.0, len(starts) + 1)
        sides = (self.component[starts], self.component[ends])
        forest = self.merge(csr_array((ranks, sides), (self.components, self.components)))
        kept = starts[forest.data.astype(np.int64) - 1]
        self.edges.append(np.stack([kept, self.target[kept]], axis=1))

    def merge(self, graph: "csr_array") -> "coo_array":
        """Merge components along the minimum spanning forest of a graph of them, and return the forest."""
        from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

        forest = minimum_spanning_tree(graph)
        self.components, label = connected_components(forest, directed=False)
        self.component = label.astype(np.int64)[self.component]
        if self.on_progress is not None:
            count = len(self.vectors)
            self.on_progress(Progress("spanning tree", count - self.components, count - 1, "edges"))
        return forest.tocoo()

    def sample(self, active: NDArray[np.bool_]) -> Rows:
        """Return at most ``_SAMPLE`` rows of each active component, evenly spread over its rows."""
        order = np.argsort(self.component, kind="stable")
        sizes = np.bincount(self.component)
        number = np.arange(len(order)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        step = -(-sizes // _SAMPLE)[self.component[order]]
        chosen: Rows = order[(number % step == 0) & active[self.component[order]]]
        return chosen
