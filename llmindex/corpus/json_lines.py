"""JSON Lines: one object a line, blank lines aside.

The whole file is scanned once when the corpus is opened: a broken line must show before anything is encoded, and a
column's type is only known when its last value is.
"""

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from llmindex.corpus.column_types import NULL, STRING, array_of, common_type, json_type
from llmindex.corpus.lines import read_lines
from llmindex.corpus.source import REPORT_ROWS, Chunk, RowsRead, SourceFile, chunked, one_line
from llmindex.errors import CorpusError

_MAX_COLUMNS = 2000

# Half of a surrogate pair is legal in JSON's escapes, but no text can hold it.
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class JsonLinesSource:
    """One JSON Lines file."""

    tabular = True

    def __init__(self, file: SourceFile, compression: str | None, on_rows: RowsRead) -> None:
        """Scan the file.

        Raises:
            CorpusError: a line is not a JSON object, or the file cannot be read.
        """
        self.label = file.label
        self._file = file
        self._compression = compression
        self.rows = 0
        self.schema = self._scan(on_rows)

    def _scan(self, on_rows: RowsRead) -> pa.Schema:
        types: dict[str, pa.DataType] = {}
        for number, line in self._lines():
            self.rows += 1
            if self.rows % REPORT_ROWS == 0:
                on_rows(self.rows)
            for name, value in (self._parsed(number, line) or {}).items():
                known = types.get(name, NULL)
                types[name] = known if known is STRING else common_type(known, json_type(value))
            if len(types) > _MAX_COLUMNS:
                where = f"{self.label} line {number:,}"
                raise CorpusError(
                    f"{where}: more than {_MAX_COLUMNS:,} different keys; put them in an object of their own"
                )
        on_rows(self.rows)
        return pa.schema(list(types.items()))

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        return (item for item in read_lines(self._file, self._compression) if item[1].strip())

    def _parsed(self, number: int, line: bytes) -> dict[str, Any] | None:
        """The line's object, or None if it is not UTF-8."""
        try:
            text = line.decode().rstrip()
        except UnicodeDecodeError:
            return None
        where = f"{self.label} line {number:,}"
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            reason = f"{one_line(error.msg).removesuffix(' starting at')} at column {error.colno:,}"
            raise CorpusError(f"{where}: not valid JSON ({reason}); fix or remove the line") from None
        except (ValueError, RecursionError) as error:
            reason = one_line(str(error))
            raise CorpusError(f"{where}: JSON beyond what can be read ({reason}); fix or remove the line") from None
        if not isinstance(value, dict):
            raise CorpusError(f"{where}: not a JSON object; JSON Lines needs one object a line")
        return None if _SURROGATE.search(text) and not _encodable(value) else value

    def chunks(self, skip: int, wanted: pa.Schema) -> Iterator[Chunk]:
        """See :class:`~llmindex.corpus.source.Source`; skipped lines are not parsed."""
        lines = itertools.islice(self._lines(), skip, None)
        for gathered in chunked((self._parsed(*item), len(item[1])) for item in lines):
            unreadable = np.array([row is None for row in gathered])
            rows = [row or {} for row in gathered]
            columns = [array_of([row.get(field.name) for row in rows], field.type) for field in wanted]
            yield Chunk(pa.RecordBatch.from_arrays(columns, schema=wanted), unreadable)

    def where(self, row: int) -> str:
        """See :class:`~llmindex.corpus.source.Source`."""
        number, _ = next(itertools.islice(self._lines(), row, None))
        return f"{self.label} line {number:,}"

    def identities(self) -> list[dict[str, Any]]:
        """See :class:`~llmindex.corpus.source.Source`."""
        return [self._file.identity()]


def _encodable(value: dict[str, Any]) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
