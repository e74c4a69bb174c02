"""The minimum spanning tree of mutual reachability: all that HDBSCAN needs to know of the vectors.

The mutual reachability of two points is the largest of their distance and their core distances, where a point's core
distance is that to its ``min_samples``-th neighbour, itself not counted (as the hdbscan package counts).

Up to ``EXACT_LIMIT`` points the tree is exact (:mod:`~llmindex.cluster.boruvka`); above, it comes from an approximate
neighbour graph (:mod:`~llmindex.cluster.forest`). Memory is O(n·k) either way, a few times that of the graph.

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
        graph: some ``NEIGHBORS`` nearest of all rows; of equal vectors only the first is anyone's neighbour.
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
    places = _core_places(graph, points.copies, min_samples)
    core = _distances(points, graph, places)
    squares = (core**2).astype(np.float32)
    if exact:
        edges = exact_tree(centred, graph, squares, on_progress)
    else:
        edges = tree_from_graph(centred, cells, graph, squares, on_progress)
    edges, weights = _with_copies(points, core, edges, _weigh(points.vectors, core, edges))
    if exact:
        edges, weights = prim_order(edges, weights, *_ties(points, graph, places), core[points.place])
    order = np.argsort(weights)  # the default sort, as in the package: see edge_order
    before = _distances(points, graph, _core_places(graph, points.copies, min_samples - 1))
    core_before = before[points.place].astype(np.float32)
    return SpanningTree(edges[order], weights[order], core_before, _of_rows(points, graph))


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


def _core_places(graph: NeighborGraph, copies: Rows, min_samples: int) -> Rows:
    """Return which of its neighbours is each point's ``min_samples``-th, copies counted; -1 where a copy is that."""
    reached, places = copies - 1, np.full(len(copies), -1)
    for neighbors in graph.rows.T:  # one after the other: sums for all at once would be larger than the graph
        places += reached < min_samples
        reached += copies[neighbors]
    return places


def _distances(points: _Points, graph: NeighborGraph, places: Rows) -> NDArray[np.float64]:
    """Return how far one neighbour of each point is, that at a place; 0 where the place is -1."""
    own = np.flatnonzero(places >= 0)
    distances = np.zeros(len(places))
    distances[own] = np.sqrt(squared_distances(points.vectors, own, graph.rows[own, places[own]]))
    return distances


def _weigh(vectors: Vectors, core: NDArray[np.float64], edges: Rows) -> NDArray[np.float64]:
    left, right = edges.T
    weights: NDArray[np.float64] = np.maximum(
        np.sqrt(squared_distances(vectors, left, right)), np.maximum(core[left], core[right])
    )
    return weights


def _ties(points: _Points, graph: NeighborGraph, places: Rows) -> tuple[Rows, NDArray[np.int32]]:
    """Return the pairs of rows whose mutual reachability is a core distance: neighbours up to those at the places.

    Returns:
        where each row's partners begin, ``(n + 1,)``, and all partners.
    """
    from scipy.sparse import csr_array

    count = len(points.place)
    partners = points.first.astype(np.int32)[graph.rows[np.arange(graph.rows.shape[1]) <= places[:, None]]]
    each = np.zeros(count + 1, np.int64)
    each[points.first + 1] = places + 1
    # There may be hundreds of each row: a matrix of bits takes a sixth of what the pairs would.
    pairs = csr_array((np.ones(len(partners), bool), partners, np.cumsum(each)), (count, count))
    pairs = pairs + pairs.T
    return pairs.indptr, pairs.indices


def _with_copies(
    points: _Points, core: NDArray[np.float64], edges: Rows, weights: NDArray[np.float64]
) -> tuple[Rows, NDArray[np.float64]]:
    """Return the tree of all rows: every copy hangs on the first of its kind, at their core distance."""
    again = np.setdiff1d(np.arange(len(points.place)), points.first, assume_unique=True)
    place = points.place[again]
    copy_edges = np.stack([points.first[place], again], axis=1)
    return np.concatenate([copy_edges, points.first[edges]]), np.concatenate([core[place], weights])


def _of_rows(points: _Points, graph: NeighborGraph) -> NeighborGraph:
    """Return the nearest neighbours of all rows; a copy's nearest is the first of its kind."""
    graph = NeighborGraph(graph.rows[:, :NEIGHBORS], graph.squared[:, :NEIGHBORS])
    if len(points.first) == len(points.place):
        return graph
    count, width = len(points.place), graph.rows.shape[1]
    rows = np.full((count, width + 1), -1)
    squared = np.full((count, width + 1), np.inf, np.float32)
    rows[:, :width] = points.first[graph.rows][points.place]
    squared[:, :width] = graph.squared[points.place]
    first = points.first[points.place]
    again = first != np.arange(count)
    rows[again, 1:], squared[again, 1:] = rows[again, :-1], squared[again, :-1]
    rows[again, 0], squared[again, 0] = first[again], 0
    return NeighborGraph(rows, squared)
