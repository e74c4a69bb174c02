"""VectorWriter: the one process that may change an index folder.

Documents arrive in windows and are gathered into shards; whole windows are committed, a shard's file before the
manifest that names it. A shard in the making is committed from time to time under a name that says how far it
got, and replaced when it is full; its rows stay in memory, or are loaded back by a resumed build. So a build
that was killed and resumed ends with the same bytes as one that was not: where a shard ends depends on the
documents alone.
"""

import errno
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, cast

import numpy as np
import pyarrow as pa

from llmindex.errors import CorpusError, CorruptStore, ModelError, SpecMismatch, StaleIndex, StorageError, UsageError
from llmindex.folder import CLUSTERS, LOCK_NAME, is_given, is_index
from llmindex.records import Vectors
from llmindex.store.files import check_name, hash_file, is_temporary, lock, make_folder, make_own_folder, replacing
from llmindex.store.manifest import CorpusRecord, EncoderRecord, IndexRecord, Manifest, ShardRecord, VectorDtype
from llmindex.store.shard import (
    StoredVectors,
    conform,
    content_bytes,
    difference,
    read_schema,
    read_shard,
    storage_schema,
    write_shard,
)

SHARD_ROWS: Final = 16_384
"""A shard is closed at the end of the window that reaches this, ..."""

SHARD_BYTES: Final = 256 * 2**20
"""... or this much in ids, texts and metadata, whichever comes first."""

_FOLDERS: Final = ("vectors", "faiss")

# The length of a unit vector in float32 is off by some 1e-7; a model's own normalising by a little more.
_UNIT_TOLERANCE = 1e-3


@dataclass(slots=True)
class _Buffer:
    """The documents of the shard in the making."""

    tables: list[pa.Table] = field(default_factory=list)
    vectors: list[StoredVectors] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    def add(self, table: pa.Table, vectors: StoredVectors) -> None:
        self.tables.append(table)
        self.vectors.append(vectors)
        self.rows += len(table)
        self.bytes += content_bytes(table)

    def join(self) -> tuple[pa.Table, StoredVectors]:
        """All of it in one piece, which is then kept instead of the pieces."""
        table: pa.Table = pa.concat_tables(self.tables).combine_chunks()
        vectors = cast(StoredVectors, np.concatenate(self.vectors))
        self.tables, self.vectors = [table], [vectors]
        return table, vectors

    @property
    def full(self) -> bool:
        return self.rows >= SHARD_ROWS or self.bytes >= SHARD_BYTES


