"""Where the resident searcher is found: a folder that its user alone can enter, with a socket, a lock and a log."""

import os
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path

from llmindex_cli.resident.errors import ResidentError

SOCKET = "search.sock"
LOCK = "lock"
LOG = "log"

_PAUSE = 0.02


def runtime_folder() -> Path:
    """The folder, made where it is missing: below ``$XDG_RUNTIME_DIR``, else in the folder for temporary files.

    Raises:
        ResidentError: there are no Unix sockets here, or others could put their own socket there.
    """
    if not hasattr(socket, "AF_UNIX") or not hasattr(os, "geteuid"):
        raise ResidentError("a resident searcher needs Unix sockets, which this platform lacks")
    folder = _place()
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise ResidentError(f"cannot make {folder}: {error.strerror}") from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ResidentError(f"{folder} is not a folder of yours that nobody else can enter: remove it")
    return folder


def _place() -> Path:
    if base := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(base, "llmindex").absolute()
    # Not tempfile.gettempdir, which takes long to load and tries the folder by writing a file.
    temporary = os.environ.get("TMPDIR", "")
    base = temporary if os.access(temporary, os.W_OK) else "/tmp"
    return Path(base, f"llmindex-{os.geteuid()}").absolute()


def hold_lock(folder: Path, seconds: float, unless: Callable[[], bool] = lambda: False) -> int | None:
    """Take the lock that a resident searcher holds while it lives; the kernel frees it whatever ends the process.

    Args:
        folder: of :func:`runtime_folder`.
        seconds: how long to wait for another process to let go of it.
        unless: asked while waiting; stop when it is true.

    Returns:
        The file descriptor that holds it, or None.
    """
    import fcntl

    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if unless() or time.monotonic() > deadline:
                os.close(descriptor)
                return None
        time.sleep(_PAUSE)
