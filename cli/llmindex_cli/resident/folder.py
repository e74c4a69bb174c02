"""Where the resident searcher is found: a folder that its user alone can enter, with a socket, a lock and a log."""

import os
import socket
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from llmindex_cli.resident.errors import ResidentError

SOCKET = "search.sock"
LOCK = "lock"
LOG = "log"

_LAST_RESORT = "/tmp"
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
    """The first place that can be trusted; after ``su`` or ``sudo -E`` the variables are those of another user."""
    # Not tempfile.gettempdir, which takes long to load and tries the folder by writing a file.
    in_temporary = f"llmindex-{os.geteuid()}"
    for base, name in (
        (os.environ.get("XDG_RUNTIME_DIR", ""), "llmindex"),
        (os.environ.get("TMPDIR", ""), in_temporary),
        (_LAST_RESORT, in_temporary),
    ):
        with suppress(OSError):
            if base and _is_trusted(Path(base).stat()) and os.access(base, os.W_OK):
                return Path(base, name).absolute()
    raise ResidentError(f"others could replace what lies in {_LAST_RESORT}: set XDG_RUNTIME_DIR to a folder of yours")


def _is_trusted(base: os.stat_result) -> bool:
    """Whether a folder is the user's own, or root's and sticky: what one makes in another's, that one can replace."""
    return base.st_uid == os.geteuid() or (base.st_uid == 0 and bool(base.st_mode & stat.S_ISVTX))


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

    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
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
