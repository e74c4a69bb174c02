"""How a resident searcher begins and ends, and what it takes from clients that misbehave."""

import errno
import json
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import llmindex as package
from llmindex_cli.resident import client, protocol
from llmindex_cli.resident import folder as folders
from llmindex_cli.resident.errors import ResidentError
from llmindex_cli.resident.identity import identity
from tests.conftest import make_tiny_model

from .conftest import TEMPLATES, Llmindex, environment, start
from .resident_runs import PATIENCE, Resident, wait_until

pytestmark = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")

GOAL = TEMPLATES[0].format(30)
ANOTHER = os.geteuid() + 1
SLOW = "levenshtein(repeat(text, 400), repeat(text, 401)) > 5"


@pytest.fixture
def resident(tmp_path: Path) -> Iterator[Resident]:
    """A runtime folder without a searcher."""
    runtime = tmp_path / "run"
    runtime.mkdir()
    try:
        yield Resident(runtime)
    finally:
        Resident(runtime).end()


def test_the_first_search_starts_one_that_stays(resident: Resident, built: Path, llmindex: Llmindex) -> None:
    search = ("search", GOAL, "-i", built, "--json")
    assert resident.run(*search, "--no-daemon") == llmindex(*search)
    assert not resident.runtime.joinpath("llmindex").exists()
    assert resident.run(*search) == llmindex(*search)
    pids = resident.pids()
    assert len(pids) == 1
    assert (resident.socket.stat().st_mode & 0o777, resident.socket.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    for _ in range(2):  # warming again changes nothing
        status = json.loads(resident.run("warm", "-i", built, "--json").out)
        assert ([status["pid"]], status["indexes"], status["idle_minutes"]) == (pids, [str(built)], 15)
    assert resident.run("warm", "-i", built, "--idle", "7").out.startswith(f"process  {pids[0]}, until 7 minutes")
    assert resident.run("warm", "--stop").out == f"Stopped process {pids[0]}.\n"
    wait_until(lambda: not resident.pids())
    assert not resident.socket.exists()
    assert resident.run("warm", "--stop").out == "Nothing was resident.\n"
    assert json.loads(resident.run("warm", "--stop", "--json").out) == {"stopped": None}


def test_a_killed_one_is_replaced(resident: Resident, built: Path, llmindex: Llmindex) -> None:
    search = ("search", GOAL, "-i", built)
    assert resident.run("warm", "-i", built).code == 0
    (killed,) = resident.pids()
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: not resident.pids())
    assert resident.socket.is_socket()
    # Two clients find the socket that it left behind.
    running = [start(*search, cwd=resident.runtime, env=resident.env) for _ in range(2)]
    outs = [each.communicate(timeout=PATIENCE) for each in running]
    assert outs == [(llmindex(*search).out.encode(), b"")] * 2
    pids = resident.pids()
    assert len(pids) == 1
    assert pids != [killed]


def test_one_that_dies_half_way_is_done_without(resident: Resident, built: Path, llmindex: Llmindex) -> None:
    asked: list[protocol.Message] = []

    def die() -> None:
        connection, _ = listener.accept()
        with connection:
            asked.append(protocol.receive(connection, protocol.REQUEST_LIMIT, PATIENCE))
            protocol.send(connection, {"working": True}, 100, PATIENCE)
            connection.sendall(struct.pack(">I", 1000) + b"{")

    resident.socket.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(resident.socket))
        listener.listen()
        threading.Thread(target=die, daemon=True).start()
        ended = resident.run("search", GOAL, "-i", built)
    assert ended == llmindex("search", GOAL, "-i", built)
    assert [request["queries"] for request in asked] == [[GOAL]]


def test_another_llmindex_takes_its_place(resident: Resident, built: Path, tmp_path: Path) -> None:
    pids = []
    for home in ("one", "two"):
        assert resident.run("search", GOAL, "-i", built, HF_HOME=str(tmp_path / home)).err == ""
        pids += resident.pids()
    assert len(set(pids)) == len(pids) == 2


def test_links_that_lead_nowhere_are_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "__file__", str(tmp_path / "__init__.py"))
    before = identity()
    (tmp_path / ".#api.py").symlink_to("me@host.123:456")
    assert identity() != before
    (tmp_path / ".#api.py").unlink()
    assert identity() == before


def test_a_package_that_is_being_replaced_is_searched_with_here(
    built: Path, tmp_path: Path, llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone() -> list[Any]:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "api.py")

    expected = llmindex("search", GOAL, "-i", built)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("LLMINDEX_NO_DAEMON", "0")
    monkeypatch.setattr(client, "identity", gone)
    assert llmindex("search", GOAL, "-i", built) == expected
    ended = llmindex("warm", "-i", built)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert ended.err.startswith("Error: cannot tell which llmindex this is: ")


