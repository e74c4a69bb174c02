"""Bad input is answered by an exit code and one line that names the culprit; what was on disk stays valid."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from .conftest import Ended, Llmindex, start


def refused(ended: Ended, code: int, *culprits: str) -> None:
    """It ended with the code, wrote nothing but one line, and that names each culprit."""
    assert ended.code == code, ended.err
    assert ended.out == ""
    assert ended.err.startswith("Error: ")
    assert ended.err.count("\n") == 1, ended.err
    assert "Traceback" not in ended.err
    assert "unexpected" not in ended.err
    for culprit in culprits:
        assert culprit in ended.err


def truncated_parquet(folder: Path) -> Path:
    path = folder / "cut.parquet"
    pq.write_table(pa.table({"text": ["some text"] * 1000}), path)
    path.write_bytes(path.read_bytes()[:-100])
    return path


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def empty_folder(folder: Path) -> Path:
    path = folder / "nothing"
    path.mkdir()
    (path / "picture.png").write_bytes(b"\x89PNG")
    return path


Maker = Callable[[Path], Path]

SOURCES: dict[str, tuple[Maker, tuple[str, ...], tuple[str, ...]]] = {
    "missing file": (lambda folder: folder / "missing.parquet", (), ("missing.parquet",)),
    "glob without files": (lambda folder: folder / "*.jsonl", (), ("*.jsonl",)),
    "folder without text": (empty_folder, (), ("nothing",)),
    "empty file": (lambda folder: write(folder, "empty.jsonl", ""), (), ("empty.jsonl",)),
    "header alone": (lambda folder: write(folder, "head.csv", "id,text\n"), (), ("head.csv",)),
    "nothing but blanks": (
        lambda folder: write(folder, "blank.jsonl", '{"text": " "}\n' * 3),
        (),
        ("blank.jsonl", "3 empty"),
    ),
    "wrong column": (
        lambda folder: write(folder, "c.jsonl", '{"id": "a", "message": "hello"}\n'),
        ("--text-column", "mesage"),
        ("mesage", '"message"'),
    ),
    "wrong id column": (
        lambda folder: write(folder, "c.jsonl", '{"key": "a", "text": "hello"}\n'),
        ("--id-column", "keys"),
        ("keys", '"key"'),
    ),
    "truncated Parquet": (truncated_parquet, (), ("cut.parquet",)),
    "no Parquet at all": (lambda folder: write(folder, "x.parquet", "not parquet"), (), ("x.parquet",)),
    "broken JSON": (
        lambda folder: write(folder, "bad.jsonl", '{"text": "good"}\n{"text": "good"}\n{"text": bad}\n'),
        (),
        ("bad.jsonl", "line 3"),
    ),
    "gzip that is none": (lambda folder: write(folder, "x.jsonl.gz", '{"text": "a"}\n'), (), ("x.jsonl.gz",)),
    "bad row that must not be": (
        lambda folder: write(folder, "c.jsonl", '{"text": "good"}\n{"text": ""}\n'),
        ("--on-bad-row", "fail"),
        ("c.jsonl", "line 2"),
    ),
    "a name with an escape sequence": (lambda folder: folder / "a\x1b[31m\nb.txt", (), ("a\\x1b[31m",)),
}


@pytest.mark.parametrize("case", SOURCES)
def test_a_corpus_that_cannot_be_read(case: str, llmindex: Llmindex, tiny_model: Path, tmp_path: Path) -> None:
    make, options, culprits = SOURCES[case]
    index = tmp_path / "i.llmindex"
    ended = llmindex("build", make(tmp_path), "-o", index, "--model", tiny_model, *options)
    refused(ended, 1, *culprits)
    if index.exists():  # the fault showed only while reading
        assert llmindex("verify", "-i", index).code == 0


@pytest.mark.parametrize(
    ("options", "code", "culprit"),
    [
        (("--model", "no/such-model"), 1, "no/such-model"),
        (("--model", "./no such folder"), 1, "no such folder"),
        (("--prompt", "clustr"), 2, '"cluster"'),
        (("--prompt", "Sum this up:"), 2, "{text}"),
        (("--pooling", "median"), 2, "'median'"),
        (("--factory", "Flatt"), 2, "Flatt"),
        (("--factory", "IVF"), 2, "IVF"),
        (("--dim", "33"), 2, "--dim 33"),
        (("--layer", "3"), 2, "3"),
        (("--max-tokens", "100000"), 2, "--max-tokens 100000"),
        (("--device", "cuda:99"), 2, "cuda:99"),
        (("--recall", "1.5"), 2, "1.5"),
    ],
)
def test_an_option_that_cannot_work(
    options: tuple[str, ...],
    code: int,
    culprit: str,
    llmindex: Llmindex,
    documents: Path,
    tiny_model: Path,
    index: Path,
) -> None:
    before = (index / "manifest.json").read_bytes()
    ended = llmindex("build", documents, "-o", index, "--overwrite", *("--model", tiny_model), *options)
    refused(ended, code, culprit)
    assert (index / "manifest.json").read_bytes() == before
    assert llmindex("verify", "-i", index).code == 0


@pytest.mark.parametrize(
    "command", [("search", "x"), ("similar", "x"), ("info",), ("verify",), ("cluster",), ("reindex",)]
)
def test_an_index_that_is_none(command: tuple[str, ...], llmindex: Llmindex, tmp_path: Path) -> None:
    refused(llmindex(*command, "-i", tmp_path / "nowhere"), 1, "nowhere", "llmindex build")
    (tmp_path / "folder").mkdir()
    refused(llmindex(*command, "-i", tmp_path / "folder"), 1, "folder", "manifest.json")
    write(tmp_path, "file", "x")
    refused(llmindex(*command, "-i", tmp_path / "file"), 1, "file")


@pytest.mark.parametrize("command", [("search", "x"), ("info",), ("verify",)])
def test_a_manifest_of_a_newer_version(command: tuple[str, ...], llmindex: Llmindex, index: Path) -> None:
    manifest = json.loads((index / "manifest.json").read_text())
    (index / "manifest.json").write_text(json.dumps(manifest | {"format_version": 99}))
    refused(llmindex(*command, "-i", index), 1, "manifest.json", "99", "upgrade llmindex")


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", '{"format_version": 1}', "\x00" * 100, "[" * 100_000],
    ids=["empty", "cut", "list", "keys", "zeros", "deep"],
)
def test_a_damaged_manifest(content: str, llmindex: Llmindex, index: Path) -> None:
    (index / "manifest.json").write_text(content)
    refused(llmindex("search", "x", "-i", index), 1, "manifest.json")


def test_a_shard_altered_by_one_byte_is_named(llmindex: Llmindex, index: Path) -> None:
    (shard,) = (index / "vectors").iterdir()
    content = bytearray(shard.read_bytes())
    content[len(content) // 3] ^= 1
    shard.write_bytes(content)
    refused(llmindex("verify", "-i", index), 1, str(shard), "sha256")


def test_a_shard_that_is_gone(llmindex: Llmindex, index: Path) -> None:
    (shard,) = (index / "vectors").iterdir()
    shard.unlink()
    refused(llmindex("search", "x", "-i", index), 1, shard.name)
    refused(llmindex("verify", "-i", index), 1, shard.name)


def test_a_faiss_file_that_is_gone(llmindex: Llmindex, index: Path) -> None:
    shutil.rmtree(index / "faiss")
    refused(llmindex("search", "x", "-i", index), 1, "llmindex reindex")
    refused(llmindex("verify", "-i", index), 1, "llmindex reindex")
    assert llmindex("reindex", "-i", index).code == 0
    assert llmindex("search", "x", "-i", index).code == 0
    assert llmindex("verify", "-i", index).code == 0


def test_a_faiss_file_of_other_vectors(llmindex: Llmindex, index: Path) -> None:
    manifest = json.loads((index / "manifest.json").read_text())
    manifest["index"]["built_from"] = "0" * 64
    (index / "manifest.json").write_text(json.dumps(manifest))
    refused(llmindex("search", "x", "-i", index), 1, "llmindex reindex")


def test_a_model_that_changed_or_is_gone(llmindex: Llmindex, documents: Path, tiny_model: Path, tmp_path: Path) -> None:
    model, index = tmp_path / "model", tmp_path / "i"
    shutil.copytree(tiny_model, model)
    assert llmindex("-q", "build", documents, "-o", index, "--model", model).code == 0
    weights = bytearray((model / "model.safetensors").read_bytes())
    weights[-1] ^= 64
    (model / "model.safetensors").write_bytes(weights)
    refused(llmindex("search", "x", "-i", index), 1, str(model))
    shutil.rmtree(model)
    refused(llmindex("search", "x", "-i", index), 1, str(model))
    assert llmindex("similar", "doc-1", "-i", index).code == 0  # needs no model


def test_k_of_nothing(llmindex: Llmindex, built: Path) -> None:
    refused(llmindex("search", "x", "-i", built, "-k", "0"), 2, "'-k': 0")
    refused(llmindex("similar", "doc-1", "-i", built, "-k", "-5"), 2, "'-k': -5")


def test_as_a_real_process(process: Llmindex, tmp_path: Path) -> None:
    refused(process("build", "missing.jsonl"), 1, "missing.jsonl")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(llmindex: Llmindex, documents: Path, tiny_model: Path, tmp_path: Path) -> None:
    write(tmp_path, "file", "x")
    refused(llmindex("build", documents, "-o", tmp_path / "file" / "i", "--model", tiny_model), 1, "file")


NAMESPACE = ["unshare", "--user", "--map-root-user", "--mount"]


def can_mount() -> bool:
    """Whether this user may make a small file system of their own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs user namespaces to mount a small tmpfs")
