"""The minimum spanning tree of mutual reachability: all that HDBSCAN needs to know of the vectors.

The mutual reachability of two points is the largest of their distance and their core distances, where a point's core
distance is that to its ``min_samples``-th neighbour, itself not counted (as the hdbscan package counts).

Up to ``EXACT_LIMIT`` points the tree is exact (:mod:`~llmindex.cluster.boruvka`); above, it comes from an approximate
neighbour graph (:mod:`~llmindex.cluster.forest`). Memory is O(n·k) either way.

The search compares squares in float32; core distances and weights are then computed from differences in float64. Equal
vectors are merged before and hang on their first row afterwards: a thousand copies of one text would otherwise fill
each other's neighbour lists.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.boruvka import exact_tree
from llmindex.cluster.cells import Cells
from llmindex.cluster.distinct import first_rows
from llmindex.cluster.edge_order import prim_order
from llmindex.cluster.forest import tree_from_graph
from llmindex.cluster.neighbors import NeighborGraph, neighbor_graph, squared_distances
from llmindex.progress import ProgressCallback
from llmindex.records import Rows, Vectors

EXACT_LIMIT = 50_000
"""Points up to which every pair is compared: about 80 CPU seconds at 768 dimensions, growing with the square."""

NEIGHBORS = 32
"""Neighbours in the graph, where ``min_samples`` does not ask for more: in a graph of fewer, clusters break apart."""


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
    centroids: Vectors | None = None,
    exact: bool | None = None,
    on_progress: ProgressCallback | None = None,
) -> SpanningTree:
    """Compute the minimum spanning tree of the mutual reachability of all vectors.

    Args:
        vectors: ``(n, dim) float32`` of any length, n >= 2.
        min_samples: neighbours that make a point dense, itself not counted; with fewer points, all others.
        centroids: ``(cells, dim) float32``, the middles of cells of near vectors; None to find them.
        exact: whether to compare all pairs; None for up to ``EXACT_LIMIT`` different vectors.
        on_progress: told of the stages "neighbors" and "spanning tree".
    """
    min_samples = min(min_samples, len(vectors) - 1)
    points = _Points.of(vectors)
    if exact is None:
        exact = len(points.vectors) <= EXACT_LIMIT
    # A shift changes no distance, and products of shorter vectors lose fewer digits.
    mean = points.vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    centred = points.vectors - mean
    cells = Cells.of(centred, None if centroids is None else centroids - mean)
    graph = neighbor_graph(centred, max(NEIGHBORS, min_samples + 1), cells, exact=exact, on_progress=on_progress)
    core_rows = _core_neighbors(graph, points.copies, min_samples)
    own = np.arange(len(centred))
    core = np.sqrt(squared_distances(points.vectors, own, core_rows))
    squares = (core**2).astype(np.float32)
    if exact:
        edges = exact_tree(centred, graph, squares, on_progress)
    else:
        edges = tree_from_graph(centred, cells, graph, squares, on_progress)
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
    if not graph.rows.size:
        return points
    reached = copies[:, None] - 1 + np.cumsum(copies[graph.rows], axis=1)
    place = (reached < min_samples).sum(axis=1)
    return np.where(copies > min_samples, points, graph.rows[points, np.minimum(place, graph.rows.shape[1] - 1)])


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
