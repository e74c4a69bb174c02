import logging
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from textwrap import dedent
from typing import Any

import faiss
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex.errors import StaleIndex, UsageError
from llmindex.index.faiss_index import Neighbors, VectorIndex, build_index, rebuild, save
from llmindex.index.recall import draw_sample, least_effort, recalls
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors
from llmindex.store.manifest import Manifest
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.samples import append, make_documents, make_store, make_vectors


def make_index(
    path: Path,
    vectors: Vectors,
    factory: str | None = None,
    recall: float = 0.95,
    on_progress: ProgressCallback | None = None,
) -> tuple[VectorStore, VectorIndex]:
    """A store of these vectors and its index, as they come from disk."""
    make_store(path, vectors)
    with VectorWriter.open(path) as writer:
        rebuild(writer, factory=factory, recall=recall, on_progress=on_progress)
    store = VectorStore.open(path)
    return store, VectorIndex.load(store)


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
    assert [report.stage for report in reports if report.done == report.total] == ["train", "add"]
    assert reports[-1].stage == "tune"


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


FACTORIES = ["Flat", "IVF16,SQfp16", "IVF16,Flat", "HNSW16", "SQ8", "IVF16,PQ4x4", "PCA8,IVF16,Flat", "IVF16,RaBitQ"]
FACTORIES += ["IVF16,PQ4x4fs", "IVF16,SQ8,RFlat", "NSG16"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_mapped_equals_in_memory(tmp_path: Path, factory: str, capfd: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "index", make_vectors(1_000, 16))
    built = build_index(store, factory=factory)
    with VectorWriter.open(store.path) as writer:
        writer.set_index(save(built, store.path))
    store = VectorStore.open(store.path)
    mapped = VectorIndex.load(store)
    assert verify(store.path).problems == ()
    is_mapped = str(file_of(store)) in Path("/proc/self/maps").read_text()
    assert is_mapped == (not factory.endswith("fs"))  # what FAISS cannot map, it reads
    queries = make_vectors(30, 16, seed=2)
    expected = VectorIndex(built.index).search(queries, 10)
    found = mapped.search(queries, 10)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert capfd.readouterr() == ("", "")


def test_what_cannot_be_mapped_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, index = make_index(tmp_path / "index", make_vectors(100, 8))
    original = faiss.read_index

    def refuse_mapping(path: str, *flags: int) -> Any:  # noqa: ANN401
        if flags:
            raise RuntimeError("cannot map this")
        return original(path)

    monkeypatch.setattr(faiss, "read_index", refuse_mapping)
    queries = make_vectors(3, 8, seed=2)
    np.testing.assert_array_equal(VectorIndex.load(store).search(queries, 5).rows, index.search(queries, 5).rows)


# Loading


@pytest.fixture
def indexed(tmp_path: Path) -> VectorStore:
    return make_index(tmp_path / "index", make_vectors(200, 8))[0]


def file_of(store: VectorStore) -> Path:
    assert store.manifest.index is not None
    return store.path / store.manifest.index.file


def drop(store: VectorStore) -> None:
    with VectorWriter.open(store.path) as writer:
        writer.set_index(None)


def add_a_document(store: VectorStore) -> None:
    with VectorWriter.open(store.path) as writer:
        append(writer, make_documents(200, 201), make_vectors(1, 8))
        writer.finish()


def scramble(store: VectorStore) -> None:
    path = file_of(store)
    path.write_bytes(b"\xff" * path.stat().st_size)


def swap_in_another(store: VectorStore) -> None:
    other = faiss.IndexFlatIP(16)
    other.add(np.zeros((100, 16), np.float32))
    faiss.write_index(other, str(file_of(store)))


def set_parameters(store: VectorStore) -> None:
    assert store.manifest.index is not None
    record = replace(store.manifest.index, parameters="nprobe=0")
    replace(store.manifest, index=record).save(store.path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop, "has no search index yet"),
        (add_a_document, "was built from other vectors than those stored"),
        (lambda store: file_of(store).unlink(), r"\.faiss is missing"),
        (lambda store: file_of(store).write_bytes(b"x"), r"\.faiss has 1 bytes instead of 6,"),
        (scramble, r"\.faiss cannot be read \(Index type"),
        (swap_in_another, r"\.faiss holds 100 vectors of length 16 instead of 200 of length 8"),
        (set_parameters, 'has search parameters "nprobe=0"'),
    ],
)
def test_an_index_that_cannot_be_searched(
    indexed: VectorStore, damage: Callable[[VectorStore], object], message: str
) -> None:
    damage(indexed)
    with pytest.raises(StaleIndex, match=message) as caught:
        VectorIndex.load(VectorStore.open(indexed.path))
    assert str(caught.value).endswith(f"; run `llmindex reindex -i {indexed.path}`")
    assert "\n" not in str(caught.value)
    with VectorWriter.open(indexed.path) as writer:
        rebuild(writer)
    VectorIndex.load(VectorStore.open(indexed.path))
    assert len(list((indexed.path / "faiss").iterdir())) == 1


