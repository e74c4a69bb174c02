"""Reducing the vectors: evened-out components, moved towards their neighbours, copies kept alike."""

import builtins
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from llmindex.cluster.reduce import COMPONENTS, EVENED_TO, Blocks, reduce, shift
from llmindex.errors import MissingPackage
from llmindex.records import Vectors
from tests.samples import make_vectors


def in_blocks(vectors: Vectors, *cuts: int) -> Blocks:
    return lambda: np.split(vectors, cuts)


class TestReduce:
    def test_components_are_those_of_a_singular_value_decomposition(self) -> None:
        vectors = make_vectors(300, 100) * np.linspace(5, 0.5, 100, dtype=np.float32)
        projection = reduce(in_blocks(vectors, 7, 120), np.arange(300), "pca").projection
        _, deviations, directions = np.linalg.svd(vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64))
        assert projection is not None
        lengths = np.linalg.norm(projection.components, axis=1)
        along = np.abs((projection.components / lengths[:, None] * directions[:COMPONENTS]).sum(axis=1))
        assert along == pytest.approx(1, abs=1e-3)
        # Evened out: what varies most varies three times as much as what varies least, and nothing more.
        kept = deviations[:COMPONENTS] * lengths / deviations[COMPONENTS - 1]
        assert kept == pytest.approx(
            np.minimum(deviations[:COMPONENTS] / deviations[COMPONENTS - 1], EVENED_TO), rel=1e-3
        )

    def test_vectors_move_towards_their_neighbours(self) -> None:
        vectors = make_vectors(200, 30)
        reduced = reduce(in_blocks(vectors), np.arange(200), "pca")
        assert reduced.projection is not None
        projected = reduced.projection(vectors).astype(np.float64)
        order = np.argsort(-projected @ projected.T, axis=1)[:, 1 : 1 + 200 // 20]
        means = (projected + 10 * projected[order].mean(axis=1)) / 11
        expected = 0.225 * projected + 0.775 * means
        assert np.allclose(reduced.vectors, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)

    def test_of_thirty_neighbours_a_vector_keeps_a_quarter_of_itself(self) -> None:
        vectors = np.eye(2, 3, dtype=np.float32)
        among = np.array([[0, 0, 1], [0, 1, 0]], np.float32)
        moved = shift(vectors, np.array([[0] * 30, [0, 1] * 15]), among)
        expected = np.array([[0.25, 0, 0.75], [0, 0.625, 0.375]])
        assert np.allclose(moved, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)

    @pytest.mark.parametrize("k", [1, 2, 3, 4, 30])
    def test_each_other_s_neighbours_come_nearer_and_do_not_become_one(self, k: int) -> None:
        vectors = np.array([1, 0, 0], np.float32) + 1e-2 * make_vectors(k + 1, 3)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        others = np.array([[other for other in range(k + 1) if other != row] for row in range(k + 1)])
        moved = shift(vectors, others, vectors)
        after, before = (pdist(each.astype(np.float64)) for each in (moved, vectors))
        assert after / before == pytest.approx(0.225, abs=5e-3)

    def test_copies_stay_copies(self) -> None:
        vectors = make_vectors(60, 16)[np.arange(300) % 60]
        reduced = reduce(in_blocks(vectors, 71, 160), np.arange(300) % 60, "pca").vectors
        assert (reduced == reduced[np.arange(300) % 60]).all()
        assert len(np.unique(reduced, axis=0)) == 60

    @pytest.mark.parametrize("count", [1, 2, 3, 10, 25])
    def test_few_vectors(self, count: int) -> None:
        vectors = make_vectors(count, 16)
        reduced = reduce(in_blocks(vectors), np.arange(count), "pca").vectors
        assert reduced.shape == (count, max(1, count // 3))
        assert np.isfinite(reduced).all()

    def test_vectors_of_fewer_dimensions_than_components(self) -> None:
        vectors = np.zeros((200, 40), np.float32)
        vectors[:, :3] = make_vectors(200, 3)
        reduced = reduce(in_blocks(vectors), np.arange(200), "pca").vectors
        assert np.isfinite(reduced).all()
        assert np.abs(reduced[:, 3:]).max() < 1e-3

    def test_large_corpora_are_sampled(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("llmindex.cluster.reduce._SAMPLE", 100)
        vectors = make_vectors(1050, 16, clusters=4)
        projection = reduce(in_blocks(vectors, 7, 500), np.arange(1050), "pca").projection
        assert projection is not None
        assert np.allclose(projection.mean, vectors[::11].mean(axis=0), atol=1e-6)

    def test_none_leaves_the_vectors(self) -> None:
        vectors = make_vectors(20, 8)
        assert (reduce(in_blocks(vectors, 8), np.arange(20), "none").vectors == vectors).all()

    def test_umap_that_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        original = builtins.__import__

        def without_umap(name: str, *args: Any, **more: Any) -> Any:  # noqa: ANN401
            if name == "umap":
                raise ImportError("No module named 'umap'")
            return original(name, *args, **more)

        monkeypatch.setattr(builtins, "__import__", without_umap)
        with pytest.raises(MissingPackage, match=r"pip install umap-learn"):
            reduce(in_blocks(make_vectors(40, 8)), np.arange(40), "umap")
