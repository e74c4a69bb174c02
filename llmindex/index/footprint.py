"""What an index takes: bytes on disk, bytes in memory while it is built and while it is searched. Predictions only.

Memory is that of the whole process, but for a model. What a search has mapped counts as if all of it had been looked
at, which a hundred thousand queries come to; the system may take such pages back at any time.
"""

from dataclasses import dataclass
from typing import Final

SEARCHING: Final = 155_000_000
"""Bytes of a process that searches nothing yet: Python, NumPy, pyarrow, FAISS and an open store."""

BUILDING: Final = 215_000_000
"""The same after a pass over a store: pyarrow keeps some of what it read into."""

BUFFER: Final = 16 * 2**20
"""Bytes of codes that are gathered before they are written: each list then gets some at a time."""

BLOCK: Final = 4_096
"""Vectors that FAISS is given at a time."""

ROW: Final = 8
"""Bytes of a row number in an inverted list."""

_FLOAT: Final = 4
# FAISS compares so many vectors with so many others at a time, and keeps their products.
_PRODUCTS: Final = 50_000_000


@dataclass(frozen=True, slots=True)
class Footprint:
    """What an index takes, in bytes.

    Attributes:
        file: of the index on disk.
        build: peak of the process that builds it.
        search: of a process that searches it.
    """

    file: int
    build: int
    search: int

    @property
    def peak(self) -> int:
        """The most of its life."""
        return max(self.build, self.search)


def in_memory(count: int, vector_bytes: int, links: int = 0) -> Footprint:
    """The footprint of an index that FAISS fills in memory.

    Args:
        count: vectors in the index.
        vector_bytes: of a vector, or its code. Their array grows by doubling, and is there twice while it is moved.
        links: bytes of a vector's place in a graph, or 0.
    """
    moved = BLOCK
    while 2 * moved < count:
        moved *= 2
    file = count * (vector_bytes + links)
    build = max(count, 2 * moved if count > BLOCK else 0) * vector_bytes + count * links
    return Footprint(file, BUILDING + build, SEARCHING + file)


def in_lists(count: int, dim: int, nlist: int, code_bytes: int, train_vectors: int, residuals: int) -> Footprint:
    """The footprint of inverted lists, which are written to their places.

    Args:
        count: vectors in the index.
        dim: their length.
        nlist: inverted lists.
        code_bytes: of a vector's code.
        train_vectors: on how many it is trained.
        residuals: of how many of these FAISS keeps the difference from the centroid, to fit codes to.
    """
    centroids = nlist * dim * _FLOAT
    file = centroids + count * (code_bytes + ROW)
    train = (train_vectors + residuals) * dim * _FLOAT + 3 * centroids + _PRODUCTS
    add = count * _FLOAT + 4 * BUFFER + centroids
    return Footprint(file, BUILDING + max(train, add, file + _PRODUCTS), SEARCHING + file)
