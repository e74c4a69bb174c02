"""New documents among the clusters that are there, without clustering again.

A new vector is reduced like the stored ones, and its nearest neighbours among those are looked up; they decide, by the
hdbscan package's own ``approximate_predict``, to which cluster its density belongs. What that calls noise follows its
neighbours as the stored noise did. Vectors that were clustered as they are stored are read from there block by block.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.cells import Cells
from llmindex.cluster.distinct import first_rows
from llmindex.cluster.groups import Placement
from llmindex.cluster.hdbscan_tree import Labels, Probabilities, place_new
from llmindex.cluster.lookup import Lookup
from llmindex.cluster.neighbors import squared_distances
from llmindex.cluster.noise import VOTERS, strength, vote
from llmindex.cluster.reduce import UMAP_NEIGHBORS, neighborhood, shift
from llmindex.cluster.result import Clustering
from llmindex.cluster.sampling import every
from llmindex.cluster.spanning_tree import EXACT_LIMIT
from llmindex.errors import StaleIndex, UsageError
from llmindex.records import Rows, Vectors
from llmindex.store.reader import VectorStore

PLACED = 1024
"""New vectors at a time."""

_SAME = 1e-10
"""Squared distance below which two reduced vectors differ by rounding alone, ..."""

_CLOSE = 1e-5
"""... and that where it comes from a product of float32 vectors."""


@dataclass(frozen=True, slots=True, eq=False)
class Assignment:
    """Where new documents belong.

    Attributes:
        labels: ``(m,) int32``, -1 for noise.
        probabilities: ``(m,) float32``, 0 for noise.
    """

    labels: Labels
    probabilities: Probabilities


def assign(clustering: Clustering, store: VectorStore, vectors: Vectors) -> Assignment:
    """Label new documents by the clusters of the stored ones.

    Args:
        clustering: of the store's vectors.
        store: the index.
        vectors: ``(m, dim) float32``, unit vectors of the new documents, from the index's own encoder.

    Raises:
        StaleIndex: the stored vectors have changed since they were clustered.
        UsageError: the vectors do not have the index's shape.
    """
    check_new(clustering, store, vectors)
    labels = np.full(len(vectors), -1, np.int32)
    probabilities = np.zeros(len(vectors), np.float32)
    if clustering.clusters:
        space, known = Space(clustering.placement, store), clustering.labels[:: clustering.placement.step]
        for start in range(0, len(vectors), PLACED):
            part = slice(start, start + PLACED)
            block = np.ascontiguousarray(vectors[part], np.float32)
            labels[part], probabilities[part] = place(clustering.placement, known, space, block)
    return Assignment(labels, probabilities)


def check_new(clustering: Clustering, store: VectorStore, vectors: Vectors) -> None:
    """Refuse vectors that cannot be placed in a clustering.

    Raises:
        StaleIndex: the stored vectors have changed since they were clustered.
        UsageError: the vectors do not have the index's shape.
    """
    if clustering.built_from != store.vectors_id:
        raise StaleIndex(f"{store.path} has changed since it was clustered; run `llmindex cluster` again")
    if vectors.ndim != 2 or vectors.shape[1] != store.dim:
        raise UsageError(f"vectors must be (m, {store.dim}), not {vectors.shape}; encode with the index's own encoder")


def place(placement: Placement, known: Labels, space: "Space", vectors: Vectors) -> tuple[Labels, Probabilities]:
    """Return the labels and probabilities of new vectors, both ``(m,)``.

    Args:
        placement: what it takes.
        known: ``(n,)``, labels of the vectors that were clustered.
        space: that the placement is in.
        vectors: ``(m, dim) float32``, unit vectors.
    """
    wide = 2 * placement.min_samples
    rows, squared = space.neighbors(vectors)
    distances = np.sqrt(squared[:, :wide])
    labels, probabilities = place_new(placement.tree, placement.core, placement.min_samples, rows[:, :wide], distances)
    if placement.limit is not None:
        labels, probabilities = _follow(placement, known, labels, probabilities, rows, squared)
    return labels, probabilities


class Space:
    """Where the stored vectors were clustered, and how to get there; rows are those of the clustered ones."""

    def __init__(self, placement: Placement, store: VectorStore) -> None:
        """Take a placement in the vectors of a store."""
        self.store = store
        self.step = placement.step
        self.count = -(-store.count // self.step)
        self.projection = placement.projection
        self.coordinates = placement.coordinates
        self.wanted = min(max(2 * placement.min_samples, VOTERS), self.count)

    def stored(self) -> Iterator[Vectors]:
        """Return the vectors that were clustered, as they are stored, block by block."""
        return every(self.step, self.store.iter_vectors())

    def neighbors(self, vectors: Vectors) -> tuple[Rows, NDArray[np.float64]]:
        """Return the nearest clustered vectors of new ones, nearest first, and their squared distances."""
        points = self.project(vectors)
        rows = self.nearest(points)
        return rows, _recomputed(points, rows, self)

    def project(self, vectors: Vectors) -> Vectors:
        """Return the places of new vectors."""
        if self.projection is not None:
            return self.shift(self.projection(vectors))
        if self.coordinates is not None:
            # UMAP has no formula for new points; between the places of the nearest stored ones is where it starts, too.
            rows, squared = _nearest(vectors, self.stored(), UMAP_NEIGHBORS)
            weights = 1 / np.maximum(squared, np.float32(1e-12))
            weights /= weights.sum(axis=1, keepdims=True)
            places: Vectors = np.einsum("mk,mkd->md", weights, self.coordinates[rows])
            return places
        return vectors

    def shift(self, points: Vectors) -> Vectors:
        """Move projected points towards the nearest stored ones, as those moved towards theirs."""
        k = neighborhood(len(self.projected))
        if k == 0:
            return points
        found = self.unmoved.search(points, k + 1)
        # A stored copy of the point is no neighbour.
        copy = found.squared[:, :1] < _CLOSE
        rows = np.where(copy, found.rows[:, 1:], found.rows[:, :-1])
        return shift(points, rows, self.projected)

    def nearest(self, points: Vectors) -> Rows:
        """Return the nearest stored vectors of some places: as many as are wanted, ``(m, wanted)``."""
        if self.coordinates is None:
            return _nearest(points, self.stored(), self.wanted)[0]
        return self.moved.search(points, self.wanted).rows

    def take(self, rows: Rows) -> Vectors:
        """Return the places of some stored vectors."""
        return self.store.take_vectors(rows * self.step) if self.coordinates is None else self.coordinates[rows]

    @cached_property
    def projected(self) -> Vectors:
        """The different stored vectors before they moved; made once: reading the store takes longer than a search."""
        assert self.projection is not None
        # All copies of a vector are one neighbour, as they were when the stored vectors moved.
        distinct = np.unique(first_rows(self.stored()))
        return np.concatenate([self.projection(block) for block in self.stored()])[distinct]

    @cached_property
    def unmoved(self) -> Lookup:
        """These, to be looked up."""
        return _lookup(self.projected, neighborhood(len(self.projected)) + 1)

    @cached_property
    def moved(self) -> Lookup:
        """The places of the stored vectors, to be looked up."""
        assert self.coordinates is not None
        return _lookup(self.coordinates, self.wanted)


def _lookup(vectors: Vectors, least: int) -> Lookup:
    return Lookup(vectors, Cells.of(vectors), least, exact=len(vectors) <= EXACT_LIMIT)


def _nearest(points: Vectors, blocks: Iterable[Vectors], k: int) -> tuple[Rows, NDArray[np.float32]]:
    """Return the k nearest of the blocks' rows for each point, nearest first, and their squared distances."""
    rows = np.empty((len(points), 0), np.int64)
    squared = np.empty((len(points), 0), np.float32)
    lengths, start = np.einsum("ij,ij->i", points, points)[:, None], 0
    for block in blocks:
        distances = lengths + np.einsum("ij,ij->i", block, block) - 2 * (points @ block.T)
        numbers = np.broadcast_to(np.arange(start, start + len(block)), distances.shape)
        rows, squared = _smallest(np.hstack([rows, numbers]), np.hstack([squared, distances]), k)
        start += len(block)
    return rows, np.maximum(squared, 0)


