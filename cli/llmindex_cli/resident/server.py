"""The resident searcher: listens on a Unix socket, answers searches, and ends when nobody has asked for a while.

:mod:`llmindex_cli.resident.client` starts it as ``python -m llmindex_cli.resident.server``, with its own identity as
JSON on standard input. That returns when the socket listens, and a child of it goes on alone. One thread a connection
talks, so that a client which stalls holds up nobody; one worker searches.
"""

import json
import os
import select
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from llmindex_cli.console import configure
from llmindex_cli.resident.folder import SOCKET, hold_lock, runtime_folder
from llmindex_cli.resident.open_indexes import OpenIndexes
from llmindex_cli.resident.protocol import (
    REPLY_LIMIT,
    REQUEST_LIMIT,
    Message,
    ProtocolError,
    is_mine,
    receive,
    send,
)

IDLE_MINUTES = 15.0

_REQUEST_SECONDS = 5.0  # a client sends its request at once
_REPLY_SECONDS = 30.0
_HEARTBEAT_SECONDS = 2.0
_LOOK_AROUND_SECONDS = 2.0
_MOST_CONNECTIONS = 32
_ABANDONED_SECONDS = 10.0  # for which an answer that nobody waits for may hold up others
_LOCK_SECONDS = 5.0  # long enough for one that cannot be reached any more to look around, and end


class Server:
    """A resident searcher that listens.

    Args:
        listener: the socket, already listening.
        place: its path.
        identity: of the client that started it; no other may be answered.
    """

    def __init__(self, listener: socket.socket, place: Path, identity: list[Any]) -> None:
        self._listener = listener
        self._place = place
        self._inode = place.stat().st_ino
        self._identity = identity
        self._indexes = OpenIndexes()
        self._worker = ThreadPoolExecutor(1)
        self._idle_seconds = IDLE_MINUTES * 60
        self._last_used = time.monotonic()
        self._talking: set[threading.Thread] = set()
        self._bell, self._ring = socket.socketpair()
        self._ending = False

    def run(self) -> None:
        """Answer until told to end, or until nobody has asked for a while."""
        signal.signal(signal.SIGTERM, lambda *_: self._quit())
        while not self._ending and (left := self._seconds_left()) > 0:
            ready, _, _ = select.select([self._listener, self._bell], [], [], min(left, _LOOK_AROUND_SECONDS))
            if self._bell in ready:
                self._bell.recv(1)
            if self._listener in ready and not self._ending:
                self._accept()
            elif not self._is_reachable():
                break
        self._end()
        for thread in list(self._talking):
            thread.join()
        self._worker.shutdown()

    def _seconds_left(self) -> float:
        return _LOOK_AROUND_SECONDS if self._talking else self._last_used + self._idle_seconds - time.monotonic()

    def _is_reachable(self) -> bool:
        """Whether the socket is still in its place: cleaners of temporary folders take what is old."""
        try:
            return self._place.stat().st_ino == self._inode
        except OSError:
            return False

    def _end(self) -> None:
        """Take the socket away, so that the next client starts another, and ring for the loop."""
        if not self._ending:
            self._ending = True
            if self._is_reachable():
                self._place.unlink(missing_ok=True)
            self._ring.send(b"!")

    def _quit(self) -> NoReturn:
        """End at once: whoever waits for an answer is cut off, and searches by itself."""
        self._end()
        os._exit(0)

    def _accept(self) -> None:
        with suppress(OSError):
            connection, _ = self._listener.accept()
            if len(self._talking) >= _MOST_CONNECTIONS or not is_mine(connection):
                connection.close()
                return
            thread = threading.Thread(target=self._talk, args=(connection,))
            self._talking.add(thread)
            thread.start()

    def _talk(self, connection: socket.socket) -> None:
        # A client that leaves, stalls or sends rubbish loses its connection; nothing else happens.
        try:
            with connection, suppress(ProtocolError):
                request = receive(connection, REQUEST_LIMIT, _REQUEST_SECONDS)
                reply = self._reply(connection, request)
                try:
                    send(connection, reply, REPLY_LIMIT, _REPLY_SECONDS)
                except ProtocolError:  # more hits than a message may hold
                    send(connection, {"failed": True}, REPLY_LIMIT, _REPLY_SECONDS)
        finally:
            self._last_used = time.monotonic()
            self._talking.discard(threading.current_thread())
            self._ring.send(b"!")  # the time to the end begins anew

    def _reply(self, connection: socket.socket, request: Message) -> Message:
        if request.get("do") == "stop":
            self._end()
            return {"status": self._status()}
        if request.get("identity") != self._identity:
            self._end()
            return {"outdated": True}
        idle = request.get("idle_minutes")
        if isinstance(idle, int | float) and idle > 0:
            self._idle_seconds = idle * 60
        reply = self._searched(connection, request)
        return reply | {"status": self._status()} if request.get("do") == "warm" else reply

    def _searched(self, connection: socket.socket, request: Message) -> Message:
        """The answer, when it is there; until then signs of life, which also tell whether the client is still there."""
        answer = self._worker.submit(self._indexes.answer, request)
        while True:
            try:
                return answer.result(_HEARTBEAT_SECONDS)
            except TimeoutError:
                try:
                    send(connection, {"working": True}, REPLY_LIMIT, _REPLY_SECONDS)
                except ProtocolError:
                    if not answer.cancel() and request.get("where") is not None:
                        self._finish_soon(answer)
                    raise

    def _finish_soon(self, answer: "Future[Message]") -> None:
        """A condition may take hours to compute, and nothing interrupts duckdb within a function."""
        try:
            answer.result(_ABANDONED_SECONDS)
        except TimeoutError:
            self._quit()

    def _status(self) -> Message:
        return {"pid": os.getpid(), "idle_minutes": self._idle_seconds / 60, **self._indexes.status()}


def main() -> int:
    """Start a resident searcher, unless there is one.

    Returns:
        0 when one listens, 1 when none could be started.
    """
    identity = json.load(sys.stdin)
    folder = runtime_folder()
    place = folder / SOCKET
    # A searcher that is ending still holds the lock for a moment; one that has just been started holds it for long.
    lock = hold_lock(folder, _LOCK_SECONDS, unless=lambda: _listens(place))
    if lock is None:
        return 0 if _listens(place) else 1
    listener = _listen(place)
    if os.fork():
        os._exit(0)
    os.chdir("/")
    configure(quiet=True, verbose=0)
    Server(listener, place, identity).run()
    # At once: nothing is left to tidy up, and torch takes a second to say goodbye, in which the lock would be held.
    os._exit(0)


def _listens(place: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as knocking, suppress(OSError):
        knocking.connect(str(place))
        return True
    return False


def _listen(place: Path) -> socket.socket:
    """Listen in the place of a searcher that was killed, if one was; the caller holds the lock."""
    place.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    before = os.umask(0o177)
    listener.bind(str(place))
    os.umask(before)
    listener.listen(_MOST_CONNECTIONS)
    listener.setblocking(False)
    return listener


if __name__ == "__main__":
    sys.exit(main())
