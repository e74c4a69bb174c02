"""Text without columns: one document a file, or one document a line of standard input."""

import itertools
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmindex.corpus.lines import read_lines
from llmindex.corpus.source import (
    MAX_DOCUMENT_BYTES,
    REPORT_ROWS,
    Chunk,
    RowsRead,
    SourceFile,
    chunked,
    readable,
    reading,
)
from llmindex.errors import CorpusError


class TextFilesSource:
    """Text files, one document each: the id is its path below the corpus's folder, ``path`` is where it lies."""

    tabular = False
    schema = pa.schema([("text", pa.string()), ("id", pa.string()), ("path", pa.string())])

    def __init__(self, files: Sequence[SourceFile], root: Path) -> None:
        """Take note of the files; they are read when their turn comes.

        Args:
            files: in the order of their rows.
            root: the folder that ids are relative to.
        """
        self.label = files[0].label
        self.rows = len(files)
        self._files = files
        self._root = root

    def chunks(self, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
        """See :class:`~llmindex.corpus.source.Source`."""
        files = itertools.islice(self._files, skip, None)
        for gathered in chunked(((file, _text_of(file)), file.bytes) for file in files):
            unreadable = np.array([text is None for _, text in gathered])
            values = {
                "text": [text for _, text in gathered],
                "id": [readable(self._id_of(file)) for file, _ in gathered],
                "path": [readable(str(file.path)) for file, _ in gathered],
            }
            columns = [pa.array(values[field.name], field.type) for field in wanted]
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=wanted), unreadable)

    def _id_of(self, file: SourceFile) -> str:
        # Not relative_to: a pattern with ".." after a wildcard may lead out of the folder.
        return Path(os.path.relpath(file.path, self._root)).as_posix()

    def where(self, row: int) -> str:
        """See :class:`~llmindex.corpus.source.Source`."""
        return self._files[row].label

    def identities(self) -> list[dict[str, Any]]:
        """See :class:`~llmindex.corpus.source.Source`."""
        return [file.identity() for file in self._files]


def _text_of(file: SourceFile) -> str | None:
    """The file's text, or None if it is not UTF-8."""
    if file.bytes > MAX_DOCUMENT_BYTES:
        size, limit = file.bytes >> 20, MAX_DOCUMENT_BYTES >> 20
        raise CorpusError(f"{file.label} is too large for one document ({size:,} MB, at most {limit:,}); split it")
    file.check_unchanged()
    with reading(file.label), file.path.open("rb") as stream:
        content = stream.read(MAX_DOCUMENT_BYTES)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


class LinesSource:
    """A file with one document a line."""

    tabular = False
    schema = pa.schema([("text", pa.string())])

    def __init__(self, file: SourceFile, on_rows: RowsRead) -> None:
        self.label = file.label
        self._file = file
        self.rows = 0
        for self.rows, _ in read_lines(file):
            if self.rows % REPORT_ROWS == 0:
                on_rows(self.rows)
        on_rows(self.rows)

    def chunks(self, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
        """See :class:`~llmindex.corpus.source.Source`."""
        lines = itertools.islice(read_lines(self._file), skip, None)
        for gathered in chunked((line.rstrip(b"\r\n"), len(line)) for _, line in lines):
            texts = [_decoded(line) for line in gathered]
            columns = [pa.array(texts, field.type) for field in wanted]
            unreadable = np.array([text is None for text in texts])
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=wanted), unreadable)

    def where(self, row: int) -> str:
        """See :class:`~llmindex.corpus.source.Source`."""
        return f"{self.label} line {row + 1:,}"

    def identities(self) -> list[dict[str, Any]]:
        """See :class:`~llmindex.corpus.source.Source`."""
        return [self._file.identity()]


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None
