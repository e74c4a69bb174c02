"""Inverted lists that are written to their places: the bytes of FAISS's own file, and nothing left by a kill."""

import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent
from typing import Any

import faiss
import numpy as np
import pytest

from llmindex.index import lists
from llmindex.index.building import rebuild
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.footprint import BUFFER
from llmindex.progress import Progress
from llmindex.store.manifest import Manifest
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.samples import make_index, make_store, make_vectors

STREAMED = ["IVF16,Flat", "IVF16,SQfp16", "IVF16,SQ8", "IVF16,PQ4x4", "IVF16,RaBitQ", "PCA8,IVF16,SQ8"]


def trained(store: VectorStore, factory: str) -> Any:  # noqa: ANN401
    index = faiss.index_factory(store.dim, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(store.vectors())
    return index


@pytest.mark.parametrize("factory", STREAMED)
@pytest.mark.parametrize("buffer", [BUFFER, 20_000])
def test_the_file_is_that_of_an_index_filled_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, buffer: int
) -> None:
    monkeypatch.setattr(lists, "BUFFER", buffer)
    store = make_store(tmp_path / "index", make_vectors(9_000, 16, clusters=40))
    index = trained(store, factory)
    whole = faiss.clone_index(index)
    for block in store.iter_vectors():
        whole.add(block)
    faiss.write_index(whole, str(tmp_path / "whole"))
    assert lists.are_last(index)
    seen: list[Progress] = []
    lists.write_lists(store, index, tmp_path / "placed", seen.append)
    assert (tmp_path / "placed").read_bytes() == (tmp_path / "whole").read_bytes()
    assert [report.stage for report in seen if report.done == report.total] == ["assign", "add"]


def test_empty_lists(tmp_path: Path) -> None:
    """Of equal vectors all are in one list; FAISS would then name the lists that have some, which it reads as well."""
    store = make_store(tmp_path / "index", np.repeat(make_vectors(1, 16), 500, axis=0))
    index = trained(store, "IVF16,SQfp16")
    lists.write_lists(store, index, tmp_path / "placed", lambda _: None)
    placed: Any = faiss.read_index(str(tmp_path / "placed"))
    scores, rows = placed.search(store.vectors()[:1], 500)
    assert sorted(rows[0].tolist()) == list(range(500))
    np.testing.assert_allclose(scores, 1, atol=1e-3)


@pytest.mark.parametrize("factory", ["Flat", "HNSW8", "IVF16,PQ4x4fs", "IVF16,SQ8,RFlat"])
def test_what_faiss_fills_in_memory(tmp_path: Path, factory: str) -> None:
    store = make_store(tmp_path / "index", make_vectors(1_000, 16))
    assert not lists.are_last(trained(store, factory))


# Killed, and refused by the disk


def file_of(store: VectorStore) -> Path:
    assert store.manifest.index is not None
    return store.path / store.manifest.index.file


@pytest.mark.parametrize("stage", ["train", "assign", "add", "tune"])
def test_killed_at_any_stage(tmp_path: Path, stage: str) -> None:
    program = """
        import os, signal, sys
        from llmindex.index.building import rebuild
        from llmindex.store.writer import VectorWriter

        def kill(report):
            if report.stage == sys.argv[2] and report.done:
                os.kill(os.getpid(), signal.SIGKILL)

        with VectorWriter.open(sys.argv[1]) as writer:
            rebuild(writer, factory="IVF16,SQ8", on_progress=kill)
    """
    store, index = make_index(tmp_path / "index", make_vectors(9_000, 16, clusters=40), "IVF16,SQfp16")
    done = subprocess.run([sys.executable, "-c", dedent(program), str(store.path), stage], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Manifest.load(store.path) == store.manifest
    assert verify(store.path).problems == ()
    queries = make_vectors(3, 16, seed=1)
    again = VectorIndex.load(VectorStore.open(store.path))
    np.testing.assert_array_equal(again.search(queries, 5).rows, index.search(queries, 5).rows)
    VectorWriter.open(store.path).close()
    assert list((store.path / "faiss").iterdir()) == [file_of(store)]


def test_a_full_disk(tmp_path: Path) -> None:
    program = """
        import resource, signal, sys
        from llmindex.errors import StorageError
        from llmindex.index.building import rebuild
        from llmindex.store.writer import VectorWriter

        with VectorWriter.open(sys.argv[1]) as writer:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
            try:
                rebuild(writer, factory="IVF16,SQfp16")
            except StorageError as error:
                print(error)
    """
    store, _ = make_index(tmp_path / "index", make_vectors(3_000, 32))
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), str(store.path)], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"cannot write {store.path}/faiss/written.faiss: File too large; 3,000 documents")
    assert list((store.path / "faiss").iterdir()) == [file_of(store)]


def test_the_index_is_the_same_every_time(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(3_000, 16), "IVF16,SQfp16")
    before = file_of(store).read_bytes()
    with VectorWriter.open(store.path) as writer:
        assert rebuild(writer, factory="IVF16,SQfp16") == store.manifest.index
    assert file_of(store).read_bytes() == before
