"""The nearest of many vectors, for these themselves or for others.

Points are compared with vectors as a matrix product: with all (exact), or with those of the cells nearest to each. The
k-th nearest of the first few hundred is a limit, and only what a product leaves below it is looked at again; keeping
the k best of everything would take several times as long as the products. The limit also says which cells cannot hold a
neighbour: all of a cell lies beyond the plane half-way between its centroid and the point's own.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.cells import Cells, nearest_cells
from llmindex.cluster.workers import side_by_side
from llmindex.records import Rows, Vectors

CANDIDATES = 8_000
"""Vectors with which each point is compared at most, about, where not with all: those of the nearest cells."""

_FIRST = 512
"""Vectors of which the k-th nearest is the limit: those of the nearest cells, as many as it takes."""

_CELL = 8
"""Vectors that a cell has at least."""

_NEAR = 8
"""Cells among which a point's are chosen, times as many: those nearest to its own cell."""

_POINTS = 16_384
"""Points that are looked up together, so that many of them ask for the same cell; of exact lookups, a tile of them."""

_TILE = (512, 2048)
"""Rows and columns of a product; of fewer columns more rows: what stays in a processor's cache."""

_ROUNDING = np.float32(1e-5)
"""How far two float32 products of the same vectors may differ, as a share of the squared norms."""

