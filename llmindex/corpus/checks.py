"""Which rows become documents, and why the others do not."""

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmindex.corpus.column_types import STRING
from llmindex.corpus.columns import ColumnPlan
from llmindex.corpus.source import Chunk
from llmindex.errors import StorageError

BAD_ROW_KINDS = {
    "not_utf8": "not UTF-8",
    "null": "no text",
    "empty": "text is empty",
    "null_id": "no id",
    "duplicate_id": "an earlier row has the same id",
}
"""What can be wrong with a row, and how to say so; of several, the first counts."""

_GOOD = ""
_KIND_DTYPE = np.dtype(f"U{max(map(len, BAD_ROW_KINDS))}")

IsNew = Callable[[str], bool]
"""Tells whether an id comes for the first time, and remembers it."""


@dataclass(frozen=True, slots=True)
class CheckedRows:
    """Consecutive rows, told apart.

    Attributes:
        good: the documents among them, in the corpus's schema.
        good_rows: ``(documents,) int64``, their source rows.
        bad_rows: ``(bad,) int64``, the others.
        bad_kinds: ``(bad,) str``, what is wrong with each.
        bad_ids: the id of each where it has one.
    """

    good: pa.RecordBatch
    good_rows: NDArray[np.int64]
    bad_rows: NDArray[np.int64]
    bad_kinds: NDArray[np.str_]
    bad_ids: tuple[str | None, ...]


def check_rows(chunk: Chunk, first: int, plan: ColumnPlan, schema: pa.Schema, is_new: IsNew | None) -> CheckedRows:
    """Make documents of a chunk's rows and set the bad ones aside.

    Args:
        chunk: the rows.
        first: the corpus row of the first of them.
        plan: what their columns are for.
        schema: the corpus's.
        is_new: tells repeated ids; None where ids cannot repeat.
    """
    rows = np.arange(first, first + len(chunk.unreadable), dtype=np.int64)
    texts = _joined([chunk.columns.column(name) for name in plan.text], len(rows))
    ids = chunk.columns.column(plan.id) if plan.id is not None else pa.array(rows).cast(STRING)

    kinds = np.full(len(rows), _GOOD, _KIND_DTYPE)
    for kind, wrong in (
        ("not_utf8", chunk.unreadable),
        ("null", _mask(pc.is_null(texts))),
        ("empty", _mask(_is_blank(texts))),
        ("null_id", _mask(pc.fill_null(pc.equal(ids, ""), True))),
    ):
        kinds[wrong & (kinds == _GOOD)] = kind
    if is_new is not None:
        for row in np.flatnonzero(kinds == _GOOD):
            if not is_new(ids[row].as_py()):
                kinds[row] = "duplicate_id"

    good = kinds == _GOOD
    metadata = [
        pa.nulls(len(rows), field.type) if name is None else chunk.columns.column(name)
        for name, field in zip(plan.metadata, list(schema)[2:], strict=True)
    ]
    batch = pa.RecordBatch.from_arrays([ids, texts, *metadata], schema=schema)
    bad_ids = ids.filter(pa.array(~good)).to_pylist() if plan.id is not None else [None] * int(np.sum(~good))
    return CheckedRows(batch.filter(pa.array(good)), rows[good], rows[~good], kinds[~good], tuple(bad_ids))


def _joined(parts: list[pa.Array], rows: int) -> pa.Array:
    """The texts of several columns with a line end between them; null and blank parts leave no trace."""
    if len(parts) == 1:
        return parts[0]
    joined = pa.nulls(rows, STRING)
    for part in parts:
        filled = pc.if_else(_is_blank(part), pa.scalar(None, STRING), part)
        # Null if either is: then the one that is not, if any, is the text so far.
        joined = pc.coalesce(pc.binary_join_element_wise(joined, filled, "\n"), joined, filled)
    return pc.coalesce(joined, *parts)


def _is_blank(texts: pa.Array) -> pa.Array:
    return pc.fill_null(pc.equal(pc.utf8_trim_whitespace(texts), ""), False)


def _mask(array: pa.Array) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = array.to_numpy(zero_copy_only=False)
    return mask


@contextmanager
def seen_ids(known: Iterable[str]) -> Iterator[IsNew]:
    """Remember ids exactly, in memory that does not grow with their number.

    Args:
        known: ids that were accepted before.

    Raises:
        StorageError: the temporary file cannot grow.
    """
    try:
        # An unnamed database is a temporary file that goes away with its connection, however the process ends.
        # A build iterates in its reader thread, but may close the iterator from another.
        database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        try:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA cache_size = -16384")  # KiB
            database.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
            database.execute("BEGIN")
            insert = "INSERT OR IGNORE INTO ids VALUES (?)"
            database.executemany(insert, ((id_.encode(),) for id_ in known))
            yield lambda id_: database.execute(insert, (id_.encode(),)).rowcount == 1
        finally:
            database.close()
    except sqlite3.Error as error:
        raise StorageError(
            f"cannot keep track of ids in a temporary file ({error}); set TMPDIR to a folder with room"
        ) from error