def _smallest(rows: Rows, squared: NDArray[np.float32], k: int) -> tuple[Rows, NDArray[np.float32]]:
    if squared.shape[1] > k:
        kept = np.argpartition(squared, k, axis=1)[:, :k]
        rows, squared = np.take_along_axis(rows, kept, 1), np.take_along_axis(squared, kept, 1)
    order = np.lexsort((rows, squared), axis=1)
    return np.take_along_axis(rows, order, 1), np.take_along_axis(squared, order, 1)


def _recomputed(points: Vectors, rows: Rows, space: Space) -> NDArray[np.float64]:
    """Return the squared distances from the differences: the product's are too rough where vectors are close."""
    distinct, where = np.unique(rows, return_inverse=True)
    both = np.concatenate([points, space.take(distinct)])
    own = np.repeat(np.arange(len(points)), rows.shape[1])
    squared = squared_distances(both, own, len(points) + where.ravel()).reshape(rows.shape)
    return np.where(squared < _SAME, 0, squared)


def _follow(
    placement: Placement,
    known: Labels,
    labels: Labels,
    probabilities: Probabilities,
    rows: Rows,
    squared: NDArray[np.float64],
) -> tuple[Labels, Probabilities]:
    """Let new noise follow its neighbours."""
    near, near_squared = rows[:, :VOTERS], squared[:, :VOTERS].astype(np.float32)
    found = vote(known, near, near_squared, placement.limit or 0)
    noise = np.flatnonzero((labels < 0) & (found >= 0))
    same = known[near[noise]] == found[noise, None]
    nearest = np.where(same, near_squared[noise], np.inf).min(axis=1, initial=np.inf)
    labels, probabilities = labels.copy(), probabilities.copy()
    labels[noise] = found[noise]
    probabilities[noise] = strength(nearest, placement.densest[found[noise]])
    return labels, probabilities