def test_a_full_disk_leaves_a_valid_index(documents: Path, tiny_model: Path, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    llmindex = f"{sys.executable} -m llmindex_cli"
    script = f"""
        mount -t tmpfs -o size=16k tmpfs {small}
        {llmindex} -q build {documents} -o {small}/i --model {tiny_model}; echo "build $?"
        mount -o remount,size=16m {small}
        {llmindex} -q build {documents} -o {small}/i --model {tiny_model} --json | grep -o '"documents": [0-9]*'
        {llmindex} -q verify -i {small}/i; echo "verify $?"
    """
    ended = subprocess.run([*NAMESPACE, "bash", "-c", script], capture_output=True, text=True, check=False)
    build, *rest = ended.stdout.splitlines()
    assert build == "build 1", ended.stderr
    assert rest == ['"documents": 120', f"{small}/i: 3 files and 120 documents are as written", "verify 0"]
    assert ended.stderr.startswith(f"Error: cannot write {small}/i")
    assert "No space left on device" in ended.stderr
    assert ended.stderr.count("\n") == 1


def test_standard_input_that_is_closed(tmp_path: Path) -> None:
    running = start("search", "-", "-i", "x", cwd=tmp_path)
    _, err = running.communicate(timeout=60)
    assert (running.returncode, err) == (2, b"Error: no queries on standard input: expected one a line\n")


MISSING = {
    "build": ("build", "{}.jsonl", "-o", "x.llmindex"),
    "encode": ("encode", "{}.jsonl", "-o", "x.npy"),
    "pairs": ("pairs", "{}.jsonl", "-o", "x.parquet"),
    "train": ("train", "{}.parquet", "-o", "run"),
    "sweep": ("sweep", "{}.parquet"),
    "evaluate": ("evaluate", "sts", "{}.parquet"),
    "attention": ("attention", "--file", "{}.parquet"),
}


@pytest.mark.parametrize("command", list(MISSING.values()), ids=MISSING)
def test_a_missing_file_is_told_of_in_the_same_words_by_every_command(
    command: tuple[str, ...], llmindex: Llmindex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [part.format("missing") for part in command]
    (name,) = (part for part in arguments if part.startswith("missing"))
    ended = llmindex(*arguments)
    assert (ended.code, ended.out, ended.err) == (1, "", f"Error: no such file: {name}\n")
    assert list(tmp_path.iterdir()) == []


UNREADABLE = {
    "build": (*MISSING["build"], "{}.jsonl"),
    "sweep": (*MISSING["sweep"], "{}.parquet"),
    "recipe": ("train", "pairs.parquet", "-o", "run", "--recipe", "{}.toml", "{}.toml"),
    "info": ("info", "-i", "{}", "{}/manifest.json"),
    "model": ("encode", "docs.jsonl", "-o", "x.npy", "--model", "{}/encoder.json", "{}/encoder.json"),
}


def without_roots_rights() -> list[str]:
    """What a command line begins with: root reads and writes what nobody may, but for this."""
    if os.geteuid():
        return []
    if setpriv := shutil.which("setpriv"):
        return [setpriv, "--inh-caps=-all", "--bounding-set=-all"]
    pytest.skip("root may do anything")


@pytest.mark.parametrize("command", list(UNREADABLE.values()), ids=UNREADABLE)
def test_a_file_that_may_not_be_read_is_told_of_in_the_same_words_by_every_command(
    command: tuple[str, ...], tmp_path: Path
) -> None:
    as_anybody = without_roots_rights()
    write(tmp_path, "docs.jsonl", '{"text": "a text"}\n')
    *arguments, name = (part.format("closed") for part in command)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write(tmp_path, name, "x").chmod(0)
    program = [*as_anybody, sys.executable, "-m", "llmindex_cli", *arguments]
    ended = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert (ended.returncode, ended.stdout, ended.stderr) == (1, "", f"Error: cannot read {name}: Permission denied\n")


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("build", "missing"), "no such file: missing"),
        (("train", "missing", "-o", "run"), "no such file: missing"),
        (("build", "docs.jsonl", "-o", "closed/x"), "cannot write closed/x: Permission denied"),
        (("build", "docs.jsonl", "-o", "docs.jsonl"), "docs.jsonl is a file; choose another path"),
        (("build", "docs.jsonl", "-o", "."), ". is neither empty nor an index"),
    ],
    ids=["build", "train", "closed", "file", "folder"],
)
def test_what_needs_no_model_is_refused_before_torch_is_loaded(
    command: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    write(tmp_path, "docs.jsonl", '{"text": "a text"}\n')
    (tmp_path / "closed").mkdir(mode=0)
    program = "import sys; from llmindex_cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    run = [*without_roots_rights(), sys.executable, "-c", program, *command]
    ended = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=180)
    assert ended.stdout == "False\n", ended.stderr
    assert ended.stderr.startswith(f"Error: {said}")
