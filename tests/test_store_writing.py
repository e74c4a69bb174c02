"""Who may write a store, and what is never written into it."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

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
from llmindex.store.manifest import IndexRecord, Manifest
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter
from tests.full_disk import files_up_to
from tests.samples import (
    CORPUS,
    append,
    as_stored,
    make_documents,
    make_encoder,
    make_index,
    make_store,
    make_vectors,
)

INDEX_FILES = [f"faiss/{letter * 16}-{letter * 16}.faiss" for letter in "ab"]

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
    leftovers = ["vectors/part-00001.parquet", "vectors/part-00001.partial-00256.parquet", ".manifest.json.tmp"]
    leftovers += ["vectors/.part-00001.parquet.tmp", "faiss/.written.faiss.tmp", "faiss/written.faiss", INDEX_FILES[0]]
    others = ["vectors/notes.txt", "vectors/part-list.csv", "vectors/part-00001.parquet.bak", "part-00007.parquet"]
    others += ["clusters/default.json", "clusters/.x.tmp", "backup.faiss", "faiss/backup.faiss"]
    for name in leftovers + others:
        (index / name).write_text("x")
    VectorWriter.open(index).close()
    assert not [name for name in leftovers if (index / name).exists()]
    assert all((index / name).exists() for name in others)
    assert VectorStore.open(index).count == 3


@pytest.mark.parametrize("name", ["vectors", "faiss"])
def test_files_of_another_index_are_not_taken_for_leftovers(tmp_path: Path, name: str) -> None:
    mine, _ = make_index(tmp_path / "mine", make_vectors(20, 4))
    strangers, _ = make_index(tmp_path / "strangers", make_vectors(10, 4))
    before = sorted((mine.path / name).iterdir())
    shutil.rmtree(strangers.path / name)
    (strangers.path / name).symlink_to(mine.path / name)
    with pytest.raises(StorageError, match=f"strangers/{name} is a link; an index is changed only in its own folder"):
        VectorWriter.open(strangers.path)
    with pytest.raises(StorageError, match=f"strangers/{name} is a link"):
        VectorWriter.create(strangers.path, make_encoder(4), CORPUS, overwrite=True)
    assert Manifest.load(strangers.path).count == 10
    assert sorted((mine.path / name).iterdir()) == before


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
    with pytest.raises(IndexNotFound, match=r"home: it has no manifest\.json"):
        VectorWriter.open(home)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "lock").touch()
    VectorWriter.create(empty, make_encoder(4), CORPUS).close()


def test_an_index_that_got_no_manifest_is_begun_again(tmp_path: Path) -> None:
    index = tmp_path / "index"
    with files_up_to(100), pytest.raises(StorageError, match=r"manifest\.json: File too large"):
        VectorWriter.create(index, make_encoder(4), CORPUS)
    assert sorted(path.name for path in index.iterdir()) == ["faiss", "lock", "vectors"]
    (index / "faiss/mine.faiss").touch()
    with pytest.raises(UsageError, match=r"neither empty nor an index \(it holds faiss\)"):
        VectorWriter.create(index, make_encoder(4), CORPUS)
    (index / "faiss/mine.faiss").unlink()
    VectorWriter.create(index, make_encoder(4), CORPUS).close()
    assert VectorStore.open(index).count == 0


@pytest.mark.parametrize("manifest", ['{"name": "My web app", "icons": []}', "[]", "{", ""])
def test_a_folder_of_something_else_is_never_overwritten(tmp_path: Path, manifest: str) -> None:
    names = ["manifest.json", "index.html", "model.faiss", "vectors/logo.svg", "clusters/mine.json"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(manifest)
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="is neither empty nor an index"):
            VectorWriter.create(tmp_path, make_encoder(4), CORPUS, overwrite=overwrite)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")) == sorted(names)
    assert not (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    ("count", "damage"),
    [
        (3, lambda _: "{"),
        (0, lambda _: "{"),
        (3, lambda manifest: manifest.replace('"encoder"', '"encoded"')),
        (0, lambda manifest: manifest.replace('"format_version": 1', '"format_version": 99')),
        (0, lambda manifest: manifest.replace("inner_product", "cosine")),
    ],
    ids=["cut off", "cut off, and no shard yet", "lacks a key", "newer", "bad value"],
)
def test_a_damaged_index_can_be_overwritten(tmp_path: Path, count: int, damage: Callable[[str], str]) -> None:
    make_store(tmp_path, make_vectors(count, 4))
    path = tmp_path / "manifest.json"
    if count:  # as a copy may lack it
        (tmp_path / "lock").unlink()
    before = path.read_text()
    path.write_text(damage(before))
    assert path.read_text() != before
    with pytest.raises(UsageError, match="is an index already; --overwrite starts afresh"):
        VectorWriter.create(tmp_path, make_encoder(4), CORPUS)
    VectorWriter.create(tmp_path, make_encoder(4), CORPUS, overwrite=True).close()
    assert VectorStore.open(tmp_path).count == 0


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


def test_the_columns_of_what_was_refused_do_not_count(tmp_path: Path) -> None:
    with VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS) as w:
        for vectors, refused in ((2 * make_vectors(3, 4), ModelError), (make_vectors(3, 5), ValueError)):
            with pytest.raises(refused):
                append(w, make_documents(0, 3, {"other": pa.array([1, 2, 3])}), vectors)
        append(w, make_documents(0, 3), make_vectors(3, 4))
        w.finish()
    assert VectorStore.open(tmp_path / "index").schema.names == ["id", "text", "number"]


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
    folder = open_writer.path
    records = []
    for file in INDEX_FILES:
        (folder / file).write_text("x")
        vectors_id = open_writer.manifest.vectors_id
        records.append(IndexRecord(file, "0" * 64, 1, "Flat", "", vectors_id, 0.95, 1.0))
    open_writer.set_index(records[0])
    assert Manifest.load(folder).index == records[0]
    assert list((folder / "faiss").iterdir()) == [folder / INDEX_FILES[0]]
    (folder / INDEX_FILES[1]).write_text("x")
    open_writer.set_index(records[1])
    assert list((folder / "faiss").iterdir()) == [folder / INDEX_FILES[1]]
    append(open_writer, make_documents(3, 6), make_vectors(3, 4))
    open_writer.finish()
    with pytest.raises(StaleIndex, match=r"b\.faiss was built from other vectors"):
        open_writer.set_index(records[1])
