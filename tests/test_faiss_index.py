"""Search against brute force, the tuning of the search effort, and the recall that is recorded."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex.errors import UsageError
from llmindex.index import filtered
from llmindex.index.building import build_index
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.neighbors import Neighbors
from llmindex.index.recall import draw_sample, gather, least_effort, recalls
from llmindex.progress import Progress
from llmindex.records import Rows, Vectors
from llmindex.store.reader import VectorStore
from tests.samples import make_index, make_store, make_vectors


def brute_force(vectors: Vectors, queries: Vectors, k: int) -> Neighbors:
    """Exact search, in NumPy and double precision."""
    scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
    best = np.sort(np.argpartition(-scores, k - 1, axis=1)[:, :k], axis=1)
    order = np.take_along_axis(best, np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable"), 1)
    return Neighbors(order, np.take_along_axis(scores, order, 1).astype(np.float32))


def recall_of(found: Rows, true: Rows) -> float:
    return float(np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(found.tolist(), true.tolist(), strict=True)]))


# Exact search


@pytest.mark.parametrize("count", [1, 2, 3, 700])
@pytest.mark.parametrize("queries", [1, 40])
def test_flat_equals_brute_force(tmp_path: Path, count: int, queries: int) -> None:
    store, index = make_index(tmp_path / "index", make_vectors(count, 24))
    record = store.manifest.index
    assert record is not None
    assert (record.factory, record.parameters, record.recall_at_10) == ("Flat", "", 1.0)
    asked = make_vectors(queries, 24, seed=1)
    for k in (1, 10, count, count + 5):
        found = index.search(asked, k)
        expected = brute_force(store.vectors(), asked, min(k, count))
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-6)
        assert [found.rows.dtype, found.scores.dtype] == ["int64", "float32"]


def test_equal_scores_come_by_row(tmp_path: Path) -> None:
    vectors = np.repeat(make_vectors(3, 8), 5, axis=0)
    _, index = make_index(tmp_path / "index", vectors)
    found = index.search(vectors[[7]], 15)
    assert found.rows[0, :5].tolist() == [5, 6, 7, 8, 9]
    assert (np.diff(found.scores[0]) <= 0).all()
    for start in (5, 10):
        assert (np.diff(found.rows[0, start : start + 5]) == 1).all()


def test_what_cannot_be_searched_for(tmp_path: Path) -> None:
    _, index = make_index(tmp_path / "index", make_vectors(5, 8))
    with pytest.raises(UsageError, match="k must be at least 1, got 0"):
        index.search(make_vectors(1, 8), 0)
    for queries in (make_vectors(1, 9), make_vectors(1, 8)[0], make_vectors(1, 8).astype(np.float64)):
        with pytest.raises(ValueError, match=r"expected \(q, 8\) float32 queries, got \("):
            index.search(queries, 1)  # type: ignore[arg-type]


def test_no_queries(tmp_path: Path) -> None:
    _, index = make_index(tmp_path / "index", make_vectors(5, 8))
    assert index.search(np.empty((0, 8), np.float32), 3).rows.shape == (0, 3)


# Inverted lists, tuned


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> tuple[VectorStore, VectorIndex, list[Progress]]:
    """60,000 clustered vectors with the index that is planned for them."""
    reports: list[Progress] = []
    path = tmp_path_factory.mktemp("large") / "index"
    return *make_index(path, make_vectors(60_000, 32, clusters=300), recall=0.9, on_progress=reports.append), reports


def test_the_recorded_recall_is_true(large: tuple[VectorStore, VectorIndex, list[Progress]]) -> None:
    store, index, reports = large
    record = store.manifest.index
    assert record is not None
    assert record.factory == "IVF1024,SQfp16"
    assert record.recall_at_10 >= 0.9
    vectors = store.vectors()
    asked = np.random.default_rng(99).choice(store.count, 300, replace=False)
    true = brute_force(vectors, vectors[asked], 11).rows
    found = index.search(vectors[asked], 11).rows
    others = [[row for row in rows if row != own][:10] for rows, own in zip(found.tolist(), asked, strict=True)]
    expected = [[row for row in rows if row != own][:10] for rows, own in zip(true.tolist(), asked, strict=True)]
    assert abs(recall_of(np.array(others), np.array(expected)) - record.recall_at_10) < 0.04
    name, _, probes = record.parameters.partition("=")
    assert name == "nprobe"
    assert 1 < int(probes) < 256
    assert [report.stage for report in reports if report.done == report.total] == ["train", "assign", "add"]
    assert reports[-1].stage == "tune"


def test_what_cannot_be_tuned_is_measured(tmp_path: Path) -> None:
    reports: list[Progress] = []
    store = make_store(tmp_path / "flat", make_vectors(30, 8))
    build_index(store, on_progress=reports.append)
    told = [(report.stage, report.done, report.total, report.unit) for report in reports]
    assert told == [("add", 30, 30, "vectors"), ("measure", 0, 30, "queries"), ("measure", 30, 30, "queries")]


def test_more_lists_are_probed_when_hits_are_lacking(large: tuple[VectorStore, VectorIndex, list[Progress]]) -> None:
    store, index, _ = large
    queries = make_vectors(2, 32, seed=5)
    found = index.search(queries, 30_000)
    assert (found.rows >= 0).all()
    assert all(len(set(rows)) == 30_000 for rows in found.rows.tolist())
    everything = index.search(queries, 100_000)
    np.testing.assert_array_equal(np.sort(everything.rows, axis=1), np.tile(np.arange(60_000), (2, 1)))
    exact = store.vectors()[everything.rows[0]] @ queries[0]
    np.testing.assert_allclose(everything.scores[0], exact, atol=1e-6)  # float16 vectors are indexed without loss
    few = index.search(queries, 10)
    np.testing.assert_array_equal(few.rows, index.search(queries, 10).rows)


@pytest.mark.parametrize(
    "factory", ["IVF32,SQfp16", "IVF32,RaBitQ", "PCA16,IVF32,Flat", "IVF32,PQ4x4fs,RFlat", "IVF32,RQ4x4fs"]
)
def test_lacking_hits_leave_the_index_as_it_is(tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another thread may be searching in it, and FAISS fails where its nprobe changes meanwhile."""
    vectors = make_vectors(1_500, 16, clusters=30)
    store, index = make_index(tmp_path / "index", vectors, factory, recall=0.01)
    tuned, seen = index._lists.nprobe, []
    search = type(index._index).search

    def watched(self: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        seen.append(index._lists.nprobe)
        return search(self, *arguments, **options)

    monkeypatch.setattr(type(index._index), "search", watched)
    found = index.search(store.vectors()[:3], 1_500)
    np.testing.assert_array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(1_500), (3, 1)))
    assert set(seen) == {tuned}


