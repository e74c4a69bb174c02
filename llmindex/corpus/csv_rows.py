"""CSV and TSV: a header line, then records that may span lines.

The whole file is scanned once when the corpus is opened, for broken records and for the columns' types. A type is
only given where no digit that counts gets lost: "007" and 20-digit numbers stay text.
"""

import csv
import itertools
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Any

import numpy as np
import pyarrow as pa

from llmindex.corpus.column_types import BOOL, EXACT_IN_FLOAT, FLOAT, INT, NULL, STRING
from llmindex.corpus.lines import read_lines
from llmindex.corpus.source import (
    MAX_DOCUMENT_BYTES,
    REPORT_ROWS,
    Chunk,
    RowsRead,
    SourceFile,
    chunked,
    counted,
    one_line,
    unique_names,
)
from llmindex.errors import CorpusError

_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_DIGITS_OF_INT64 = 19
_QUOTED = re.compile(rb'(?<![^,;\t|"])"[^"]*"?')  # elsewhere than at its start, a quote is a field's like any letter

Record = tuple[int, list[str]]


class CsvSource:
    """One CSV or TSV file; fields that are not UTF-8 carry surrogates until their row is left out."""

    tabular = True

    def __init__(self, file: SourceFile, compression: str | None, on_rows: RowsRead, delimiter: str) -> None:
        """Scan the file.

        Args:
            file: the file.
            compression: as pyarrow names it.
            on_rows: told how far the scan is.
            delimiter: what separates fields, unless the header has another and lacks this one.

        Raises:
            CorpusError: a record is broken or has too many or too few fields, or the file cannot be read.
        """
        self.label = file.label
        self._file = file
        self._compression = compression
        self._delimiter = self._actual_delimiter(delimiter)
        self.names = self._header()
        self.rows = 0
        self.schema = self._scan(on_rows)

    def _actual_delimiter(self, usual: str) -> str:
        for _, line in read_lines(self._file, self._compression):
            if line.strip():
                candidates = (usual, ";", "\t", "|")
                separating = _QUOTED.sub(b"", line)
                return next((mark for mark in candidates if mark.encode() in separating), usual)
        raise CorpusError(f"{self.label} is empty: it has no header line")

    def _header(self) -> list[str]:
        _, header = next(self._all_records())
        if _is_undecodable(header):
            raise CorpusError(f"{self.label} line 1: the header is not UTF-8; save the file as UTF-8")
        names = [name or f"column_{number}" for number, name in enumerate(header, 1)]
        unique_names(names, self.label)
        return names

    def _scan(self, on_rows: RowsRead) -> pa.Schema:
        columns = [_ColumnScan() for _ in self.names]
        for _, fields in self._records():
            self.rows += 1
            if self.rows % REPORT_ROWS == 0:
                on_rows(self.rows)
            if not _is_undecodable(fields):
                for column, value in zip(columns, fields, strict=True):
                    column.add(value)
        on_rows(self.rows)
        return pa.schema([(name, column.type) for name, column in zip(self.names, columns, strict=True)])

    def _records(self) -> Iterator[Record]:
        """The records after the header, each as long as the header."""
        for number, fields in itertools.islice(self._all_records(), 1, None):
            if len(fields) != len(self.names):
                where, found = f"{self.label} line {number:,}", counted(len(fields), "field")
                raise CorpusError(f"{where}: {found}, but the header has {len(self.names):,}; fix or remove the line")
            yield number, fields

    def _all_records(self) -> Iterator[Record]:
        """Every record with the number of its first line; blank lines are none."""
        csv.field_size_limit(max(csv.field_size_limit(), MAX_DOCUMENT_BYTES))
        lines = (line.decode(errors="surrogateescape") for _, line in read_lines(self._file, self._compression))
        reader = csv.reader(lines, delimiter=self._delimiter, strict=True)
        while True:
            first_line = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                reason = one_line(str(error))
                raise CorpusError(
                    f"{self.label} line {first_line:,}: broken CSV ({reason}); fix or remove the line"
                ) from None
            if fields is None:
                return
            if fields:
                yield first_line, fields

    def chunks(self, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
        """See :class:`~llmindex.corpus.source.Source`."""
        places = [self.names.index(field.name) for field in wanted]
        records = itertools.islice(self._records(), skip, None)
        for gathered in chunked((fields, sum(map(len, fields))) for _, fields in records):
            unreadable = np.array([_is_undecodable(fields) for fields in gathered])
            rows = [[""] * len(self.names) if bad else row for row, bad in zip(gathered, unreadable, strict=True)]
            columns = [
                _typed([row[place] for row in rows], field.type) for place, field in zip(places, wanted, strict=True)
            ]
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=wanted), unreadable)

    def where(self, row: int) -> str:
        """See :class:`~llmindex.corpus.source.Source`."""
        number, _ = next(itertools.islice(self._records(), row, None))
        return f"{self.label} line {number:,}"

    def identities(self) -> list[dict[str, Any]]:
        """See :class:`~llmindex.corpus.source.Source`."""
        return [self._file.identity()]


class _ColumnScan:
    """What a column's values could all be read as; the first of the types left is its type."""

    def __init__(self) -> None:
        self._possible: tuple[pa.DataType, ...] = (NULL, INT, FLOAT, BOOL)

    def add(self, value: str) -> None:
        if self._possible and value:
            fitting = _types_of(value)
            self._possible = tuple(type_ for type_ in self._possible if type_ in fitting)

    @property
    def type(self) -> pa.DataType:
        return self._possible[0] if self._possible else STRING


def _types_of(value: str) -> tuple[pa.DataType, ...]:
    """The types that this field can be read as and lose no digit that counts."""
    if value.lower() in ("true", "false"):
        return (BOOL,)
    number = _NUMBER.fullmatch(value)
    if number is None or value == "-0":
        return ()
    if number[2] or number[3]:
        return (FLOAT,) if _is_exact(value) else ()
    if len(number[1]) > _DIGITS_OF_INT64 or not -(1 << 63) <= int(value) < 1 << 63:
        return ()
    return (INT, FLOAT) if abs(int(value)) <= EXACT_IN_FLOAT else (INT,)


def _is_exact(number: str) -> bool:
    """Whether a float keeps all that is written."""
    try:
        return Decimal(repr(float(number))) == Decimal(number)
    except InvalidOperation:  # an exponent beyond those of Decimal: an id of digits and one "e"
        return False


def _is_undecodable(fields: list[str]) -> bool:
    try:
        "".join(fields).encode()
    except UnicodeEncodeError:
        return True
    return False


def _typed(fields: list[str], type_: pa.DataType) -> pa.Array:
    if type_ == STRING:
        return pa.array(fields, STRING)
    filled = pa.array([field or None for field in fields], STRING)
    return pa.nulls(len(fields), type_) if filled.null_count == len(fields) else filled.cast(type_)
