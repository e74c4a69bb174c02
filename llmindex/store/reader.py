"""VectorStore: what an index folder holds, as one consistent snapshot.

All shards are opened, memory-mapped, when the store is: whatever a writer commits, replaces or removes later does
not show, and nothing has to be locked. Columns are read in row groups, all vectors in blocks, some by their position.
Methods may be called from several threads.
"""

import difflib
import errno
import mmap
import resource
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmindex.errors import CorruptStore, StorageError, UsageError, unreadable
from llmindex.records import Rows, Vectors
from llmindex.store.files import check_name
from llmindex.store.manifest import Manifest, ShardRecord
from llmindex.store.pages import VectorPages, find_pages
from llmindex.store.shard import VECTOR, stored_vectors, without_vectors

_NO_DOCUMENTS: Final = pa.schema(
    [pa.field("id", pa.string(), nullable=False), pa.field("text", pa.string(), nullable=False)]
)

# A mapped file keeps its descriptor, and processes usually may have some hundreds or a thousand.
_MANY_SHARDS: Final = 100
# Of an id in a message: ids can be as long as a text.
_SHOWN: Final = 100


class _Shard:
    """An open shard."""

    def __init__(self, path: Path, record: ShardRecord, dim: int) -> None:
        self.path = path
        self.record = record
        self.dim = dim
        if path.stat().st_size != record.bytes:
            raise FileNotFoundError(errno.ENOENT, "another file has taken its place", str(path))
        with path.open("rb") as file:
            self._mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.source = pa.BufferReader(pa.py_buffer(self._mapped))

    @cached_property
    def metadata(self) -> pq.FileMetaData:
        try:
            file = pq.ParquetFile(self.source)
            good = all(map(self._is_as_written, file.schema_arrow))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path) from error
        if file.metadata.num_rows != self.record.rows or not good:
            raise _damaged(self.path)
        return file.metadata

    def _is_as_written(self, field: pa.Field) -> bool:
        """Whether a column has the type that everything which reads it expects."""
        if field.name == VECTOR:
            return pa.types.is_fixed_size_list(field.type) and bool(field.type.list_size == self.dim)
        return field.name not in ("id", "text") or bool(field.type == pa.string())

    @cached_property
    def schema(self) -> pa.Schema:
        return without_vectors(self.metadata.schema.to_arrow_schema(), self.path)

    @cached_property
    def group_starts(self) -> Rows:
        """Where the row groups begin, ``(groups + 1,)``."""
        sizes = [self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups)]
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        left = self.record.rows
        # A file object of its own for each call: they keep state while they read.
        try:
            for batch in self._file().iter_batches(batch_size=rows, columns=list(columns)):
                batch.validate(full=True)  # texts may be anything else than UTF-8
                if _lacks_any(batch):
                    raise _damaged(self.path)
                left -= len(batch)
                yield batch.select(list(columns))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path) from error
        if left:  # a page that says it holds less: whatever was read after it is another row's
            raise _damaged(self.path)

    def vectors(self, rows: int) -> Iterator[Vectors]:
        for batch in self.batches([VECTOR], rows):
            vectors = stored_vectors(batch.column(0)).astype(np.float32)
            if not np.isfinite(np.einsum("nd,nd->n", vectors, vectors)).all():
                raise _damaged(self.path)
            yield vectors

    def group(self, number: int, columns: Sequence[str]) -> pa.Table:
        try:
            table = self._file().read_row_group(number, columns=list(columns)).select(list(columns))
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path) from error
        if len(table) != self.metadata.row_group(number).num_rows or _lacks_any(table):
            raise _damaged(self.path)
        return table

    def take(self, number: int, columns: Sequence[str], rows: Rows) -> pa.Table:
        """Documents of a row group, by rows counted within it; only these are checked to be UTF-8."""
        table = self.group(number, columns).take(as_array(rows))
        try:
            table.validate(full=True)
        except pa.ArrowException as error:
            raise _damaged(self.path) from error
        return table

    def in_groups(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Ascending rows of the shard by row group: its number, and the rows counted within it."""
        group_of = np.searchsorted(self.group_starts, rows, side="right") - 1
        for group in np.unique(group_of):
            yield int(group), rows[group_of == group] - self.group_starts[group]

    def take_vectors(self, rows: Rows) -> Vectors:
        """Vectors of ascending rows of the shard, of which there is at least one."""
        if self._pages is not None:
            return self._pages.take(rows).astype(np.float32)
        return np.concatenate(
            [
                stored_vectors(self.group(number, [VECTOR]).column(0))[inside].astype(np.float32)
                for number, inside in self.in_groups(rows)
            ]
        )

    @cached_property
    def _pages(self) -> VectorPages | None:
        try:
            return find_pages(self._mapped, self.metadata)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(self.path) from error

    def release(self) -> None:
        """Give back the memory of what was read so far; whoever reads it again gets it from the system's cache."""
        self._mapped.madvise(mmap.MADV_DONTNEED)

    def matching(self, condition: pc.Expression, schema: pa.Schema) -> NDArray[np.bool_]:
        import pyarrow.dataset as ds  # of use here alone

        # Groups are named so that a damaged file is found out before a condition is blamed for it.
        groups = range(self.metadata.num_row_groups)
        fragment = ds.ParquetFileFormat().make_fragment(self.source, row_groups=groups)
        try:
            (column,) = fragment.to_table(schema=schema, columns={"matching": condition}).columns
        except OSError as error:
            raise _damaged(self.path) from error
        if not pa.types.is_boolean(column.type):
            raise pa.ArrowTypeError(f"the expression is of type {column.type}, neither true nor false")
        matching: NDArray[np.bool_] = column.fill_null(False).to_numpy()
        return matching

    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.source, metadata=self.metadata)


