import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.errors import (
    CorpusError,
    CorruptStore,
    IndexLocked,
    IndexNotFound,
    ModelError,
    SpecMismatch,
    StaleIndex,
    StorageError,
    UsageError,
)
from llmindex.records import Vectors
from llmindex.store import writer
from llmindex.store.manifest import CorpusRecord, IndexRecord, Manifest, VectorDtype
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.samples import append, make_documents, make_encoder, make_store, make_vectors

CORPUS = CorpusRecord({"sources": [{"path": "corpus.jsonl"}]})
DTYPES: list[VectorDtype] = ["float16", "float32"]


def contents(index: Path) -> dict[str, object]:
    """Every file of the store, and the manifest without its date."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in (index / "vectors").iterdir()}
    return files | {"manifest": {**Manifest.load(index).to_json(), "created_at": None}}


def as_stored(vectors: Vectors, dtype: str) -> Vectors:
    return vectors.astype(dtype).astype(np.float32)


# Reading back


@settings(max_examples=30, deadline=None)
@given(
    count=st.integers(0, 70),
    dtype=st.sampled_from(DTYPES),
    block=st.integers(1, 80),
    data=st.data(),
)
def test_what_is_appended_comes_back(
    tmp_path_factory: pytest.TempPathFactory, count: int, dtype: VectorDtype, block: int, data: st.DataObject
) -> None:
    index = tmp_path_factory.mktemp("index")
    vectors = make_vectors(count, 5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writer, "SHARD_ROWS", 20)
        patch.setattr("llmindex.store.shard.ROW_GROUP", 8)
        store = make_store(index, vectors, dtype, window=9)
    assert len(store.manifest.shards) == -(-count // 27)
    assert store.count == count
    assert store.dim == 5
    expected = as_stored(vectors, dtype)
    np.testing.assert_array_equal(store.vectors(), expected)
    blocks = list(store.iter_vectors(block))
    assert all(len(each) <= block for each in blocks)
    np.testing.assert_array_equal(np.concatenate([np.empty((0, 5)), *blocks]), expected)
    rows = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=30)) if count else [], dtype=np.int64)
    np.testing.assert_array_equal(store.take_vectors(rows), expected[rows])
    assert store.take_vectors(rows).dtype == np.float32
    everything = make_documents(0, count)
    assert store.take(rows).to_pylist() == everything.take(rows).to_pylist()
    names = ["number", "id"] if count else ["text", "id"]  # metadata is unknown before the first document
    assert store.take(rows, names).to_pylist() == everything.select(names).take(rows).to_pylist()
    batches = list(store.iter_columns(names))
    assert [row for batch in batches for row in batch.to_pylist()] == everything.select(names).to_pylist()
    np.testing.assert_array_equal(store.rows_of([f"d{row}" for row in rows]), rows)


def test_float16_bits_are_kept(tmp_path: Path) -> None:
    """All float16 numbers in -1 … 1, the subnormal ones included, survive being loaded back by a writer."""
    bits = np.arange(0x3C01, dtype=np.uint16)[: 0x3C00 // 8 * 8]
    numbers = np.concatenate([bits, bits | 0x8000]).view(np.float16).reshape(-1, 8)
    index = tmp_path / "index"
    with VectorWriter.create(index, make_encoder(8, normalize=False), CORPUS) as first:
        append(first, make_documents(0, len(numbers)), numbers.astype(np.float32))
        first.checkpoint()
    with VectorWriter.open(index) as second:
        second.finish()
    stored = pq.read_table(index / "vectors").column("vector").combine_chunks().flatten().to_numpy()
    np.testing.assert_array_equal(stored.view(np.uint16), numbers.reshape(-1).view(np.uint16))


def test_layout_of_a_shard(tmp_path: Path) -> None:
    make_store(tmp_path / "index", make_vectors(5_000, 4))
    file = pq.ParquetFile(tmp_path / "index/vectors/part-00000.parquet")
    assert file.metadata.format_version == "2.6"
    assert [file.metadata.row_group(number).num_rows for number in range(file.num_row_groups)] == [4096, 904]
    columns = {file.metadata.row_group(0).column(n).path_in_schema: n for n in range(len(file.schema))}
    vector = file.metadata.row_group(0).column(columns.pop("vector.list.element"))
    assert vector.compression == "UNCOMPRESSED"
    assert not vector.has_dictionary_page
    assert not vector.is_stats_set
    for number in columns.values():
        assert file.metadata.row_group(0).column(number).compression == "ZSTD"
    field = file.schema_arrow.field("vector")
    assert not field.nullable
    assert field.type == pa.list_(pa.field("element", pa.float16(), nullable=False), 4)


def test_metadata_keeps_its_types(tmp_path: Path) -> None:
    more = {
        "when": pa.array([1, None], pa.timestamp("us", tz="Europe/Berlin")),
        "second": pa.array([1, 2], pa.timestamp("s")),
        "tags": pa.array([["a", None], None], pa.list_(pa.string())),
        "nested": pa.array([{"a": 1, "b": ["x"]}, None]),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "kinds": pa.array([["x"], ["y", "x"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
        "map": pa.array([[("k", 1)], []], pa.map_(pa.string(), pa.int64())),
        "nothing": pa.nulls(2),
        "": pa.array([1.5, None]),
        "a.b": pa.array([True, False]),
        "a": pa.array([b"\0", None]),
    }
    documents = make_documents(0, 2, more)
    index = tmp_path / "index"
    with VectorWriter.create(index, make_encoder(3), CORPUS) as first:
        append(first, documents, make_vectors(2, 3))
        first.checkpoint()
    with VectorWriter.open(index) as second:
        append(second, documents.set_column(0, "id", pa.array(["x", "y"])), make_vectors(2, 3))
        second.finish()
    store = VectorStore.open(index)
    assert store.take(np.array([0, 1])).to_pylist() == documents.to_pylist()
    assert store.take(np.array([0]), ["a"]).column_names == ["a"]
    stored = store.schema
    assert stored.names == documents.schema.names
    assert stored.field("when").type == pa.timestamp("us", tz="Europe/Berlin")
    assert stored.field("second").type == pa.timestamp("ms")
    assert stored.field("kind").type == pa.string()
    assert verify(index).problems == ()


def test_take_reads_only_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = make_store(tmp_path / "index", make_vectors(9_000, 4))
    groups: list[tuple[int, list[str]]] = []
    original = pq.ParquetFile.read_row_group

    def spy(self: pq.ParquetFile, number: int, columns: list[str]) -> pa.Table:
        groups.append((number, columns))
        return original(self, number, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", spy)
    assert store.take(np.array([8_999, 3, 8_999]), ["number"]).column("number").to_pylist() == [8_999, 3, 8_999]
    assert groups == [(0, ["number"]), (2, ["number"])]


def test_what_cannot_be_asked_for(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", make_vectors(300, 4))
    with pytest.raises(UsageError, match='no column "title"; it has id, text, number'):
        store.take(np.array([0]), ["title"])
    with pytest.raises(UsageError, match='no column "vector"'):
        store.iter_columns(["vector"])
    for rows in ([300], [-1], [5, 1_000]):
        with pytest.raises(ValueError, match="rows must lie in 0 … 299"):
            store.take_vectors(np.array(rows))
    with pytest.raises(UsageError, match=r'no document has the id "d2999" in .*; the nearest are "d299"'):
        store.rows_of(["d1", "d2999"])
    with pytest.raises(UsageError, match=r'id "something else" in [^;]*$'):
        store.rows_of(["something else"])


# Resuming


def build(index: Path, windows: list[int], stops: Mapping[int, str], dtype: VectorDtype = "float16") -> None:
    """Append windows of these sizes; before window k commit, and perhaps start a new writer."""
    vectors = make_vectors(sum(windows), 6, seed=3)
    with ExitStack() as stack:
        w = stack.enter_context(VectorWriter.create(index, make_encoder(6), CORPUS, dtype))
        start = 0
        for number, size in enumerate(windows):
            stop = start + size
            if number in stops:
                w.checkpoint()
            if stops.get(number) == "reopen":
                append_window(w, start, stop, vectors[start:stop])  # is lost, unless it fills a shard
                w.close()
                w = stack.enter_context(VectorWriter.open(index))
            if w.manifest.corpus.source_rows < 2 * stop or not size:
                append_window(w, start, stop, vectors[start:stop])
            assert w.count == stop
            start = stop
        w.finish()


def append_window(w: VectorWriter, start: int, stop: int, vectors: Vectors) -> None:
    documents = make_documents(start, stop, {"more": pa.array([None, "x"] * stop, pa.string())[start:stop]})
    texts = pa.array([f"{'long ' * (row % 7)}{row}" for row in range(start, stop)], pa.string())
    w.append(
        documents.set_column(1, "text", texts),
        vectors,
        source_rows=2 * stop,
        bad_rows={"empty": stop},
        truncated=stop // 2,
        tokens=3 * stop,
    )


windows = st.lists(st.integers(0, 12), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None)
@given(
    windows=windows,
    stops=st.dictionaries(st.integers(0, 13), st.sampled_from(["commit", "reopen"])),
    limit=st.sampled_from([300, 10**9]),
    dtype=st.sampled_from(DTYPES),
)
def test_an_interrupted_build_ends_with_the_same_bytes(
    tmp_path_factory: pytest.TempPathFactory,
    windows: list[int],
    stops: dict[int, str],
    limit: int,
    dtype: VectorDtype,
) -> None:
    folder = tmp_path_factory.mktemp("index")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(writer, "SHARD_ROWS", 25)
        patch.setattr(writer, "SHARD_BYTES", limit)
        patch.setattr("llmindex.store.shard.ROW_GROUP", 8)
        build(folder / "plain", windows, {}, dtype)
        build(folder / "interrupted", windows, stops, dtype)
    assert contents(folder / "interrupted") == contents(folder / "plain")


def test_a_shard_closes_by_rows_or_by_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 10)
    build(tmp_path / "rows", [4] * 6, {})
    assert [shard.rows for shard in Manifest.load(tmp_path / "rows").shards] == [12, 12]
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    build(tmp_path / "bytes", [4] * 3, {})
    assert [shard.rows for shard in Manifest.load(tmp_path / "bytes").shards] == [4, 4, 4]


def test_commits_show_how_far_the_build_is(tmp_path: Path) -> None:
    index = tmp_path / "index"
    vectors = make_vectors(20, 4)
    with VectorWriter.create(index, make_encoder(4), CORPUS) as w:
        assert VectorStore.open(index).count == 0
        append(w, make_documents(0, 5), vectors[:5])
        assert (VectorStore.open(index).count, w.count) == (0, 5)
        w.checkpoint()
        assert [path.name for path in (index / "vectors").iterdir()] == ["part-00000.partial-00005.parquet"]
        append(w, make_documents(5, 20), vectors[5:], source_rows=33)
        w.checkpoint()
        w.checkpoint()
        assert [path.name for path in (index / "vectors").iterdir()] == ["part-00000.partial-00020.parquet"]
        committed = VectorStore.open(index).manifest
        assert (committed.count, committed.corpus.source_rows, committed.corpus.tokens) == (20, 33, 140)
        assert (committed.corpus.truncated, committed.corpus.complete) == (2, False)
        w.finish()
        assert w.manifest.corpus.complete
    assert [path.name for path in (index / "vectors").iterdir()] == ["part-00000.parquet"]


def test_an_index_of_no_documents(tmp_path: Path) -> None:
    store = make_store(tmp_path / "index", make_vectors(0, 4))
    assert store.count == 0
    assert store.schema.names == ["id", "text"]
    assert store.vectors().shape == (0, 4)
    assert list(store.iter_vectors()) == []
    assert store.take(np.array([], dtype=np.int64)).num_rows == 0
    with pytest.raises(UsageError, match='no document has the id "x"'):
        store.rows_of(["x"])
    assert verify(tmp_path / "index").problems == ()


def test_trailing_bad_rows_are_counted(tmp_path: Path) -> None:
    with VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS) as w:
        append(w, make_documents(0, 3), make_vectors(3, 4))
        w.checkpoint()
        w.append(
            make_documents(3, 3),
            np.empty((0, 4), np.float32),
            source_rows=9,
            bad_rows={"null": 6},
            truncated=0,
            tokens=0,
        )
        w.finish()
    corpus = Manifest.load(tmp_path / "index").corpus
    assert (corpus.source_rows, corpus.bad_rows) == (9, {"null": 6})


@pytest.mark.parametrize("moment", range(6))
def test_a_kill_leaves_a_smaller_store(tmp_path: Path, moment: int) -> None:
    """A process that dies between any two steps of a commit leaves a store that opens and can be gone on with."""
    program = f"""
        import os
        from pathlib import Path
        from llmindex.store.writer import VectorWriter
        from tests.samples import append, make_documents, make_vectors

        vectors, steps = make_vectors(20, 4), 0
        writer = VectorWriter.open({str(tmp_path / "index")!r})
        def counted(step):
            def call(*args, **options):
                global steps
                if steps == {moment}:
                    os.kill(os.getpid(), 9)
                steps += 1
                return step(*args, **options)
            return call
        os.fsync = counted(os.fsync)
        Path.replace = counted(Path.replace)
        Path.unlink = counted(Path.unlink)
        append(writer, make_documents(10, 20), vectors[10:])
        writer.finish()
    """
    vectors = make_vectors(20, 4)
    with VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS) as w:
        append(w, make_documents(0, 10), vectors[:10])
        w.checkpoint()
    done = subprocess.run([sys.executable, "-c", dedent(program)], cwd=Path(__file__).parents[1], check=False)
    assert done.returncode == -signal.SIGKILL
    assert VectorStore.open(tmp_path / "index").count == 10
    assert verify(tmp_path / "index").problems == ()
    with VectorWriter.open(tmp_path / "index") as w:
        assert w.count == 10
        assert [path.name for path in (tmp_path / "index/vectors").iterdir()] == [w.manifest.shards[0].file[8:]]
        append(w, make_documents(10, 20), vectors[10:])
        w.finish()
    make_store(tmp_path / "plain", vectors, window=10)
    files = [contents(tmp_path / name)["part-00000.parquet"] for name in ("index", "plain")]
    assert files[0] == files[1]


# Opening to write


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with VectorWriter.create(index, make_encoder(4), CORPUS) as w:
        message = f"is being written by process {os.getpid()}; wait for it or stop it"
        with pytest.raises(IndexLocked, match=message):
            VectorWriter.open(index)
        with pytest.raises(IndexLocked, match=message):
            VectorWriter.create(index, make_encoder(4), CORPUS, overwrite=True)
        append(w, make_documents(0, 3), make_vectors(3, 4))
        w.finish()
    VectorWriter.open(index).close()


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    index = tmp_path / "index"
    make_store(index, make_vectors(3, 4))
    (index / "clusters").mkdir()
    leftovers = ["vectors/part-00001.parquet", "vectors/.part-00001.parquet.tmp", "faiss/a.faiss", ".manifest.json.tmp"]
    others = ["vectors/notes.txt", "clusters/default.json", "clusters/.x.tmp", "part-00007.parquet"]
    for name in leftovers + others:
        (index / name).write_text("x")
    VectorWriter.open(index).close()
    assert not [name for name in leftovers if (index / name).exists()]
    assert all((index / name).exists() for name in others)
    assert VectorStore.open(index).count == 3


def test_create_takes_only_what_is_free(tmp_path: Path) -> None:
    index = tmp_path / "deep" / "index"
    make_store(index, make_vectors(3, 4))
    with pytest.raises(UsageError, match="is an index already; --overwrite starts afresh"):
        VectorWriter.create(index, make_encoder(4), CORPUS)
    assert VectorStore.open(index).count == 3
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(UsageError, match="is a file; choose another path"):
        VectorWriter.create(file, make_encoder(4), CORPUS)
    home = tmp_path / "home"
    (home / "vectors").mkdir(parents=True)
    with pytest.raises(UsageError, match=r"neither empty nor an index \(it holds vectors\)"):
        VectorWriter.create(home, make_encoder(4), CORPUS, overwrite=True)
    with pytest.raises(IndexNotFound, match="is not an index folder"):
        VectorWriter.open(home)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "lock").touch()
    VectorWriter.create(empty, make_encoder(4), CORPUS).close()


def test_overwriting_spares_those_who_read(tmp_path: Path) -> None:
    index = tmp_path / "index"
    vectors = make_vectors(30, 4)
    store = make_store(index, vectors)
    with VectorWriter.create(index, make_encoder(5), CORPUS, overwrite=True) as w:
        assert list((index / "vectors").iterdir()) == []
        append(w, make_documents(0, 2), make_vectors(2, 5))
        w.finish()
    np.testing.assert_array_equal(store.vectors(), as_stored(vectors, "float16"))
    assert store.take(np.array([29])).column("id").to_pylist() == ["d29"]
    assert VectorStore.open(index).vectors().shape == (2, 5)


def test_a_damaged_store_is_not_added_to(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with VectorWriter.create(index, make_encoder(4), CORPUS) as w:
        append(w, make_documents(0, 3), make_vectors(3, 4))
        w.checkpoint()
    path = index / "vectors/part-00000.partial-00003.parquet"
    whole = path.read_bytes()
    for damaged, message in ((whole[:-9] + b"x" + whole[-8:], "has changed"), (whole[:-1], "bytes instead of")):
        path.write_bytes(damaged)
        with pytest.raises(CorruptStore, match=rf"{path.name} .*{message}"):
            VectorWriter.open(index)
    path.unlink()
    with pytest.raises(CorruptStore, match=f"{path.name} is missing"):
        VectorWriter.open(index)
    path.write_bytes(whole)
    VectorWriter.open(index).close()


# What is refused


@pytest.fixture
def open_writer(tmp_path: Path) -> Iterator[VectorWriter]:
    with VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS) as w:
        append(w, make_documents(0, 3), make_vectors(3, 4))
        yield w


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.nan, 'gave document "d4" a vector that is not finite; try --dtype float32'),
        (np.inf, "a vector that is not finite"),
        (0.0, "a vector of length 0;"),
        (3.0, "a vector of length 6;"),
    ],
)
def test_bad_vectors_are_never_stored(open_writer: VectorWriter, bad: float, message: str) -> None:
    vectors = make_vectors(3, 4)
    vectors[1] = bad
    with pytest.raises(ModelError, match=message):
        append(open_writer, make_documents(3, 6), vectors)
    open_writer.finish()
    assert open_writer.manifest.count == 3


@pytest.mark.parametrize("vectors", [np.ones((2, 4), np.float32), np.ones((3, 5), np.float32), np.ones((3, 4))])
def test_vectors_of_another_shape(open_writer: VectorWriter, vectors: Vectors) -> None:
    with pytest.raises(ValueError, match=r"expected \(3, 4\) float32 vectors, got \("):
        append(open_writer, make_documents(3, 6), vectors)


def test_the_range_of_float16(tmp_path: Path) -> None:
    vectors = np.array([[1e5, 0, 0, 0]], np.float32)
    with VectorWriter.create(tmp_path / "half", make_encoder(4, normalize=False), CORPUS) as w:
        with pytest.raises(UsageError, match=r'document "d0" is beyond .* use --vector-dtype float32'):
            append(w, make_documents(0, 1), vectors)
    store = make_store(tmp_path / "single", vectors, "float32", normalize=False)
    np.testing.assert_array_equal(store.vectors(), vectors)


@pytest.mark.parametrize("reopen", [False, True])
def test_a_window_of_other_columns(tmp_path: Path, reopen: bool) -> None:
    w = VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS)
    append(w, make_documents(0, 3), make_vectors(3, 4))
    if reopen:
        w.checkpoint()
        w.close()
        w = VectorWriter.open(tmp_path / "index")
    documents = make_documents(3, 6)
    numbers = documents.column("number")
    with w:
        for table, message in [
            (documents.append_column("year", numbers), 'column "year" is new'),
            (documents.drop_columns("number"), 'column "number" is missing'),
            (documents.set_column(2, "number", numbers.cast(pa.string())), '"number" is string, and int32 in the'),
        ]:
            with pytest.raises(CorpusError, match=message):
                append(w, table, make_vectors(3, 4))
        append(w, documents, make_vectors(3, 4))
        w.finish()
    assert VectorStore.open(tmp_path / "index").count == 6


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("vector", pa.array([1]), 'a column "vector", a name that the store needs'),
        ("odd", pa.array([{}], pa.struct([])), 'column "odd" has type struct<>, which cannot be stored'),
        ("odd", pa.nulls(1, pa.month_day_nano_interval()), 'column "odd" has type month_day_nano_interval'),
        ("id", pa.array(["x"]), "two columns of the same name"),
    ],
)
def test_columns_that_cannot_be_stored(tmp_path: Path, column: str, values: pa.Array, message: str) -> None:
    with VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS) as w:
        with pytest.raises(CorpusError, match=message):
            append(w, make_documents(0, 1).append_column(column, values), make_vectors(1, 4))


def test_another_encoder_is_refused(open_writer: VectorWriter) -> None:
    with pytest.raises(SpecMismatch, match=r"built with encoder [0-9a-f]{16}, this one is [0-9a-f]{16}"):
        open_writer.set_encoder(make_encoder(5))
    open_writer.set_encoder(type(make_encoder(4))(make_encoder(4).spec, "bfloat16", 0.99))
    open_writer.finish()
    assert open_writer.manifest.encoder.dtype == "bfloat16"


def test_set_index_keeps_one_file(open_writer: VectorWriter) -> None:
    open_writer.finish()
    folder = open_writer.path / "faiss"
    records = []
    for name in ("a", "b"):
        (folder / f"{name}.faiss").write_text(name)
        vectors_id = open_writer.manifest.vectors_id
        records.append(IndexRecord(f"faiss/{name}.faiss", "0" * 64, 1, "Flat", "", vectors_id, 0.95, 1.0))
    open_writer.set_index(records[0])
    assert Manifest.load(open_writer.path).index == records[0]
    assert [path.name for path in folder.iterdir()] == ["a.faiss"]
    (folder / "b.faiss").write_text("b")
    open_writer.set_index(records[1])
    assert [path.name for path in folder.iterdir()] == ["b.faiss"]
    append(open_writer, make_documents(3, 6), make_vectors(3, 4))
    open_writer.finish()
    with pytest.raises(StaleIndex, match=r"b\.faiss was built from other vectors"):
        open_writer.set_index(records[1])


# A disk that refuses

FILLS_THE_DISK = """
    import sys
    from llmindex.store.writer import VectorWriter
    from llmindex.errors import StorageError
    from tests.samples import append, make_documents, make_vectors

    with VectorWriter.open(sys.argv[1]) as writer:
        {before}
        try:
            for start in range(200, 100_000, 200):
                append(writer, make_documents(start, start + 200), make_vectors(200, 64))
                writer.checkpoint()
        except StorageError as error:
            print(error)
