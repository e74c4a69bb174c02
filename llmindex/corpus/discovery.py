"""From what the user named - files, folders, globs, ``-`` - to the files to read, in a fixed order."""

import contextlib
import functools
import hashlib
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from llmindex.corpus.formats import READ_ENDINGS, ending_of
from llmindex.corpus.patterns import before_wildcards, expand, is_pattern
from llmindex.corpus.source import SourceFile, counted, readable, reading
from llmindex.errors import CorpusError, StorageError, missing
from llmindex.folder import is_index

STDIN = "-"

_log = logging.getLogger(__name__)
_COPY_BYTES = 1 << 20

RealFolder = tuple[int, int]
"""What a folder is known by, whatever links lead to it: its device and its inode."""


def find_files(source: str) -> list[SourceFile]:
    """The files that one source other than ``-`` stands for.

    Raises:
        CorpusError: there is none, or one that is named outright cannot be read as a corpus.
    """
    if not source:
        raise CorpusError(missing('""') + " (the name is empty)")
    path = Path(source)
    with reading(readable(source)):
        if path.is_dir():
            return _in_folder(path)
        if path.exists():
            return [_named(path)]
        if path.is_symlink():
            raise _broken_link(path)
    if not is_pattern(source):
        raise CorpusError(missing(readable(source)))
    matches = expand(source)
    if not matches:
        raise CorpusError(f"{missing(readable(source))} (the pattern matches nothing)")
    return _supported(_matched(source, matches), readable(source))


def without_repeats(files: Sequence[SourceFile]) -> list[SourceFile]:
    """Each file once, where it comes first."""
    first: dict[Path, SourceFile] = {}
    for file in files:
        first.setdefault(file.path.resolve(), file)
    if len(first) < len(files):
        _log.warning("named more than once, read once: %s", counted(len(files) - len(first), "file"))
    return list(first.values())


def folder_of(source: str) -> Path:
    """The folder that a source other than ``-`` is, or lies in; of a pattern the one that all its matches are below."""
    path = Path(source)
    if is_pattern(source) and not path.exists():
        path = before_wildcards(path)
    path = absolute(path)
    return path if path.is_dir() else path.parent


def absolute(path: Path) -> Path:
    """The path from the root on, without ``..``; links that no ``..`` follows are kept: their names are the user's."""
    if ".." not in path.parts:
        return path.absolute()
    # What is above a link is above where it leads to, so links before a ".." cannot be kept.
    end = len(path.parts) - path.parts[::-1].index("..")
    return Path(*path.parts[:end]).resolve().joinpath(*path.parts[end:])


def _named(path: Path) -> SourceFile:
    label = readable(str(path))
    if not path.is_file():
        raise CorpusError(f"{label} is not a regular file; pipe it in and name the corpus -")
    if ending_of(path.name) is None:
        ending = f"the ending {readable(path.suffix)}" if path.suffix else "a name without an ending"
        raise CorpusError(f"{label}: {ending} is not one of a corpus; {READ_ENDINGS}")
    return SourceFile.found(absolute(path), label)


def _in_folder(folder: Path) -> list[SourceFile]:
    label = readable(str(folder))
    if _is_index(folder):
        raise CorpusError(f"{label} is an index, not a corpus; name the files it was built from")
    return _supported(_walk(folder, set()), label)


def _matched(pattern: str, paths: Sequence[Path]) -> Iterator[Path]:
    """Files that a pattern matches or that lie below what it matches, but for those of indexes that it comes across."""
    named = len(before_wildcards(Path(pattern)).parts)
    is_left_out = functools.cache(_is_index)  # not once for each file of a folder
    entered: set[RealFolder] = set()
    for path in paths:
        is_folder = path.is_dir()
        folders = [path, *path.parents] if is_folder else path.parents
        with reading(readable(str(path))):
            left_out = any(is_left_out(folder) for folder in folders if len(folder.parts) > named)
        if not left_out:
            yield from _walk(path, entered) if is_folder else [path]


def _supported(paths: Iterator[Path], label: str) -> list[SourceFile]:
    files, ignored, example = [], 0, ""
    for path in paths:
        known = ending_of(path.name) is not None
        if known and path.is_symlink() and not path.exists():
            raise _broken_link(path)
        if not known or not path.is_file():  # a pipe or a device may never end
            ignored += 1
            example = example or readable(str(path))
        else:
            files.append(SourceFile.found(absolute(path), readable(str(path))))
    if not files:
        raise CorpusError(f"{label}: no file there can be read as a corpus; {READ_ENDINGS}")
    if ignored:
        example += ", ..." * (ignored > 1)
        _log.warning("%s: ignored %s of another kind than is read (%s)", label, counted(ignored, "file"), example)
    return files


def _walk(folder: Path, entered: set[RealFolder]) -> Iterator[Path]:
    """Files below a folder, sorted; hidden ones and indexes left out, each real folder entered once."""
    # Not by recursion, which a stranger's folder may be too deep for.
    levels = [_entries(folder, entered)]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            continue
        with reading(readable(str(entry))):
            is_folder = entry.is_dir()
            left_out = is_folder and _is_index(entry)
        if not is_folder:
            yield entry
        elif not left_out:
            levels.append(_entries(entry, entered))


def _entries(folder: Path, entered: set[RealFolder]) -> Iterator[Path]:
    """What is in a folder, hidden entries left out; nothing if it has been entered before."""
    with reading(readable(str(folder))):
        found = folder.stat()
        inside = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    real = found.st_dev, found.st_ino
    if real in entered:
        return iter(())
    entered.add(real)
    return iter(inside)


def _is_index(folder: Path) -> bool:
    """Whether this is an index: built next to its corpus, it must not become a part of it."""
    return folder.suffix == ".llmindex" or is_index(folder)


def _broken_link(path: Path) -> CorpusError:
    return CorpusError(f"{readable(str(path))} is a broken link (to {readable(str(path.readlink()))})")


@contextlib.contextmanager
def spooled_stdin() -> Iterator[SourceFile]:
    """Standard input in a temporary file, because a corpus is read more than once; its hash stands for it."""
    with tempfile.NamedTemporaryFile(prefix="llmindex-stdin-") as spool:
        digest = hashlib.sha256()
        while block := _read_stdin():
            digest.update(block)
            _keep(spool, block)
        yield SourceFile.found(Path(spool.name), "stdin", digest.hexdigest())


def _read_stdin() -> bytes:
    if sys.stdin is None:
        raise CorpusError("stdin is closed: there is nothing to read from -")
    with reading("stdin"):
        return sys.stdin.buffer.read(_COPY_BYTES)


def _keep(spool: IO[bytes], block: bytes) -> None:
    try:
        spool.write(block)
        spool.flush()
    except OSError as error:
        folder = readable(tempfile.gettempdir())
        raise StorageError(
            f"cannot keep stdin in {folder}: {error.strerror}; set TMPDIR to a folder with room"
        ) from error
