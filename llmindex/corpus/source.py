"""What every format gives: a Source, whose rows come in chunks of bounded size.

A source is read any number of times and from any row on, and gives the same rows each time: that is what lets an
interrupted build go on where it stopped. Whatever a file's reader complains about leaves this package as a
:class:`CorpusError` that names the file.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmindex.errors import CorpusError, unreadable

CHUNK_ROWS = 256
CHUNK_BYTES = 4 << 20
REPORT_ROWS = 1000
"""How often a scan says how far it is."""
MAX_DOCUMENT_BYTES = 256 << 20
"""Longest line, field or text file that is read: a file that is not what its name says must not fill the memory."""

RowsRead = Callable[[int], None]
"""Told how many rows of a file have been scanned so far."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Some consecutive rows of a source.

    Attributes:
        columns: the wanted columns; valid UTF-8 throughout.
        unreadable: ``(n,) bool``, rows that are not UTF-8; their columns are null.
    """

    columns: pa.RecordBatch
    unreadable: NDArray[np.bool_]


class Source(Protocol):
    """A file, a run of text files, or a table in memory.

    Attributes:
        label: what messages call it.
        schema: its columns; no two have the same name.
        rows: how many rows it has, unusable ones included.
        tabular: whether it has columns of the user's own to choose text and id from.
    """

    label: str
    schema: pa.Schema
    rows: int
    tabular: bool

    def chunks(self, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
        """The rows from number ``skip`` on, as the columns of ``wanted`` in their types there.

        Raises:
            CorpusError: the file cannot be read, or is broken.
        """
        ...

    def where(self, row: int) -> str:
        """The place of a row, for messages: "docs.jsonl line 17"."""
        ...

    def identities(self) -> list[dict[str, Any]]:
        """What tells each of its files from another, or from a later version of itself; JSON values."""
        ...


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file as it was found when the corpus was opened.

    Attributes:
        path: absolute.
        label: what messages call it: as the user named it, fit for one line.
        bytes: its size.
        mtime_ns: when it was last changed.
        sha256: of the contents, where the path says nothing about them (spooled standard input).
    """

    path: Path
    label: str
    bytes: int
    mtime_ns: int
    sha256: str | None = None

    @classmethod
    def found(cls, path: Path, label: str, sha256: str | None = None) -> "SourceFile":
        """The file at ``path`` as it is now."""
        with reading(label):
            stat = path.stat()
        return cls(path, label, stat.st_size, stat.st_mtime_ns, sha256)

    def check_unchanged(self) -> None:
        """Refuse a file that is not the one that was opened.

        Raises:
            CorpusError: its size or time differs.
        """
        with reading(self.label):
            stat = self.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (self.bytes, self.mtime_ns):
            raise changed(self.label)

    def identity(self) -> dict[str, Any]:
        """What tells this file from another, or from a later version of itself; JSON values."""
        if self.sha256 is not None:
            return {"path": "-", "bytes": self.bytes, "sha256": self.sha256}
        return {"path": readable(str(self.path)), "bytes": self.bytes, "mtime_ns": self.mtime_ns}


def changed(label: str) -> CorpusError:
    """The error for a file that was altered between two looks at it."""
    return CorpusError(f"{label} changed while it was being read; run again when nothing writes to it")


@contextmanager
def reading(label: str) -> Iterator[None]:
    """Turn what readers raise about a file into a CorpusError of one line that names it."""
    try:
        yield
    except (OSError, EOFError, OverflowError, RecursionError, ValueError, pa.ArrowException) as error:
        if isinstance(error, OSError) and error.errno:
            raise CorpusError(unreadable(label, error)) from error
        reason = one_line(str(error)) or type(error).__name__
        raise CorpusError(f"cannot read {label}: {reason} (the file may be damaged or incomplete)") from error


def chunked(items: Iterable[tuple[T, int]]) -> Iterator[list[T]]:
    """Gather items, each given with its size in bytes, into lists of bounded length and size."""
    gathered: list[T] = []
    size = 0
    for item, item_bytes in items:
        gathered.append(item)
        size += item_bytes
        if len(gathered) >= CHUNK_ROWS or size >= CHUNK_BYTES:
            yield gathered
            gathered, size = [], 0
    if gathered:
        yield gathered


def unique_names(names: Iterable[str], label: str) -> None:
    """Refuse a table in which a name could mean two columns.

    Raises:
        CorpusError: a name occurs twice.
    """
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CorpusError(f'{label} has two columns named "{readable(name)}"; rename one of them')
        seen.add(name)


def readable(text: str) -> str:
    """The text with what a terminal or an encoder could choke on (line ends, undecodable bytes) escaped."""
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode() for char in text
    )


def counted(number: int, noun: str) -> str:
    """A count for people: "1 row", "2,000 rows"."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def one_line(text: str, limit: int = 200) -> str:
    """The text on one line, cut to ``limit`` characters."""
    line = readable(" ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"
