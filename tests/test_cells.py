"""Cells: every row in one, none small, near ones together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.cluster.cells import LEAST, Cells, nearest_cell
from tests.samples import make_vectors


@settings(max_examples=40)
@given(count=st.integers(1, 600), outliers=st.integers(0, 9), seed=st.integers(0, 99))
def test_every_row_is_in_one_cell_and_no_cell_is_small(count: int, outliers: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 5)).astype(np.float32)
    vectors[:outliers] *= 1000
    cells = Cells.of(vectors)
    assert sorted(cells.rows.tolist()) == list(range(count))
    assert cells.sizes.min() >= min(LEAST, count)
    assert cells.sizes.sum() == cells.starts[-1] == count
    numbers = cells.numbers()
    assert (np.bincount(numbers, minlength=len(cells)) == cells.sizes).all()
    for cell, (start, stop) in enumerate(zip(cells.starts, cells.starts[1:], strict=False)):
        assert cells.rows[start:stop].tolist() == np.flatnonzero(numbers == cell).tolist()


def test_a_row_is_in_the_cell_of_its_nearest_centroid() -> None:
    vectors = make_vectors(4000, 12, clusters=20)
    cells = Cells.of(vectors)
    assert len(cells) > 20
    assert (nearest_cell(vectors, cells.centroids) == cells.numbers()).all()
    assert (Cells.of(vectors).rows == cells.rows).all()


def test_cells_start_from_known_middles() -> None:
    vectors = make_vectors(4000, 12, clusters=20)
    known = Cells.of(vectors)
    moved = vectors + np.float32(0.01)
    cells = Cells.of(moved, known.means(moved))
    assert (nearest_cell(moved, cells.centroids) == cells.numbers()).all()
    assert (cells.numbers() == known.numbers()).mean() > 0.8
    few = moved[:300]  # too few for so many cells
    assert (Cells.of(few, known.centroids).rows == Cells.of(few).rows).all()


def test_means() -> None:
    vectors = make_vectors(500, 6, clusters=5)
    cells = Cells.of(vectors)
    for cell, mean in enumerate(cells.means(vectors)):
        np.testing.assert_allclose(mean, vectors[cells.numbers() == cell].mean(axis=0), atol=1e-6)


def test_the_nearest_of_many_cells() -> None:
    """More than one tile of products."""
    random = np.random.default_rng(0)
    vectors, centroids = (random.normal(size=(count, 4)).astype(np.float32) for count in (3000, 700))
    squares = ((vectors[:, None] - centroids) ** 2).sum(axis=2)
    chosen = squares[np.arange(3000), nearest_cell(vectors, centroids)]
    np.testing.assert_allclose(chosen, squares.min(axis=1), atol=1e-5)
    assert nearest_cell(vectors[:0], centroids).shape == (0,)


@settings(max_examples=20)
@given(least=st.integers(1, 3000), seed=st.integers(0, 99))
def test_around_takes_the_nearest_cells_until_there_is_enough(least: int, seed: int) -> None:
    vectors = make_vectors(2000, 6, clusters=10)
    cells = Cells.of(vectors)
    points = np.random.default_rng(seed).normal(size=(3, 6)).astype(np.float32)
    rows = cells.around(points, least, cells.sizes)
    assert len(set(rows.tolist())) == len(rows) >= min(least, 2000)
    distances = np.sqrt(((points[:, None] - cells.centroids) ** 2).sum(axis=2)).min(axis=0)
    taken = np.unique(cells.numbers()[rows])
    others = np.setdiff1d(np.arange(len(cells)), taken)
    assert distances[taken].max() <= distances[others].min(initial=np.inf) + 1e-5
    assert len(rows) - cells.sizes[taken[distances[taken].argmax()]] < least
