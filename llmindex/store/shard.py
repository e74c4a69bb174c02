"""One Parquet file of the store: its columns, how they are laid out, and how vectors get in and out.

The same documents always give the same bytes: columns are brought to the types that Parquet gives back, stripped
of schema metadata and laid end to end before they are written, so that it cannot show in which pieces they came.
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmindex.errors import CorpusError, CorruptStore

VECTOR: Final = "vector"
"""The column of the vectors; no column of a corpus may have this name."""

ROW_GROUP: Final = 4096
"""Rows that are read together at the least: a few MB of vectors, a fraction of a ms a hit of text."""

StoredVectors = NDArray[np.float16] | NDArray[np.float32]
"""Vectors in the dtype of the store, ``(n, dim)``."""


def storage_schema(schema: pa.Schema) -> pa.Schema:
    """The schema that documents of this schema have in the store and come back with.

    Dictionaries become plain values, a few types change to those that Parquet has, ``id`` and ``text`` come
    first and are never null.

    Raises:
        CorpusError: a column cannot be stored, or has the vectors' name.
    """
    if VECTOR in schema.names:
        raise CorpusError(f'the corpus has a column "{VECTOR}", a name that the store needs; rename that column')
    if len(set(schema.names)) < len(schema):
        raise CorpusError(f"the corpus has two columns of the same name among {', '.join(schema.names)}; rename one")
    others = [_stored_field(field) for field in schema if field.name not in ("id", "text")]
    return pa.schema(
        [pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False), *others]
    )


def _stored_field(field: pa.Field) -> pa.Field:
    stored = pa.field(field.name, _plain(field.type))
    # Types settle after a round trip or two: seconds become milliseconds, list items are renamed.
    for _ in range(3):
        stored, before = _round_trip(stored), stored
        if stored == before:
            break
    return stored


def _round_trip(field: pa.Field) -> pa.Field:
    sink = pa.BufferOutputStream()
    try:
        pq.write_table(pa.schema([field]).empty_table(), sink, version="2.6")
        back = pq.read_schema(pa.BufferReader(sink.getvalue())).field(0)
    except (pa.ArrowException, NotImplementedError) as error:
        raise _unstorable(field) from error
    return pa.field(field.name, back.type)


def _plain(kind: pa.DataType) -> pa.DataType:
    """The type without dictionaries, whose order of entries would depend on how the rows were read."""
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_list(kind):
        return pa.large_list(_plain(kind.value_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_plain(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_plain(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([(field.name, _plain(field.type)) for field in kind])
    return kind


def _unstorable(field: pa.Field) -> CorpusError:
    return CorpusError(f'column "{field.name}" has type {field.type}, which cannot be stored; convert or drop it')


def difference(stored: pa.Schema, new: pa.Schema) -> str:
    """In words, the first thing in which two schemas differ."""
    for name in [*stored.names, *new.names]:
        before, now = (schema.field(name).type if name in schema.names else None for schema in (stored, new))
        if before is None or now is None:
            return f'column "{name}" is {"new" if before is None else "missing"}'
        if before != now:
            return f'column "{name}" is {now}, and {before} in the documents before'
    return f"the columns come in another order ({', '.join(new.names)})"


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Documents in the store's schema.

    Raises:
        CorpusError: a value does not fit its column's type.
    """
    columns = []
    for field in schema:
        try:
            columns.append(table.column(field.name).cast(field.type))
        except pa.ArrowException as error:
            raise _unstorable(table.schema.field(field.name)) from error
    return pa.table(columns, schema=schema)


def content_bytes(column: pa.ChunkedArray | pa.Table) -> int:
    """Bytes of the values themselves: the same however the rows are cut into pieces."""
    if isinstance(column, pa.Table):
        return sum(content_bytes(each) for each in column.columns)
    kind = column.type
    if isinstance(kind, pa.BaseExtensionType):
        return content_bytes(column.cast(kind.storage_type))
    if _has_lengths(kind):
        return int(pc.sum(pc.binary_length(column)).as_py() or 0)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return 4 * len(column) + content_bytes(pc.list_flatten(column))
    if pa.types.is_struct(kind):
        fields = range(kind.num_fields)
        return sum(content_bytes(pc.struct_field(column, [number])) for number in fields)
    try:
        return len(column) * max(8, int(kind.bit_width)) // 8
    except ValueError:  # maps and views have no width; a guess will do for a bound on memory
        return len(column) * 64


def _has_lengths(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(test(kind) for test in tests)


def write_shard(path: Path, table: pa.Table, vectors: StoredVectors) -> None:
    """Write documents and their vectors as one Parquet file.

    Args:
        path: where to; an existing file is overwritten.
        table: documents in the store's schema.
        vectors: ``(len(table), dim)`` in the store's dtype.

    Raises:
        OSError: the disk refused.
        CorpusError: a column cannot be stored.
    """
    flat = pa.array(vectors.reshape(-1))
    column = pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])
    # Not nullable all through: no definition levels have to be written and read with each number.
    kind = pa.list_(pa.field("element", flat.type, nullable=False), vectors.shape[1])
    full = table.append_column(pa.field(VECTOR, kind, nullable=False), column.cast(kind)).combine_chunks()
    names = _leaf_names(full.schema)
    others = [name for name in names if not name.startswith(f"{VECTOR}.")]
    try:
        pq.write_table(
            full,
            path,
            version="2.6",
            row_group_size=ROW_GROUP,
            use_dictionary=others,
            write_statistics=others,
            compression={name: "zstd" if name in others else "none" for name in names},
        )
    except NotImplementedError as error:
        raise CorpusError(f"a column cannot be stored: {error}; convert or drop it") from error


def _leaf_names(schema: pa.Schema) -> list[str]:
    """Parquet's names of the columns, such as "vector.list.element"."""
    sink = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), sink, version="2.6")
    leaves = pq.ParquetFile(pa.BufferReader(sink.getvalue())).schema
    return [leaves.column(number).path for number in range(len(leaves))]


def without_vectors(schema: pa.Schema, path: Path) -> pa.Schema:
    """The schema of the documents, from that of a whole file.

    Raises:
        CorruptStore: the file is not a shard.
    """
    if not {"id", "text", VECTOR} <= set(schema.names):
        raise CorruptStore(f"{path} is not a shard of an index: it has no id, text or vector")
    return schema.remove(schema.get_field_index(VECTOR)).remove_metadata()


def read_schema(path: Path) -> pa.Schema:
    """The schema of a file's documents, for which none of them is read."""
    return without_vectors(pq.read_schema(path), path)


def read_shard(path: Path) -> tuple[pa.Table, StoredVectors]:
    """The documents and vectors of a file, as they were given to :func:`write_shard`."""
    full = pq.ParquetFile(path, memory_map=True).read()
    documents = full.select(without_vectors(full.schema, path).names)
    return documents, stored_vectors(full.column(VECTOR))


def stored_vectors(column: pa.ChunkedArray | pa.Array) -> StoredVectors:
    """The vector column, or a part of it, as ``(n, dim)`` in the store's dtype; copied only if in pieces."""
    array: Any = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    flat = array.flatten().to_numpy(zero_copy_only=False)
    stored: StoredVectors = flat.reshape(-1, array.type.list_size)
    return stored
