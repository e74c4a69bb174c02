import json
from pathlib import Path

import pytest

from .conftest import Llmindex


@pytest.fixture
def encoder(tiny_model: Path, tmp_path: Path) -> Path:
    """An encoder.json, as a sweep writes it."""
    from llmindex.encode.encoder import Encoder

    path = tmp_path / "encoder.json"
    loaded = Encoder.load(str(tiny_model), prompt="cluster", query_prompt="none", pooling="last", max_tokens=16)
    path.write_text(json.dumps(loaded.spec.to_json()))
    return path


def test_for_people_and_programs(llmindex: Llmindex, encoder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = llmindex("export", encoder, "-o", out)
    assert (ended.code, ended.err) == (0, f"The lines of Python that load it are in {out / 'README.md'}.\n")
    assert (out / "README.md").is_file()
    assert ended.out.startswith(f"{out}: for sentence-transformers, vectors of 32 values, float32, ")
    assert "on 11 texts" in ended.out
    ended = llmindex(
        "export", encoder, "-o", out, "--to", "transformers", "--overwrite", "--dtype", "bfloat16", "--json"
    )
    assert (ended.code, ended.err) == (0, "")
    report = json.loads(ended.out)
    assert report["cosine"] >= 0.9999
    assert (report["to"], report["dtype"], report["folder"]) == ("transformers", "bfloat16", str(out))
    assert (out / "query" / "tokenizer.json").is_file()


def test_as_a_process(process: Llmindex, encoder: Path, tmp_path: Path) -> None:
    ended = process("export", encoder, "-o", "out")
    assert (ended.code, ended.out.count("\n")) == (0, 1)
    assert "Writing" not in ended.err
    assert "Warning" not in ended.err
    assert (tmp_path / "out" / "modules.json").is_file()


def test_bad_input(llmindex: Llmindex, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    ended = llmindex("export", tiny_model, "-o", tmp_path / "there")
    assert (ended.code, ended.out) == (2, "")
    assert "is there already" in ended.err
    ended = llmindex("export", tmp_path / "none", "-o", tmp_path / "out")
    assert (ended.code, ended.err.count("\n")) == (1, 1)
    assert "no model" in ended.err
    ended = llmindex("export", tiny_model, "-o", tmp_path / "out", "--to", "onnx")
    assert ended.code == 2
    assert [path.name for path in tmp_path.iterdir()] == ["there"]
