"""A filtered search finds what brute force finds among the documents that qualify, in an index of any kind."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex.encode.encoder import Encoder
from llmindex.index import filtered
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.filtered import FilteredIndex
from llmindex.index.neighbors import Neighbors
from llmindex.index.search import Searcher
from llmindex.records import Rows
from llmindex.store.reader import VectorStore
from llmindex.store.where import Qualifying, Where, qualifying
from tests.samples import append, make_documents, make_index, make_vectors

COUNT, DIM = 4_000, 16
VECTORS = make_vectors(COUNT, DIM, clusters=40)
QUERIES = make_vectors(8, DIM, seed=1)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[VectorStore, VectorIndex]]:
    """Indexes of the vectors by their factory, each built once."""
    built: dict[str, tuple[VectorStore, VectorIndex]] = {}

    def index(factory: str) -> tuple[VectorStore, VectorIndex]:
        if factory not in built:
            path = tmp_path_factory.mktemp("filtered") / "index"
            built[factory] = make_index(path, VECTORS, factory)
        return built[factory]

    return index


Indexes = Callable[[str], tuple[VectorStore, VectorIndex]]


def brute_force(store: VectorStore, mask: NDArray[np.bool_], k: int) -> Neighbors:
    scores = QUERIES @ store.vectors().T
    scores[:, ~mask] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, : min(k, mask.sum())]
    return Neighbors(order, np.take_along_axis(scores, order, 1))


def among(index: VectorIndex, store: VectorStore, mask: NDArray[np.bool_]) -> FilteredIndex:
    return FilteredIndex(index._index, store, mask, index._rescored)


def assert_equal(found: Neighbors, expected: Neighbors) -> None:
    """The same scores; the same rows, but for those whose scores differ by rounding alone."""
    np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
    assert (found.rows == expected.rows).mean() > 0.98 if found.rows.size else True


def share_of(found: Rows, true: Rows) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


@given(
    factory=st.sampled_from(["Flat", "IVF16,SQfp16"]),
    at_hand=st.sampled_from([0, filtered.AT_HAND]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
    k=st.sampled_from([1, 10, 300, COUNT]),
)
def test_a_filtered_search_is_brute_force(
    factory: str, at_hand: int, share: float, seed: int, k: int, indexes: Indexes
) -> None:
    store, index = indexes(factory)
    mask = np.random.default_rng(seed).random(COUNT) < share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtered, "AT_HAND", at_hand)
        if factory != "Flat":
            patch.setattr(index._index, "nprobe", 16)  # all lists: full effort
        assert_equal(among(index, store, mask).search(QUERIES, k), brute_force(store, mask, k))


@pytest.mark.parametrize(
    "factory",
    ["IVF64,SQfp16", "IVF64,Flat", "IVF16,RaBitQ", "HNSW16", "SQ8", "PQ4x8", "PCA8,IVF8,Flat", "IVF16,PQ8x8"],
)
@pytest.mark.parametrize("share", [0.5, 0.05])
def test_indexes_of_all_kinds(factory: str, share: float, indexes: Indexes, monkeypatch: pytest.MonkeyPatch) -> None:
    store, index = indexes(factory)
    mask = np.random.default_rng(3).random(COUNT) < share
    expected = brute_force(store, mask, 10).rows
    few = among(index, store, mask).search(QUERIES, 10).rows
    assert share_of(few, expected) >= 0.99
    monkeypatch.setattr(filtered, "AT_HAND", 0)
    found = among(index, store, mask).search(QUERIES, 10).rows
    assert mask[found].all()
    unfiltered = share_of(index.search(QUERIES, 10).rows, brute_force(store, np.ones(COUNT, np.bool_), 10).rows)
    assert share_of(found, expected) >= unfiltered - 0.05


def test_coarse_codes_are_scored_again(indexes: Indexes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered, "AT_HAND", 0)
    store, index = indexes("IVF16,RaBitQ")
    mask = np.random.default_rng(5).random(COUNT) < 0.3
    found = among(index, store, mask).search(QUERIES, 10)
    np.testing.assert_allclose(found.scores, np.einsum("qd,qkd->qk", QUERIES, store.vectors()[found.rows]), atol=1e-6)


def test_a_graph_that_leads_to_none_of_them(indexes: Indexes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered, "AT_HAND", 0)
    store, index = indexes("HNSW16")
    scores = store.vectors() @ QUERIES[0]
    mask = scores < np.quantile(scores, 0.3)
    found = among(index, store, mask).search(QUERIES, 10)
    assert (found.rows >= 0).all()
    assert mask[found.rows].all()


def test_documents_that_lie_far_away(indexes: Indexes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tuned lists of a query hold none of them; FAISS's own filter would find some of the others, or none."""
    monkeypatch.setattr(filtered, "AT_HAND", 0)
    for factory in ("IVF64,SQfp16", "HNSW16"):
        store, index = indexes(factory)
        if factory.startswith("IVF"):
            monkeypatch.setattr(index._index, "nprobe", 1)
        scores = store.vectors() @ QUERIES[0]
        mask = scores < np.quantile(scores, 0.2)
        expected = brute_force(store, mask, 10)
        found = among(index, store, mask).search(QUERIES[:1], 10)
        assert share_of(found.rows, expected.rows[:1]) >= 0.9


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQfp16", "HNSW16", "SQ8"])
@pytest.mark.parametrize("at_hand", [0, filtered.AT_HAND])
def test_none_and_few_qualify(factory: str, at_hand: int, indexes: Indexes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filtered, "AT_HAND", at_hand)
    store, index = indexes(factory)
    mask = np.zeros(COUNT, np.bool_)
    assert among(index, store, mask).search(QUERIES, 5).rows.shape == (8, 0)
    mask[[17, 3_999]] = True
    assert_equal(among(index, store, mask).search(QUERIES, 5), brute_force(store, mask, 5))


