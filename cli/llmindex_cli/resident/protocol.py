"""What goes over the socket: JSON objects, each after its length in four bytes, and never more than was agreed.

One connection carries one request, then replies until the last. A reply ``{"working": true}`` only says that the
other side lives; the last one has one of

- ``hits``, of a search: a list for each query;
- ``status``, of "warm" and "stop": what is resident;
- ``error``, with ``kind`` and ``message`` of an LlmindexError;
- ``elsewhere``: the client sees another index at that path, or saw it in another state;
- ``failed``: something unforeseen, which the client had better meet itself;
- ``outdated``: the client's llmindex is not the resident one, which is ending.

and may have ``unfinished``, the number of documents where the index's build has not come to its end.
"""

import json
import os
import socket
import struct
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

REQUEST_LIMIT = 8 << 20
REPLY_LIMIT = 256 << 20

_LENGTH = struct.Struct(">I")
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid
_CHUNK = 1 << 20

Message = dict[str, Any]


class ProtocolError(Exception):
    """The other side broke off, was silent for too long, or sent what is no message; or one is too large to send."""


class ResidentHit(NamedTuple):
    """A hit as it arrives; its metadata holds what JSON has and nothing else."""

    rank: int
    id: str
    score: float
    text: str
    metadata: Mapping[str, Any]


def send(connection: socket.socket, message: Message, limit: int, seconds: float) -> None:
    """Send a message.

    Raises:
        ProtocolError: it is larger than the limit, or the other side did not take it in time.
    """
    body = json.dumps(message).encode("ascii")
    if len(body) > limit:
        raise ProtocolError(f"a message of {len(body):,} bytes is too large")
    try:
        connection.settimeout(seconds)
        connection.sendall(_LENGTH.pack(len(body)) + body)
    except OSError as error:
        raise ProtocolError(str(error)) from error


def receive(connection: socket.socket, limit: int, seconds: float) -> Message:
    """Wait for a whole message.

    Raises:
        ProtocolError: none came in time, or what came is not one.
    """
    deadline = time.monotonic() + seconds
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size, deadline))
    if length > limit:
        raise ProtocolError(f"a message of {length:,} bytes is too large")
    try:
        message = json.loads(_exactly(connection, length, deadline))
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"not JSON: {error}") from error
    if not isinstance(message, dict):
        raise ProtocolError("not a JSON object")
    return message


def _exactly(connection: socket.socket, length: int, deadline: float) -> bytes:
    """So many bytes; memory is taken as they arrive, not as they are announced."""
    data = bytearray()
    try:
        while len(data) < length:
            connection.settimeout(max(0.001, deadline - time.monotonic()))
            piece = connection.recv(min(_CHUNK, length - len(data)))
            if not piece:
                raise ProtocolError("the other side has left")
            data += piece
    except OSError as error:
        raise ProtocolError(str(error)) from error
    return bytes(data)


def is_mine(connection: socket.socket) -> bool:
    """Whether the other side is a process of the same user; where the kernel does not tell, the folder's mode does."""
    option = getattr(socket, "SO_PEERCRED", None)
    if option is None:
        return True
    credentials = connection.getsockopt(socket.SOL_SOCKET, option, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())