def test_tuning_stops_at_the_target(tmp_path: Path) -> None:
    vectors = make_vectors(6_000, 16, clusters=60)
    efforts = {}
    for recall in (0.5, 0.99):
        store, _ = make_index(tmp_path / str(recall), vectors, "IVF64,Flat", recall=recall)
        record = store.manifest.index
        assert record is not None
        assert record.recall_at_10 >= recall
        assert record.recall_target == recall
        efforts[recall] = int(record.parameters.removeprefix("nprobe="))
    assert efforts[0.5] < efforts[0.99]


def test_a_target_out_of_reach(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path / "index", make_vectors(3_000, 16))
    with caplog.at_level(logging.WARNING):
        built = build_index(store, factory="PQ4x4", recall=1.0)
    assert 0.05 < built.recall_at_10 < 0.95
    assert built.parameters == ""
    assert caplog.messages == [f"recall@10 of PQ4x4 is {built.recall_at_10:.3f}, below the 1.000 asked for"]


@given(start=st.integers(1, 20), limit=st.integers(1, 5_000), goal=st.integers(0, 6_000))
def test_least_effort(start: int, limit: int, goal: int) -> None:
    tried: list[int] = []

    def reaches(effort: int) -> bool:
        tried.append(effort)
        return effort >= goal

    effort = least_effort(reaches, start, limit)
    assert max(tried, default=0) <= limit
    assert len(tried) < 30
    if goal <= limit:
        assert effort >= goal
        assert effort == min(start, limit) or effort <= goal + max(1, goal // 4)
    else:
        assert effort == limit


# Graphs


@pytest.mark.parametrize("factory", ["HNSW16", "HNSW16,RFlat", "PCA60,HNSW16"])
def test_a_graph_is_searched_with_the_effort_that_many_hits_need(
    tmp_path: Path, factory: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, index = make_index(tmp_path / "index", make_vectors(1_000, 64, clusters=10), factory)
    queries = store.vectors()[::50]
    monkeypatch.delattr(VectorIndex, "_look_everywhere")
    found = index.search(queries, 300).rows
    assert (found >= 0).all()
    assert recall_of(found, brute_force(store.vectors(), queries, 300).rows) > 0.9


@pytest.mark.parametrize("at_hand", [0, filtered.AT_HAND])
@pytest.mark.parametrize("factory", ["HNSW4", "HNSW4_SQ8", "HNSW4,RFlat"])
def test_a_graph_in_parts_loses_nothing(
    tmp_path: Path, factory: str, at_hand: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(filtered, "AT_HAND", at_hand)
    store, index = make_index(tmp_path / "index", make_vectors(1_000, 64, clusters=10), factory)
    queries = store.vectors()[::50]
    assert (index._index.search(queries, 1_000)[1] < 0).any(axis=1).all()  # FAISS alone gets nowhere
    found = index.search(queries, 1_000)
    np.testing.assert_array_equal(np.sort(found.rows, axis=1), np.tile(np.arange(1_000), (20, 1)))
    np.testing.assert_allclose(found.scores, brute_force(store.vectors(), queries, 1_000).scores, atol=1e-6)


def test_a_graph_with_copies_finds_none_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, index = make_index(tmp_path / "index", make_vectors(700, 16, seed=3), "NSG16,Flat")
    plain = index._index.search

    def twice(queries: Vectors, k: int, **options: Any) -> tuple[Vectors, Rows]:  # noqa: ANN401
        """As FAISS does where there are copies, now and then: it depends on how its threads built the graph."""
        scores, rows = plain(queries, k, **options)
        if options.get("params") is None:
            rows[::2, 1] = rows[::2, 0]
        return scores, rows

    monkeypatch.setattr(index._index, "search", twice)
    queries = make_vectors(200, 16, seed=9)
    found = index.search(queries, 100)
    assert all(len(set(rows)) == 100 for rows in found.rows.tolist())
    exact = brute_force(store.vectors(), queries, 100)
    assert recall_of(found.rows, exact.rows) > 0.95


# Recall


def test_the_sample_is_exact(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", make_vectors(900, 12))
    sample = draw_sample(store, 50, seed=4)
    vectors = store.vectors()
    for row, query, nearest in zip(sample.rows, sample.queries, sample.nearest, strict=True):
        np.testing.assert_array_equal(query, vectors[row])
        scores = vectors @ query
        scores[row] = -2
        assert set(nearest.tolist()) == set(np.argsort(-scores)[:10].tolist())
    assert len(set(sample.rows.tolist())) == 50
    assert not sample.tied.any()
    # What was found: all of them after the query itself; half of them; itself not among them; nothing.
    itself = sample.rows[:, None]
    none = np.full((50, 5), -1)
    assert recalls(sample, np.hstack([itself, sample.nearest]), store).tolist() == [1.0] * 50
    assert recalls(sample, np.hstack([sample.nearest[:, :5], none, itself]), store).tolist() == [0.5] * 50
    assert recalls(sample, np.hstack([sample.nearest[:, ::-1], itself]), store).tolist() == [1.0] * 50
    assert recalls(sample, np.hstack([itself, none, none]), store).tolist() == [0.0] * 50


def test_gathered_vectors_come_in_the_order_asked_for(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", make_vectors(20_000, 4), window=5_000)
    rows = np.random.default_rng(0).choice(20_000, 3_000, replace=False)
    np.testing.assert_array_equal(gather(store, rows), store.vectors()[rows])
    assert gather(store, rows[:0]).shape == (0, 4)


def test_any_duplicate_will_do(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", np.repeat(make_vectors(4, 8), 50, axis=0))
    sample = draw_sample(store, 200, seed=0)
    assert sample.tied.all()
    group = sample.rows[:, None] // 50 * 50
    assert recalls(sample, group + np.arange(39, 50), store).tolist() == [1.0] * 200
    other = (group + 50) % 200
    assert recalls(sample, other + np.arange(11), store).tolist() == [0.0] * 200


@pytest.mark.parametrize("count", [1, 2, 5, 11])
@pytest.mark.parametrize("factory", ["Flat", "IVF1,Flat", "HNSW8"])
def test_few_vectors(tmp_path: Path, count: int, factory: str) -> None:
    store, index = make_index(tmp_path / "index", make_vectors(count, 8), factory)
    record = store.manifest.index
    assert record is not None
    assert record.recall_at_10 == 1.0
    assert sorted(index.search(make_vectors(1, 8, seed=1), 20).rows[0].tolist()) == list(range(count))


# What is refused


def test_options_that_cannot_be(tmp_path: Path) -> None:
    empty = make_store(tmp_path / "empty", make_vectors(0, 8))
    with pytest.raises(UsageError, match="empty holds no documents: there is nothing to index"):
        build_index(empty)
    store = make_store(tmp_path / "index", make_vectors(20, 8))
    for recall in (0, -1, 1.01, float("nan")):
        with pytest.raises(UsageError, match="recall must be above 0 and at most 1, got"):
            build_index(store, recall=recall)
    with pytest.raises(UsageError, match='"IVF64,Flat" needs at least 64 vectors to train on and there are 20'):
        build_index(store, factory="IVF64,Flat")
    with pytest.raises(UsageError, match='FAISS cannot build "OPQ4,Flat" from 20 vectors of length 8: '):
        build_index(store, factory="OPQ4,Flat")
