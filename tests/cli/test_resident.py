"""Searches through the resident searcher: what they answer is what they answer without it."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex_cli.resident import client
from llmindex_cli.resident.identity import index_identity
from llmindex_cli.resident.open_indexes import OpenIndexes
from llmindex_cli.resident.protocol import Message

from .conftest import TEMPLATES, Llmindex, environment, start
from .resident_runs import PATIENCE, Resident, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

GOAL = TEMPLATES[0].format(30)
UNLOADED = {"torch", "transformers", "faiss", "pyarrow", "numpy", "duckdb"}
UNLOADED |= {"hashlib", "rich", "shutil", "subprocess", "tempfile"}  # two to five milliseconds each


@pytest.fixture(scope="module")
def warmed(tmp_path_factory: pytest.TempPathFactory, built: Path) -> Iterator[Resident]:
    """A resident searcher that has the index loaded; tests leave it as it is."""
    resident = Resident(tmp_path_factory.mktemp("runtime"))
    try:
        ended = resident.run("warm", "-i", built)
        assert (ended.code, ended.err) == (0, "")
        yield resident
    finally:
        resident.end()


def edit_manifest(index: Path, /, **changes: dict[str, object] | None) -> None:
    """Change keys of an index's manifest, or of the objects below them."""
    manifest = json.loads((index / "manifest.json").read_text())
    for key, value in changes.items():
        manifest[key] = value if value is None else manifest[key] | value
    (index / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "arguments",
    [
        [GOAL, "-k", "3"],
        [GOAL, "zwölf Tore", "-k", "2", "--json"],
        ["a \x1b[31mgoal", "water", "-k", "1"],
        ["goal", "-k", "1000000000", "--json"],
        ["goal", "water", "--min-score", "0.9", "--json"],
        ["goal", "--min-score", "1"],
        ["goal", "water", "--where", "year < 50 AND id <> 'doc-30'", "--json"],
        ["goal", "--where", "year > 1000"],
        ["goal", "--device", "cpu", "--dtype", "float32", "--json"],
    ],
    ids=" ".join,
)
def test_same_answer(arguments: list[str], warmed: Resident, built: Path, llmindex: Llmindex) -> None:
    before = warmed.pids()
    ours = warmed.run("search", *arguments, "-i", built)
    assert ours == llmindex("search", *arguments, "-i", built)
    assert ours.code == 0
    assert warmed.pids() == before


def test_same_answer_to_many_queries(warmed: Resident, built: Path, llmindex: Llmindex) -> None:
    queries = [f"question {number}" for number in range(300)]
    text = "\n".join(queries).encode()
    ours = warmed.run("search", "-", "-i", built, "-k", "2", "--json", stdin=text)
    assert (ours.code, ours.err) == (0, "")
    assert ours.out == llmindex("search", *queries, "-i", built, "-k", "2", "--json").out


def test_same_word_on_an_unfinished_index(warmed: Resident, index: Path, llmindex: Llmindex) -> None:
    edit_manifest(index, corpus={"complete": False})
    ours = warmed.run("search", GOAL, "-i", index)
    assert "is unfinished, 120 documents so far" in ours.err
    assert ours == llmindex("search", GOAL, "-i", index)
    assert warmed.run("-q", "search", GOAL, "-i", index).err == ""
    edit_manifest(index, index=None)
    ours = warmed.run("search", GOAL, "-i", index)
    assert (ours.code, ours.out, ours.err.count("\n")) == (1, "", 2)
    assert ours == llmindex("search", GOAL, "-i", index)


