"""Soft membership: to which few clusters a document belongs, and how much to each.

A document belongs to a cluster as far as its nearest clustered neighbours do: each has a say that falls with distance
(the weights of Dudani 1976, "The distance-weighted k-nearest-neighbor rule"), times how deep in its cluster it lies.
The shares of a document add up to 1 at most; what lacks belongs to no cluster. Only the largest shares are kept: a
number for each document and each cluster, as the hdbscan package gives, would be gigabytes for a million documents.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.assign import PLACED, Space, check_new
from llmindex.cluster.hdbscan_tree import Labels
from llmindex.cluster.result import Clustering
from llmindex.records import Vectors
from llmindex.store.reader import VectorStore

KEPT = 3
"""Clusters of a document that are kept."""


@dataclass(frozen=True, slots=True, eq=False)
class Membership:
    """The clusters that documents belong to most, the nearest cluster first.

    Attributes:
        labels: ``(m, 3) int32``; -1 where a document belongs to fewer clusters.
        shares: ``(m, 3) float32``, descending, 0 to 1; 0 where the label is -1.
    """

    labels: Labels
    shares: NDArray[np.float32]


def memberships(clustering: Clustering, store: VectorStore, vectors: Vectors) -> Membership:
    """Return to which clusters documents belong, stored ones or new ones, in memory that knows of no clusters.

    Args:
        clustering: of the store's vectors.
        store: the index.
        vectors: ``(m, dim) float32``, unit vectors from the index's own encoder.

    Raises:
        StaleIndex: the stored vectors have changed since they were clustered.
        UsageError: the vectors do not have the index's shape.
    """
    check_new(clustering, store, vectors)
    labels = np.full((len(vectors), KEPT), -1, np.int32)
    shares = np.zeros((len(vectors), KEPT), np.float32)
    if clustering.clusters:
        placement = clustering.placement
        known, depth = clustering.labels[:: placement.step], clustering.probabilities[:: placement.step]
        space = Space(placement, store)
        for start in range(0, len(vectors), PLACED):
            part = slice(start, start + PLACED)
            rows, squared = space.neighbors(np.ascontiguousarray(vectors[part], np.float32))
            deep = depth[rows]
            if not len(placement.tree.condensed):  # all are copies of one vector, as far as the limit
                deep[squared > (placement.limit or 0) ** 2] = 0
            labels[part], shares[part] = _largest(known[rows], deep, np.sqrt(squared))
    return Membership(labels, shares)


def _largest(labels: Labels, depth: NDArray[np.float32], distances: NDArray[np.float64]) -> tuple[Labels, Vectors]:
    """Return the labels of the largest shares, and these, both ``(m, 3)``, from k neighbours, nearest first."""
    nearest, farthest = distances[:, :1], distances[:, -1:]
    say = np.where(farthest > nearest, (farthest - distances) / np.maximum(farthest - nearest, 1e-30), 1)
    say /= say.sum(axis=1, keepdims=True)
    # Noise is no cluster; each other label's says are added up where it is first met.
    pairs = np.arange(len(labels))[:, None] * (int(labels.max(initial=0)) + 1) + labels
    pairs = np.where(labels < 0, -1, pairs).ravel()
    _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
    shares = np.zeros(labels.shape)
    shares.ravel()[first] = np.bincount(number, (say * depth).ravel())
    shares[labels < 0] = 0
    order = np.argsort(-shares, axis=1, kind="stable")[:, :KEPT]
    kept, found = np.full((len(labels), KEPT), -1, np.int32), np.zeros((len(labels), KEPT), np.float32)
    width = order.shape[1]
    found[:, :width] = np.take_along_axis(shares, order, 1)
    kept[:, :width] = np.where(found[:, :width] > 0, np.take_along_axis(labels, order, 1), -1)
    return kept, found
