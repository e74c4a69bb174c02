"""Vectors in cells of near ones: what is close to a vector is then looked for in its own cell and those around.

The cells are those of k-means, trained on a small sample: more vectors or rounds find hardly more neighbours, and
training on all takes longer than the search does. There are sixteen times as many as each has vectors: of larger ones
more has to be looked into for the same neighbours, of smaller ones there are too many to choose from. None is small, so
that the first cells around a vector alone say how far its neighbours are at most.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.workers import side_by_side
from llmindex.index.planner import require_faiss
from llmindex.records import Rows, Vectors

LEAST = 8
"""Rows that a cell has at least, or all rows where these are fewer."""

_TILE = 1 << 19
"""Products of vectors and centroids at a time: what stays in a processor's cache."""

_ROUNDS = 4
_TRAINED_ON = 32
"""Vectors a cell that k-means sees."""


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Rows by cell.

    Attributes:
        centroids: ``(cells, dim) float32``, the middle of each.
        rows: ``(n,) int64``, all rows, those of the first cell first, ascending within each.
        starts: ``(cells + 1,) int64``, where in ``rows`` each cell begins, and the end.
    """

    centroids: Vectors
    rows: Rows
    starts: Rows

    @classmethod
    def of(cls, vectors: Vectors, centroids: Vectors | None = None) -> "Cells":
        """Divide vectors into cells. The same vectors give the same cells.

        Args:
            vectors: ``(n, dim) float32``, n >= 1.
            centroids: where the middles are, about, as is known of cells of near vectors; None to find them by k-means.
        """
        count = len(vectors)
        parts = min(round(count**0.5 * 4), count // (4 * LEAST))
        if parts < 2:
            return cls(vectors.mean(axis=0, keepdims=True), np.arange(count), np.array([0, count]))
        if centroids is None or len(centroids) * LEAST > count:
            centroids = _train(vectors, parts)
        cell = nearest_cell(vectors, centroids)
        kept = np.flatnonzero(np.bincount(cell, minlength=len(centroids)) >= LEAST)
        number = np.full(len(centroids), -1)
        number[kept] = np.arange(len(kept))
        cell = number[cell]
        homeless = np.flatnonzero(cell < 0)
        cell[homeless] = nearest_cell(vectors[homeless], centroids[kept])
        return cls.numbered(cell, centroids[kept])

    @classmethod
    def numbered(cls, cell: Rows, centroids: Vectors) -> "Cells":
        """Return cells of these centroids, ``cell`` being that of each row."""
        starts = np.concatenate([[0], np.cumsum(np.bincount(cell, minlength=len(centroids)))])
        return cls(centroids, np.argsort(cell, kind="stable"), starts)

    def __len__(self) -> int:
        """How many cells there are."""
        return len(self.centroids)

    @property
    def sizes(self) -> Rows:
        """How many rows each cell has, ``(cells,)``."""
        return np.diff(self.starts)

    def numbers(self) -> NDArray[np.int32]:
        """Return the cell of each row, ``(n,)``."""
        numbers = np.empty(len(self.rows), np.int32)
        numbers[self.rows] = np.repeat(np.arange(len(self), dtype=np.int32), self.sizes)
        return numbers

    def means(self, vectors: Vectors) -> Vectors:
        """Return the mean of each cell's rows of some vectors, ``(cells, dim) float32``; zeros of none."""
        from scipy.sparse import csr_array

        shares = np.repeat((1 / np.maximum(self.sizes, 1)).astype(np.float32), self.sizes)
        means: Vectors = csr_array((shares, self.rows, self.starts), (len(self), len(vectors))) @ vectors
        return means

    def neighbors(self, k: int) -> tuple[Rows, NDArray[np.float32]]:
        """Return the k cells nearest to each, itself first, and how far, squared: ``(cells, k)``; all of fewer."""
        faiss = require_faiss()
        k = min(k, len(self))
        # One of several at the same place may come before itself.
        squared, near = faiss.knn(self.centroids, self.centroids, k, metric=faiss.METRIC_L2)
        own = np.arange(len(self))[:, None]
        order = np.argsort(near != own, axis=1, kind="stable")
        near, squared = np.take_along_axis(near, order, 1), np.take_along_axis(squared, order, 1)
        near[:, 0], squared[:, 0] = own[:, 0], 0
        return near, squared

    def around(self, points: Vectors, least: int, sizes: Rows) -> Rows:
        """Return the rows of the cells nearest to any of some points.

        Args:
            points: ``(m, dim) float32``, m >= 1.
            least: how many rows are wanted: the nearest cells are taken until they have so many.
            sizes: ``(cells,)``, how many rows of each cell count for that. All are returned.
        """
        norms = np.einsum("ij,ij->i", self.centroids, self.centroids)
        own = np.einsum("ij,ij->i", points, points)
        distances = (own[:, None] + norms - 2 * (points @ self.centroids.T)).min(axis=0)
        order = np.argsort(distances, kind="stable")
        taken = order[: np.searchsorted(np.cumsum(sizes[order]), least) + 1]
        return np.concatenate([self.rows[self.starts[cell] : self.starts[cell + 1]] for cell in taken.tolist()])


def nearest_cell(vectors: Vectors, centroids: Vectors) -> Rows:
    """Return the nearest centroid of each vector, ``(n,) int64``."""
    norms = np.einsum("ij,ij->i", centroids, centroids)[:, None]
    # The norm is a dimension more: |c|² - 2xc is then one product.
    right = np.hstack([centroids, norms]).T
    rows = max(1, _TILE // len(centroids))

    def of(start: int) -> Rows:
        part = vectors[start : start + rows]
        nearest: Rows = (np.hstack([-2 * part, np.ones((len(part), 1), np.float32)]) @ right).argmin(axis=1)
        return nearest

    return np.concatenate([np.empty(0, np.int64), *side_by_side(of, range(0, len(vectors), rows))])


def _train(vectors: Vectors, parts: int) -> Vectors:
    """Return so many centroids, by a few rounds of Lloyd's k-means."""
    sample = vectors[:: max(1, len(vectors) // (_TRAINED_ON * parts))]
    centroids = sample[np.arange(parts) * len(sample) // parts]
    for _ in range(_ROUNDS):
        cells = Cells.numbered(nearest_cell(sample, centroids), centroids)
        centroids = np.where(cells.sizes[:, None], cells.means(sample), centroids)
    return centroids
