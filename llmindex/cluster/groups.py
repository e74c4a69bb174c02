"""From vectors to groups: reduce, HDBSCAN, let noise follow its neighbours, number the clusters by size."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.hdbscan_tree import DensityTree, Labels, Probabilities, density_tree
from llmindex.cluster.neighbors import NeighborGraph
from llmindex.cluster.noise import default_limit, spread, strength
from llmindex.cluster.options import ClusterOptions
from llmindex.cluster.reduce import Blocks, Projection, reduce
from llmindex.cluster.spanning_tree import spanning_tree
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows

_COPY = 1e-3
"""How far a copy may be from what is stored of it: float16 moves a vector of unit length by less than half of that."""


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """What it takes to place a new document among the groups.

    Attributes:
        tree: the condensed tree and its clusters.
        core: ``(n,) float32``, core distances as the hdbscan package keeps them for new points.
        densest: ``(clusters,)``, the greatest 1/distance in each cluster.
        min_samples: as it was used, at most n - 1.
        limit: how far a neighbour may be that noise follows; None if it follows none.
        projection: the first step of the reduction, if it is by principal components.
        coordinates: ``(n, k) float32``, the reduced vectors; None if they are the stored ones.
        step: every so many-th stored vector was clustered, from the first; n counts these alone.
    """

    tree: DensityTree
    core: NDArray[np.float32]
    densest: NDArray[np.float64]
    min_samples: int
    limit: float | None = None
    projection: Projection | None = None
    coordinates: NDArray[np.float32] | None = None
    step: int = 1


@dataclass(frozen=True, slots=True, eq=False)
class Groups:
    """Vectors in groups.

    Attributes:
        labels: ``(n,) int32``, 0 for the largest group; -1 for noise.
        probabilities: ``(n,) float32``, 0 for noise.
        assigned: ``(n,) bool``, which rows HDBSCAN called noise and are in a group all the same.
        placement: what it takes to place new documents.
    """

    labels: Labels
    probabilities: Probabilities
    assigned: NDArray[np.bool_]
    placement: Placement


def group(blocks: Blocks, first: Rows, options: ClusterOptions, on_progress: ProgressCallback | None = None) -> Groups:
    """Group vectors.

    Args:
        blocks: gives the unit vectors in row order, each ``(m, dim) float32``.
        first: ``(n,)``, for each row the first with the same vector.
        options: with the defaults filled in.
        on_progress: told of the stages "reduce", "neighbors", "spanning tree" and "tree".
    """
    count = len(first)
    size, min_samples = options.min_cluster_size, options.min_samples
    if size is None or min_samples is None:
        raise ValueError("options must be resolved")
    if count < size:
        return _trivial(count, noise=True)
    if not first.any():
        return _trivial(count, noise=False)
    reduced = reduce(blocks, first, options.reduce, on_progress)
    tree = spanning_tree(reduced.vectors, min_samples, centroids=reduced.centroids, on_progress=on_progress)
    density, labels, probabilities = density_tree(tree, size, options.selection)
    placement = Placement(
        density,
        tree.core,
        density.max_lambdas(),
        min(min_samples, count - 1),
        projection=reduced.projection,
        coordinates=None if options.reduce == "none" else reduced.vectors,
    )
    groups = Groups(labels, probabilities, np.zeros(count, bool), placement)
    if options.assign_noise:
        groups = _with_noise(groups, tree.graph, options.assign_distance)
    if on_progress is not None:
        on_progress(Progress("tree", count, count, "vectors"))
    return by_size(groups)


def _trivial(count: int, *, noise: bool) -> Groups:
    """Return the groups of too few vectors (all noise), or of copies of one vector (one group)."""
    labels = np.full(count, -1 if noise else 0, np.int32)
    # The tree places nothing, but a further copy follows the others, and as one that is as close as can be.
    densest, limit = (np.empty(0), None) if noise else (np.array([1 / _COPY]), _COPY)
    placement = Placement(DensityTree.empty(len(densest)), np.zeros(count, np.float32), densest, 1, limit)
    return Groups(labels, (labels + 1).astype(np.float32), np.zeros(count, bool), placement)


def _with_noise(groups: Groups, graph: NeighborGraph, limit: float | None) -> Groups:
    """Let noise follow its neighbours as far as the limit (None for the default)."""
    if limit is None:
        limit = default_limit(graph)
    labels = spread(groups.labels, graph, limit)
    assigned = labels != groups.labels
    rows, placement = graph.rows[assigned], replace(groups.placement, limit=limit)
    probabilities = groups.probabilities.copy()
    same = labels[rows] == labels[assigned, None]
    probabilities[assigned] = strength(
        np.where(same, graph.squared[assigned], np.inf).min(axis=1, initial=np.inf),
        placement.densest[labels[assigned]],
    )
    return Groups(labels, probabilities, assigned, placement)


def by_size(groups: Groups) -> Groups:
    """Return the groups numbered by size, largest first."""
    placement = groups.placement
    sizes = np.bincount(groups.labels + 1, minlength=len(placement.densest) + 1)[1:]
    order = np.argsort(-sizes, kind="stable")
    number = np.empty(len(order) + 1, np.int32)
    number[order], number[-1] = np.arange(len(order)), -1
    tree, densest = placement.tree.relabelled(order), placement.densest[order]
    return replace(groups, labels=number[groups.labels], placement=replace(placement, tree=tree, densest=densest))
