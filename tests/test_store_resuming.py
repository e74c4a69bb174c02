"""An interrupted build ends with the same bytes as one that was never interrupted, and loses nothing committed."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.errors import CorpusError, UsageError
from llmindex.records import Vectors
from llmindex.store import writer
from llmindex.store.manifest import Manifest, VectorDtype
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.samples import CORPUS, DTYPES, append, make_documents, make_encoder, make_store, make_vectors


def contents(index: Path) -> dict[str, object]:
    """Every file of the store, and the manifest without its date."""
    files: dict[str, object] = {path.name: path.read_bytes() for path in (index / "vectors").iterdir()}
    return files | {"manifest": {**Manifest.load(index).to_json(), "created_at": None}}


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


@settings(max_examples=40)
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


def test_no_document_is_read_where_the_shards_are_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An index can then be built anew in the memory that is foretold for it, however long the texts are."""
    make_store(tmp_path / "index", make_vectors(10, 4))
    monkeypatch.delattr(writer, "read_shard")
    with VectorWriter.open(tmp_path / "index") as w:
        assert w.count == 10
        with pytest.raises(CorpusError, match='column "number" is missing'):
            append(w, make_documents(10, 11).drop_columns("number"), make_vectors(1, 4))


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
    # The last of the six steps comes once the manifest is in place: it only makes that last through a power cut.
    kept = 20 if moment == 5 else 10
    assert VectorStore.open(tmp_path / "index").count == kept
    assert verify(tmp_path / "index").problems == ()
    with VectorWriter.open(tmp_path / "index") as w:
        assert w.count == kept
        on_disk = {f"vectors/{path.name}" for path in (tmp_path / "index/vectors").iterdir()}
        assert on_disk == {shard.file for shard in w.manifest.shards}
        if kept < 20:
            append(w, make_documents(kept, 20), vectors[kept:])
        w.finish()
    make_store(tmp_path / "plain", vectors, window=10)
    files = [contents(tmp_path / name)["part-00000.parquet"] for name in ("index", "plain")]
    assert files[0] == files[1]


def test_a_closed_writer_leaves_the_folder_to_the_next(tmp_path: Path) -> None:
    index = tmp_path / "index"
    vectors = make_vectors(20, 4)
    with VectorWriter.create(index, make_encoder(4), CORPUS) as stale:
        append(stale, make_documents(0, 5), vectors[:5])
        stale.checkpoint()
    with VectorWriter.open(index) as w:
        append(w, make_documents(5, 20), vectors[5:])
        w.finish()
        before = contents(index)
        for change in (stale.checkpoint, stale.finish, lambda: stale.set_index(None)):
            with pytest.raises(ValueError, match="is closed"):
                change()
        append(stale, make_documents(5, 7), vectors[5:7])
        with pytest.raises(ValueError, match="is closed"):
            stale.checkpoint()
        assert contents(index) == before
