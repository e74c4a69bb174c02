"""The nearest of many vectors, for these themselves or for others.

Points are compared with vectors as a matrix product: with all (exact), or with those of the cells nearest to each. The
k-th nearest within the nearest cell is a limit, and only what a product leaves below it is looked at again; keeping the
k best of everything would take several times as long as the products.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.cells import Cells, nearest_cells
from llmindex.records import Rows, Vectors

CANDIDATES = 24_000
"""Vectors with which each point is compared, about, where not with all: those of the nearest cells."""

_TILE = (512, 2048)
"""Rows and columns of a product at most: what stays in a processor's cache."""

_ROUNDING = np.float32(1e-5)
"""How far two float32 products of the same vectors may differ, as a share of the squared norms."""

Squares = NDArray[np.float32]
_Which = NDArray[np.int16]


@dataclass(frozen=True, slots=True)
class NeighborGraph:
    """The nearest neighbours of every row, nearest first, the row itself left out.

    Attributes:
        rows: ``(n, k) int64``; -1 where there are no more.
        squared: ``(n, k) float32`` squared euclidean distances; infinite where the row is -1.
    """

    rows: Rows
    squared: Squares


class Lookup:
    """Vectors in the order of their cells, so that a cell is a slice; "places" are positions in that order."""

    def __init__(self, vectors: Vectors, least: int, *, exact: bool) -> None:
        """Prepare vectors to be found.

        Args:
            vectors: ``(n, dim) float32``, n >= 1.
            least: the most neighbours that will be asked for; with one's own neighbours, one more. At most n.
            exact: whether to compare all vectors with all points.
        """
        self._exact = exact
        self._cells = Cells.of(vectors, least)
        self._probes = -(-CANDIDATES * len(self._cells) // len(vectors))
        norms = np.einsum("ij,ij->i", vectors, vectors)[:, None]
        # The norm is a dimension more: |y|² - 2xy is then one product.
        self._vectors = np.hstack([vectors, norms])[self._cells.rows]
        self._tile = np.empty(_TILE[0] * _TILE[1], np.float32)

    def own(self, k: int) -> Iterator[tuple[Rows, NeighborGraph]]:
        """Return the k nearest others of each vector: some rows at a time, and their neighbours."""
        for cell, (start, stop) in enumerate(zip(self._cells.starts, self._cells.starts[1:], strict=False)):
            for begin in range(int(start), int(stop), _TILE[0]):
                places = np.arange(begin, min(begin + _TILE[0], int(stop)))
                points = np.ascontiguousarray(self._vectors[places, :-1])
                yield self._cells.rows[places], self._nearest(points, np.full(len(places), cell), k, places)

    def search(self, points: Vectors, k: int) -> NeighborGraph:
        """Return the k nearest vectors of other points, ``(m, dim) float32``."""
        rows, squared = np.empty((len(points), k), np.int64), np.empty((len(points), k), np.float32)
        for start in range(0, len(points), _TILE[0]):
            part = slice(start, start + _TILE[0])
            cell = nearest_cells(points[part], self._cells.centroids, 1)[:, 0]
            found = self._nearest(points[part], cell, k, np.full(len(cell), -1))
            rows[part], squared[part] = found.rows, found.squared
        return NeighborGraph(rows, squared)

    def _nearest(self, points: Vectors, cell: Rows, k: int, but: Rows) -> NeighborGraph:
        """Return the k nearest vectors of each point of a block, given its cell, but for one place each."""
        left = np.hstack([-2 * points, np.ones((len(points), 1), np.float32)])
        norms = np.einsum("ij,ij->i", points, points)
        limits = self._limits(left, cell, k + int(but[0] >= 0))
        # A neighbour's norm is at most twice the own one and the distance.
        limits += _ROUNDING * (norms + np.abs(limits + norms))
        found = [pairs for part in self._parts(points) for pairs in self._below(left, limits, *part)]
        each, places, products = (np.concatenate(column) for column in zip(*found, strict=True))
        others = places != but[each]
        each, places, products = each[others], places[others], products[others]
        # By point, nearest first: each has k at least, because its limit is that of the k-th in its cell.
        order = np.argsort(products, kind="stable")
        order = order[np.argsort(each[order], kind="stable")]
        counts = np.bincount(each, minlength=len(points))
        assert counts.min() >= k
        first = order[(np.cumsum(counts) - counts)[:, None] + np.arange(k)]
        return NeighborGraph(self._cells.rows[places[first]], np.maximum(products[first] + norms[:, None], 0))

    def _limits(self, left: Vectors, cell: Rows, k: int) -> Squares:
        """Return the product of each point with the k-th nearest in its cell, or in a part of that, ``(m,)``."""
        limits = np.empty(len(left), np.float32)
        for number in np.unique(cell).tolist():
            which = np.flatnonzero(cell == number)
            start, stop = self._cells.starts[number : number + 2]
            theirs = self._vectors[start : min(stop, start + max(k, _TILE[1]))]
            limits[which] = np.partition(left[which] @ theirs.T, k - 1, axis=1)[:, k - 1]
        return limits

    def _parts(self, points: Vectors) -> Iterator[tuple[_Which, int, int]]:
        """Return which points of a block are to be compared with which places, from the first to the last."""
        everyone = np.arange(len(points), dtype=np.int16)
        if self._exact:
            yield everyone, 0, len(self._vectors)
            return
        near = nearest_cells(points, self._cells.centroids, self._probes)
        order = np.argsort(near, axis=None, kind="stable")
        asking = everyone[order // near.shape[1]]
        asked, begins = np.unique(near.ravel()[order], return_index=True)
        ends = [*begins[1:].tolist(), len(order)]
        for cell, begin, end in zip(asked.tolist(), begins.tolist(), ends, strict=True):
            yield asking[begin:end], int(self._cells.starts[cell]), int(self._cells.starts[cell + 1])

    def _below(
        self, left: Vectors, limits: Squares, which: _Which, start: int, stop: int
    ) -> Iterator[tuple[_Which, Rows, Squares]]:
        """Return the pairs whose product is within the limit: whose, with which place, and the product."""
        left, limits = left[which], limits[which, None]
        for begin in range(start, stop, _TILE[1]):
            right = self._vectors[begin : min(begin + _TILE[1], stop)]
            tile = self._tile[: len(left) * len(right)].reshape(len(left), -1)
            np.matmul(left, right.T, out=tile)
            hits = np.flatnonzero(tile <= limits)
            row, column = np.divmod(hits, len(right))
            yield which[row], begin + column, tile.ravel()[hits]
