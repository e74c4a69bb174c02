"""Tables that come with Arrow types of their own: Parquet files, and a table in memory.

A row group may be as large as the file, so columns are read through small buffers, a batch at a time.
"""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmindex.corpus.column_types import STRING, as_strings, conform, invalid_utf8, is_bytes, is_text, stored_type
from llmindex.corpus.source import (
    CHUNK_BYTES,
    CHUNK_ROWS,
    MAX_DOCUMENT_BYTES,
    Chunk,
    SourceFile,
    reading,
    unique_names,
)
from llmindex.errors import CorpusError

_BUFFER_BYTES = 1 << 16
# Writers keep the values of a column that occur more than once to about a megabyte.
_USUAL_DICTIONARY = 2 << 20
# The header of a page of such values in Thrift's compact form, up to its size before compression.
_DICTIONARY = re.compile(rb"\x15\x04\x15([\x80-\xff]{0,4}[\x00-\x7f])", re.DOTALL)
_HASHED_ROWS = 256


class ParquetSource:
    """One Parquet file."""

    tabular = True

    def __init__(self, file: SourceFile) -> None:
        self.label = file.label
        self._file = file
        if not file.bytes:
            raise CorpusError(f"cannot read {file.label}: it is empty (0 bytes), so not a Parquet file")
        with self._open() as parquet:
            self.schema = parquet.schema_arrow
            self.rows: int = parquet.metadata.num_rows
            groups = [parquet.metadata.row_group(number).num_rows for number in range(parquet.num_row_groups)]
            if sum(groups) != self.rows:
                raise ValueError(f"its footer counts {self.rows:,} rows, its row groups {sum(groups):,}")
        unique_names(self.schema.names, self.label)

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        # By Python's own open, because pyarrow refuses file names that are not UTF-8.
        with reading(self.label), self._file.path.open("rb") as stream:
            yield pq.ParquetFile(stream, buffer_size=_BUFFER_BYTES, pre_buffer=False)

    def chunks(self, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
        """See :class:`Source`; row groups that lie before ``skip`` are not decoded."""
        self._file.check_unchanged()
        with self._open() as parquet:
            for number in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(number)
                if skip >= group.num_rows:
                    skip -= group.num_rows
                    continue
                for batch in _batches(parquet, number, self._large_dictionaries(group)):
                    if skip < batch.num_rows:
                        yield readable_rows(batch.slice(skip), wanted)
                    skip = max(0, skip - batch.num_rows)

    def _large_dictionaries(self, group: pq.RowGroupMetaData) -> int:
        """Bytes of the dictionaries of a row group that are larger than usual: each row may have as much of them."""
        columns = (group.column(number) for number in range(group.num_columns))
        with self._file.path.open("rb") as stream:
            sizes = [_dictionary_bytes(stream, column) for column in columns if column.has_dictionary_page]
        return sum(size for size in sizes if size > _USUAL_DICTIONARY)

    def where(self, row: int) -> str:
        """See :class:`Source`."""
        return f"{self.label} row {row:,}"

    def identities(self) -> list[dict[str, Any]]:
        """See :class:`Source`."""
        return [self._file.identity()]


def _dictionary_bytes(stream: BinaryIO, column: pq.ColumnChunkMetaData) -> int:
    """The size of a column's dictionary in memory; where its header is not as expected, at most that of the column."""
    stream.seek(column.dictionary_page_offset)
    header = _DICTIONARY.match(stream.read(8))
    if header is None:
        return int(column.total_uncompressed_size)
    # A number of Thrift's: seven bits a byte, the lowest first, and twice what it is.
    digits: bytes = header[1]
    return sum((digit & 0x7F) << (7 * place) for place, digit in enumerate(digits)) >> 1


def _batches(parquet: pq.ParquetFile, number: int, dictionaries: int) -> Iterator[pa.RecordBatch]:
    """A row group in batches whose rows are the fewer the larger they are, or may be."""
    group = parquet.metadata.row_group(number)
    rows = min(CHUNK_ROWS, CHUNK_BYTES * group.num_rows // max(1, group.total_byte_size))
    if dictionaries:
        rows = min(rows, MAX_DOCUMENT_BYTES // dictionaries)
    return parquet.iter_batches(max(1, rows), row_groups=[number], use_threads=False)  # type: ignore[no-any-return]


class TableSource:
    """A table in memory."""

    tabular = True
    label = "table"

    def __init__(self, table: pa.Table) -> None:
        self._table = table
        self.schema = table.schema
        self.rows: int = table.num_rows
        unique_names(self.schema.names, self.label)

    def identities(self) -> list[dict[str, Any]]:
        """See :class:`Source`; a hash of the values, however they lie in chunks."""
        digest = hashlib.sha256(repr([(field.name, str(field.type)) for field in self.schema]).encode())
        with reading(self.label):
            for start in range(0, self.rows, _HASHED_ROWS):
                part = self._table.slice(start, _HASHED_ROWS)
                columns = [
                    pa.concat_arrays([conform(chunk, stored_type(column.type)) for chunk in column.chunks])
                    for column in part.columns
                ]
                batch = pa.RecordBatch.from_arrays(columns, names=self.schema.names)
                # Taken rows, unlike a slice, have buffers with nothing else in them.
                digest.update(batch.take(pa.array(np.arange(len(batch)))).serialize())
        return [{"rows": self.rows, "sha256": digest.hexdigest()}]

    def chunks(self, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
        """See :class:`Source`."""
        for batch in self._table.slice(skip).to_batches(max_chunksize=CHUNK_ROWS):
            yield readable_rows(batch, wanted)

    def where(self, row: int) -> str:
        """See :class:`Source`."""
        return f"{self.label} row {row:,}"


def readable_rows(batch: pa.RecordBatch, wanted: pa.Schema) -> Chunk:
    """The wanted columns of a batch in their wanted types, with the rows that are not UTF-8 made null."""
    columns = [_selectable(batch.column(field.name), field.type) for field in wanted]
    unreadable = np.zeros(batch.num_rows, np.bool_)
    for column in columns:
        unreadable |= invalid_utf8(column)
    if unreadable.any():
        kept = pa.array(np.arange(batch.num_rows), mask=unreadable)
        columns = [column.take(kept) for column in columns]
    fitted = [conform(column, field.type) for column, field in zip(columns, wanted, strict=True)]
    return Chunk(pa.RecordBatch.from_arrays(fitted, schema=wanted), unreadable)


def _selectable(column: pa.Array, type_: pa.DataType) -> pa.Array:
    if type_ == STRING and (is_text(column.type) or is_bytes(column.type)):
        return as_strings(column)
    return conform(column, stored_type(column.type))
