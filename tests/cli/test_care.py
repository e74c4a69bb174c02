import json
from pathlib import Path

import pytest

from .conftest import Llmindex


def test_info(llmindex: Llmindex, built: Path, documents: Path, tiny_model: Path) -> None:
    ended = llmindex("info", "-i", built)
    assert (ended.code, ended.err) == (0, "")
    facts = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert facts["documents"] == "120"
    assert facts["encoder.backbone"] == str(tiny_model)
    assert facts["corpus.identity.sources"] == str(documents)
    assert facts["index.recall_at_10"] == "1"
    assert facts["clusterings"] == "-"
    info = json.loads(llmindex("info", "-i", built, "--json").out)
    assert (info["documents"], info["dim"], info["index"]["factory"]) == (120, 32, "Flat")


def test_verify(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("verify", "-i", built)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{built}: 3 files and 120 documents are as written\n"
    assert json.loads(llmindex("verify", "-i", built, "--json").out) == {"files": 3, "rows": 120, "problems": []}


def test_verify_names_each_problem_on_a_line(llmindex: Llmindex, index: Path) -> None:
    damaged = [next((index / folder).iterdir()) for folder in ("vectors", "faiss")]
    for file in damaged:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    ended = llmindex("verify", "-i", index)
    assert (ended.code, ended.out) == (1, "")
    lines = ended.err.splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"Error: {file}: ") for line, file in zip(lines, damaged, strict=True))
    report = llmindex("verify", "-i", index, "--json")
    assert report.code == 1
    assert len(json.loads(report.out)["problems"]) == 2


def test_reindex(llmindex: Llmindex, index: Path) -> None:
    ended = llmindex("reindex", "-i", index, "--factory", "IVF4,SQfp16", "--recall", "0.9")
    assert ended.code == 0
    facts = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert facts["index"].startswith("IVF4,SQfp16 with nprobe=")
    assert facts["recall@10"].endswith("measured, 0.9 asked for")
    record = json.loads(llmindex("reindex", "-i", index, "--json").out)
    assert (record["factory"], record["recall_at_10"]) == ("Flat", 1.0)


def test_models(llmindex: Llmindex) -> None:
    ended = llmindex("models")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[1].startswith("default")
    assert json.loads(llmindex("models", "--json").out.splitlines()[0])["name"] == "default"


@pytest.mark.parametrize("name", ["eol", "cluster", "none"])
def test_prompts(name: str, llmindex: Llmindex) -> None:
    assert f"\n{name} " in llmindex("prompts").out
    listed = [json.loads(line) for line in llmindex("prompts", "--json").out.splitlines()]
    assert all("{text}" in prompt["template"] for prompt in listed)
    assert name in [prompt["name"] for prompt in listed]