def no_encoder() -> Encoder:
    raise AssertionError("no model is needed")


def test_the_searcher(indexes: Indexes) -> None:
    store, _ = indexes("IVF16,SQfp16")
    searcher = Searcher(store, no_encoder)
    for where in (
        "number % 2 = 1 AND number < 500",
        (pc.field("number") < 500) & (pc.bit_wise_and(pc.field("number"), 1) == 1),
    ):
        everything = [hit.id for hit in searcher.search_vectors(QUERIES[:1], COUNT)[0]]
        expected = [each for each in everything if int(each[1:]) in range(1, 500, 2)]
        assert [hit.id for hit in searcher.search_vectors(QUERIES[:1], 20, where=where)[0]] == expected[:20]
        hits = searcher.similar("d8", 5, where=where)
        assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
        assert all(int(hit.id[1:]) % 2 for hit in hits)
        assert "d7" not in [hit.id for hit in searcher.similar("d7", 500, where=where)]
    assert searcher.search(["no model is loaded for this"], where="number < 0") == [[]]
    assert searcher.similar("d1", where="id = 'd1'") == []


def test_a_condition_is_computed_once(indexes: Indexes, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = indexes("Flat")
    searcher = Searcher(store, no_encoder)
    computed: list[Where] = []

    def counted(store: VectorStore, where: Where) -> Qualifying:
        computed.append(where)
        return qualifying(store, where)

    monkeypatch.setattr(filtered, "qualifying", counted)
    for _ in range(3):
        assert searcher.search_vectors(QUERIES, 3, where="number = 3")[0][0].id == "d3"
    assert computed == ["number = 3"]
    for number in range(20):
        searcher.search_vectors(QUERIES, 3, where=f"number = {number + 100}")
    searcher.search_vectors(QUERIES, 3, where="number = 3")
    assert computed.count("number = 3") == 2  # only the last few are kept
    for _ in range(2):
        searcher.search_vectors(QUERIES, 3, where="number = 3 AND current_date > '2000-01-01'")
    assert len(computed) == 24


def test_a_store_that_grew_has_a_searcher_of_its_own(tmp_path: Path) -> None:
    from llmindex.index.building import rebuild
    from llmindex.store.writer import VectorWriter

    store, _ = make_index(tmp_path / "index", VECTORS[:100])
    old = Searcher(store, no_encoder)
    assert len(old.search_vectors(QUERIES[:1], 200, where="number >= 0")[0]) == 100
    with VectorWriter.open(tmp_path / "index") as writer:
        append(writer, make_documents(100, 150), VECTORS[100:150])
        writer.finish()
        rebuild(writer)
    new = Searcher(VectorStore.open(tmp_path / "index"), no_encoder)
    assert len(new.search_vectors(QUERIES[:1], 200, where="number >= 0")[0]) == 150
    assert len(old.search_vectors(QUERIES[:1], 200, where="number >= 0")[0]) == 100
