"""Crash-safe files: a file is there whole or not at all, and a disk that refuses is answered in one line."""

import errno
import fcntl
import hashlib
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from llmindex.errors import IndexLocked, LlmindexError, StorageError, UsageError
from llmindex.folder import CLUSTERS, LOCK_NAME, open_regular

_TEMPORARY = ".tmp"
# Of another user's file in a sticky folder, of a folder, and of a pipe.
_IN_THE_WAY = (errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENXIO)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Lend a temporary path; what was written there takes the place of ``path`` at the end, durably.

    On any failure the temporary file is removed and ``path`` is as it was.

    Raises:
        StorageError: the disk refused (full, read-only, not permitted), or somebody else is writing that file.
    """
    temporary, taken = _begin(path)
    with taken:
        mine = True
        try:
            yield temporary
            sync(temporary)
            temporary.replace(path)
            mine = False  # from here on the name may be another writer's
            sync_names(path.parent)
        except Exception as error:
            if refused(error) is None:
                raise
            raise storage_error(path, error) from error
        finally:
            if mine:
                with suppress(OSError):  # a disk that has become read-only says so above
                    temporary.unlink()


def check_writable(path: Path) -> None:
    """Refuse, before any work is done for it, a place where no file can be written.

    Raises:
        StorageError: as :func:`replacing`.
    """
    temporary, taken = _begin(path)
    with taken:
        temporary.unlink(missing_ok=True)


def _begin(path: Path) -> tuple[Path, BinaryIO]:
    temporary = path.with_name(f".{path.name}{_TEMPORARY}")
    try:
        if os.path.lexists(temporary):
            # A killed writer's; in a stranger's folder perhaps another name of a file that is not to be written over.
            with _take(temporary):
                temporary.unlink(missing_ok=True)
        return temporary, _take(temporary, os.O_EXCL)
    except (BlockingIOError, FileExistsError) as error:
        raise StorageError(f"{path} is being written by another process; wait for it or stop it") from error
    except OSError as error:
        refusal = storage_error(path, error)
        if error.errno in _IN_THE_WAY and os.path.lexists(temporary) and os.access(path.parent, os.W_OK):
            refusal = StorageError(f"{refusal}; {temporary} is in the way: remove it")
        raise refusal from error


def _take(path: Path, flags: int = 0) -> BinaryIO:
    """Open a file that nobody else writes to, until it is closed."""
    while True:
        file = os.fdopen(_open_itself(path, flags), "ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(file, path):
                return file
        except OSError:
            file.close()
            raise
        file.close()  # whoever had it has just given it its final name, or removed it


def _open_itself(path: Path, flags: int) -> int:
    """Open a file to be added to; follow no link, which in a stranger's folder may lead anywhere; wait for no pipe."""
    flags |= os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        return os.open(path, flags, 0o666)
    except OSError as error:
        if path.is_symlink():
            raise StorageError(f"{path} is a link, and what it leads to would be written over: remove it") from error
        raise


def is_at(file: BinaryIO, path: Path) -> bool:
    """Whether an open file still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def refused(error: Exception) -> str | None:
    """Why the system refused, in its own words, whichever library tells of it; None for any other error."""
    if isinstance(error, OSError):
        # Arrow repeats the number inside a longer text.
        return os.strerror(error.errno) if error.errno else str(error)
    # safetensors and tokenizers have errors of their own, which end like this.
    found = None if isinstance(error, LlmindexError) else re.search(r"\(os error (\d+)\)$", str(error))
    return os.strerror(int(found[1])) if found else None


def storage_error(path: Path, error: Exception) -> StorageError:
    """The answer to a write that failed."""
    return StorageError(f"cannot write {path}: {refused(error) or error}")


def is_temporary(path: Path) -> bool:
    """Whether the file is one that :func:`replacing` left behind when its process was killed."""
    return path.name.startswith(".") and path.name.endswith(_TEMPORARY)


def clusterings_in(index: Path) -> list[Path]:
    """The files that describe an index's clusterings, sorted; none where there is no folder of them, or no longer."""
    try:
        return sorted(path for path in (index / CLUSTERS).iterdir() if path.suffix == ".json")
    except (FileNotFoundError, NotADirectoryError):
        return []


def hash_file(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_values(values: Mapping[str, Any]) -> str:
    """The sha256 of what a JSON file says, in hex: of all but its "sha256", which has room for it."""
    said = {name: value for name, value in values.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless it is there; durably, as what is put in it could else be lost with it.

    Raises:
        StorageError: the disk refused; of the folders none is left behind.
    """
    made = []
    try:
        made = [each for each in (folder, *folder.parents) if not each.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        for each in made:
            sync_names(each.parent)
    except OSError as error:
        for each in made:  # none that anything is in
            with suppress(OSError):
                each.rmdir()
        raise storage_error(folder, error) from error


def check_folder(folder: Path) -> None:
    """Refuse, before any work is done for it, a folder that cannot be made, or that nothing can be written in.

    Raises:
        UsageError: it is a file.
        StorageError: with what stands in the way.
    """
    for there in (folder, *folder.parents):
        try:
            in_the_way = not stat.S_ISDIR(there.stat().st_mode)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise storage_error(folder, error) from error
        if in_the_way and there == folder:
            raise UsageError(f"{folder} is a file; choose another path")
        if in_the_way:
            raise storage_error(folder, OSError(errno.ENOTDIR, ""))
        if not os.access(there, os.W_OK | os.X_OK):
            read_only = os.statvfs(there).f_flag & os.ST_RDONLY
            raise storage_error(folder, OSError(errno.EROFS if read_only else errno.EACCES, ""))
        return


def make_own_folder(folder: Path) -> None:
    """Make a folder inside an index; a link in its place may lead to files that are not the index's to remove.

    Raises:
        StorageError: it is a link, or the disk refused.
    """
    if folder.is_symlink():
        raise StorageError(f"{folder} is a link; an index is changed only in its own folder: put the files there")
    make_folder(folder)


def lock(folder: Path) -> BinaryIO:
    """Take the folder's lock; it is free when the file is closed or the process ends, however it ends.

    Raises:
        IndexLocked: another process has it.
        StorageError: the folder cannot be written to.
    """
    path = folder / LOCK_NAME
    try:
        file = _take(path)
    except BlockingIOError as error:
        raise IndexLocked(f"{folder} is being written by {_holder(path)}; wait for it or stop it") from error
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        os.truncate(file.fileno(), 0)
        os.write(file.fileno(), str(os.getpid()).encode())
    except OSError as error:
        file.close()
        raise storage_error(path, error) from error
    return file


def _holder(lock: Path) -> str:
    try:
        holder = lock.read_bytes()
    except OSError:  # it has just been given up
        holder = b""
    return f"process {int(holder)}" if holder.isdigit() else "another process"


def sync(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_names(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, if the file system knows how and lets us read the folder."""
    try:
        sync(folder)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EINVAL):
            raise


def check_name(path: Path) -> None:
    """Refuse a path that Arrow, FAISS and others cannot open, and that JSON cannot hold.

    Raises:
        UsageError: it is not UTF-8.
    """
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        shown = str(path).encode("utf-8", "backslashreplace").decode()
        raise UsageError(f"the path {shown} is not UTF-8; name another one") from error
