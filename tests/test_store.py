"""What a store gives back: every vector, text and column as it was appended, also while another process writes."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import llmindex
from llmindex.cluster.saved import names
from llmindex.errors import CorruptStore, UsageError
from llmindex.store import reader, writer
from llmindex.store.files import hash_file
from llmindex.store.manifest import Manifest, VectorDtype
from llmindex.store.reader import VectorStore
from llmindex.store.verify import outdated_clusterings, verify
from llmindex.store.where import qualifying
from llmindex.store.writer import VectorWriter
from tests.samples import (
    CORPUS,
    DTYPES,
    append,
    as_stored,
    make_documents,
    make_encoder,
    make_index,
    make_store,
    make_vectors,
)

# Reading back


@settings(max_examples=30)
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


def test_taking_documents_does_not_import_pandas(tmp_path: Path) -> None:
    make_store(tmp_path / "index", make_vectors(9, 5))
    code = (
        "import sys, numpy; from llmindex.store.reader import VectorStore\n"
        f"store = VectorStore.open({str(tmp_path / 'index')!r}); print(len(store.take(numpy.array([7, 2]))))\n"
        "print('pandas' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["2", "False"]


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


# Reading while another process writes


def test_more_shards_than_a_process_may_have_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 1)
    monkeypatch.setattr(reader, "_MANY_SHARDS", 20)
    vectors = make_vectors(40, 8)
    make_store(tmp_path / "x", vectors, "float32", window=1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(file.name) for file in Path("/proc/self/fd").iterdir()}
    twenty_free = [number for number in range(1_000) if number not in taken][20]
    resource.setrlimit(resource.RLIMIT_NOFILE, (twenty_free, limits[1]))
    try:
        np.testing.assert_array_equal(VectorStore.open(tmp_path / "x").vectors(), vectors)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


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


def test_what_a_writer_takes_away_meanwhile_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders that were listed, and are gone when they are looked at."""
    store, _ = make_index(tmp_path / "index", make_vectors(20, 4))
    assert store.manifest.index is not None
    index = llmindex.open(store.path)
    before = index.info()
    (store.path / "vectors" / ".part-00000.parquet.tmp").symlink_to("gone")
    assert index.info() == before
    (store.path / store.manifest.index.file).unlink()
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    monkeypatch.setattr(Path, "is_dir", lambda _: True)
    after = index.info()
    assert after["index"] == before["index"] | {"stale": True}
    assert after["bytes"] == before["bytes"] - store.manifest.index.bytes
    assert names(store) == after["clusterings"] == []
    assert outdated_clusterings(store.path, store.manifest) == []


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("text", pa.array([b"a", b"\xff", b"c"]).view(pa.string())),
        ("text", pa.array([1, 2, 3])),
        ("id", pa.array([1, 2, 3])),
        ("id", pa.array(["a", None, "c"])),
        ("text", pa.array(["a", None, "c"])),
        ("vector", pa.FixedSizeListArray.from_arrays(pa.array([0.5] * 6, pa.float16()), 2)),
        ("vector", pa.array([[0.5] * 4, None, [0.5] * 4], pa.list_(pa.float32(), 4))),
    ],
)
def test_a_shard_that_was_never_written_so_is_named(tmp_path: Path, column: str, values: pa.Array) -> None:
    """As one of a stranger's, who could write the manifest to fit."""
    index = tmp_path / "index"
    make_store(index, make_vectors(3, 4))
    path = index / "vectors/part-00000.parquet"
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, values), path)
    manifest = Manifest.load(index)
    shard = replace(manifest.shards[0], bytes=path.stat().st_size, sha256=hash_file(path))
    replace(manifest, shards=(shard,)).save(index)
    store = VectorStore.open(index)
    rows = np.arange(3)
    uses: list[Callable[[], object]] = [lambda: store.take_vectors(rows), store.vectors]
    if column != "vector":
        uses = [lambda: store.take(rows, [column]), lambda: list(store.iter_columns([column]))]
    for use in uses:
        with pytest.raises(CorruptStore, match=r"part-00000\.parquet is damaged; `llmindex verify`"):
            use()
    assert len(verify(index).problems) == 1


@pytest.mark.parametrize("number", [np.nan, np.inf])
def test_numbers_that_nothing_can_be_computed_with_are_damage(tmp_path: Path, number: float) -> None:
    index = tmp_path / "index"
    vectors = make_vectors(3, 4)
    make_store(index, vectors, "float32")
    path = index / "vectors/part-00000.parquet"
    stored, damaged = (value.astype(np.float32).tobytes() for value in (vectors[1, 2], np.array(number)))
    assert path.read_bytes().count(stored) == 1
    path.write_bytes(path.read_bytes().replace(stored, damaged))
    with pytest.raises(CorruptStore, match=r"part-00000\.parquet is damaged; `llmindex verify`"):
        VectorStore.open(index).vectors()
    assert len(verify(index).problems) == 1


def test_a_page_that_says_it_holds_less_shifts_no_rows(tmp_path: Path) -> None:
    index = tmp_path / "index"
    make_store(index, make_vectors(3, 4))
    path = index / "vectors/part-00000.parquet"
    whole = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(0)
    for column, values in ((0, 3), (group.num_columns - 1, 12)):
        first = group.column(column).data_page_offset
        count = whole.index(bytes([0x2C, 0x15, 2 * values]), first) + 2  # a Thrift integer, as in a page's header
        path.write_bytes(whole[:count] + bytes([2 * values * 2 // 3]) + whole[count + 1 :])
        store = VectorStore.open(index)
        with pytest.raises(CorruptStore, match=r"part-00000\.parquet is damaged; `llmindex verify`"):
            store.rows_of(["d5"]) if column == 0 else store.vectors()


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


def test_a_shard_with_damaged_types_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "SHARD_ROWS", 3)
    index = tmp_path / "index"
    make_store(index, make_vectors(6, 4), window=3)
    path = index / "vectors/part-00001.parquet"
    damaged = r"part-00001\.parquet is damaged; `llmindex verify`"

    whole = bytearray(path.read_bytes())
    whole[whole.index(b"ARROW:schema") + 50] = ord("!")  # which base64 does not have
    path.write_bytes(whole)
    with pytest.raises(CorruptStore, match=damaged):
        qualifying(VectorStore.open(index), pc.field("number") > 1)

    table = pq.read_table(index / "vectors/part-00000.parquet")
    column = table.schema.get_field_index("vector")
    pq.write_table(table.set_column(column, "vector", table["vector"].cast(pa.list_(pa.float16()))), path)
    manifest = json.loads((index / "manifest.json").read_bytes())
    manifest["shards"][1]["bytes"] = path.stat().st_size
    (index / "manifest.json").write_text(json.dumps(manifest))
    for read in (VectorStore.vectors, lambda store: store.take_vectors(np.arange(6))):
        with pytest.raises(CorruptStore, match=damaged):
            read(VectorStore.open(index))


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
