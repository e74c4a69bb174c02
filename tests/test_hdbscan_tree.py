"""Labels, probabilities and predictions against the hdbscan package's own, computed by its own algorithms."""

import numpy as np
import pytest
from hdbscan import HDBSCAN, approximate_predict
from hdbscan._hdbscan_linkage import label
from hypothesis import given
from hypothesis import strategies as st
from sklearn.cluster._hierarchical_fast import single_linkage_label
from sklearn.metrics import adjusted_rand_score

from llmindex.cluster.hdbscan_tree import DensityTree, density_tree, place_new
from llmindex.cluster.options import Selection
from llmindex.cluster.spanning_tree import spanning_tree
from llmindex.records import Vectors
from tests.samples import make_vectors


def documents(count: int, dim: int, seed: int, *, noise: float = 0.3, copies: int = 0) -> Vectors:
    """Unit vectors in clusters of different density and size, noise between them, and copies."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(30, dim))
    which = np.minimum(random.geometric(0.1, count) - 1, 29)
    vectors = centres[which] + random.uniform(0.2, 0.8, count)[:, None] * random.normal(size=(count, dim))
    lost = random.random(count) < noise
    vectors[lost] = random.normal(size=(lost.sum(), dim))
    if copies:
        vectors[random.integers(0, count, copies)] = vectors[0]
        vectors[random.integers(0, count, copies)] = vectors[random.integers(0, count, copies)]
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit


CASES = [
    # count, dim, copies, min_samples, min_cluster_size, selection
    (1500, 64, 0, 5, 15, "eom"),
    (1500, 64, 0, 3, 5, "leaf"),
    (1000, 384, 0, 5, 10, "eom"),
    (1200, 24, 0, 1, 5, "eom"),
    (1200, 32, 0, 40, 12, "eom"),
    (1500, 64, 60, 5, 15, "eom"),
    (1500, 64, 60, 5, 10, "leaf"),
    (5000, 32, 0, 5, 20, "eom"),
]


@pytest.mark.parametrize(("count", "dim", "copies", "min_samples", "size", "selection"), CASES)
@pytest.mark.parametrize("seed", [0, 1])
def test_labels_equal_the_package(
    count: int, dim: int, copies: int, min_samples: int, size: int, selection: Selection, seed: int
) -> None:
    vectors = documents(count, dim, seed, copies=copies)
    tree, labels, probabilities = density_tree(spanning_tree(vectors, min_samples), size, selection)
    reference = HDBSCAN(
        min_cluster_size=size,
        min_samples=min_samples,
        metric="euclidean",
        cluster_selection_method=selection,
        algorithm="prims_kdtree",
    ).fit(vectors)
    assert adjusted_rand_score(reference.labels_, labels) >= 0.99
    assert abs((labels < 0).mean() - (reference.labels_ < 0).mean()) < 0.01
    if not copies:  # whose ties the package splits by chance
        assert (labels == reference.labels_).all()
        assert np.allclose(probabilities, reference.probabilities_, atol=1e-5)
        assert np.allclose(tree.persistence, reference.cluster_persistence_, atol=1e-6)
        assert tree.selected.tolist() == sorted(reference.condensed_tree_._select_clusters())


def brute_force_neighbors(known: Vectors, new: Vectors, k: int) -> tuple[np.ndarray, np.ndarray]:
    distances = np.sqrt(((new[:, None].astype(np.float64) - known[None]) ** 2).sum(axis=2))
    rows = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(distances, rows, 1)


@pytest.mark.parametrize("selection", ["eom", "leaf"])
@pytest.mark.parametrize("min_samples", [1, 4])
def test_new_points_go_where_the_package_puts_them(selection: Selection, min_samples: int) -> None:
    everything = documents(1400, 24, seed=3)
    known, new = everything[:1200], everything[1200:]
    spanning = spanning_tree(known, min_samples)
    tree, *_ = density_tree(spanning, 10, selection)
    rows, distances = brute_force_neighbors(known, new, 2 * min_samples)
    labels, probabilities = place_new(tree, spanning.core, min_samples, rows, distances)
    reference = HDBSCAN(
        min_cluster_size=10,
        min_samples=min_samples,
        cluster_selection_method=selection,
        algorithm="prims_kdtree",
        prediction_data=True,
    ).fit(known)
    expected_labels, expected_probabilities = approximate_predict(reference, new)
    assert (labels >= 0).mean() > 0.2
    assert (labels == expected_labels).mean() >= 0.99
    assert np.abs(probabilities - expected_probabilities)[labels == expected_labels].max() < 1e-4


def test_a_cluster_without_points_of_its_own_is_found() -> None:
    """One that splits before it loses a point: its number is not among its points' parents."""
    centres = np.array([[0, 0], [0, 0.63], [30, 0], [30, 0.63]], np.float32)
    offsets = np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(-1, 2).astype(np.float32) / 8
    vectors = (centres[:, None] + offsets[None]).reshape(-1, 2).astype(np.float32)
    tree, labels, _ = density_tree(spanning_tree(vectors, 1), 20, "eom")
    assert labels.tolist() == np.repeat(labels[[0, 50]], 50).tolist()
    sizes = {int(row["child"]): int(row["child_size"]) for row in tree.condensed if row["child_size"] > 1}
    assert [sizes[int(node)] for node in tree.selected] == [50, 50]


def test_labels_follow_the_order_of_the_clusters() -> None:
    vectors = documents(800, 16, seed=1, noise=0.1)
    spanning = spanning_tree(vectors, 3)
    tree, *_ = density_tree(spanning, 20, "eom")
    rows, distances = brute_force_neighbors(vectors, vectors[:100], 6)
    before, _ = place_new(tree, spanning.core, 3, rows, distances)
    order = np.arange(len(tree.selected))[::-1].copy()
    after, _ = place_new(tree.relabelled(order), spanning.core, 3, rows, distances)
    assert (np.where(before >= 0, len(order) - 1 - before, -1) == after).all()
    assert np.allclose(tree.relabelled(order).max_lambdas(), tree.max_lambdas()[::-1])


def test_no_clusters_place_nothing() -> None:
    rows, distances = np.array([[0, 1]]), np.array([[0.1, 0.2]])
    labels, probabilities = place_new(DensityTree.empty(0), np.zeros(2, np.float32), 1, rows, distances)
    assert (labels.tolist(), probabilities.tolist()) == ([-1], [0])


def test_fewer_points_than_a_cluster_needs_are_noise() -> None:
    tree, labels, probabilities = density_tree(spanning_tree(make_vectors(8, 4), 3), 10, "eom")
    assert (labels == -1).all()
    assert (probabilities == 0).all()
    assert len(tree.selected) == 0


@given(count=st.integers(2, 120), seed=st.integers(0, 999), kinds=st.integers(1, 60))
def test_trees_join_as_the_package_has_them(count: int, seed: int, kinds: int) -> None:
    """scikit-learn's function, which is not public, does what the package's own does."""
    random = np.random.default_rng(seed)
    ends = np.array([random.integers(0, point) for point in range(1, count)])
    edges = random.permuted(np.stack([np.arange(1, count), ends], axis=1)[random.permutation(count - 1)], axis=1)
    weights = np.sort(random.integers(0, kinds, count - 1)).astype(np.float64)
    tree = np.column_stack([edges, weights])
    np.testing.assert_array_equal(single_linkage_label(tree), label(tree))
