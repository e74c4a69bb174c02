"""Noise that lies near a cluster, given to it.

HDBSCAN leaves out whatever is not dense, which in embeddings of real text is most of it. Here a point of the noise
takes the label that most of its nearest neighbours have, the near ones counting more, and then counts itself as such
a neighbour: labels spread outwards along the neighbour graph, as far as its steps are no longer than a limit.
"""

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.neighbors import NeighborGraph

VOTERS = 10
"""Nearest neighbours that are asked."""

WITHIN_LIMIT = 0.9
"""Share of all points whose nearest neighbour is within the default limit: the most isolated tenth stays noise."""


def default_limit(graph: NeighborGraph) -> float:
    """Return how far a neighbour may be that noise follows."""
    nearest = graph.squared[:, 0]
    nearest = nearest[(nearest > 0) & np.isfinite(nearest)]  # copies say nothing about distance
    return float(np.sqrt(np.quantile(nearest, WITHIN_LIMIT))) if len(nearest) else 0.0


def spread(labels: NDArray[np.int32], graph: NeighborGraph, limit: float) -> NDArray[np.int32]:
    """Return the labels after noise (-1) has followed its neighbours, ``(n,)``."""
    labels = labels.copy()
    noise = np.flatnonzero(labels < 0)
    while len(noise):
        found = vote(labels, graph.rows[noise, :VOTERS], graph.squared[noise, :VOTERS], limit)
        if (found < 0).all():
            break
        labels[noise] = found
        noise = noise[found < 0]
    return labels


def vote(
    labels: NDArray[np.int32], rows: NDArray[np.int64], squared: NDArray[np.float32], limit: float
) -> NDArray[np.int32]:
    """Return the label that most neighbours within the limit have, weighted by 1/distance²; -1 where none is within.

    Args:
        labels: ``(n,)``, of all points.
        rows: ``(m, k)``, neighbours of m points among those, nearest first; -1 for none.
        squared: their squared distances.
        limit: how far a neighbour may be.
    """
    theirs = np.where((rows >= 0) & (squared <= limit**2), labels[rows], -1)
    weights = np.where(theirs >= 0, 1 / np.maximum(squared, np.float32(1e-12)), np.float32(0))
    same = theirs[:, :, None] == theirs[:, None, :]
    votes = np.einsum("mab,mb->ma", same, weights)
    best = np.where(theirs >= 0, votes, -1).argmax(axis=1)
    winner: NDArray[np.int32] = theirs[np.arange(len(rows)), best]
    return winner


def strength(squared: NDArray[np.float32], densest: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the probability of points that follow a neighbour: their density as a share of the cluster's greatest.

    Args:
        squared: ``(m,)``, squared distance to the nearest neighbour of the same cluster.
        densest: ``(m,)``, the greatest 1/distance in that cluster.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        share = 1 / (np.sqrt(squared, dtype=np.float64) * densest)
    return np.where(squared == 0, 1, np.minimum(share, 1)).astype(np.float32)
