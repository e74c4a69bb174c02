import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from llmindex.store.files import hash_values
from llmindex.store.manifest import Manifest

from .conftest import Llmindex, start


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


def test_info_shows_a_prompt_of_two_lines_as_it_is_typed(llmindex: Llmindex, index: Path) -> None:
    manifest = Manifest.load(index)
    spec = replace(manifest.encoder.spec, prompt='"{text}"\nIts topic:')
    replace(manifest, encoder=replace(manifest.encoder, spec=spec)).save(index)
    ended = llmindex("info", "-i", index)
    assert ended.code == 0
    assert r'"{text}"\nIts topic:' in ended.out


def test_verify(llmindex: Llmindex, built: Path) -> None:
    ended = llmindex("verify", "-i", built)
    assert (ended.code, ended.err) == (0, "")
    assert ended.out == f"{built}: 3 files and 120 documents are as written\n"
    assert json.loads(llmindex("verify", "-i", built, "--json").out) == {
        "files": 3,
        "rows": 120,
        "problems": [],
        "outdated": [],
    }


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


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("gone", "left"), [("stdout", "stderr"), ("stderr", "stdout")])
def test_verify_fails_where_nobody_reads_why(
    gone: str, left: str, unbuffered: str, index: Path, tmp_path: Path
) -> None:
    shard = index / "vectors" / "part-00000.parquet"
    shard.write_bytes(shard.read_bytes() + b"x")
    running = start("verify", "-i", index, "--json", cwd=tmp_path, env={"PYTHONUNBUFFERED": unbuffered})
    getattr(running, gone).close()
    with getattr(running, left) as stream:
        assert b"part-00000.parquet" in stream.read()
    assert running.wait(timeout=60) == 1


def test_reindex(llmindex: Llmindex, index: Path) -> None:
    ended = llmindex("reindex", "-i", index, "--factory", "IVF4,SQfp16", "--recall", "0.9")
    assert ended.code == 0
    facts = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert facts["index"].startswith("IVF4,SQfp16 with nprobe=")
    assert facts["recall@10"].endswith("measured, 0.9 asked for")
    refused = llmindex("reindex", "-i", index, "--memory", "1MB")
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert "MB would do" in refused.err
    assert llmindex("reindex", "-i", index, "--memory", "1GB").code == 0
    record = json.loads(llmindex("reindex", "-i", index, "--json").out)
    assert (record["factory"], record["recall_at_10"]) == ("Flat", 1.0)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Names, bytes and times of all files of an index."""
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_reindex_plan_writes_nothing(process: Llmindex, index: Path) -> None:
    before = contents(index)
    ended = process("reindex", "-i", index, "--plan", "--recall", "0.9")
    assert (ended.code, ended.err) == (0, "Nothing was written.\n")
    facts = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert list(facts) == ["documents", "recall@10", "time", "disk", "index"]
    assert (facts["documents"], facts["recall@10"]) == ("120", "0.9 asked for")
    assert facts["index"].startswith("Flat: 215.0 MB to build, 155.0 MB to search")
    planned = json.loads(process("reindex", "-i", index, "--plan", "--json", "--factory", "SQfp16").out)
    assert (planned["documents"], planned["recall"], planned["factory"]) == (120, 0.95, "SQfp16")
    assert planned["disk_bytes"] == 120 * 32 * 2
    assert contents(index) == before


def test_reindex_plan_and_build_plan_say_the_same(
    llmindex: Llmindex, index: Path, documents: Path, tiny_model: Path
) -> None:
    before, after = ("build", documents, "--model", tiny_model, "--plan"), ("reindex", "-i", index, "--plan")
    of_corpus, of_index = (json.loads(llmindex(*command, "--json").out) for command in (before, after))
    for name in ("documents", "factory", "index_memory_bytes", "search_memory_bytes"):
        assert of_corpus[name] == of_index[name]
    told = [llmindex(*command).out.splitlines()[-1].split() for command in (before, after)]
    assert told[0] == told[1]


@pytest.mark.parametrize(
    "options",
    [
        ("--memory", "1MB"),
        ("--factory", "Flatt"),
        ("--factory", "IVF999,Flat"),
        ("--memory", "1GB", "--factory", "Flat"),
        ("--recall", "1.5"),
    ],
)
def test_reindex_plan_refuses_what_reindex_refuses(llmindex: Llmindex, index: Path, options: tuple[str, ...]) -> None:
    refused = llmindex("reindex", "-i", index, *options)
    assert (refused.code, refused.out, refused.err.count("\n")) == (2, "", 1)
    assert llmindex("reindex", "-i", index, *options, "--plan") == refused


def test_models(llmindex: Llmindex) -> None:
    ended = llmindex("models")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.splitlines()[1].startswith("default")
    assert json.loads(llmindex("models", "--json").out.splitlines()[0])["name"] == "default"


def test_on_a_terminal_only_a_path_is_wider_than_that(llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    for command in ("models", "prompts"):
        wide = [line for line in llmindex(command).out.splitlines() if len(line) > 80]
        assert all(line.startswith("    /") and " " not in line.strip() for line in wide)


@pytest.mark.parametrize("name", ["eol", "cluster", "none"])
def test_prompts(name: str, llmindex: Llmindex) -> None:
    assert f"\n{name} " in llmindex("prompts").out
    listed = [json.loads(line) for line in llmindex("prompts", "--json").out.splitlines()]
    assert all("{text}" in prompt["template"] for prompt in listed)
    assert name in [prompt["name"] for prompt in listed]


def unfinished(index: Path, *, indexed: bool = True) -> Path:
    """The index as a build leaves it that was stopped."""
    manifest = Manifest.load(index)
    kept = manifest.index if indexed else None
    replace(manifest, corpus=replace(manifest.corpus, complete=False), index=kept).save(index)
    return index


def test_an_unfinished_index_says_so(llmindex: Llmindex, index: Path) -> None:
    unfinished(index)
    told = f"{index} is unfinished, 120 documents so far: run its build again to go on.\n"
    for arguments in (("search", "x", "-k", "1"), ("similar", "doc-1"), ("cluster",), ("reindex",)):
        ended = llmindex(*arguments, "-i", index)
        assert (ended.code, told in ended.err) == (0, True), arguments
    assert llmindex("-q", "similar", "doc-1", "-i", index).err == ""


def test_an_unfinished_index_without_a_search_index(llmindex: Llmindex, index: Path) -> None:
    ended = llmindex("search", "x", "-i", unfinished(index, indexed=False))
    assert ended.code == 1
    assert ended.err.splitlines()[-1] == (
        f"Error: {index} has no search index yet; its build is unfinished: run the same build again, or run "
        f"`llmindex reindex -i {index}` for the part that is stored"
    )


def test_a_clustering_of_other_vectors(llmindex: Llmindex, index: Path) -> None:
    """Made before a build went on, it is no damage, but no use either."""
    assert llmindex("cluster", "-i", index).code == 0
    summary = index / "clusters" / "default.json"
    values = json.loads(summary.read_text(encoding="utf-8"))
    values["built_from"] = "0" * 64
    values["sha256"][summary.name] = hash_values(values)
    summary.write_text(json.dumps(values), encoding="utf-8")
    told = (
        'the clustering "default" was made from other vectors than those stored; run '
        f"`llmindex cluster -i {index} --name default` again"
    )
    ended = llmindex("verify", "-i", index)
    assert (ended.code, ended.err) == (0, told + "\n")
    assert json.loads(llmindex("verify", "-i", index, "--json").out)["outdated"] == [told]