class VectorWriter:
    """Appends documents to an index folder; holds its lock until closed. Also a context manager.

    Closing commits nothing; a closed writer changes nothing any more, since the folder may be another's by then.
    What :meth:`append` refuses, raising any LlmindexError but StorageError, leaves the writer as it was. After any
    other error in :meth:`append`, :meth:`checkpoint` or :meth:`finish` close the writer: the folder is as of the last
    commit, and a new writer goes on from there.
    """

    def __init__(self, path: Path, manifest: Manifest, release: ExitStack) -> None:
        """Use :meth:`create` or :meth:`open`."""
        self.path = path
        self._manifest = manifest
        self._release = release
        self._corpus = manifest.corpus
        self._encoder = manifest.encoder
        self._schema: pa.Schema | None = None
        self._buffer = _Buffer()
        self._closed = False

    @classmethod
    def create(
        cls,
        path: str | Path,
        encoder: EncoderRecord,
        corpus: CorpusRecord,
        vector_dtype: VectorDtype = "float16",
        *,
        overwrite: bool = False,
    ) -> "VectorWriter":
        """Start an index, in a folder that is new or empty.

        Args:
            path: the index folder; folders above it are made, too.
            encoder: what makes the vectors.
            corpus: identity of the sources; its counts are those before the first document, usually none.
            vector_dtype: how vectors are stored.
            overwrite: whether to throw away an index that is there.

        Raises:
            UsageError: there is something else in the folder, or an index and overwrite is false.
            IndexLocked: another process is writing to it.
            StorageError: the folder cannot be written to.
        """
        folder = Path(path)
        check_name(folder)
        manifest = Manifest.new(encoder, corpus, vector_dtype)
        check_replaceable(folder, overwrite)
        with ExitStack() as stack:
            make_folder(folder)
            stack.enter_context(lock(folder))
            check_replaceable(folder, overwrite)  # another process may have been faster
            _make_folders(folder)
            # From here on the old files are leftovers, and readers that have them open keep them.
            manifest.save(folder)
            shutil.rmtree(folder / CLUSTERS, ignore_errors=True)
            writer = cls(folder, Manifest.load(folder), stack.pop_all())
        writer._prepare()
        return writer

    @classmethod
    def open(cls, path: str | Path) -> "VectorWriter":
        """Go on with an index.

        Raises:
            IndexNotFound: there is none.
            ManifestError: its manifest is damaged or of a newer format.
            CorruptStore: a file that the manifest names is missing or has changed.
            IndexLocked: another process is writing to it.
            StorageError: the folder cannot be written to.
        """
        folder = Path(path)
        Manifest.load(folder)
        with ExitStack() as stack:
            stack.enter_context(lock(folder))
            _make_folders(folder)
            writer = cls(folder, Manifest.load(folder), stack.pop_all())
        writer._prepare()
        return writer

    def _prepare(self) -> None:
        try:
            self._remove_leftovers(*_FOLDERS, "")
            self._load_back()
        except BaseException:
            self.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """What is committed."""
        return self._manifest

    @property
    def count(self) -> int:
        """Documents appended in all, committed or not."""
        return sum(shard.rows for shard in self._closed_shards()) + self._buffer.rows

    def append(
        self,
        table: pa.Table,
        vectors: Vectors,
        *,
        source_rows: int,
        bad_rows: Mapping[str, int],
        truncated: int,
        tokens: int,
    ) -> None:
        """Take one window of documents; commits when it fills a shard.

        Args:
            table: id, text and metadata; may have no rows, where only bad ones were left to count.
            vectors: ``(len(table), dim) float32``.
            source_rows: rows of the sources consumed at the end of this window, from their beginning.
            bad_rows: rows left out up to there, by kind.
            truncated: documents of this window whose text was cut.
            tokens: model tokens of this window.

        Raises:
            ValueError: the vectors have the wrong shape or dtype.
            ModelError: a vector is not finite or not of unit length.
            UsageError: a vector is beyond the range of float16.
            CorpusError: the columns differ from those of the documents before, or cannot be stored.
            StorageError: the disk refused; everything up to the last commit is safe.
        """
        documents = self._conform(table)
        _check_vectors(documents, vectors, self._encoder.spec.dim, self._encoder.spec.normalize)
        self._buffer.add(documents, self._store_dtype(documents, vectors))
        self._schema = documents.schema
        self._corpus = replace(
            self._corpus,
            source_rows=source_rows,
            bad_rows=dict(bad_rows),
            truncated=self._corpus.truncated + truncated,
            tokens=self._corpus.tokens + tokens,
        )
        if self._buffer.full:
            self._commit(self._write_buffer(partial=False))
            self._buffer = _Buffer()

    def checkpoint(self) -> None:
        """Commit every document appended so far.

        Raises:
            StorageError: the disk refused; everything up to the last commit is safe.
        """
        self._commit(self._write_buffer(partial=True))

    def finish(self) -> None:
        """Commit every document, and that the sources have been read to their end.

        Raises:
            StorageError: the disk refused; everything up to the last commit is safe.
        """
        shards = self._write_buffer(partial=False)
        self._corpus = replace(self._corpus, complete=True)
        self._commit(shards)
        self._buffer = _Buffer()

    def set_encoder(self, record: EncoderRecord) -> None:
        """Change what is noted of the encoder; committed with the next documents.

        Raises:
            SpecMismatch: it makes other vectors.
        """
        mine, other = self._encoder.spec.fingerprint(), record.spec.fingerprint()
        if mine != other:
            raise SpecMismatch(f"{self.path} was built with encoder {mine}, this one is {other}")
        self._encoder = record

    def set_index(self, record: IndexRecord | None) -> None:
        """Commit the FAISS index, a file that is in the folder already, and remove the one before.

        Raises:
            StaleIndex: it was built from other vectors than those committed.
            StorageError: the disk refused; the index before is still the one that counts.
        """
        if record is not None and record.built_from != self._manifest.vectors_id:
            raise StaleIndex(f"{self.path / record.file} was built from other vectors than the store's; build it again")
        self._save(replace(self._manifest, index=record))
        self._remove_leftovers("faiss")

    def close(self) -> None:
        """Give the lock back; what is not committed is lost."""
        self._closed = True
        self._release.close()

    def __enter__(self) -> "VectorWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _conform(self, table: pa.Table) -> pa.Table:
        schema = storage_schema(table.schema)
        for name in ("id", "text"):
            if name not in table.schema.names or table.column(name).null_count:
                raise ValueError(f'documents need a column "{name}" without nulls')
        if self._schema is not None and not schema.equals(self._schema):
            raise CorpusError(f"{difference(self._schema, schema)}; documents of one index have the same columns")
        return conform(table, schema)

    def _store_dtype(self, documents: pa.Table, vectors: Vectors) -> StoredVectors:
        if self._manifest.vector_dtype == "float32":
            return np.array(vectors, dtype=np.float32, order="C")
        with np.errstate(over="ignore"):
            stored = vectors.astype(np.float16)
        good = np.isfinite(stored).all(axis=1)
        if not good.all():
            who = documents.column("id")[int(np.argmin(good))].as_py()
            raise UsageError(
                f'the vector of document "{who}" is beyond the range of float16; use --vector-dtype float32'
            )
        return stored

    def _closed_shards(self) -> tuple[ShardRecord, ...]:
        return tuple(shard for shard in self._manifest.shards if not shard.partial)

    def _write_buffer(self, *, partial: bool) -> tuple[ShardRecord, ...]:
        """Write the shard in the making; all shards that there are then."""
        closed, rows = self._closed_shards(), self._buffer.rows
        if not rows:
            return closed
        name = f"vectors/part-{len(closed):05d}{f'.partial-{rows:05d}' if partial else ''}.parquet"
        committed = self._manifest.shards[-1:]
        if committed and committed[0].file == name:
            return self._manifest.shards
        target = self.path / name
        table, vectors = self._buffer.join()
        with self._on_disk(), replacing(target) as temporary:
            write_shard(temporary, table, vectors)
        return (*closed, ShardRecord(name, rows, target.stat().st_size, hash_file(target)))

    def _commit(self, shards: tuple[ShardRecord, ...]) -> None:
        self._save(replace(self._manifest, shards=shards, corpus=self._corpus, encoder=self._encoder))
        self._remove_leftovers("vectors")

    def _save(self, manifest: Manifest) -> None:
        self._check_open()
        if manifest != self._manifest:
            with self._on_disk():
                manifest.save(self.path)
            self._manifest = manifest

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Write something; a refusal is told together with what is safe."""
        self._check_open()
        try:
            yield
        except StorageError as error:
            full = isinstance(error.__cause__, OSError) and error.__cause__.errno in (errno.ENOSPC, errno.EDQUOT)
            remedy = "free space" if full else "make the folder writable"
            safe = f"{self._manifest.count:,} documents are committed and safe"
            raise StorageError(f"{error}; {safe}; {remedy} and run the same command again") from error

    def _check_open(self) -> None:
        if self._closed:
            raise ValueError(f"the writer of {self.path} is closed")

    def _remove_leftovers(self, *folders: str) -> None:
        """Remove files of our own making that the manifest does not name."""
        index = self._manifest.index
        named = {shard.file for shard in self._manifest.shards} | ({index.file} if index else set())
        for name in folders:
            for path in (self.path / name).iterdir():
                file = f"{name}/{path.name}"
                unnamed = is_given(file) and file not in named
                if not path.is_dir() and (unnamed or is_temporary(path)):
                    path.unlink(missing_ok=True)

    def _load_back(self) -> None:
        """Check that the shards are there; take up the columns, and the shard in the making."""
        for shard in self._manifest.shards:
            path = self.path / shard.file
            size = path.stat().st_size if path.is_file() else None
            if size != shard.bytes:
                fault = "is missing" if size is None else f"has {size:,} bytes instead of {shard.bytes:,}"
                raise CorruptStore(f"{path} {fault}; restore it, or build the index again with --overwrite")
        for shard in self._manifest.shards[-1:]:
            path = self.path / shard.file
            if hash_file(path) != shard.sha256:
                raise CorruptStore(f"{path} has changed; restore it, or build the index again with --overwrite")
            self._schema = read_schema(path)
            if shard.partial:
                self._buffer.add(*read_shard(path))


def _make_folders(folder: Path) -> None:
    for name in _FOLDERS:
        make_own_folder(folder / name)


def _check_vectors(documents: pa.Table, vectors: Vectors, dim: int, unit: bool) -> None:
    """Let nothing into the store that search could not use."""
    if vectors.shape != (len(documents), dim) or vectors.dtype != np.float32:
        raise ValueError(f"expected ({len(documents)}, {dim}) float32 vectors, got {vectors.shape} {vectors.dtype}")
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors))
    good = np.isfinite(lengths) if not unit else np.abs(lengths - 1) <= _UNIT_TOLERANCE
    if not good.all():
        row = int(np.argmin(good))
        fault = f"a vector of length {lengths[row]:.4g}" if np.isfinite(lengths[row]) else "a vector that is not finite"
        who = documents.column("id")[row].as_py()
        raise ModelError(f'the model gave document "{who}" {fault}; try --dtype float32')


def check_replaceable(folder: Path, overwrite: bool) -> None:
    """Start only where nothing gets lost that the user has not given up."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; choose another path for the index")
    if is_index(folder):
        if not overwrite:
            raise UsageError(f"{folder} is an index already; --overwrite starts afresh")
    elif folder.is_dir():
        for path in folder.iterdir():
            if path.name != LOCK_NAME and not is_temporary(path) and not _is_begun(path):
                raise UsageError(f"{folder} is neither empty nor an index (it holds {path.name}); choose another path")


def _is_begun(path: Path) -> bool:
    """Whether it is a folder of an index that was stopped before it had a manifest, as by a disk that is full."""
    made = path.name in _FOLDERS and (path.parent / LOCK_NAME).is_file()
    return made and path.is_dir() and not any(path.iterdir())
