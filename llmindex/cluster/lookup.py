"""The nearest of many vectors, for these themselves or for others.

Points are compared with vectors as a matrix product: with all (exact), or with those of the cells nearest to each. The
k-th nearest of the first few hundred is a limit, and only what a product leaves below it is looked at again; keeping
the k best of everything would take several times as long as the products. The limit also says which cells hardly hold a
neighbour: all of a cell lies beyond the plane half-way between its centroid and the point's own, and few neighbours lie
straight towards that plane.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.cells import Cells, nearest_cell
from llmindex.cluster.workers import side_by_side
from llmindex.records import Rows, Vectors

CANDIDATES = 10_000
"""Vectors with which each point is compared at most, about, where not with all: those of the nearest cells."""

_FIRST = 512
"""Vectors of which the k-th nearest is the limit: those of the nearest cells, as many as it takes."""

_TIMES = 4
"""At least so many times k: of hardly more than k, the limit would let most vectors through."""

_NEAR = 8
"""Cells among which a point's are chosen, times as many: those nearest to its own cell."""

_POINTS = 16_384
"""Points that are looked up together, so that many of them ask for the same cell; of exact lookups, a tile of them."""

_NEIGHBORS = 600_000
"""Neighbours that are looked up together at most: where each point has many, fewer points."""

_TILE = (512, 2048)
"""Rows and columns of a product; of fewer columns more rows: what stays in a processor's cache."""

_STEEPEST = 0.5
"""Cells are looked into whose plane is no farther than that share of the limit: at more than sixty degrees from the
shortest way to it, a neighbour does not reach it. In many dimensions hardly any neighbour lies within."""

_STEPS = 1 << 24
"""Steps of distance by which neighbours are sorted: a limit is so many, and a product is rounded by as much."""

_ROUNDING = np.float32(1e-5)
"""How far two float32 products of the same vectors may differ, as a share of the squared norms."""

