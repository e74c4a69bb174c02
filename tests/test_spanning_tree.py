"""The spanning tree against SciPy's, over all pairs."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from llmindex.cluster.distinct import first_rows
from llmindex.cluster.spanning_tree import SpanningTree, spanning_tree
from llmindex.progress import Progress
from llmindex.records import Vectors
from tests.samples import make_vectors


def mutual_reachability(vectors: Vectors, min_samples: int) -> NDArray[np.float64]:
    wide = vectors.astype(np.float64)
    distances: NDArray[np.float64] = np.sqrt(((wide[:, None] - wide[None]) ** 2).sum(axis=2))
    core = np.sort(distances, axis=1)[:, min(min_samples, len(vectors) - 1)]
    return np.maximum(distances, np.maximum(core[:, None], core[None]))


def brute_force_weight(vectors: Vectors, min_samples: int) -> float:
    # SciPy takes zero for no edge: shift the weights, and take the shifts off again.
    weights = mutual_reachability(vectors, min_samples) + 1
    np.fill_diagonal(weights, 0)
    return float(minimum_spanning_tree(weights).sum()) - (len(vectors) - 1)


def check(tree: SpanningTree, vectors: Vectors, min_samples: int) -> None:
    """It is a tree, and its edges weigh what they should."""
    count = len(vectors)
    assert tree.edges.shape == (count - 1, 2)
    graph = np.zeros((count, count))
    graph[tree.edges[:, 0], tree.edges[:, 1]] = 1
    assert connected_components(graph, directed=False, return_labels=False) == 1
    expected = mutual_reachability(vectors, min_samples)[tree.edges[:, 0], tree.edges[:, 1]]
    assert np.allclose(tree.weights, expected, rtol=1e-6, atol=1e-7)
    assert (np.diff(tree.weights) >= 0).all()


@st.composite
def clouds(draw: st.DrawFn) -> Vectors:
    """Vectors with copies, close pairs and clusters, of unit length or not."""
    random = np.random.default_rng(draw(st.integers(0, 10_000)))
    count, dim = draw(st.integers(2, 120)), draw(st.integers(1, 12))
    vectors = random.normal(size=(count, dim)) + draw(st.sampled_from([0, 5])) * random.integers(0, 3, (count, 1))
    copies = random.integers(0, count, draw(st.integers(0, count)))
    vectors[copies] = vectors[random.integers(0, count, len(copies))]
    if draw(st.booleans()):
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32)


@settings(max_examples=120)
@given(vectors=clouds(), min_samples=st.integers(1, 20))
def test_weight_equals_brute_force(vectors: Vectors, min_samples: int) -> None:
    tree = spanning_tree(vectors, min_samples)
    check(tree, vectors, min_samples)
    assert tree.weights.sum() == pytest.approx(brute_force_weight(vectors, min_samples), rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_weight_equals_brute_force_where_the_graph_is_not_enough(seed: int) -> None:
    """Clusters larger than the neighbour lists, and noise: Borůvka has to compare rows with all others."""
    random = np.random.default_rng(seed)
    centres = 3 * random.normal(size=(6, 40))
    vectors = np.concatenate([centres[random.integers(0, 6, 700)] + random.normal(size=(700, 40)), centres * 9])
    vectors = vectors.astype(np.float32)
    tree = spanning_tree(vectors, 5)
    check(tree, vectors, 5)
    assert tree.weights.sum() == pytest.approx(brute_force_weight(vectors, 5), rel=1e-7)


def test_close_vectors_are_told_apart() -> None:
    """Many vectors a few rounding errors of a float32 product apart."""
    random = np.random.default_rng(0)
    near = make_vectors(20, 64).repeat(40, axis=0) + 1e-4 * random.normal(size=(800, 64))
    vectors = near.astype(np.float32)
    assert spanning_tree(vectors, 3).weights.sum() == pytest.approx(brute_force_weight(vectors, 3), rel=1e-4)


@settings(max_examples=20)
@given(vectors=clouds(), min_samples=st.integers(1, 5))
def test_from_the_graph_it_is_a_tree_hardly_heavier(vectors: Vectors, min_samples: int) -> None:
    tree = spanning_tree(vectors, min_samples, exact=False)
    assert tree.edges.shape == (len(vectors) - 1, 2)
    lightest = brute_force_weight(vectors, min_samples)
    assert lightest * (1 - 1e-5) - 1e-5 <= tree.weights.sum() <= 1.3 * lightest + 1e-5


def test_components_of_the_graph_are_joined_by_near_points() -> None:
    """Four clusters with more points than a row has neighbours: the graph is in four parts."""
    centres = 100 * np.eye(4, 8)
    vectors = (centres[np.arange(400) % 4] + np.random.default_rng(0).normal(size=(400, 8))).astype(np.float32)
    tree = spanning_tree(vectors, 4, exact=False)
    check(tree, vectors, 4)
    exact = spanning_tree(vectors, 4)
    assert (tree.weights > 50).sum() == (exact.weights > 50).sum() == 3
    assert tree.weights[-3:] == pytest.approx(exact.weights[-3:], rel=0.02)


@pytest.mark.parametrize("exact", [True, False])
def test_scipy_is_given_edges_in_32_bits(exact: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the newest SciPy take no others."""
    given_to_scipy = []

    def strict(edges: csr_array, overwrite: bool = False) -> csr_array:
        given_to_scipy.append((edges.indices.dtype, edges.indptr.dtype))
        return minimum_spanning_tree(edges, overwrite)

    monkeypatch.setattr("scipy.sparse.csgraph.minimum_spanning_tree", strict)
    vectors = np.concatenate([make_vectors(40, 8), make_vectors(40, 8) + 100]).astype(np.float32)
    spanning_tree(vectors, 4, exact=exact)
    assert set(given_to_scipy) == {(np.dtype(np.int32), np.dtype(np.int32))}


