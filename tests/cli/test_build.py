import json
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from llmindex.store.manifest import Manifest

from .conftest import Llmindex, start


def test_report_for_people(llmindex: Llmindex, tiny_model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "c.jsonl"
    corpus.write_text('{"text": "one"}\n{"text": ""}\n{"text": "a longer text than that"}\n{"text": null}\n')
    path = tmp_path / "an index"
    ended = llmindex("build", corpus, "-o", path, "--model", tiny_model, "--max-tokens", "3")
    assert ended.code == 0
    assert ended.out.startswith(f"{path}: 2 documents\n")
    assert "text       from the column text\n" in ended.out
    assert "skipped    2 rows (1 empty, 1 null)\n" in ended.out
    assert "truncated  1 document cut to the encoder's maximum of tokens; --max-tokens keeps more\n" in ended.out
    assert "held back by " in ended.out
    assert "index      Flat, measured recall@10 1.000\n" in ended.out
    assert ended.err == f"Next: llmindex search \"...\" -i '{path}'\n"


def test_report_as_json_and_again(llmindex: Llmindex, documents: Path, tiny_model: Path, tmp_path: Path) -> None:
    arguments = ("-q", "build", documents, "-o", tmp_path / "i", "--model", tiny_model, "--json")
    first, again = llmindex(*arguments), llmindex(*arguments)
    assert (first.code, first.err, again.code, again.err) == (0, "", 0, "")
    report, repeated = json.loads(first.out), json.loads(again.out)
    assert (report["documents"], report["added"], report["complete_before"]) == (120, 120, False)
    assert set(report["seconds"]) == {"read", "encode", "write", "index", "total"}
    assert report["index"]["factory"] == "Flat"
    assert (repeated["documents"], repeated["added"], repeated["complete_before"]) == (120, 0, True)
    assert repeated["index"] == report["index"]


def test_what_may_not_have_been_meant(llmindex: Llmindex, tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "lines.txt").write_text("one\ntwo\n")
    build = ("build", tmp_path / "lines.txt", "-o", tmp_path / "i", "--model", tiny_model)
    for arguments in (build, (*build, "--plan")):
        assert (
            "A text file is one document; `llmindex build - < FILE` makes one of each line.\n"
            in llmindex(*arguments).err
        )
    (tmp_path / "w.csv").write_bytes("text\nGras\nGrün\n".encode("cp1252"))
    planned = llmindex("build", tmp_path / "w.csv", "--plan", "--model", tiny_model)
    assert "skipped    1 row (1 not utf8); convert what is not UTF-8 to keep it\n" in planned.out
    assert planned.err == "Nothing was written.\n"


def test_a_complete_index_says_so(llmindex: Llmindex, documents: Path, tiny_model: Path, index: Path) -> None:
    ended = llmindex("build", documents, "-o", index, "--model", tiny_model)
    assert (ended.code, ended.out) == (0, f"{index} is complete: 120 documents\n")
    assert "--overwrite" in ended.err


def test_overwrite(llmindex: Llmindex, documents: Path, tiny_model: Path, index: Path) -> None:
    arguments = ("build", documents, "-o", index, "--model", tiny_model, "--prompt", "cluster")
    refused = llmindex(*arguments)
    assert refused.code == 1
    assert "built with another encoder" in refused.err
    assert "prompt" in refused.err
    ended = llmindex(*arguments, "--overwrite", "--pooling", "mean", "--vector-dtype", "float32", "--factory", "HNSW8")
    assert ended.code == 0
    manifest = Manifest.load(index)
    assert manifest.encoder.spec.prompt.endswith("belongs to the following cluster:")
    assert (manifest.encoder.spec.pooling, manifest.vector_dtype) == ("mean", "float32")
    assert manifest.index is not None
    assert manifest.index.factory == "HNSW8"


def test_overwrite_goes_on_with_what_it_has_begun(
    llmindex: Llmindex, documents: Path, tiny_model: Path, index: Path
) -> None:
    before = Manifest.load(index)
    replace(before, index=None).save(index)  # as an interruption leaves it, after the last document
    ended = llmindex("build", documents, "-o", index, "--model", tiny_model, "--overwrite")
    assert (ended.code, ended.out) == (0, f"{index} is complete: 120 documents\n")
    warning, *_, following = ended.err.splitlines()
    assert warning.startswith(f"Warning: {index}: going on with 120 documents that this build has stored; to start ")
    assert following.startswith("Next: ")
    assert "--overwrite" not in ended.err
    after = Manifest.load(index)
    assert (after.created_at, after.shards) == (before.created_at, before.shards)
    assert after.index is not None


def test_index_folder_is_named_after_the_corpus(
    llmindex: Llmindex, documents: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert llmindex("build", documents, "--model", tiny_model).code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["documents.llmindex"]
    assert llmindex("search", "goal", "-k", "1").code == 0


def test_plan_writes_nothing(
    llmindex: Llmindex, documents: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = llmindex("build", documents, "--model", tiny_model, "--plan")
    assert (ended.code, ended.err) == (0, "Nothing was written.\n")
    facts = dict(line.split(maxsplit=1) for line in ended.out.splitlines())
    assert facts["documents"] == "120"
    assert {"tokens", "time", "disk", "memory", "model", "index"} <= set(facts)
    assert facts["folder"] == "documents.llmindex"
    planned = json.loads(llmindex("build", documents, "--model", tiny_model, "--plan", "--json").out)
    assert planned["documents"] == 120
    assert list(tmp_path.iterdir()) == []


def json_lines(texts: Iterable[str | None]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


def test_memory_that_nothing_fits_into_is_refused_before_standard_input_is_read(
    tiny_model: Path, tmp_path: Path
) -> None:
    running = start("build", "-", "--model", tiny_model, "--memory", "50MB", cwd=tmp_path, stdin=subprocess.PIPE)
    assert running.stdin is not None
    try:
        assert running.wait(timeout=120) == 2  # with its standard input open, and nothing in it
    finally:
        running.kill()
        out, err = running.communicate()
    assert out == b""
    assert err == (b"Error: no index can be built in 50 MB, however few the documents; --memory takes at least 216MB\n")
    assert list(tmp_path.iterdir()) == []


def test_memory_is_compared_with_the_documents_of_standard_input(
    process: Llmindex, tiny_model: Path, tmp_path: Path
) -> None:
    arguments = ("build", "-", "--model", tiny_model, "--memory", "217MB")
    refused = process(*arguments, stdin=json_lines(f"document {number}" for number in range(20_000)))
    assert (refused.code, refused.out) == (2, "")
    assert refused.err.splitlines()[-1] == (
        "Error: 20,000 vectors of length 32 cannot be indexed for recall 0.95 in 217 MB; --memory 220MB would do"
    )
    assert list(tmp_path.iterdir()) == []  # nothing was encoded
    some = json_lines([*(f"document {number}" for number in range(50)), *[None] * 20_000])
    for more in (("--plan",), ()):
        ended = process(*arguments, *more, stdin=some)
        assert ended.code == 0, ended.err
    assert Manifest.load(tmp_path / "stdin.llmindex").count == 50


def command_in(message: str) -> list[str]:
    """The arguments of the command that a message says to run, as a shell reads them."""
    found = re.search(r"`llmindex (.*?)`", message)
    assert found, message
    return shlex.split(found[1])


def test_a_factory_that_fails_when_all_is_encoded_names_the_command_that_goes_on(
    process: Llmindex, documents: Path, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "it's an index"
    ended = process("-q", "build", documents, "-o", path, "--model", tiny_model, "--factory", "PCA8,PQ4")
    assert (ended.code, ended.out) == (2, "")
    (line,) = ended.err.splitlines()
    assert line.startswith('Error: FAISS cannot build "PCA8,PQ4" from 120 vectors of length 32: ')
    assert line.endswith(
        "; the vectors of all 120 documents are stored and safe: "
        f"`llmindex reindex -i {shlex.quote(str(path))}` indexes them as the planner chooses"
    )
    assert Manifest.load(path).count == 120
    assert process(*command_in(line)).code == 0
    hit = json.loads(process("similar", "doc-1", "-k", "1", "-i", path, "--json").out)
    assert hit["rank"] == 1


def test_memory_or_factory_refused_for_stored_vectors_keeps_them_and_the_recall(
    llmindex: Llmindex, documents: Path, tiny_model: Path, index: Path
) -> None:
    arguments = ("-q", "build", documents, "-o", index, "--model", tiny_model, "--recall", "0.99")
    sound = llmindex(*arguments, "--memory", "1MB")
    assert (sound.code, sound.err.count("\n")) == (2, 1)
    assert "MB would do\n" in sound.err  # the index that is there can still be searched: nothing to mend
    before = Manifest.load(index)
    replace(before, index=None).save(index)
    for refused in (("--memory", "1MB"), ("--factory", "Flatt")):
        ended = llmindex(*arguments, *refused)
        assert (ended.code, ended.out, ended.err.count("\n")) == (2, "", 1)
        assert "the vectors of all 120 documents are stored and safe" in ended.err
        assert command_in(ended.err) == ["reindex", "-i", str(index), "--recall", "0.99"]
        assert Manifest.load(index).shards == before.shards
    assert llmindex(*command_in(ended.err)).code == 0
    assert llmindex("search", "goal", "-k", "1", "-i", index).code == 0


def test_columns_by_option(llmindex: Llmindex, tiny_model: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "c.csv"
    corpus.write_text("key,title,body\nk1,Water,on a planet\nk2,Goals,in a match\n")
    path = tmp_path / "i"
    columns = ("--text-column", "title", "--text-column", "body", "--id-column", "key")
    assert llmindex("build", corpus, "-o", path, "--model", tiny_model, *columns).code == 0
    hit = json.loads(llmindex("similar", "k1", "-i", path, "--json").out)
    assert (hit["id"], hit["text"]) == ("k2", "Goals\nin a match")


def many(path: Path, rows: int) -> Path:
    """A corpus that takes the tiny model some seconds."""
    with path.open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"id": str(number), "text": f"Document {number} says: " + "word " * 200}) + "\n")
    return path


def interrupted(running: "subprocess.Popen[bytes]", with_signal: int) -> tuple[int, str]:
    assert running.stderr is not None
    try:
        # Progress of the encoding: the model is at work. On a busy machine the scan leaves a line before that.
        assert any(line.startswith(b"encode: ") for line in iter(running.stderr.readline, b""))
        time.sleep(2)  # some windows
        os.kill(running.pid, with_signal)
        _, err = running.communicate(timeout=120)
    finally:
        running.kill()
        running.communicate()
    return running.returncode, err.decode().splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize("with_signal", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_build_commits_what_it_has(
    with_signal: int, llmindex: Llmindex, tiny_model: Path, tmp_path: Path
) -> None:
    corpus = many(tmp_path / "c.jsonl", 40_000)
    code, line = interrupted(start("build", corpus, "--model", tiny_model, cwd=tmp_path), with_signal)
    stored = Manifest.load(tmp_path / "c.llmindex").count
    assert code == 130
    assert line == f"Interrupted: {stored:,} documents are stored; run the same command again to go on"
    assert stored < 40_000
    assert llmindex("verify", "-i", tmp_path / "c.llmindex").code == 0


@pytest.mark.slow
def test_a_second_build_is_refused(tiny_model: Path, tmp_path: Path, llmindex: Llmindex) -> None:
    corpus = many(tmp_path / "c.jsonl", 40_000)
    running = start("build", corpus, "--model", tiny_model, cwd=tmp_path)
    try:
        lock = tmp_path / "c.llmindex" / "lock"
        deadline = time.monotonic() + 60
        while not (lock.exists() and lock.read_text()) and time.monotonic() < deadline:
            time.sleep(0.1)
        ended = llmindex("build", corpus, "-o", tmp_path / "c.llmindex", "--model", tiny_model)
    finally:
        running.terminate()
        running.communicate(timeout=120)
    assert ended.code == 1
    assert ended.err == (
        f"Error: {tmp_path / 'c.llmindex'} is being written by process {running.pid}; wait for it or stop it\n"
    )


def test_several_devices(
    llmindex: Llmindex, process: Llmindex, documents: Path, tiny_model: Path, index: Path, tmp_path: Path
) -> None:
    ended = process("build", documents, "-o", tmp_path / "i", "--model", tiny_model, "--device", "cpu,cpu")
    assert ended.code == 0, ended.err
    shards = [sorted((path / "vectors").iterdir()) for path in (index, tmp_path / "i")]
    assert [path.read_bytes() for path in shards[0]] == [path.read_bytes() for path in shards[1]]
    for command in (["search", "x", "-i", str(index)], ["encode", str(documents), "-o", str(tmp_path / "v.npy")]):
        refused = llmindex(*command, "--device", "cpu,cpu")
        assert (refused.code, refused.out) == (2, "")
        assert "only a build encodes on several; name one" in refused.err
