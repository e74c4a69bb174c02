"""Soft membership: shares of few clusters, from the neighbours' own."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex.cluster.clustering import Clustering, assign, cluster, memberships
from llmindex.cluster.membership import _largest
from llmindex.errors import UsageError
from llmindex.store.reader import VectorStore
from tests.samples import make_store, make_vectors
from tests.topics import DIM, topics


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    return make_store(tmp_path_factory.mktemp("membership") / "topics.llmindex", topics(800), "float32")


@pytest.fixture(scope="module")
def clustering(store: VectorStore) -> Clustering:
    return cluster(store)


@given(seed=st.integers(0, 999), k=st.integers(1, 12))
def test_shares_are_shares(seed: int, k: int) -> None:
    random = np.random.default_rng(seed)
    labels = random.integers(-1, 4, (20, k)).astype(np.int32)
    distances = np.sort(random.random((20, k)).round(1), axis=1)
    found, shares = _largest(labels, random.random((20, k)).astype(np.float32), distances)
    assert found.shape == shares.shape == (20, 3)
    assert (shares >= 0).all()
    assert (shares.sum(axis=1) <= 1 + 1e-6).all()
    assert (np.diff(shares, axis=1) <= 0).all()
    assert ((found >= 0) == (shares > 0)).all()
    for row, own in zip(found.tolist(), labels.tolist(), strict=True):
        met = [label for label in row if label >= 0]
        assert len(set(met)) == len(met)
        assert set(met) <= set(own)


def test_the_nearest_say_most() -> None:
    labels = np.array([[2, 5, 2, -1, 5]], np.int32)
    distances = np.array([[0.0, 1, 2, 3, 4]])
    found, shares = _largest(labels, np.ones((1, 5), np.float32), distances)
    assert found.tolist() == [[2, 5, -1]]
    assert shares[0] == pytest.approx([1.5 / 2.5, 0.75 / 2.5, 0])
    shallow = _largest(labels, np.full((1, 5), 0.5, np.float32), distances)[1]
    assert shallow == pytest.approx(shares / 2)


def test_documents_belong_most_to_their_cluster(store: VectorStore, clustering: Clustering) -> None:
    new = topics(300, seed=7)
    found, placed = memberships(clustering, store, new), assign(clustering, store, new)
    inside = placed.labels >= 0
    assert (found.labels[inside, 0] == placed.labels[inside]).mean() > 0.9


def test_too_few_documents_belong_nowhere(tmp_path: Path) -> None:
    few = make_store(tmp_path / "few.llmindex", make_vectors(2, 8))
    found = memberships(cluster(few), few, make_vectors(3, 8))
    assert found.labels.tolist() == [[-1] * 3] * 3
    assert found.shares.tolist() == [[0] * 3] * 3


def test_beside_copies_of_one_vector_nothing_else_belongs(tmp_path: Path) -> None:
    one, other = make_vectors(2, 8)
    copies = make_store(tmp_path / "copies.llmindex", np.repeat(one[None], 12, axis=0))
    found = memberships(cluster(copies), copies, np.stack([one, other]))
    assert found.labels.tolist() == [[0, -1, -1], [-1, -1, -1]]
    assert found.shares.tolist() == [[1, 0, 0], [0, 0, 0]]


def test_many_neighbours_take_no_more_than_their_number() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(-1, 40, (256, 1000)).astype(np.int32)
    distances = np.sort(random.random(labels.shape), axis=1)
    tracemalloc.start()
    try:
        _largest(labels, np.ones(labels.shape, np.float32), distances)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100 * labels.size  # of pairs of neighbours there are a thousand times as many


def test_vectors_of_another_shape(store: VectorStore, clustering: Clustering) -> None:
    with pytest.raises(UsageError, match=r"vectors must be \(m, 24\)"):
        memberships(clustering, store, np.zeros((3, DIM + 1), np.float32))