"""


def fill(index: Path, before: str = "pass") -> str:
    """Append in another process until the disk refuses; what it said."""
    with VectorWriter.create(index, make_encoder(64), CORPUS) as w:
        append(w, make_documents(0, 200), make_vectors(200, 64))
        w.checkpoint()
    program = dedent(FILLS_THE_DISK).format(before=before)
    done = subprocess.run(
        [sys.executable, "-c", program, str(index)],
        cwd=Path(__file__).parents[1],
        check=True,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return done.stdout


def check_refused(index: Path, message: str, reason: str, remedy: str) -> None:
    """Nothing is lost, nothing is left over, and the writer can go on."""
    store = VectorStore.open(index)
    assert store.count >= 200
    safe = f"{store.count:,} documents are committed and safe"
    assert message.startswith(f"cannot write {index}/")
    assert message.endswith(f": {reason}; {safe}; {remedy} and run the same command again\n")
    assert sorted(path.name for path in index.rglob("*") if path.is_file()) == sorted(
        ["lock", "manifest.json", *(Path(shard.file).name for shard in store.manifest.shards)]
    )
    assert verify(index).problems == ()
    np.testing.assert_array_equal(store.take_vectors(np.arange(200)), as_stored(make_vectors(200, 64), "float16"))


def test_a_limit_on_the_size_of_files(tmp_path: Path) -> None:
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))"
    index = tmp_path / "index"
    check_refused(index, fill(index, limit), "File too large", "make the folder writable")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        mount is None
        or subprocess.run(
            [mount, "-t", "tmpfs", "-o", "size=400k", "tmpfs", str(folder)], check=False, capture_output=True
        ).returncode
    ):
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(small_disk: Path) -> None:
    index = small_disk / "index"
    check_refused(index, fill(index), "No space left on device", "free space")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match=r"cannot write .*/file/index: Not a directory"):
        VectorWriter.create(tmp_path / "file" / "index", make_encoder(4), CORPUS)


# Reading while another process writes


def test_a_reader_goes_on_with_the_new_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard in the making was replaced between the reader's look at the manifest and at the shard."""
    index = tmp_path / "index"
    with VectorWriter.create(index, make_encoder(4), CORPUS) as w:
        append(w, make_documents(0, 3), make_vectors(3, 4))
        w.checkpoint()
        old = Manifest.load(index)
        w.finish()
    manifests = iter([old, Manifest.load(index)])
    monkeypatch.setattr(Manifest, "load", lambda _: next(manifests))
    assert VectorStore.open(index).manifest.shards[0].file == "vectors/part-00000.parquet"


