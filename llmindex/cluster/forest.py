"""A spanning tree of mutual reachability from a neighbour graph: near the minimum, where all pairs are too many.

The graph's own minimum spanning forest is taken as it is. Its trees are then joined, in Borůvka's rounds, along the
lightest edges that are found from a sample of each one's points among the foreign points in the cells around them.
Edges are taken some neighbours of every point at a time: the forest of a part and the next part has the same forest as
both together, so memory is that of a part.
"""

import numpy as np

from llmindex.cluster.cells import Cells
from llmindex.cluster.components import Components
from llmindex.cluster.neighbors import NeighborGraph, Squares
from llmindex.progress import ProgressCallback
from llmindex.records import Rows, Vectors

_PART = 8
"""Neighbours of each point whose edges are taken at a time."""

_SAMPLE = 512
"""Points of a component that look for the others, ..."""

_FOREIGN = 2048
"""... and at least so many that they look at."""


def tree_from_graph(
    vectors: Vectors, cells: Cells, graph: NeighborGraph, core: Squares, on_progress: ProgressCallback | None = None
) -> Rows:
    """Return the edges of a spanning tree, ``(n - 1, 2)``.

    Args:
        vectors: ``(n, dim) float32``, pairwise different.
        cells: of these.
        graph: their neighbours, none missing.
        core: ``(n,)``, squared core distances.
        on_progress: told of the stage "spanning tree".
    """
    components = Components(len(vectors), on_progress)
    components.join(*_forest(graph, core))
    while components.count > 1:
        components.join(*_bridges(vectors, core, cells, components.of))
    return components.edges()


def _forest(graph: NeighborGraph, core: Squares) -> tuple[Rows, Rows]:
    """Return both ends of the edges of the graph's minimum spanning forest, lightest first."""
    from scipy.sparse import coo_array, csr_array
    from scipy.sparse.csgraph import minimum_spanning_tree

    count, width = graph.rows.shape
    forest = coo_array((count, count), dtype=np.float64)
    for start in range(0, width, _PART):
        part = slice(start, start + _PART)
        ends = graph.rows[:, part].astype(np.int32)
        weights = np.maximum(graph.squared[:, part], np.maximum(core[:, None], core[ends])).astype(np.float64)
        starts = np.repeat(np.arange(count, dtype=np.int32), ends.shape[1])
        places = (np.concatenate([forest.row, starts]), np.concatenate([forest.col, ends.ravel()]))
        # Plus one, because SciPy takes a weight of zero for no edge.
        edges = csr_array((np.concatenate([forest.data, weights.ravel() + 1]), places), (count, count))
        forest = minimum_spanning_tree(edges, overwrite=True).tocoo()
    order = np.argsort(forest.data, kind="stable")
    return forest.row[order].astype(np.int64), forest.col[order].astype(np.int64)


def _bridges(vectors: Vectors, core: Squares, cells: Cells, component: Rows) -> tuple[Rows, Rows]:
    """Return both ends of the lightest edges found out of each component but the largest, lightest first."""
    order = np.argsort(component, kind="stable")
    sizes = np.bincount(component)
    cell = cells.numbers()
    found = []
    for number, members in enumerate(np.split(order, np.cumsum(sizes)[:-1])):
        if number != sizes.argmax():
            foreign = cells.sizes - np.bincount(cell[members], minlength=len(cells))
            sample = members[:: -(-len(members) // _SAMPLE)]
            around = cells.around(vectors[sample], _FOREIGN, foreign)
            found.append(_lightest(vectors, core, sample, around[component[around] != number]))
    weights, starts, ends = (np.array(column) for column in zip(*found, strict=True))
    lightest = np.argsort(weights, kind="stable")
    return starts[lightest], ends[lightest]


def _lightest(vectors: Vectors, core: Squares, rows: Rows, others: Rows) -> tuple[float, int, int]:
    """Return the least squared mutual reachability of any of the rows and the others, and where it is."""
    left, right = vectors[rows], vectors[others]
    squares = left @ right.T
    squares *= -2
    squares += np.einsum("ij,ij->i", left, left)[:, None]
    squares += np.einsum("ij,ij->i", right, right)
    np.maximum(squares, core[others], out=squares)
    np.maximum(squares, core[rows, None], out=squares)
    start, end = divmod(int(squares.argmin()), len(others))
    return float(squares[start, end]), int(rows[start]), int(others[end])
