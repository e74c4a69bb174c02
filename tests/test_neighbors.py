"""The neighbour graph against brute force."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.cluster import lookup
from llmindex.cluster.neighbors import neighbor_graph, squared_distances
from llmindex.progress import Progress
from llmindex.records import Vectors
from tests.samples import make_vectors


def brute_force(vectors: Vectors) -> np.ndarray:
    wide = vectors.astype(np.float64)
    squared: np.ndarray = ((wide[:, None] - wide[None]) ** 2).sum(axis=2)
    np.fill_diagonal(squared, np.inf)
    return squared


@settings(max_examples=40)
@given(count=st.integers(1, 60), dim=st.integers(1, 20), k=st.integers(1, 40), seed=st.integers(0, 99))
def test_exact_graph_equals_brute_force(count: int, dim: int, k: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    graph = neighbor_graph(vectors, k, exact=True)
    width = min(k, count - 1)
    expected = np.sort(brute_force(vectors), axis=1)[:, :width]
    assert graph.rows.shape == (count, width)
    assert np.allclose(graph.squared, expected, rtol=1e-3, atol=1e-5)
    assert (graph.rows != np.arange(count)[:, None]).all()
    assert all(len(set(row)) == width for row in graph.rows.tolist())
    found = np.take_along_axis(brute_force(vectors), graph.rows, 1)
    assert np.allclose(graph.squared, found, rtol=1e-3, atol=1e-5)


def test_close_vectors_keep_their_distances() -> None:
    """Products in float32 alone would call all of these copies, or worse."""
    base = make_vectors(1, 768)
    steps = np.array([0, 1e-5, 3e-5, 1e-4, 1e-3], np.float32)
    vectors = (base + steps[:, None] * np.eye(1, 768, dtype=np.float32)).astype(np.float32)
    graph = neighbor_graph(np.concatenate([vectors, make_vectors(50, 768, seed=1)]), 4, exact=True)
    expected = np.sort(brute_force(vectors), axis=1)[:, :4]
    assert np.allclose(graph.squared[:5], expected, rtol=1e-2)


def test_cells_hold_most_neighbours() -> None:
    vectors = make_vectors(3000, 24, clusters=30)
    exact = neighbor_graph(vectors, 10, exact=True)
    found = neighbor_graph(vectors, 10, exact=False)
    hits = [len(set(a) & set(b)) for a, b in zip(exact.rows.tolist(), found.rows.tolist(), strict=True)]
    assert np.mean(hits) > 9
    assert (found.rows != np.arange(3000)[:, None]).all()
    again = neighbor_graph(vectors, 10, exact=False)
    assert (again.rows == found.rows).all()


@pytest.mark.parametrize("exact", [True, False])
def test_every_row_has_all_its_neighbours(exact: bool) -> None:
    """However far it is from the others, and however many are asked for."""
    vectors = make_vectors(3000, 8)
    vectors[:3] *= 100
    for k in (1, 300):
        graph = neighbor_graph(vectors, k, exact=exact)
        assert (graph.rows >= 0).all()
        assert all(len(set(row)) == k for row in graph.rows.tolist())
        assert (np.diff(graph.squared, axis=1) >= 0).all()


@settings(max_examples=20)
@given(dim=st.integers(1, 40), spread=st.integers(0, 6), seed=st.integers(0, 99))
def test_lengths_may_differ_by_orders_of_magnitude(dim: int, spread: int, seed: int) -> None:
    """Products of long vectors round by more than short ones are apart."""
    random = np.random.default_rng(seed)
    lengths = 10 ** random.uniform(-spread / 2, spread / 2, (900, 1))
    vectors = (lengths * random.normal(size=(900, dim))).astype(np.float32)
    for exact in (True, False):
        graph = neighbor_graph(vectors, 12, exact=exact)
        assert all(len({row, *rows}) == 13 for row, rows in enumerate(graph.rows.tolist()))


def test_many_vectors() -> None:
    """More than small integers count."""
    grid = np.stack(np.divmod(np.arange(40_000), 200), axis=1).astype(np.float32) - 100
    graph = neighbor_graph(grid, 4, exact=False)
    assert (graph.squared[:, :2] == 1).all()
    assert (graph.rows != np.arange(40_000)[:, None]).all()


@pytest.mark.parametrize("exact", [True, False])
def test_progress_reaches_the_end(exact: bool) -> None:
    seen: list[Progress] = []
    neighbor_graph(make_vectors(2500, 8), 3, exact=exact, on_progress=seen.append)
    assert {(report.stage, report.total) for report in seen} == {("neighbors", 2500)}
    done = [report.done for report in seen]
    assert (done[-1], done) == (2500, sorted(done))


def test_squared_distances_are_exact() -> None:
    vectors = make_vectors(5000, 3)
    left, right = np.arange(5000), np.arange(5000)[::-1]
    expected = ((vectors[left].astype(np.float64) - vectors[right]) ** 2).sum(axis=1)
    assert np.allclose(squared_distances(vectors, left, right), expected, rtol=1e-12)


def test_so_many_vectors_that_points_are_sorted_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = make_vectors(3000, 8, clusters=10)
    expected = neighbor_graph(vectors, 5, exact=False)
    # As many steps of distance leave as little room as a hundred million vectors do.
    monkeypatch.setattr(lookup, "_STEPS", 1 << 40)
    graph = neighbor_graph(vectors, 5, exact=False)
    assert (graph.rows == expected.rows).mean() > 0.999
    np.testing.assert_allclose(graph.squared, expected.squared, rtol=1e-3, atol=1e-4)