def test_one_model_at_a_time(resident: Resident, built: Path, index: Path, tmp_path: Path, llmindex: Llmindex) -> None:
    other = make_tiny_model(tmp_path / "other", seed=1)
    rebuild = ("build", "-", "-o", tmp_path / "other.llmindex", "--model", other)
    assert resident.run(*rebuild, stdin=b"one text\nanother text\n").code == 0
    for path, resident_then in (
        (built, [built]),
        (index, [built, index]),
        (tmp_path / "other.llmindex", [tmp_path / "other.llmindex"]),
        (built, [built]),
    ):
        assert resident.run("search", GOAL, "-i", path) == llmindex("search", GOAL, "-i", path)
        status = json.loads(resident.run("warm", "-i", path, "--json").out)
        assert status["indexes"] == [str(each) for each in resident_then]
    assert len(resident.pids()) == 1


def test_it_ends_when_nobody_asks(resident: Resident, built: Path) -> None:
    assert resident.run("warm", "-i", built, "--idle", "0.001").code == 0
    wait_until(lambda: not resident.pids())
    assert not resident.socket.exists()
    for wrong in ("0", "-1", "nan"):
        assert resident.run("warm", "-i", built, "--idle", wrong).code == 2


def test_it_ends_when_its_socket_is_gone(resident: Resident, built: Path) -> None:
    assert resident.run("warm", "-i", built).code == 0
    with connected(resident):
        resident.socket.unlink()
    wait_until(lambda: not resident.pids())
    assert resident.run("search", GOAL, "-i", built).err == ""
    assert len(resident.pids()) == 1


def test_another_takes_its_place_when_its_socket_is_gone(resident: Resident, built: Path) -> None:
    assert resident.run("warm", "-i", built).code == 0
    pids = resident.pids()
    resident.socket.unlink()  # and nobody tells it
    assert resident.run("warm", "-i", built).err == ""
    assert len(resident.pids()) == 1
    assert resident.pids() != pids


def test_clients_that_misbehave(resident: Resident, built: Path, llmindex: Llmindex) -> None:
    search = ("search", GOAL, "-i", built)
    assert resident.run("warm", "-i", built).code == 0
    pids = resident.pids()
    rubbish = [
        b"",
        b"\0",
        b"\xff\xff\xff\xff",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\0\0\0\x02[]",
        b"\0\0\0\x01{",
        b"\0\0\0\x09{",
    ]
    for sent in rubbish:
        with connected(resident) as connection:
            connection.sendall(sent)
    known = identity_of(pids[0])
    for request in ({"do": "fly"}, {"do": ["search"], "runtime": 7}):
        with connected(resident) as connection:
            of_client = json.dumps(request | {"identity": known}).encode()
            connection.sendall(struct.pack(">I", len(of_client)) + of_client)
            assert protocol.receive(connection, 10_000, PATIENCE)["failed"]
    assert "KeyError: 'cwd'" in (resident.socket.parent / folders.LOG).read_text()
    silent = [connected(resident) for _ in range(8)]
    assert resident.run(*search) == llmindex(*search)
    with suppress(BlockingIOError):  # more than may wait
        for _ in range(80):
            silent.append(connected(resident))
    assert resident.run(*search) == llmindex(*search)
    for connection in silent:
        connection.close()
    assert resident.run(*search) == llmindex(*search)
    assert resident.pids() == pids


def connected(resident: Resident) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(PATIENCE)
    connection.connect(str(resident.socket))
    return connection


def identity_of(pid: int) -> list[Any]:
    """What a client sends that runs in a searcher's environment."""
    variables = Path(f"/proc/{pid}/environ").read_text().rstrip("\0").split("\0")
    code = "import json; from llmindex_cli.resident.identity import identity; print(json.dumps(identity()))"
    env = dict(variable.split("=", 1) for variable in variables)
    ended = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
    return list(json.loads(ended.stdout))


def asked_slowly(resident: Resident, index: Path) -> socket.socket:
    """The connection of a client whose search the searcher is computing, and will be for minutes."""
    (pid,) = resident.pids()
    runtime = {"dtype": "auto", "device": "auto", "trust_remote_code": False}
    request = client._search(index, runtime, [GOAL], 1, None, SLOW) | {"identity": identity_of(pid)}
    connection = connected(resident)
    protocol.send(connection, request, protocol.REQUEST_LIMIT, PATIENCE)
    assert protocol.receive(connection, 100, PATIENCE) == {"working": True}
    return connection


def test_a_condition_that_nobody_waits_for_holds_up_nobody(resident: Resident, built: Path, llmindex: Llmindex) -> None:
    code = (
        "import io, json, sys; from llmindex_cli.resident import identity, server; server._ABANDONED_SECONDS = 0.5; "
        "sys.stdin = io.StringIO(json.dumps(identity.identity())); sys.exit(server.main())"
    )
    env = environment(resident.env)
    subprocess.run([sys.executable, "-P", "-c", code, "llmindex_cli.resident.server"], env=env, check=True)
    (pid,) = resident.pids()
    asked_slowly(resident, built).close()
    assert resident.run("search", GOAL, "-i", built) == llmindex("search", GOAL, "-i", built)
    wait_until(lambda: pid not in resident.pids())


