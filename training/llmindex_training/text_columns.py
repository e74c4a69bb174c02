"""Parquet files with columns of text, as training and evaluation take them: every fault is told with its place."""

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmindex.corpus.column_types import invalid_utf8, is_text
from llmindex.corpus.formats import ending_of
from llmindex.errors import CorpusError, missing, unreadable
from llmindex.store.files import check_name


def open_file(path: Path) -> pq.ParquetFile:
    """Open a Parquet file.

    Raises:
        CorpusError: it is missing, a folder or a pipe, or not Parquet.
        UsageError: its name is not UTF-8.
    """
    if not path.exists():
        raise CorpusError(missing(path))
    if not path.is_file():
        raise CorpusError(f"{path} is {'a folder' if path.is_dir() else 'no regular file'}; name a Parquet file")
    check_name(path)
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise CorpusError(unreadable(path, error)) from error
        ending = ending_of(path.name)
        if ending is not None and ending.format != "parquet":
            raise CorpusError(f"{path} is not a Parquet file, which is what is read here; convert it first") from error
        raise CorpusError(f"{path} cannot be read as Parquet: {str(error).splitlines()[0]}") from error


def read(path: Path) -> pa.Table:
    """All of a Parquet file.

    Raises:
        CorpusError: as :func:`open_file`, or its data are damaged.
    """
    with open_file(path) as file:
        try:
            return file.read()
        except (pa.ArrowException, OSError) as error:
            raise CorpusError(f"{path} is damaged: {str(error).splitlines()[0]}") from error


def check_names(path: Path, names: Sequence[str], wanted: Sequence[str], hint: str = "") -> None:
    """Refuse a file that lacks a wanted column, or has two of its name.

    Raises:
        CorpusError: naming the file, the column, and the one that was perhaps meant.
    """
    for name in wanted:
        if name not in names:
            near = get_close_matches(name, names, n=1, cutoff=0.5)
            meant = f'; did you mean "{near[0]}"?' if near else ""
            columns = ", ".join(names[:20])
            raise CorpusError(f'{path} has no column "{name}"{meant} (columns: {columns}){hint}')
        if names.count(name) > 1:
            raise CorpusError(f'{path} has the column "{name}" more than once; keep one of them')


def strings(path: Path, name: str, column: pa.ChunkedArray, row: int = 0) -> pa.ChunkedArray:
    """A column of text in any of Arrow's layouts as plain strings, each valid UTF-8; nulls stay.

    Args:
        path: its file, for messages.
        name: its name.
        column: its values.
        row: number of its first row.

    Raises:
        CorpusError: it does not hold text, or a row is not UTF-8.
    """
    if not is_text(column.type):
        raise CorpusError(f'{path}: the column "{name}" holds {column.type}, not text')
    for chunk in column.chunks:
        if (bad := np.flatnonzero(invalid_utf8(chunk))).size:
            raise CorpusError(
                f'{path}, row {row + int(bad[0]):,}: "{name}" is not UTF-8; remove or mend such rows first'
            )
        row += len(chunk)
    return column.cast(pa.string())
