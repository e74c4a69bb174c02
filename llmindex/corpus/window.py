"""Windows: some consecutive documents in one table, and the position from which reading can go on."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

WINDOW_TEXT_BYTES = 32 << 20
"""A window ends with the document that brings its texts to this size, however few it has by then."""

BadRows = Mapping[str, int]
"""How many rows were left out, by kind (see ``BAD_ROW_KINDS``); kinds that did not occur are absent."""


@dataclass(frozen=True, slots=True)
class Position:
    """Where a window ended, and where a later read can go on.

    Attributes:
        source_rows: rows of the sources up to here, bad ones included.
        bad_rows: those of them that were left out.
    """

    source_rows: int = 0
    bad_rows: BadRows = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Window:
    """Some consecutive documents.

    Attributes:
        table: the documents, in the corpus's schema.
        position: the row of the next document, or the end of the corpus.
    """

    table: pa.Table
    position: Position


class GrowingWindow:
    """Documents that are gathered until there are enough."""

    def __init__(self, max_rows: int, schema: pa.Schema) -> None:
        self.rows = 0
        self._text_bytes = 0
        self._max_rows = max_rows
        self._schema = schema
        self._batches: list[pa.RecordBatch] = []

    @property
    def is_full(self) -> bool:
        """Whether the next document belongs to the next window."""
        return self.rows >= self._max_rows or self._text_bytes >= WINDOW_TEXT_BYTES

    def add(self, batch: pa.RecordBatch) -> int:
        """Take as many rows from the front of the batch as still belong in, and return their number."""
        sizes = np.cumsum(pc.binary_length(batch.column("text")).to_numpy(), dtype=np.int64)
        by_size = int(np.searchsorted(sizes, WINDOW_TEXT_BYTES - self._text_bytes)) + 1
        taken = min(by_size, self._max_rows - self.rows, batch.num_rows)
        self._batches.append(batch.slice(0, taken))
        self.rows += taken
        self._text_bytes += int(sizes[taken - 1])
        return int(taken)

    def finished(self, position: Position) -> Window:
        """The documents, laid out so that nothing shows in what chunks they were read."""
        return Window(pa.Table.from_batches(self._batches, self._schema).combine_chunks(), position)