def test_same_errors(warmed: Resident, index: Path, llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = index.parent
    monkeypatch.chdir(folder)
    cases = ["missing.llmindex", "damaged.llmindex", "elsewhere.llmindex", "."]
    for name in cases[1:3]:
        shutil.copytree(index, folder / name)
    (folder / "damaged.llmindex" / "manifest.json").write_text("{")
    spec = json.loads((index / "manifest.json").read_text())["encoder"]["spec"]
    edit_manifest(folder / "elsewhere.llmindex", encoder={"spec": spec | {"backbone": "/gone"}})
    for name in cases:
        ours = warmed.run("search", GOAL, "-i", name, cwd=folder)
        assert (ours.code, ours.out, ours.err.count("\n")) == (1, "", 1), name
        assert ours == llmindex("search", GOAL, "-i", name)
    assert warmed.run("search", GOAL, "-i", index).code == 0


@pytest.mark.parametrize("where", ["yeer > 3", "year >", "year > 3; DROP TABLE documents", "", "a\udcff = 1"])
def test_same_word_on_a_condition_that_cannot_be(where: str, warmed: Resident, built: Path, llmindex: Llmindex) -> None:
    ours = warmed.run("search", GOAL, "-i", built, "--where", where)
    assert (ours.code, ours.out, ours.err.count("\n")) == (2, "", 1)
    assert ours == llmindex("search", GOAL, "-i", built, "--where", where)


def test_an_index_that_changed_is_read_again(
    warmed: Resident, index: Path, tiny_model: Path, tmp_path: Path, llmindex: Llmindex
) -> None:
    for where in ([], ["--where", "id LIKE '%e%'"]):
        assert warmed.run("search", GOAL, "-i", index, "-k", "1", *where).code == 0
    table = pa.table({"id": ["new"], "text": ["Another text altogether."]})
    pq.write_table(table, tmp_path / "other.parquet")
    rebuild = ["build", tmp_path / "other.parquet", "-o", index, "--model", tiny_model, "--overwrite"]
    assert llmindex("-q", *rebuild).code == 0
    ours = warmed.run("search", GOAL, "-i", index, "--json")
    assert json.loads(ours.out)["id"] == "new"
    ours = warmed.run("search", GOAL, "-i", index, "--json", "--where", "id LIKE '%e%'")
    assert json.loads(ours.out)["id"] == "new"
    shutil.rmtree(index)
    assert warmed.run("search", GOAL, "-i", index).err.endswith("`llmindex build` makes one, -i names another\n")


def test_an_index_that_the_client_does_not_see_is_not_answered_from(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(**changes: object) -> Message:
        monkeypatch.chdir(index.parent)  # answering leaves it
        runtime = {"device": "cpu", "dtype": "auto", "trust_remote_code": False}
        return indexes.answer(client._search(Path(index.name), runtime, [GOAL], 1, None, None) | changes)

    indexes = OpenIndexes()
    assert len(ask()["hits"]) == 1
    seen = index_identity((index / "manifest.json").stat())
    for position in range(len(seen)):
        other = [number + (place == position) for place, number in enumerate(seen)]
        assert ask(manifest=other) == {"elsewhere": True}
    assert ask(manifest=None) == ask(cwd="/gone") == {"elsewhere": True}
    edit_manifest(index, corpus={"complete": False})
    assert ask(manifest=seen) == {"elsewhere": True}
    assert ask()["unfinished"] == 120


def test_where_another_index_is_seen_everything_happens_here(
    built: Path, llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llmindex("search", GOAL, "-i", built)
    monkeypatch.setenv("LLMINDEX_NO_DAEMON", "0")
    monkeypatch.setattr(client, "_ask", lambda request: {"elsewhere": True})
    assert llmindex("search", GOAL, "-i", built) == expected
    ended = llmindex("warm", "-i", built)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("Error: the resident searcher sees another index at this path")


def test_another_mount_namespace_gets_its_own_hits(warmed: Resident, index: Path, tiny_model: Path) -> None:
    here, there = index.parent / "here", index.parent / "there"
    here.mkdir()
    index.rename(here / index.name)
    rebuild = ("build", "-", "-o", there / index.name, "--model", tiny_model)
    assert warmed.run(*rebuild, stdin=b"A fox that nobody else sees.\n").code == 0
    search = ("search", "fox", "-k", "1", "--json", "-i", here / index.name)
    before = warmed.run(*search).out
    program = 'mount --bind "$1" "$2" && shift 2 && exec "$@"'
    apart = ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c", program, "sh", str(there), str(here)]
    try:
        subprocess.run([*apart, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no mount namespace can be made here: {error}")
    ended = subprocess.run(
        [*apart, sys.executable, "-m", "llmindex_cli", *map(str, search)],
        env=environment(warmed.env),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE,
    )
    assert json.loads(ended.stdout)["text"] == "A fox that nobody else sees."
    assert warmed.run(*search).out == before
    assert json.loads(before)["id"].startswith("doc-")


def test_several_indexes_share_the_model(warmed: Resident, built: Path, index: Path) -> None:
    for path in (built, index):
        assert warmed.run("search", GOAL, "-i", path).code == 0
    status = json.loads(warmed.run("warm", "-i", built, "--json").out)
    assert {str(built), str(index)} <= set(status["indexes"])
    assert status["model"] == json.loads((built / "manifest.json").read_text())["encoder"]["spec"]["backbone"]


def test_a_client_loads_nothing_heavy(warmed: Resident, built: Path) -> None:
    code = (
        "import sys; from llmindex_cli.main import main\n"
        f"code = main(['search', {GOAL!r}, '-i', {str(built)!r}, *sys.argv[1:]])\n"
        f"print('heavy:', sorted({UNLOADED!r} & set(sys.modules))); sys.exit(code)"
    )
    for arguments in ([], ["--json"]):
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env=environment(warmed.env),
            capture_output=True,
            text=True,
            check=True,
            timeout=PATIENCE,
        )
        assert "heavy: []" in ended.stdout
        assert "striker" in ended.stdout


def has_socket(pid: int) -> bool:
    """Whether a process talks to another one."""
    try:
        return any(str(link.readlink()).startswith("socket:") for link in Path(f"/proc/{pid}/fd").iterdir())
    except OSError:
        return False


def test_ctrl_c_ends_the_client_alone(warmed: Resident, built: Path) -> None:
    (pid,) = warmed.pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        running = start("search", GOAL, "-i", built, cwd=built, env=warmed.env)
        wait_until(lambda: has_socket(running.pid))
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=PATIENCE)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert (running.returncode, out, err) == (130, b"", b"Interrupted.\n")
    assert warmed.run("search", GOAL, "-i", built).code == 0
    assert warmed.pids() == [pid]