def test_an_index_that_was_replaced_after_the_store_was_opened(indexed: VectorStore) -> None:
    with VectorWriter.open(indexed.path) as writer:
        rebuild(writer, factory="HNSW8")
    assert not file_of(indexed).exists()
    assert VectorIndex.load(indexed).search(make_vectors(1, 8), 3).rows.shape == (1, 3)


def test_rebuilding_alike_gives_the_same_file(indexed: VectorStore) -> None:
    before = file_of(indexed).read_bytes()
    with VectorWriter.open(indexed.path) as writer:
        record = rebuild(writer)
    assert record == indexed.manifest.index
    assert file_of(indexed).read_bytes() == before


def test_a_full_disk_keeps_the_index_before(indexed: VectorStore) -> None:
    program = """
        import resource, signal, sys
        from llmindex.errors import StorageError
        from llmindex.index.faiss_index import rebuild
        from llmindex.store.writer import VectorWriter

        with VectorWriter.open(sys.argv[1]) as writer:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))
            try:
                rebuild(writer, factory="HNSW8")
            except StorageError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), str(indexed.path)], check=True, capture_output=True, text=True
    )
    assert done.stdout == (
        f"cannot write {indexed.path}/faiss/written.faiss: File too large; 200 documents are safe; "
        f"free space and run `llmindex reindex -i {indexed.path}`\n"
    )
    assert done.stderr == ""
    assert Manifest.load(indexed.path) == indexed.manifest
    assert list((indexed.path / "faiss").iterdir()) == [file_of(indexed)]
    VectorIndex.load(VectorStore.open(indexed.path))


# GPU, pretended


class FakeGpu:
    """Stands for FAISS on a GPU: copies go to the CPU, and are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, index: Path) -> None:
        self.index = index
        self.copies: list[Any] = []
        self.broken = False
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", self.to_gpu, raising=False)
        monkeypatch.setattr(faiss, "index_gpu_to_cpu", faiss.clone_index, raising=False)

    def to_gpu(self, _resources: object, device: int, index: Any) -> Any:  # noqa: ANN401
        assert device == 0
        if isinstance(index, faiss.IndexRefine):
            raise RuntimeError("This index type is not implemented on GPU.")
        # Unlike FAISS's GPU copy, its CPU copy cannot be taken of mapped lists: read them from their file instead.
        files = [str(path) for path in (self.index / "faiss").glob("*-*.faiss")]
        copy: Any = faiss.read_index(files[0]) if files and index.ntotal else faiss.clone_index(index)
        if self.broken:
            copy.add = self.fail
        self.copies.append(copy)
        return copy

    @staticmethod
    def fail(_vectors: Vectors) -> None:
        raise RuntimeError("Error in add at /x/y.cu.cpp:3: Error: 'ok' failed: out of memory")


@pytest.mark.parametrize("factory", ["Flat", "IVF16,SQfp16"])
def test_training_and_search_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    vectors = make_vectors(3_000, 8)
    _, expected = make_index(tmp_path / "cpu", vectors, factory)
    gpu = FakeGpu(monkeypatch, tmp_path / "gpu")
    _, index = make_index(tmp_path / "gpu", vectors, factory)
    assert len(gpu.copies) == 2
    assert gpu.copies[0].ntotal == 3_000
    searched: list[int] = []
    original = gpu.copies[1].search

    def search(queries: Vectors, k: int) -> Any:  # noqa: ANN401
        searched.append(k)
        return original(queries, k)

    gpu.copies[1].search = search
    queries = make_vectors(5, 8, seed=1)
    for k in (10, 2_500):
        np.testing.assert_array_equal(index.search(queries, k).rows, expected.search(queries, k).rows)
    assert searched == [10]


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,SQ8,RFlat"])
def test_what_a_gpu_cannot_hold_stays_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    gpu = FakeGpu(monkeypatch, tmp_path / "index")
    _, index = make_index(tmp_path / "index", make_vectors(100, 8), factory)
    assert gpu.copies == []
    assert index.search(make_vectors(1, 8), 3).rows.shape == (1, 3)


def test_a_gpu_that_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path / "index", make_vectors(100, 8))
    FakeGpu(monkeypatch, store.path).broken = True
    built = build_index(store)
    assert built.index.ntotal == 100
    assert built.recall_at_10 == 1.0
    assert caplog.messages == ["the GPU could not build the index (out of memory); the CPU does"]