def test_a_missing_or_damaged_shard_is_named(tmp_path: Path) -> None:
    index = tmp_path / "index"
    make_store(index, make_vectors(3, 4))
    path = index / "vectors/part-00000.parquet"
    whole = path.read_bytes()
    path.write_bytes(whole[:-8] + b"\xff" * 8)
    with pytest.raises(CorruptStore, match=r"part-00000\.parquet is damaged; `llmindex verify`"):
        VectorStore.open(index).vectors()
    path.write_bytes(whole + b"x")
    with pytest.raises(CorruptStore, match=r"part-00000\.parquet is missing or has another size"):
        VectorStore.open(index)
    path.unlink()
    with pytest.raises(CorruptStore, match=r"part-00000\.parquet is missing or has another size"):
        VectorStore.open(index)


def test_a_path_that_is_not_utf8_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "x\udcff"
    with pytest.raises(UsageError, match="not UTF-8"):
        VectorStore.open(folder)


@pytest.mark.parametrize(("wanted", "said"), [("\udcff", "not UTF-8"), ("x" * 5000, 'the id "x{100}" in')])
def test_odd_ids_are_answered_in_a_short_line(wanted: str, said: str, tmp_path: Path) -> None:
    with VectorWriter.create(tmp_path / "x", make_encoder(4), CORPUS):
        pass
    with pytest.raises(UsageError, match=said):
        VectorStore.open(tmp_path / "x").rows_of([wanted])
