"""From the spanning tree to labels, by the hdbscan package's own functions; and from the labels to new points.

The package condenses the single-linkage tree (a split in which one side is smaller than ``min_cluster_size`` only loses
points), selects the clusters, and says how deep in its cluster each point lies. What is kept here is what its
``approximate_predict`` needs to do the same for points that were not there.
"""

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.options import Selection
from llmindex.cluster.spanning_tree import SpanningTree
from llmindex.records import Rows

Labels = NDArray[np.int32]
Probabilities = NDArray[np.float32]

CONDENSED = np.dtype([("parent", np.intp), ("child", np.intp), ("lambda_val", float), ("child_size", np.intp)])
"""A row of the package's condensed tree: ``child`` (a point below n, else a cluster) leaves ``parent`` at 1/distance
``lambda_val``."""


@dataclass(frozen=True, slots=True)
class DensityTree:
    """A condensed tree and the clusters chosen from it.

    Attributes:
        condensed: ``(rows,)`` of dtype ``CONDENSED``.
        selected: ``(clusters,) int64``, the condensed tree's number of each label's cluster.
        persistence: ``(clusters,) float64``, how long each cluster outlasts changes of density, 0 to 1.
    """

    condensed: NDArray[np.void]
    selected: Rows
    persistence: NDArray[np.float64]

    @classmethod
    def empty(cls, clusters: int) -> "DensityTree":
        """Return the tree of vectors that were not clustered: it places no new points."""
        return cls(np.empty(0, CONDENSED), np.zeros(clusters, np.int64), np.ones(clusters))

    def relabelled(self, order: Rows) -> "DensityTree":
        """Return the tree with its clusters in another order: label i is what was ``order[i]``."""
        return DensityTree(self.condensed, self.selected[order], self.persistence[order])

    def max_lambdas(self) -> NDArray[np.float64]:
        """Return where each cluster is densest: the largest 1/distance at which a point leaves it."""
        parents = self.condensed["parent"]
        largest = np.zeros(int(parents.max(initial=0)) + 1)
        np.maximum.at(largest, parents, self.condensed["lambda_val"])
        return largest[self.selected]


def density_tree(
    tree: SpanningTree, min_cluster_size: int, selection: Selection
) -> tuple[DensityTree, Labels, Probabilities]:
    """Return the condensed tree, and each point's label (-1 noise) and probability, both ``(n,)``."""
    from hdbscan.hdbscan_ import _tree_to_labels
    from sklearn.cluster._hierarchical_fast import single_linkage_label

    # What the package's own ``label`` gives, in a fortieth of its time.
    linkage = single_linkage_label(np.column_stack([tree.edges, tree.weights]))
    # Copies lie at distance 0 and leave at 1/0.
    with np.errstate(divide="ignore", invalid="ignore"):
        labels, probabilities, persistence, condensed, _ = _tree_to_labels(
            None, linkage, min_cluster_size, cluster_selection_method=selection
        )
    selected = _selected(condensed, labels)
    found = DensityTree(condensed.astype(CONDENSED), selected, np.asarray(persistence, np.float64))
    return found, labels.astype(np.int32), probabilities.astype(np.float32)


def _selected(condensed: NDArray[np.void], labels: Rows) -> Rows:
    """Return the condensed tree's number of each label's cluster: the lowest node that holds all its points."""
    inner = condensed[condensed["child_size"] > 1]
    parent = dict(zip(inner["child"].tolist(), inner["parent"].tolist(), strict=True))
    size = dict(zip(inner["child"].tolist(), inner["child_size"].tolist(), strict=True))
    points = condensed[condensed["child_size"] == 1]
    points = points[labels[points["child"]] >= 0]
    label = labels[points["child"]]
    members = np.bincount(label)
    nodes = np.full(len(members), np.iinfo(np.int64).max)
    np.minimum.at(nodes, label, points["parent"])
    for each, count in enumerate(members.tolist()):
        while size[int(nodes[each])] < count:
            nodes[each] = parent[int(nodes[each])]
    return nodes


def place_new(
    tree: DensityTree,
    core: NDArray[np.float32],
    min_samples: int,
    rows: Rows,
    distances: NDArray[np.float64],
) -> tuple[Labels, Probabilities]:
    """Label points that the tree does not know, by the package's ``approximate_predict``.

    Args:
        tree: the clusters.
        core: ``(n,)``, as the spanning tree gave them.
        min_samples: as the spanning tree took it.
        rows: ``(m, 2 * min_samples)`` nearest known points of each new one, nearest first (all, where there are fewer).
        distances: of those.
    """
    from hdbscan.prediction import approximate_predict

    if len(tree.condensed) == 0 or len(tree.selected) == 0 or len(rows) == 0:
        return np.full(len(rows), -1, np.int32), np.zeros(len(rows), np.float32)
    label_of, densest = _by_node(tree)
    clusterer = SimpleNamespace(
        min_samples=min_samples,
        condensed_tree_=SimpleNamespace(_raw_tree=tree.condensed),
        prediction_data_=SimpleNamespace(
            raw_data=rows,  # asked for its width alone
            tree=SimpleNamespace(query=lambda _points, k: (distances[:, :k], rows[:, :k])),
            cluster_tree=tree.condensed[tree.condensed["child_size"] > 1],
            core_distances=core.astype(np.float64),
            cluster_map=label_of,
            max_lambdas=densest,
        ),
    )
    labels, probabilities = approximate_predict(clusterer, rows)
    return labels.astype(np.int32), probabilities.astype(np.float32)


def _by_node(tree: DensityTree) -> tuple[dict[int, int], dict[int, float]]:
    """Return the label and the greatest density of each selected cluster, and of all nodes below it."""
    inner = tree.condensed[tree.condensed["child_size"] > 1]
    label_of = {int(node): label for label, node in enumerate(tree.selected)}
    largest = np.finfo(np.float64).max  # copies leave at infinity, and no share of that can be told
    densest = dict(zip(label_of, np.minimum(tree.max_lambdas(), largest).tolist(), strict=True))
    # Parents come before their children.
    for node, parent in sorted(zip(inner["child"].tolist(), inner["parent"].tolist(), strict=True)):
        if parent in label_of:
            label_of[node], densest[node] = label_of[parent], densest[parent]
    return label_of, densest
