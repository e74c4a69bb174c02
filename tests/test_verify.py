import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.errors import IndexNotFound
from llmindex.progress import Progress
from llmindex.store import verify as module
from llmindex.store.files import hash_file
from llmindex.store.manifest import CorpusRecord, IndexRecord, Manifest, ShardRecord
from llmindex.store.verify import verify
from llmindex.store.writer import VectorWriter
from tests.samples import append, make_documents, make_encoder, make_store, make_vectors


@pytest.fixture
def index(tmp_path: Path) -> Path:
    """Two shards of three documents, a file that stands for a FAISS index, and a clustering."""
    folder = tmp_path / "index"
    vectors = make_vectors(6, 4)
    with VectorWriter.create(folder, make_encoder(4), CorpusRecord({})) as writer:
        for start in (0, 3):
            append(writer, make_documents(start, start + 3), vectors[start : start + 3])
            writer.finish()
        (folder / "faiss/a.faiss").write_bytes(b"hello")
        vectors_id = writer.manifest.vectors_id
        sha256 = hash_file(folder / "faiss/a.faiss")
        writer.set_index(IndexRecord("faiss/a.faiss", sha256, 5, "Flat", "", vectors_id, 0.95, 1.0))
    (folder / "clusters").mkdir()
    labels = folder / "clusters/default.parquet"
    pq.write_table(pa.table({"row": list(range(6))}), labels)
    summary = {"built_from": vectors_id, "sha256": {labels.name: hash_file(labels)}}
    (folder / "clusters/default.json").write_text(json.dumps(summary))
    return folder


def problem(index: Path) -> str:
    """The one problem there is."""
    report = verify(index)
    assert len(report.problems) == 1
    assert "\n" not in report.problems[0]
    return report.problems[0]


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_all_is_well(index: Path) -> None:
    reports: list[Progress] = []
    report = verify(index, reports.append)
    assert report == module.VerifyReport(files=5, rows=6, problems=())
    assert [each.done for each in reports] == [2, 3, 4, 5]
    assert reports[-1] == Progress("verify", 5, 5, "files")


@pytest.mark.parametrize("place", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_one_byte_is_found(index: Path, place: float) -> None:
    path = index / "vectors/part-00001.parquet"
    flip(path, int(place * (path.stat().st_size - 1)))
    assert problem(index).startswith(f"{path}: has changed since it was written (its sha256 differs); restore it")


def test_a_missing_and_a_shortened_shard(index: Path) -> None:
    first, second = (index / f"vectors/part-0000{number}.parquet" for number in (0, 1))
    first.unlink()
    size = second.stat().st_size
    second.write_bytes(second.read_bytes()[:-1])
    report = verify(index)
    assert [line.split(";")[0] for line in report.problems] == [
        f"{first}: is missing",
        f"{second}: has {size - 1:,} bytes instead of {size:,}",
    ]


def test_the_faiss_file(index: Path) -> None:
    path = index / "faiss/a.faiss"
    flip(path, 2)
    assert problem(index) == (
        f"{path}: has changed since it was written (its sha256 differs); run `llmindex reindex -i {index}`"
    )
    path.unlink()
    assert problem(index).startswith(f"{path}: is missing; run `llmindex reindex")


def test_what_was_derived_from_other_vectors(index: Path) -> None:
    with VectorWriter.open(index) as writer:
        append(writer, make_documents(6, 7), make_vectors(1, 4))
        writer.finish()
    report = verify(index)
    assert [line.split(";")[0] for line in report.problems] == [
        f"{index}/faiss/a.faiss: was built from other vectors than those stored",
    ]
    assert report.outdated == (
        'the clustering "default" was made from other vectors than those stored; run '
        f"`llmindex cluster -i {index} --name default` again",
    )


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"3", b"\xff"])
def test_a_damaged_clustering(index: Path, content: bytes) -> None:
    (index / "clusters/default.json").write_bytes(content)
    assert problem(index).startswith(
        f"{index}/clusters/default.json: is damaged; run `llmindex cluster -i {index} --name default` again"
    )


def test_a_device_in_the_place_of_a_clustering_is_not_read(index: Path) -> None:
    labels = index / "clusters/default.parquet"
    labels.unlink()
    labels.symlink_to("/dev/null")
    assert problem(index).startswith(f"{labels}: cannot be read (it is not a regular file); run `llmindex cluster")


def test_the_labels_of_a_clustering(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = index / "clusters/default.parquet"
    pq.write_table(pa.table({"row": [0]}), labels)
    assert problem(index).startswith(f"{labels}: has changed since it was written (its sha256 differs); run")
    labels.unlink()
    assert problem(index).startswith(f"{labels}: is missing; run")
    monkeypatch.setattr(Path, "is_file", lambda _: True)  # as where it is taken away in between
    assert problem(index).startswith(f"{labels}: is missing; run")


def smuggle(index: Path, table: pa.Table) -> None:
    """Put a file with the right hash in the place of the first shard."""
    path = index / "vectors/part-00000.parquet"
    pq.write_table(table, path)
    manifest = Manifest.load(index)
    shard = ShardRecord("vectors/part-00000.parquet", 3, path.stat().st_size, hash_file(path))
    replace(manifest, shards=(shard,)).save(index)


@pytest.mark.parametrize(
    ("vectors", "ids", "message"),
    [
        ([[1, 0, 0, 0]] * 2, ["a", "b"], "has 2 rows instead of 3"),
        ([[1, 0, 0, 0], [2, 0, 0, 0], [3, 0, 0, 0]], ["a", "b", "c"], "row 1 has a vector of length 2"),
        ([[1, 0, 0, 0], [0, 1, 0, 0], [float("nan")] * 4], ["a", "b", "c"], "row 2 has a vector of length nan"),
        ([[1, 0, 0, 0], None, [0, 1, 0, 0]], ["a", "b", "c"], "has a document without a vector"),
        ([[1, 0]] * 3, ["a", "b", "c"], "has vectors of 2 numbers instead of 4"),
        ([[1, 0, 0, 0]] * 3, ["a", None, "c"], 'has a column "id" that is not text throughout'),
        ([[1, 0, 0, 0]] * 3, [1, 2, 3], 'has a column "id" that is not text throughout'),
    ],
)
def test_contents_that_cannot_be(tmp_path: Path, vectors: list[Any], ids: list[object], message: str) -> None:
    make_store(tmp_path / "index", make_vectors(3, 4))
    column = pa.array(vectors, pa.list_(pa.float32(), len(vectors[0])))
    smuggle(tmp_path / "index", pa.table({"id": ids, "text": [str(each) for each in ids], "vector": column}))
    assert message in problem(tmp_path / "index")


def test_a_file_that_is_no_shard(tmp_path: Path) -> None:
    make_store(tmp_path / "index", make_vectors(3, 4))
    smuggle(tmp_path / "index", pa.table({"x": [1, 2, 3]}))
    assert "part-00000.parquet: cannot be read (" in problem(tmp_path / "index")


def test_a_writer_at_work_is_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shard in the making is replaced after the manifest was read."""
    index = tmp_path / "index"
    with VectorWriter.create(index, make_encoder(4), CorpusRecord({})) as writer:
        append(writer, make_documents(0, 3), make_vectors(3, 4))
        writer.checkpoint()
        old = Manifest.load(index)
        writer.finish()
        new = Manifest.load(index)
    manifests = iter([old, new, new])
    monkeypatch.setattr(Manifest, "load", lambda _: next(manifests))
    assert verify(index).problems == ()


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFound):
        verify(tmp_path)
