"""The client's side: finds the resident searcher, starts it where there is none, and asks it.

Nothing here imports torch, FAISS, pyarrow or NumPy: that is where the time goes that a resident searcher saves.
"""

import json
import os
import socket
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from llmindex import errors
from llmindex_cli.resident.errors import ResidentError
from llmindex_cli.resident.folder import LOG, SOCKET, hold_lock, runtime_folder
from llmindex_cli.resident.identity import identity, index_identity
from llmindex_cli.resident.protocol import (
    REPLY_LIMIT,
    REQUEST_LIMIT,
    Message,
    ProtocolError,
    ResidentHit,
    is_mine,
    receive,
    send,
)

_START_SECONDS = 30.0
_SEND_SECONDS = 5.0
_SILENCE_SECONDS = 30.0  # the searcher gives a sign of life every two seconds
_END_SECONDS = 30.0

# A search that has been sent, and where its reply will come from.
_ahead: tuple[Message, socket.socket] | None = None


class Reply(NamedTuple):
    """What the resident searcher said.

    Attributes:
        hits: a list for each query.
        unfinished: documents of the index, where its build has not come to its end; else None.
        status: what is resident, of a request to warm.
        error: what an open index has to say against the request.
    """

    hits: list[list[ResidentHit]]
    unfinished: int | None
    status: Message
    error: errors.LlmindexError | None


def search(
    index: Path, runtime: dict[str, Any], queries: Sequence[str], k: int, min_score: float | None, where: str | None
) -> Reply:
    """Search an index, in the resident searcher; it is started where there is none.

    Raises:
        ResidentError: it cannot be reached, or cannot answer this.
    """
    return _read(_ask(_search(index, runtime, queries, k, min_score, where)))


def search_ahead(index: Path, runtime: dict[str, Any], queries: Sequence[str], k: int) -> None:
    """Have the resident searcher, if there is one, begin with a search that :func:`search` will perhaps ask for.

    Raises:
        ResidentError: it cannot be reached.
    """
    global _ahead
    connection = _connect(runtime_folder())
    if connection is not None:
        request = _search(index, runtime, queries, k, None, None)
        try:
            send(connection, request, REQUEST_LIMIT, _SEND_SECONDS)
        except ProtocolError:
            connection.close()
        else:
            _ahead = request, connection


def warm(index: Path, runtime: dict[str, Any], idle_minutes: float | None) -> Reply:
    """Have an index and its model loaded, and perhaps say how long they stay without a search.

    Raises:
        ResidentError: the resident searcher cannot be reached, or failed.
    """
    return _read(_ask({"do": "warm", **_about(index, runtime), "idle_minutes": idle_minutes}))


def stop() -> int | None:
    """End the resident searcher, and wait until it has ended.

    Returns:
        Its process id; None where there was none.

    Raises:
        ResidentError: it does not answer, or does not end.
    """
    folder = runtime_folder()
    connection = _connect(folder)
    if connection is None:
        return None
    pid = int(_exchange(connection, {"do": "stop"})["status"]["pid"])
    lock = hold_lock(folder, _END_SECONDS)
    if lock is None:
        raise ResidentError(f"process {pid} is still at work; end it with `kill {pid}`")
    os.close(lock)
    return pid


def _search(
    index: Path, runtime: dict[str, Any], queries: Sequence[str], k: int, min_score: float | None, where: str | None
) -> Message:
    asked = {"queries": list(queries), "k": k, "min_score": min_score, "where": where}
    return {"do": "search", **_about(index, runtime), **asked}


def _about(index: Path, runtime: dict[str, Any]) -> Message:
    try:
        cwd = str(Path.cwd())
    except OSError as error:
        raise ResidentError("the working directory is gone") from error
    try:
        own = identity()
    except OSError as error:
        raise ResidentError(f"cannot tell which llmindex this is: {error}") from error
    return {"identity": own, "cwd": cwd, "index": str(index), "manifest": _manifest(index), "runtime": runtime}


def _manifest(index: Path) -> list[int] | None:
    try:
        return index_identity((index / "manifest.json").stat())
    except OSError:
        return None


def _ask(request: Message) -> Message:
    """The last reply to a request; a searcher of another llmindex ends at the first try, and its successor answers."""
    global _ahead
    (sent, begun), _ahead = _ahead or ({}, None), None
    if begun is not None and sent != request:
        begun.close()  # whoever answers it finds nobody there
        begun = None
    folder = runtime_folder()
    for _ in range(2):
        if begun is not None:
            reply, begun = _reply(begun), None
        else:
            reply = _exchange(_connect(folder) or _start(folder, request["identity"]), request)
        if "outdated" not in reply:
            return reply
    raise ResidentError("the resident searcher is of another llmindex")


def _connect(folder: Path) -> socket.socket | None:
    """A connection; None where nobody listens, be it that a searcher was killed and left its socket behind."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(_SEND_SECONDS)
        connection.connect(str(folder / SOCKET))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError as error:
        connection.close()
        raise ResidentError(f"cannot reach {folder / SOCKET}: {error}") from error
    if not is_mine(connection):
        connection.close()
        raise ResidentError(f"{folder / SOCKET} belongs to another user")
    return connection


def _start(folder: Path, own: list[Any]) -> socket.socket:
    """Start a searcher, free of this terminal and its Ctrl-C; of several at once, one remains."""
    import subprocess  # costs a twentieth of a search that finds one

    # -P: a file of the working directory must not be taken for a package.
    command = [sys.executable, "-P", "-m", "llmindex_cli.resident.server"]
    try:
        log = os.open(folder / LOG, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        with os.fdopen(log, "w"):
            done = subprocess.run(
                command,
                input=json.dumps(own).encode(),
                stdout=subprocess.DEVNULL,
                stderr=log,
                start_new_session=True,
                timeout=_START_SECONDS,
                check=False,
            )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResidentError(f"cannot start a resident searcher: {error}") from error
    connection = _connect(folder) if done.returncode == 0 else None
    if connection is None:
        raise ResidentError(f"the resident searcher did not start; {folder / LOG} says why")
    return connection


def _exchange(connection: socket.socket, request: Message) -> Message:
    try:
        send(connection, request, REQUEST_LIMIT, _SEND_SECONDS)
    except ProtocolError as error:
        connection.close()
        raise ResidentError(f"the resident searcher does not answer: {error}") from error
    return _reply(connection)


def _reply(connection: socket.socket) -> Message:
    """The last reply to a request that was sent."""
    with closing(connection):
        try:
            while True:
                reply = receive(connection, REPLY_LIMIT, _SILENCE_SECONDS)
                if "working" not in reply:
                    return reply
        except ProtocolError as error:
            raise ResidentError(f"the resident searcher does not answer: {error}") from error


def _read(reply: Message) -> Reply:
    if "failed" in reply:
        raise ResidentError("the resident searcher failed")
    if "elsewhere" in reply:
        raise ResidentError(
            "the resident searcher sees another index at this path, as in another container or while it changes: try "
            "again, or end it with `llmindex warm --stop`"
        )
    return Reply(
        hits=[[ResidentHit(**hit) for hit in hits] for hits in reply.get("hits", ())],
        unfinished=reply.get("unfinished"),
        status=reply.get("status", {}),
        error=_error(reply["error"]) if "error" in reply else None,
    )


def _error(sent: Message) -> errors.LlmindexError:
    kind = getattr(errors, sent["kind"], errors.LlmindexError)
    error: errors.LlmindexError = kind(sent["message"])
    return error