def test_many_vectors_are_joined_from_the_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = make_vectors(300, 12, clusters=5)
    from_graph = spanning_tree(vectors, 4, exact=False)
    monkeypatch.setattr("llmindex.cluster.spanning_tree.EXACT_LIMIT", 299)
    assert (spanning_tree(vectors, 4).edges == from_graph.edges).all()


def test_copies_hang_on_their_first_row() -> None:
    vectors = make_vectors(50, 16)[np.arange(200) % 50]
    tree = spanning_tree(vectors, 3)
    assert (tree.weights[:150] == 0).all()
    assert (tree.weights[150:] > 0.1).all()
    light = np.sort(tree.edges[:150], axis=1)
    assert (light[:, 0] == light[:, 1] % 50).all()
    assert (tree.core == 0).all()
    assert (tree.graph.rows[50:, 0] == np.arange(50, 200) % 50).all()


@pytest.mark.parametrize("count", [2, 3, 40])
def test_copies_of_one_vector(count: int) -> None:
    tree = spanning_tree(make_vectors(1, 8).repeat(count, axis=0), 5)
    assert tree.edges.shape == (count - 1, 2)
    assert (tree.weights == 0).all()


def test_no_order_of_rows_changes_the_weights() -> None:
    vectors = make_vectors(500, 20, clusters=8)
    order = np.random.default_rng(1).permutation(500)
    assert np.allclose(spanning_tree(vectors, 4).weights, spanning_tree(vectors[order], 4).weights, atol=1e-7)


def test_progress_names_its_stages() -> None:
    seen: list[Progress] = []
    spanning_tree(make_vectors(300, 8), 3, on_progress=seen.append)
    assert {report.stage for report in seen} == {"neighbors", "spanning tree"}
    assert (seen[-1].done, seen[-1].total) == (299, 299)


def test_first_rows() -> None:
    blocks = [np.array([[1, 0], [0, 1]], np.float32), np.array([[1, -0.0], [0, 2], [0, 1]], np.float32)]
    assert first_rows(blocks).tolist() == [0, 1, 0, 3, 1]
    assert first_rows([]).tolist() == []
