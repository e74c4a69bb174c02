import io
import json
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.encode.encoder import Encoder
from llmindex_cli.encode import NpySink

from .conftest import Llmindex

TEXTS = ["the first text", "another one", "and a third, somewhat longer than the others"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    rows = [{"id": f"t{number}", "text": text} for number, text in enumerate(TEXTS)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"id": "t9", "text": " "}]))
    return path


@pytest.fixture
def expected(tiny_model: Path) -> np.ndarray:
    return Encoder.load(str(tiny_model)).encode(TEXTS)


def test_parquet(llmindex: Llmindex, corpus: Path, tiny_model: Path, tmp_path: Path, expected: np.ndarray) -> None:
    out = tmp_path / "v.parquet"
    ended = llmindex("encode", corpus, "-o", out, "--model", tiny_model)
    assert (ended.code, ended.out) == (0, f"{out}: 3 vectors of 32 values\n")
    assert ended.err == "Skipped 1 row (1 empty).\n"
    table = pq.read_table(out)
    assert table.column_names == ["id", "vector"]
    assert table["id"].to_pylist() == ["t0", "t1", "t2"]
    np.testing.assert_allclose(np.array(table["vector"].to_pylist()), expected, atol=1e-6)


def test_numpy_json_and_role(
    llmindex: Llmindex, corpus: Path, tiny_model: Path, tmp_path: Path, expected: np.ndarray
) -> None:
    out = tmp_path / "v.npy"
    ended = llmindex(
        *("-q", "encode", corpus, "-o", out, "--model", tiny_model, "--json"),
        *("--role", "query", "--query-prompt", "Query: {text}", "--max-tokens", "4", "--dim", "8"),
    )
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert report["tokens"] > 0
    assert report | {"tokens": 0} == {
        **{"file": str(out), "dim": 8, "documents": 3, "tokens": 0, "truncated": 3, "bad_rows": {"empty": 1}}
    }
    vectors = np.load(out)
    assert (vectors.shape, vectors.dtype) == ((3, 8), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_numpy_file_may_grow_by_any_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "v.npy"
    sink = NpySink(path, 2)
    blocks = [np.full((rows, 2), rows, np.float32) for rows in (1, 9, 90, 900, 99_000)]
    for block in blocks:
        sink.append(pa.chunked_array([[""] * len(block)]), block)
    sink.close()
    np.testing.assert_array_equal(np.load(path, mmap_mode="r"), np.concatenate(blocks))


def test_a_failed_run_leaves_the_old_file(llmindex: Llmindex, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "v.npy"
    out.write_bytes(b"old")
    ended = llmindex("encode", corpus, "-o", out, "--model", tiny_model, "--on-bad-row", "fail")
    assert ended.code == 1
    assert "line 4" in ended.err
    assert out.read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["texts.jsonl", "v.npy"]


@pytest.mark.parametrize("source", ["texts.parquet", ".", "*.parquet"])
def test_the_corpus_is_not_written_over(
    source: str, llmindex: Llmindex, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"text": TEXTS}), "texts.parquet")
    before = Path("texts.parquet").read_bytes()
    ended = llmindex("encode", source, "-o", tmp_path / "texts.parquet", "--model", tiny_model)
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "texts.parquet is a file of the corpus itself; write to another file" in ended.err
    assert Path("texts.parquet").read_bytes() == before
    for other in (source, "-", source, "-"):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a text\n")))
        assert llmindex("encode", other, "-o", tmp_path / "texts.npy", "--model", tiny_model).code == 0


@pytest.mark.parametrize(
    ("output", "code", "said"),
    [
        ("v.txt", 2, "'v.txt' does not end in .parquet or .npy"),
        ("nowhere/v.npy", 2, "there is no folder 'nowhere'"),
    ],
)
def test_output_is_checked_first(output: str, code: int, said: str, llmindex: Llmindex) -> None:
    ended = llmindex("encode", "missing.jsonl", "-o", output)
    assert ended.code == code
    assert said in ended.err
