"""Where in a shard's file each vector lies, so that a row is read by its position instead of being decoded.

The vector column is neither compressed nor coded: a page is a header, the levels that say where lists begin, and then
the numbers, end to end. The headers of a shard are read once; a row's bytes then lie at a known offset of the mapped
file. Pages are cut after so many numbers, so that a row may begin in one and end in the next.

What is expected is exactly what :func:`llmindex.store.shard.write_shard` lays down. Whatever differs, be it another
writer's choice or damage, gives no pages, and the shard is decoded.
"""

import itertools
import mmap
import re
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from llmindex.records import Rows
from llmindex.store.shard import VECTOR, StoredVectors

# A header in Thrift's compact form, up to the levels: a first-version data page, its size before and after compression,
# the number of its values; these PLAIN, both kinds of levels RLE; perhaps statistics, of which there are none.
_NUMBER: Final = rb"\x15([\x80-\xff]{0,4}[\x00-\x7f])"
_HEADER: Final = re.compile(
    rb"\x15\x00" + _NUMBER + _NUMBER + rb"\x2c" + _NUMBER + rb"\x15\x00\x15\x06\x15\x06(?:\x1c\x00)?\x00\x00", re.DOTALL
)


@dataclass(frozen=True, slots=True)
class VectorPages:
    """The pages of a shard's vectors.

    Attributes:
        mapped: the bytes of the file.
        kind: of a stored number.
        dim: length of the vectors.
        firsts: how many numbers of the column come before each page, ``(pages + 1,)``: the last is that of all numbers.
        places: where in the file each page's numbers begin, ``(pages,)``.
    """

    mapped: mmap.mmap
    kind: np.dtype[Any]
    dim: int
    firsts: Rows
    places: Rows

    def take(self, rows: Rows) -> StoredVectors:
        """Vectors of rows that the shard has, ``(len(rows), dim)`` in the store's dtype, in the order given."""
        first = rows * self.dim
        taken = self._numbers(first, self.dim)
        cut = first + self.dim > self.firsts[np.searchsorted(self.firsts, first, side="right")]
        if cut.any():
            each = first[cut, None] + np.arange(self.dim)
            taken[cut] = self._numbers(each, 1)[..., 0]
        return taken

    def _numbers(self, first: Rows, length: int) -> StoredVectors:
        """So many numbers from each given one on, as if none of its page's followers began before the end."""
        page = np.searchsorted(self.firsts, first, side="right") - 1
        offsets = self.places[page] + (first - self.firsts[page]) * self.kind.itemsize
        anywhere = len(self.mapped) - length * self.kind.itemsize + 1
        windows: StoredVectors = np.ndarray((anywhere, length), self.kind, self.mapped, strides=(1, self.kind.itemsize))
        return windows[offsets]


def find_pages(mapped: mmap.mmap, metadata: pq.FileMetaData) -> VectorPages | None:
    """The pages of an open shard's vectors; None unless they are laid out as expected.

    Raises:
        pyarrow.ArrowException: the file's schema is damaged.
    """
    schema = metadata.schema.to_arrow_schema()
    column = schema.types[schema.get_field_index(VECTOR)]
    if not pa.types.is_fixed_size_list(column) or column.value_type not in (pa.float16(), pa.float32()):
        return None
    kind = np.dtype("<f2" if column.value_type == pa.float16() else "<f4")
    leaves = [number for number in range(len(metadata.schema)) if _is_vector(metadata.schema.column(number))]
    counts: list[int] = []
    places: list[int] = []
    for number, leaf in itertools.product(range(metadata.num_row_groups), leaves):
        group = metadata.row_group(number)
        before = len(counts)
        if not _read_headers(mapped, group.column(leaf), kind.itemsize, counts, places):
            return None
        if sum(counts[before:]) != group.num_rows * column.list_size:
            return None
    if not places or len(leaves) != 1:
        return None
    firsts = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
    return VectorPages(mapped, kind, column.list_size, firsts, np.array(places, np.int64))


def _is_vector(leaf: pq.ColumnSchema) -> bool:
    """Whether a column holds the vectors' numbers, with one level each for lists and for what may be missing."""
    levels: tuple[int, int] = leaf.max_repetition_level, leaf.max_definition_level
    path: str = leaf.path
    return path.startswith(f"{VECTOR}.") and levels == (1, 1)


def _read_headers(
    mapped: mmap.mmap, chunk: pq.ColumnChunkMetaData, width: int, counts: list[int], places: list[int]
) -> bool:
    """Add the count and the place of the numbers of each page of a chunk; false where one is not as expected."""
    if chunk.compression != "UNCOMPRESSED" or chunk.has_dictionary_page:
        return False
    start: int = chunk.data_page_offset
    end: int = start + chunk.total_compressed_size
    while 0 <= start < end <= len(mapped):
        header = _HEADER.match(mapped, start, end)
        if header is None or header[1] != header[2]:
            return False
        size, count = _number(header[1]), _number(header[3])
        start = header.end() + size
        numbers = start - count * width
        levels = header.end()
        for _ in range(2):
            levels += 4 + int.from_bytes(mapped[levels : levels + 4], "little")
        # As many numbers as values: none is missing, so that each lies where its position says.
        if count < 0 or levels != numbers:
            return False
        counts.append(count)
        places.append(numbers)
    return start == end


def _number(digits: bytes) -> int:
    """A Thrift integer: seven bits a byte, the lowest first, its sign in the lowest; -1 for all below 0."""
    value = sum((digit & 0x7F) << (7 * place) for place, digit in enumerate(digits))
    return -1 if value & 1 else value >> 1
