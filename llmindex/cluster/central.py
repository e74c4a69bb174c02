"""The documents in the middle of each cluster: read three, and you know what it is about."""

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.hdbscan_tree import Labels
from llmindex.cluster.reduce import Blocks
from llmindex.records import Rows

CENTRAL = 3
"""Central documents of each cluster."""


def central_rows(blocks: Blocks, labels: Labels, first: Rows) -> list[tuple[int, ...]]:
    """Return each cluster's most central rows: those of the highest inner product with its mean direction.

    Args:
        blocks: gives the unit vectors in row order.
        labels: ``(n,) int32``.
        first: ``(n,)``, for each row the first with the same vector; copies are taken only where nothing else is left.
    """
    if not (labels >= 0).any():
        return []
    means = _sums(blocks, labels)
    scores = np.empty(len(labels), np.float32)
    start = 0
    for block in blocks():
        part = slice(start, start + len(block))
        scores[part] = np.einsum("ij,ij->i", block, means[labels[part]])
        start += len(block)
    copies = first != np.arange(len(labels))
    order = np.lexsort((-scores, copies, labels))
    starts = np.searchsorted(labels[order], np.arange(len(means)))
    ends = np.searchsorted(labels[order], np.arange(len(means)), side="right")
    return [tuple(order[start : min(start + CENTRAL, end)].tolist()) for start, end in zip(starts, ends, strict=True)]


def _sums(blocks: Blocks, labels: Labels) -> NDArray[np.float32]:
    """Return the sum of each cluster's vectors, ``(clusters, dim)``: what points along its mean direction."""
    from scipy.sparse import csr_array

    clusters = int(labels.max(initial=-1)) + 1
    sums, start = np.zeros((clusters, 1), np.float32), 0
    for block in blocks():
        theirs = labels[start : start + len(block)]
        inside = np.flatnonzero(theirs >= 0)
        member = csr_array((np.ones(len(inside), np.float32), (theirs[inside], inside)), (clusters, len(block)))
        sums = sums + member @ block
        start += len(block)
    return sums