Squares = NDArray[np.float32]


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

    def __init__(self, vectors: Vectors, cells: Cells, least: int, *, exact: bool) -> None:
        """Prepare vectors to be found.

        Args:
            vectors: ``(n, dim) float32``, n >= 1.
            cells: of these.
            least: the most neighbours that will be asked for; with one's own neighbours, one more. At most n.
            exact: whether to compare all vectors with all points.
        """
        self._exact = exact
        self._together = max(1, min(_TILE[0] if exact else _POINTS, _NEIGHBORS // least))
        self._cells = cells
        self._probes = min(len(self._cells), -(-CANDIDATES * len(self._cells) // len(vectors)))
        # Any so many cells, were they the smallest, hold what will be asked for.
        enough = int(np.searchsorted(np.cumsum(np.sort(self._cells.sizes)), least)) + 1
        self._near, self._apart = self._cells.neighbors(max(_NEAR * self._probes, enough))
        held = np.cumsum(self._cells.sizes[self._near], axis=1)
        self._first = np.minimum((held < max(_TIMES * least, _FIRST)).sum(axis=1) + 1, held.shape[1])
        # The norm is a dimension more, a point's limit another: |y|² - 2xy - limit is then one product.
        centroids = self._cells.centroids
        self._middles = _bordered(centroids, np.einsum("ij,ij->i", centroids, centroids), np.float32(0))
        norms = np.einsum("ij,ij->i", vectors, vectors)
        self._vectors = _bordered(vectors, norms, np.float32(1))[self._cells.rows]

    @property
    def _block(self) -> int:
        """How many points are looked up together: the numbers that they are sorted by have 63 bits."""
        return min(self._together, (1 << 62) // ((_STEPS + 1) * len(self._vectors)))

    def own(self, k: int) -> Iterator[tuple[Rows, NeighborGraph]]:
        """Return the k nearest others of each vector: some rows at a time, and their neighbours."""
        count, size = len(self._vectors), self._block
        cell = np.repeat(np.arange(len(self._cells)), self._cells.sizes)

        def of(start: int) -> tuple[Rows, NeighborGraph]:
            places = np.arange(start, min(start + size, count))
            points = self._vectors[places, :-2]
            return self._cells.rows[places], self._nearest(points, cell[places], k, places)

        yield from side_by_side(of, range(0, count, size))

    def search(self, points: Vectors, k: int) -> NeighborGraph:
        """Return the k nearest vectors of other points, ``(m, dim) float32``."""
        size = self._block
        cell = nearest_cell(points, self._cells.centroids)

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
        left = _bordered(-2 * points, np.float32(1), np.float32(0))
        norms = np.einsum("ij,ij->i", points, points)
        groups = _groups(cell)
        limits = self._limits(left, groups, k + int(but[0] >= 0))
        # A neighbour's norm is at most twice the own one and the distance.
        limits += _ROUNDING * (norms + np.abs(limits + norms))
        left[:, -1] = -limits
        reach = np.maximum(limits + norms, np.float32(1e-30))
        parts = self._everything(points) if self._exact else self._parts(left, groups, reach)
        tile = np.empty(_TILE[0] * _TILE[1], np.float32)
        found = [pairs for part in parts for pairs in self._below(left, tile, *part)]
        each, places, products = (np.concatenate(column) for column in zip(*found, strict=True))
        # By point, nearest first, in one sort of numbers that say all three: an argsort takes six times as long.
        steps = np.clip(np.rint((1 + products / reach[each]) * _STEPS), 0, _STEPS).astype(np.int64)
        keys = (each * np.int64(_STEPS + 1) + steps) * len(self._vectors) + places
        others = places != but[each]
        keys, counts = np.sort(keys[others]), np.bincount(each[others], minlength=len(points))
        assert counts.min() >= k  # as a point's limit is that of the k-th of some that it is compared with
        first, place = np.divmod(keys[(np.cumsum(counts) - counts)[:, None] + np.arange(k)], len(self._vectors))
        squared = (first % (_STEPS + 1)).astype(np.float32) * (reach / _STEPS)[:, None]
        return NeighborGraph(self._cells.rows[place], squared)

    def _limits(self, left: Vectors, groups: list[tuple[int, Rows]], k: int) -> Squares:
        """Return the product of each point with the k-th nearest in the first cells around it, ``(m,)``."""
        limits = np.empty(len(left), np.float32)
        for number, which in groups:
            cells = self._near[number, : self._first[number]].tolist()
            theirs = np.concatenate([self._vectors[self._cells.starts[c] : self._cells.starts[c + 1]] for c in cells])
            some = theirs[: max(k, _TILE[1])]
            limits[which] = np.partition(left.take(which, 0) @ some.T, k - 1, axis=1)[:, k - 1]
        return limits

    def _everything(self, points: Vectors) -> Iterator[tuple[Rows, int, int]]:
        yield np.arange(len(points)), 0, len(self._vectors)

    def _parts(self, left: Vectors, groups: list[tuple[int, Rows]], reach: Squares) -> Iterator[tuple[Rows, int, int]]:
        """Return which points of a block are to be compared with which places, from the first to the last.

        Args:
            left: ``(m, dim + 2) float32``, the points.
            groups: of the points, by cell.
            reach: ``(m,)``, squared distances at which their neighbours are at most.
        """
        pairs = np.sort(np.concatenate([self._asked(left, number, which, reach) for number, which in groups]))
        asked, asking = np.divmod(pairs, len(left))
        begins = np.flatnonzero(np.diff(asked, prepend=-1))
        ends = [*begins[1:].tolist(), len(pairs)]
        for cell, begin, end in zip(asked[begins].tolist(), begins.tolist(), ends, strict=True):
            yield asking[begin:end], int(self._cells.starts[cell]), int(self._cells.starts[cell + 1])

    def _asked(self, left: Vectors, number: int, which: Rows, reach: Squares) -> Rows:
        """Return which point of one cell asks for which cells, each as one number: the cell times all points, plus it.

        The cells are those within reach; of many the nearest.
        """
        near = self._near[number]
        away = left.take(which, 0) @ self._middles[near].T
        # The plane half-way between the own centroid and another: how far it is, times their distance.
        within = np.outer(_STEEPEST * np.sqrt(reach[which]), 2 * np.sqrt(self._apart[number]))
        within += away[:, :1]
        looked = away <= within
        many = np.flatnonzero(np.count_nonzero(looked, axis=1) > self._probes)
        looked[many] &= away[many] <= np.partition(away[many], self._probes - 1, axis=1)[:, self._probes - 1, None]
        looked[:, : self._first[number]] = True
        hits = np.flatnonzero(looked)
        row = hits // len(near)
        pairs: Rows = near[hits - row * len(near)] * len(left) + which[row]
        return pairs

    def _below(
        self, left: Vectors, tile: Squares, which: Rows, start: int, stop: int
    ) -> Iterator[tuple[Rows, Rows, Squares]]:
        """Return the pairs whose product is within the limit: whose, with which place, and the product less that."""
        rows = _TILE[0] * _TILE[1] // min(stop - start, _TILE[1])
        for first in range(0, len(which), rows):
            some = which[first : first + rows]
            own = left.take(some, 0)
            for begin in range(start, stop, _TILE[1]):
                right = self._vectors[begin : min(begin + _TILE[1], stop)]
                products = tile[: len(own) * len(right)]
                np.matmul(own, right.T, out=products.reshape(len(own), -1))
                hits = np.flatnonzero(products <= 0)
                row = hits // len(right)
                yield some[row], begin + hits - row * len(right), products[hits]


def _bordered(vectors: Vectors, *columns: Squares | np.float32) -> Vectors:
    """Return vectors with so many columns more."""
    bordered = np.empty((len(vectors), vectors.shape[1] + len(columns)), np.float32)
    bordered[:, : vectors.shape[1]] = vectors
    for place, column in enumerate(columns, vectors.shape[1]):
        bordered[:, place] = column
    return bordered


def _groups(cell: Rows) -> list[tuple[int, Rows]]:
    """Return each cell that occurs, and where."""
    order = np.argsort(cell, kind="stable")
    numbers, begins = np.unique(cell[order], return_index=True)
    return list(zip(numbers.tolist(), np.split(order, begins[1:]), strict=True))