def _lacks_any(documents: pa.Table | pa.RecordBatch) -> bool:
    """Whether something is missing that every document has: Arrow would leave the vector out, and shift the others."""
    return any(documents.column(name).null_count for name in {"id", "text", VECTOR} & set(documents.schema.names))


def as_array(rows: Rows) -> pa.Array:
    """Rows as Arrow has them; ``pa.array`` would import pandas, where that is installed, to look for its types."""
    return pa.Array.from_buffers(pa.int64(), len(rows), [None, pa.py_buffer(np.ascontiguousarray(rows))])


def _check_text(id_: str) -> None:
    if not isinstance(id_, str):
        raise UsageError(f"the id {id_!r:.{_SHOWN}} is not a string, as all ids are")
    try:
        id_.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the id {id_[:_SHOWN]!a} is not UTF-8, as all ids are") from error


def _allow_more_files() -> None:
    """Raise the process's own limit of open files to the most that the system lets it have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with suppress(ValueError, OSError):  # where that has no limit, the system may ask for a number
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _damaged(path: Path) -> CorruptStore:
    return CorruptStore(f"{path} is damaged; `llmindex verify` names every file at fault")


class VectorStore:
    """The documents and vectors of an index.

    Attributes:
        path: the index folder.
        manifest: its table of contents, as of the moment of opening.
    """

    def __init__(self, path: Path, manifest: Manifest, shards: Sequence[_Shard]) -> None:
        """Use :meth:`open`."""
        self.path = path
        self.manifest = manifest
        self._shards = shards
        self._starts = np.cumsum([0, *(shard.rows for shard in manifest.shards)], dtype=np.int64)

    @classmethod
    def open(cls, path: str | Path) -> "VectorStore":
        """Open an index folder; one that holds no documents yet can be opened, too.

        Every shard keeps a file open: for many, the process's own limit of these is raised as far as it may be.

        Raises:
            UsageError: the path is not UTF-8.
            IndexNotFound: there is none.
            ManifestError: its manifest is damaged or of a newer format.
            CorruptStore: a file that the manifest names is missing or has another size.
        """
        folder = Path(path)
        check_name(folder)
        manifest = Manifest.load(folder)
        dim = manifest.encoder.spec.dim
        if len(manifest.shards) > _MANY_SHARDS:
            _allow_more_files()
        while True:
            try:
                return cls(folder, manifest, [_Shard(folder / shard.file, shard, dim) for shard in manifest.shards])
            except FileNotFoundError as error:
                # A writer replaces the manifest before it removes a file: if that is what happened, read again.
                manifest, before = Manifest.load(folder), manifest
                if manifest.shards == before.shards:
                    fault = f"{error.filename or error} is missing or has another size than the manifest says"
                    raise CorruptStore(f"{fault}; restore it, or build the index again") from error
            except OSError as error:
                refused = unreadable(error.filename or folder, error)
                if error.errno == errno.EMFILE:
                    refused += f" for its {len(manifest.shards):,} shards; raise the limit (`ulimit -n`)"
                raise StorageError(refused) from error

    @property
    def count(self) -> int:
        """Documents in the store; rows are numbered from 0."""
        return int(self._starts[-1])

    @property
    def dim(self) -> int:
        """Length of the vectors."""
        return self.manifest.encoder.spec.dim

    @property
    def vectors_id(self) -> str:
        """Identity of the stored rows; see :attr:`Manifest.vectors_id`."""
        return self.manifest.vectors_id

    @cached_property
    def schema(self) -> pa.Schema:
        """Columns of the documents: id, text, metadata."""
        return self._shards[0].schema if self._shards else _NO_DOCUMENTS

    def iter_vectors(self, block_rows: int = 4_096) -> Iterator[Vectors]:
        """The vectors in row order, in blocks of at most ``block_rows``: each ``(m, dim) float32``.

        However many there are, no more than a shard is in memory at a time.
        """
        for shard in self._shards:
            yield from shard.vectors(block_rows)
            shard.release()

    def release(self) -> None:
        """Give back the memory of what was read so far, by whichever call; reading it again costs little."""
        for shard in self._shards:
            shard.release()

    def vectors(self) -> Vectors:
        """All vectors, ``(count, dim) float32``."""
        every = np.empty((self.count, self.dim), np.float32)
        start = 0
        for block in self.iter_vectors():
            every[start : start + len(block)] = block
            start += len(block)
        return every

    def take_vectors(self, rows: Rows) -> Vectors:
        """Vectors of the given rows, ``(len(rows), dim) float32``, in the order given.

        Raises:
            ValueError: a row is not in the store.
        """
        distinct, where = np.unique(rows, return_inverse=True)
        blocks = [shard.take_vectors(inside) for shard, inside in self._in_shards(distinct)]
        return np.concatenate(blocks)[where] if blocks else np.empty((0, self.dim), np.float32)

    def take(self, rows: Rows, columns: Sequence[str] | None = None) -> pa.Table:
        """Documents of the given rows, in the order given; a row may be asked for more than once.

        Args:
            rows: ``(n,) int64``.
            columns: which columns, in which order; None for all of :attr:`schema`.

        Raises:
            ValueError: a row is not in the store.
            UsageError: there is no such column.
        """
        names = self._check_columns(columns)
        distinct, where = np.unique(rows, return_inverse=True)
        tables = [
            shard.take(number, names, inside)
            for shard, rows_of_shard in self._in_shards(distinct)
            for number, inside in shard.in_groups(rows_of_shard)
        ]
        if not tables:
            return pa.schema([self.schema.field(name) for name in names]).empty_table()
        return pa.concat_tables(tables).combine_chunks().take(as_array(where))

    def iter_columns(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The given columns of all documents, in row order, some thousand rows at a time.

        Raises:
            UsageError: there is no such column.
        """
        names = self._check_columns(columns)
        return (batch for shard in self._shards for batch in shard.batches(names, 4_096))

    def matching(self, condition: pc.Expression) -> NDArray[np.bool_]:
        """Whether each document satisfies a condition, ``(count,) bool``; unknown is no.

        Only the columns that the condition names are read.

        Raises:
            pyarrow.ArrowException: it names a column that is not there, does not fit a column's type or values, or is
                neither true nor false.
        """
        parts = [shard.matching(condition, self.schema) for shard in self._shards]
        return np.concatenate([np.zeros(0, np.bool_), *parts])

    def rows_of(self, ids: Sequence[str]) -> Rows:
        """Row numbers of documents, ``(len(ids),) int64``, in the order given.

        Raises:
            UsageError: there is no document of that id; the nearest ids are named.
        """
        for each in ids:
            _check_text(each)
        wanted = list(dict.fromkeys(ids))
        value_set = pa.array(wanted, pa.string())
        found: dict[str, int] = {}
        start = 0
        for batch in self.iter_columns(["id"]):
            if len(found) == len(wanted):
                break
            places = pc.index_in(batch.column(0), value_set=value_set)
            for row in pc.indices_nonzero(pc.is_valid(places)).to_pylist():
                found.setdefault(wanted[places[row].as_py()], start + row)
            start += len(batch)
        for each in wanted:
            if each not in found:
                raise UsageError(f'no document has the id "{each[:_SHOWN]}" in {self.path}{self._nearest(each)}')
        return np.array([found[each] for each in ids], dtype=np.int64)

    def _nearest(self, unknown: str) -> str:
        """Ids that may have been meant, as the end of a sentence."""
        likely: list[str] = []
        for batch in self.iter_columns(["id"]):
            likely += _resembling(batch.column(0), unknown)
            if len(likely) > 2_000:
                break
        nearest = difflib.get_close_matches(unknown, likely, n=3)
        quoted = ", ".join(f'"{each}"' for each in nearest)
        return f"; the nearest are {quoted}" if nearest else ""

    def _in_shards(self, rows: Rows) -> Iterator[tuple[_Shard, Rows]]:
        """Ascending rows by shard, counted within it."""
        if len(rows) and not (rows[0] >= 0 and rows[-1] < self.count):
            raise ValueError(f"rows must lie in 0 … {self.count - 1}, got {rows[0]} … {rows[-1]}")
        shard_of = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(shard_of):
            yield self._shards[number], rows[shard_of == number] - self._starts[number]

    def _check_columns(self, columns: Sequence[str] | None) -> list[str]:
        names = self.schema.names
        for name in columns or ():
            if name not in names:
                raise UsageError(f'{self.path} has no column "{name}"; it has {", ".join(names)}')
        return list(names if columns is None else columns)


def _resembling(ids: pa.Array, unknown: str) -> list[str]:
    """The ids of about the same length that begin or end like the unknown one."""
    near_length = pc.less_equal(pc.abs(pc.subtract(pc.utf8_length(ids), len(unknown))), 3)
    begins = pc.starts_with(ids, unknown[:2], ignore_case=True)
    ends = pc.ends_with(ids, unknown[-2:], ignore_case=True)
    likely: list[str] = ids.filter(pc.and_(near_length, pc.or_(begins, ends))).to_pylist()
    return likely