Squares = NDArray[np.float32]
_Which = NDArray[np.int32]


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
        self._cells = Cells.of(vectors, _CELL)
        self._probes = min(len(self._cells), -(-CANDIDATES * len(self._cells) // len(vectors)))
        # Any so many cells, were they the smallest, hold what will be asked for.
        enough = int(np.searchsorted(np.cumsum(np.sort(self._cells.sizes)), least)) + 1
        self._near, self._apart = self._cells.neighbors(max(_NEAR * self._probes, enough))
        held = np.cumsum(self._cells.sizes[self._near], axis=1)
        self._first = np.minimum((held < max(least, _FIRST)).sum(axis=1) + 1, held.shape[1])
        norms = np.einsum("ij,ij->i", vectors, vectors)[:, None]
        # The norm is a dimension more: |y|² - 2xy is then one product.
        self._vectors = np.hstack([vectors, norms])[self._cells.rows]

    def own(self, k: int) -> Iterator[tuple[Rows, NeighborGraph]]:
        """Return the k nearest others of each vector: some rows at a time, and their neighbours."""
        count = len(self._vectors)
        size = _TILE[0] if self._exact else _POINTS
        cell = np.repeat(np.arange(len(self._cells)), self._cells.sizes)

        def of(start: int) -> tuple[Rows, NeighborGraph]:
            places = np.arange(start, min(start + size, count))
            points = np.ascontiguousarray(self._vectors[places, :-1])
            return self._cells.rows[places], self._nearest(points, cell[places], k, places)

        yield from side_by_side(of, range(0, count, size))

    def search(self, points: Vectors, k: int) -> NeighborGraph:
        """Return the k nearest vectors of other points, ``(m, dim) float32``."""
        size = _TILE[0] if self._exact else _POINTS
        cell = nearest_cells(points, self._cells.centroids, 1)[:, 0]

        def of(start: int) -> NeighborGraph:
            part = slice(start, start + size)
            return self._nearest(points[part], cell[part], k, np.full(len(cell[part]), -1))

        found = list(side_by_side(of, range(0, len(points), size)))
        if not found:
            return NeighborGraph(np.empty((0, k), np.int64), np.empty((0, k), np.float32))
        return NeighborGraph(
            np.concatenate([part.rows for part in found]), np.concatenate([part.squared for part in found])
        )

    def _nearest(self, points: Vectors, cell: Rows, k: int, but: Rows) -> NeighborGraph:
        """Return the k nearest vectors of each point of a block, given its cell, but for one place each."""
        left = np.hstack([-2 * points, np.ones((len(points), 1), np.float32)])
        norms = np.einsum("ij,ij->i", points, points)
        groups = _groups(cell)
        limits = self._limits(left, groups, k + int(but[0] >= 0))
        # A neighbour's norm is at most twice the own one and the distance.
        limits += _ROUNDING * (norms + np.abs(limits + norms))
        parts = self._everything(points) if self._exact else self._parts(points, groups, limits + norms)
        tile = np.empty(_TILE[0] * _TILE[1], np.float32)
        found = [pairs for part in parts for pairs in self._below(left, limits, tile, *part)]
        each, places, products = (np.concatenate(column) for column in zip(*found, strict=True))
        others = places != but[each]
        each, places, products = each[others], places[others], products[others]
        squared = np.maximum(products + norms[each], 0)
        # By point, nearest first, in one sort: the bits of numbers that are not negative are in the numbers' order.
        order = np.argsort(each.astype(np.int64) << 32 | squared.view(np.int32))
        counts = np.bincount(each, minlength=len(points))
        assert counts.min() >= k  # as a point's limit is that of the k-th of some that it is compared with
        first = order[(np.cumsum(counts) - counts)[:, None] + np.arange(k)]
        return NeighborGraph(self._cells.rows[places[first]], squared[first])

    def _limits(self, left: Vectors, groups: list[tuple[int, Rows]], k: int) -> Squares:
        """Return the product of each point with the k-th nearest in the first cells around it, ``(m,)``."""
        limits = np.empty(len(left), np.float32)
        for number, which in groups:
            cells = self._near[number, : self._first[number]].tolist()
            theirs = np.concatenate([self._vectors[self._cells.starts[c] : self._cells.starts[c + 1]] for c in cells])
            some = theirs[: max(k, _TILE[1])]
            limits[which] = np.partition(left[which] @ some.T, k - 1, axis=1)[:, k - 1]
        return limits

    def _everything(self, points: Vectors) -> Iterator[tuple[_Which, int, int]]:
        yield np.arange(len(points), dtype=np.int32), 0, len(self._vectors)

    def _parts(
        self, points: Vectors, groups: list[tuple[int, Rows]], reach: Squares
    ) -> Iterator[tuple[_Which, int, int]]:
        """Return which points of a block are to be compared with which places, from the first to the last.

        Args:
            points: ``(m, dim) float32``.
            groups: of the points, by cell.
            reach: ``(m,)``, squared distances at which their neighbours are at most.
        """
        pairs = [self._asked(points[which], number, which, reach[which]) for number, which in groups]
        asking, asked = (np.concatenate(column, dtype=np.int32) for column in zip(*pairs, strict=True))
        # Numbers of 16 bits are sorted by counting.
        order = np.argsort(asked.astype(np.uint16) if len(self._cells) <= 1 << 16 else asked, kind="stable")
        asking, asked = asking[order], asked[order]
        begins = np.flatnonzero(np.diff(asked, prepend=-1))
        ends = [*begins[1:].tolist(), len(order)]
        for cell, begin, end in zip(asked[begins].tolist(), begins.tolist(), ends, strict=True):
            yield asking[begin:end], int(self._cells.starts[cell]), int(self._cells.starts[cell + 1])

    def _asked(self, points: Vectors, number: int, which: Rows, reach: Squares) -> tuple[Rows, Rows]:
        """Return pairs of a point and a cell to look into, of the points in one cell: the nearest within reach."""
        near = self._near[number]
        centroids = self._cells.centroids[near]
        away = np.einsum("ij,ij->i", centroids, centroids) - 2 * (points @ centroids.T)
        looked = np.ones(away.shape, np.bool_)
        if self._probes < len(near):
            looked = away <= np.partition(away, self._probes - 1, axis=1)[:, self._probes - 1, None]
        # The plane half-way between the own centroid and another: how far it is, times their distance.
        looked &= away - away[:, :1] <= 2 * np.sqrt(self._apart[number] * np.maximum(reach, 0)[:, None])
        looked[:, : self._first[number]] = True
        row, column = np.nonzero(looked)
        return which[row], near[column]

    def _below(
        self, left: Vectors, limits: Squares, tile: Squares, which: _Which, start: int, stop: int
    ) -> Iterator[tuple[_Which, Rows, Squares]]:
        """Return the pairs whose product is within the limit: whose, with which place, and the product."""
        rows = _TILE[0] * _TILE[1] // min(stop - start, _TILE[1])
        for first in range(0, len(which), rows):
            some = which[first : first + rows]
            own, most = left[some], limits[some, None]
            for begin in range(start, stop, _TILE[1]):
                right = self._vectors[begin : min(begin + _TILE[1], stop)]
                products = tile[: len(own) * len(right)].reshape(len(own), -1)
                np.matmul(own, right.T, out=products)
                hits = np.flatnonzero(products <= most)
                row, column = np.divmod(hits, len(right))
                yield some[row], begin + column, products.ravel()[hits]


def _groups(cell: Rows) -> list[tuple[int, Rows]]:
    """Return each cell that occurs, and where."""
    order = np.argsort(cell, kind="stable")
    numbers, begins = np.unique(cell[order], return_index=True)
    return list(zip(numbers.tolist(), np.split(order, begins[1:]), strict=True))
