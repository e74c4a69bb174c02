"""Searches that are sent before the command line is parsed: used where they are what parsing asks for, else dropped."""

import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from llmindex_cli.main import main
from llmindex_cli.resident import ahead, client
from llmindex_cli.resident.folder import SOCKET, runtime_folder
from llmindex_cli.resident.protocol import REPLY_LIMIT, REQUEST_LIMIT, Message, ProtocolError, receive, send

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="needs Unix sockets")


class Searcher:
    """Stands in for a resident searcher: finds nothing, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[Message] = []
        self.answers = True
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(runtime_folder() / SOCKET))
        self._listener.listen()
        self._thread = threading.Thread(target=self._answer)
        self._thread.start()

    def _answer(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(ProtocolError):
                    request = receive(connection, REQUEST_LIMIT, 5)
                    self.requests.append(request)
                    if self.answers:
                        send(connection, {"hits": [[] for _ in request["queries"]]}, REPLY_LIMIT, 5)

    def end(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()


@pytest.fixture
def searcher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Searcher]:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("LLMINDEX_NO_DAEMON", raising=False)
    monkeypatch.delenv("LLMINDEX_INDEX", raising=False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = Searcher()
    yield found
    found.end()
    client._ahead = None


def index(name: str) -> str:
    Path(name).mkdir()
    return name


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["a question", "-i", "x.llmindex"], {"queries": ["a question"], "index": "x.llmindex", "k": 10}),
        (
            ["a", "b", "--index", "./x.llmindex", "-k", "3", "--json"],
            {"queries": ["a", "b"], "index": "x.llmindex", "k": 3},
        ),
        (["-k", "3", "ä"], {"queries": ["ä"], "index": "x.llmindex", "k": 3}),
        (["a", "-i", "y", "-i", "x.llmindex", "-k", "1", "-k", "2"], {"queries": ["a"], "index": "x.llmindex", "k": 2}),
    ],
)
def test_a_plain_search_is_asked_once(
    arguments: list[str], wanted: Message, searcher: Searcher, capfd: pytest.CaptureFixture[str]
) -> None:
    index("x.llmindex")
    ahead.send(["search", *arguments])
    assert client._ahead is not None
    assert main(["search", *arguments]) == 0
    (request,) = searcher.requests
    assert {name: request[name] for name in wanted} == wanted
    assert client._ahead is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["a", "--where", "year > 3"],
        ["a", "-k3"],
        ["a", "--device", "cpu"],
        ["a", "--no-daemon"],
        ["-", "-i", "x.llmindex"],
        ["--", "a"],
        ["a", " "],
        ["a", "-k", "many"],
        ["a", "-k"],
        ["a\udcff"],
        [],
    ],
)
def test_whatever_is_not_plain_is_not_sent(arguments: list[str], searcher: Searcher) -> None:
    index("x.llmindex")
    ahead.send(["search", *arguments])
    assert client._ahead is None
    assert searcher.requests == []


def test_nothing_is_sent_where_the_index_is_in_doubt(searcher: Searcher, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead.send(["search", "a"])
    index("x.llmindex")
    index("y.llmindex")
    ahead.send(["search", "a"])
    assert client._ahead is None
    monkeypatch.setenv("LLMINDEX_NO_DAEMON", "1")
    ahead.send(["search", "a", "-i", "x.llmindex"])
    assert client._ahead is None


def test_a_variable_that_says_no_forbids_nothing(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    index("x.llmindex")
    monkeypatch.setenv("LLMINDEX_NO_DAEMON", "0")
    ahead.send(["search", "a"])
    assert client._ahead is not None
    assert main(["search", "a"]) == 0
    assert len(searcher.requests) == 1


def test_another_request_is_not_answered_by_it(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    index("x.llmindex")
    ahead.send(["search", "something else"])
    assert client._ahead is not None
    assert main(["search", "a"]) == 0
    assert [request["queries"] for request in searcher.requests] == [["something else"], ["a"]]
    assert client._ahead is None


def test_a_searcher_that_leaves_without_an_answer_is_no_loss(
    searcher: Searcher, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    index("x.llmindex")
    searcher.answers = False
    ahead.send(["search", "a"])
    assert client._ahead is not None
    assert main(["search", "a"]) == 1  # by itself; the index is none
    assert capfd.readouterr().err.count("\n") == 1


def test_without_a_searcher_none_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("LLMINDEX_NO_DAEMON", raising=False)
    ahead.send(["search", "a", "-i", "x.llmindex"])
    assert client._ahead is None
    assert not (tmp_path / "llmindex" / SOCKET).exists()
