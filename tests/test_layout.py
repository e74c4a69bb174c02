"""Places on the plane: neighbours stay neighbours, any number of points works, the same input gives the same map."""

import numpy as np
import pytest
from numpy.typing import NDArray

from llmindex.cluster import layout as module
from llmindex.cluster.layout import layout
from llmindex.progress import Progress
from llmindex.records import Vectors
from tests.samples import make_vectors


def blobs(sizes: list[int], dim: int = 24) -> tuple[Vectors, NDArray[np.int64]]:
    """Well separated groups of unit vectors, and which group each is of."""
    of = np.repeat(np.arange(len(sizes)), sizes)
    vectors = 0.3 * make_vectors(len(of), dim) + make_vectors(len(sizes), dim, seed=9)[of]
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit, of


def agreement(places: NDArray[np.float32], of: NDArray[np.int64]) -> float:
    """Share of points whose nearest other point on the plane is of their own group."""
    distances = np.linalg.norm(places[:, None] - places[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    return float((of[distances.argmin(axis=1)] == of).mean())


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 8, 9, 40])
def test_any_number_of_points(count: int) -> None:
    places = layout(make_vectors(count, 16))
    assert places.shape == (count, 2)
    assert places.dtype == np.float32
    assert np.isfinite(places).all()
    assert len(np.unique(places, axis=0)) == count
    if count > 1:
        assert np.abs(places).max() == pytest.approx(1)
        assert places.min(axis=0) == pytest.approx(-places.max(axis=0), abs=1e-6)


@pytest.mark.parametrize("dim", [1, 2, 60])
def test_any_dimension(dim: int) -> None:
    assert np.isfinite(layout(make_vectors(20, dim))).all()


@pytest.mark.parametrize("count", [3, 30])
def test_copies_of_one_document_do_not_hide_each_other(count: int) -> None:
    places = layout(np.tile(make_vectors(1, 16), (count, 1)))
    assert len(np.unique(places, axis=0)) == count
    assert np.isfinite(places).all()


def test_groups_stay_together() -> None:
    vectors, of = blobs([60, 40, 20])
    assert agreement(layout(vectors), of) > 0.99


def test_points_outside_the_sample_lie_in_their_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SAMPLE", 60)
    monkeypatch.setattr(module, "BLOCK", 50)
    vectors, of = blobs([120, 80, 40])
    seen: list[Progress] = []
    places = layout(vectors, on_progress=seen.append)
    assert agreement(places, of) > 0.97
    assert len(np.unique(places, axis=0)) == len(places)
    assert [progress.done for progress in seen] == [0, 60, 110, 160, 210, 240]
    assert {(progress.stage, progress.total, progress.unit) for progress in seen} == {("layout", 240, "points")}
    assert (places == layout(vectors)).all()


def test_same_input_same_map_and_the_seed_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _ = blobs([50, 40])
    assert (layout(vectors) == layout(vectors)).all()
    monkeypatch.setattr(module, "SAMPLE", 40)
    assert (layout(vectors) != layout(vectors, seed=1)).any()


def test_the_shape_is_checked() -> None:
    with pytest.raises(ValueError, match=r"not \(5,\)"):
        layout(np.zeros(5, np.float32))