def test_it_can_be_killed_while_it_computes(resident: Resident, built: Path) -> None:
    assert resident.run("warm", "-i", built).code == 0
    (pid,) = resident.pids()
    with asked_slowly(resident, built):
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: not resident.pids())
    assert not resident.socket.exists()


def test_a_request_that_is_too_large_is_answered_here(resident: Resident, built: Path, llmindex: Llmindex) -> None:
    text = b"goal " * (protocol.REQUEST_LIMIT // 5 + 1)
    ours = resident.run("search", "-", "-i", built, "-k", "1", stdin=text)
    assert (ours.code, ours.err) == (0, "")
    assert "striker" in ours.out


@pytest.mark.parametrize("unsafe", ["open", "link", "file", "foreign"])
def test_an_unsafe_folder_is_refused(
    unsafe: str, tmp_path: Path, built: Path, llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "llmindex"
    if unsafe == "link":
        (tmp_path / "other").mkdir(mode=0o700)
        place.symlink_to(tmp_path / "other")
    elif unsafe == "file":
        place.touch()
    else:
        place.mkdir()
        place.chmod(0o755 if unsafe == "open" else 0o700)
    if unsafe == "foreign":
        monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
        monkeypatch.setattr(folders, "_is_trusted", lambda base: True)
    expected = llmindex("search", GOAL, "-i", built)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("LLMINDEX_NO_DAEMON", "0")
    assert llmindex("search", GOAL, "-i", built) == expected
    ended = llmindex("warm", "-i", built)
    assert (ended.code, ended.out, ended.err.count("\n")) == (1, "", 1)
    assert f"Error: {place} is not a folder of yours" in ended.err or unsafe == "file"
    assert not any(path.is_socket() for path in tmp_path.rglob("*"))


def test_without_unix_sockets_everything_happens_here(
    built: Path, tmp_path: Path, llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = llmindex("search", GOAL, "-i", built)
    monkeypatch.setenv("LLMINDEX_NO_DAEMON", "0")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delattr(socket, "AF_UNIX")
    assert llmindex("search", GOAL, "-i", built) == expected
    assert llmindex("warm", "--stop").err.startswith("Error: a resident searcher needs Unix sockets")


def test_the_folder_without_a_runtime_folder_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    assert folders.runtime_folder() == tmp_path / f"llmindex-{os.geteuid()}"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "absent"))
    assert folders.runtime_folder() == tmp_path / f"llmindex-{os.geteuid()}"
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "file"))
    with pytest.raises(ResidentError, match="cannot make"):
        folders.runtime_folder()


def test_nothing_is_made_in_folders_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(folders, "_LAST_RESORT", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
    with pytest.raises(ResidentError, match="set XDG_RUNTIME_DIR to a folder of yours"):
        folders.runtime_folder()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("owner", "mode", "trusted"),
    [
        (os.geteuid(), 0o700, True),
        (0, 0o1777, True),
        (0, 0o777, os.geteuid() == 0),
        (ANOTHER, 0o700, False),
        (ANOTHER, 0o1777, False),
    ],
)
def test_whose_folders_are_trusted(owner: int, mode: int, trusted: bool) -> None:
    assert folders._is_trusted(os.stat_result((stat.S_IFDIR | mode, 1, 1, 2, owner, owner, 0, 0, 0, 0))) == trusted


@pytest.mark.parametrize("name", [folders.LOCK, folders.LOG])
def test_links_in_the_folder_are_not_followed(
    name: str, resident: Resident, built: Path, tmp_path: Path, llmindex: Llmindex
) -> None:
    precious = tmp_path / "precious"
    precious.write_text("of the user's own")
    resident.socket.parent.mkdir(mode=0o700)
    (resident.socket.parent / name).symlink_to(precious)
    search = ("search", GOAL, "-i", built)
    assert resident.run(*search) == llmindex(*search)
    assert precious.read_text() == "of the user's own"
    assert not resident.pids()


def test_processes_of_other_users_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert protocol.is_mine(ours)
        monkeypatch.setattr(os, "geteuid", lambda: ANOTHER)
        assert not protocol.is_mine(ours)


def test_messages_are_bounded_and_timed() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        protocol.send(ours, {"score": 0.1, "text": "zwölf \ud800"}, 100, 1)
        assert protocol.receive(theirs, 100, 1) == {"score": 0.1, "text": "zwölf \ud800"}
        with pytest.raises(protocol.ProtocolError, match="too large"):
            protocol.send(ours, {"text": "x" * 100}, 100, 1)
        with pytest.raises(protocol.ProtocolError, match="timed out"):
            protocol.receive(theirs, 100, 0.01)
        ours.sendall(struct.pack(">I", 101))
        with pytest.raises(protocol.ProtocolError, match="too large"):
            protocol.receive(theirs, 100, 1)
        with pytest.raises(protocol.ProtocolError):
            protocol.send(ours, {"text": "x" * (1 << 22)}, 1 << 23, 0.05)
