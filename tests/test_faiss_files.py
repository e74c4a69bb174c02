"""An index from its file: mapped or read it answers alike, and what cannot be searched is refused and rebuilt."""

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

from llmindex.errors import StaleIndex
from llmindex.index.building import rebuild
from llmindex.index.faiss_index import VectorIndex, rescored_by
from llmindex.store.manifest import Manifest
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.samples import append, make_documents, make_index, make_store, make_vectors

FACTORIES = ["Flat", "IVF16,SQfp16", "IVF16,Flat", "HNSW16", "SQ8", "IVF16,PQ4x4", "PCA8,IVF16,Flat", "IVF16,RaBitQ"]
FACTORIES += ["IVF16,PQ4x4fs", "IVF16,SQ8,RFlat", "NSG16"]


@pytest.mark.parametrize("factory", FACTORIES)
def test_mapped_equals_in_memory(tmp_path: Path, factory: str, capfd: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "index", make_vectors(1_000, 16))
    with VectorWriter.open(store.path) as writer:
        record = rebuild(writer, factory=factory)
    store = VectorStore.open(store.path)
    mapped = VectorIndex.load(store)
    assert verify(store.path).problems == ()
    assert str(file_of(store)) in Path("/proc/self/maps").read_text()
    queries = make_vectors(30, 16, seed=2)
    whole: Any = faiss.read_index(str(file_of(store)))
    space: Any = faiss.ParameterSpace()
    space.set_index_parameters(whole, record.parameters.partition(",")[0])
    expected = VectorIndex(whole, store, rescored_by(record.parameters)).search(queries, 10)
    found = mapped.search(queries, 10)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.scores, expected.scores)
    assert capfd.readouterr() == ("", "")


def test_mapped_lists_are_views_of_the_file(tmp_path: Path) -> None:
    """Not OnDiskInvertedLists, which start threads for each search."""
    _, index = make_index(tmp_path / "index", make_vectors(500, 8), "IVF16,SQfp16")
    lists: Any = faiss.try_extract_index_ivf(index._index)
    assert isinstance(faiss.downcast_InvertedLists(lists.invlists), faiss.ArrayInvertedLists)


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


def write_foreign(store: VectorStore, other: faiss.Index) -> None:
    """Write an index of another making, and have the manifest fit it."""
    assert store.manifest.index is not None
    faiss.write_index(other, str(file_of(store)))
    record = replace(store.manifest.index, bytes=file_of(store).stat().st_size)
    replace(store.manifest, index=record).save(store.path)


def number_otherwise(store: VectorStore) -> None:
    other = faiss.IndexIDMap(faiss.IndexFlatIP(8))
    other.add_with_ids(np.zeros((200, 8), np.float32), np.arange(200) + 10**9)
    write_foreign(store, other)


def measure_otherwise(store: VectorStore) -> None:
    other = faiss.IndexFlatL2(8)
    other.add(np.zeros((200, 8), np.float32))
    write_foreign(store, other)


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
        (number_otherwise, r"\.faiss has numbers or a metric of its own"),
        (measure_otherwise, r"\.faiss has numbers or a metric of its own"),
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


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads its size from /proc")
def test_a_factory_that_memory_runs_out_for_keeps_the_index_before(indexed: VectorStore) -> None:
    program = """
        import resource, sys
        from pathlib import Path
        from llmindex.errors import UsageError
        from llmindex.index.building import rebuild
        from llmindex.store.writer import VectorWriter

        with VectorWriter.open(sys.argv[1]) as writer:
            rebuild(writer)
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            most = pages * resource.getpagesize() + 400_000_000
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            try:
                rebuild(writer, factory="HNSW1000000")
            except UsageError as error:
                print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", dedent(program), str(indexed.path)], check=True, capture_output=True, text=True
    )
    what = '"HNSW1000000" from 200 vectors of length 8'
    assert done.stdout == f"no memory is left to build {what}; --memory chooses an index that fits\n"
    assert Manifest.load(indexed.path) == indexed.manifest
    assert list((indexed.path / "faiss").iterdir()) == [file_of(indexed)]


def test_a_full_disk_keeps_the_index_before(indexed: VectorStore) -> None:
    program = """
        import resource, signal, sys
        from llmindex.errors import StorageError
        from llmindex.index.building import rebuild
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
