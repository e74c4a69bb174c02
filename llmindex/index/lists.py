"""Inverted lists written to their places in the index file: memory does not grow with the number of vectors.

FAISS fills an index in memory and writes it as a whole. Here the index stays empty: one pass over the store assigns
each vector to a list, which says where in the file every list will lie; a second one has FAISS encode the vectors and
writes codes and rows to these places. The file has the very bytes that FAISS would have written.
"""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmindex.index.faiss_index import with_gpu
from llmindex.index.footprint import BUFFER, ROW
from llmindex.index.planner import Index, require_faiss
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors
from llmindex.store.reader import VectorStore

Assigned = NDArray[np.int32]
"""The inverted list of each row, ``(count,)``."""


def are_last(index: Index) -> bool:
    """Whether a trained, empty index's file ends with inverted lists of the plain kind, which can be put there."""
    lists = require_faiss().try_extract_index_ivf(index)
    return lists is not None and _serialised(index).endswith(_no_lists(lists))


def write_lists(store: VectorStore, index: Index, file: Path, report: ProgressCallback) -> None:
    """Write the file of a trained, empty index as if it held all vectors of a store.

    Args:
        store: where the vectors are.
        index: with inverted lists that :func:`are_last`; its vectors are counted afterwards, but not in it.
        file: is made.
        report: told of the stages "assign" and "add".

    Raises:
        OSError: the disk refused.
    """
    faiss = require_faiss()
    lists = faiss.downcast_index(faiss.extract_index_ivf(index))
    assigned = with_gpu(faiss.downcast_index(lists.quantizer), lambda near: _assign(store, index, near, report))
    sizes = np.bincount(assigned, minlength=lists.nlist)
    index.ntotal = lists.ntotal = store.count
    head = _serialised(index).removesuffix(_no_lists(lists)) + _lists_head(lists, sizes)
    with file.open("wb") as opened:
        opened.write(head)
        opened.flush()
        places = _Places(opened.fileno(), len(head), sizes, lists.code_size)
        start = 0
        for codes in _codes(store, index, lists, assigned):
            stop = start + len(codes)
            places.write(assigned[start:stop], codes, np.arange(start, stop))
            start = stop
            report(Progress("add", stop, store.count, "vectors"))


def _serialised(index: Index) -> bytes:
    return bytes(require_faiss().serialize_index(index).tobytes())


def _no_lists(lists: Index) -> bytes:
    """FAISS's form of inverted lists that hold nothing."""
    return struct.pack("<4sQQ4sQ", b"ilar", lists.nlist, lists.code_size, b"sprs", 0)


def _lists_head(lists: Index, sizes: NDArray[np.int64]) -> bytes:
    """FAISS's form of inverted lists, up to the first one's codes."""
    head = struct.pack("<4sQQ4sQ", b"ilar", lists.nlist, lists.code_size, b"full", lists.nlist)
    return head + sizes.astype("<u8").tobytes()


def _assign(store: VectorStore, index: Index, quantizer: Index, report: ProgressCallback) -> Assigned:
    assigned = np.empty(store.count, np.int32)
    start = 0
    for block in store.iter_vectors():
        stop = start + len(block)
        assigned[start:stop] = quantizer.assign(_transformed(index, block), 1)[:, 0]
        start = stop
        report(Progress("assign", start, store.count, "vectors"))
    return assigned


def _codes(store: VectorStore, index: Index, lists: Index, assigned: Assigned) -> Iterator[NDArray[np.uint8]]:
    """The vectors' codes, in row order, some :data:`BUFFER` bytes at a time: ``(m, code_size) uint8``."""
    faiss = require_faiss()
    rows = max(1, BUFFER // lists.code_size)
    gathered: list[NDArray[np.uint8]] = []
    start = 0
    for block in store.iter_vectors():
        vectors = _transformed(index, block)
        near = assigned[start : start + len(block)].astype(np.int64)
        codes = np.empty((len(block), lists.code_size), np.uint8)
        lists.encode_vectors(len(block), faiss.swig_ptr(vectors), faiss.swig_ptr(near), faiss.swig_ptr(codes))
        gathered.append(codes)
        start += len(block)
        if sum(map(len, gathered)) >= rows:
            yield np.concatenate(gathered)
            gathered.clear()
    if gathered:
        yield np.concatenate(gathered)


def _transformed(index: Index, block: Vectors) -> Vectors:
    """What reaches the inverted lists of a vector: itself, unless the index begins with, say, a PCA."""
    if isinstance(index, require_faiss().IndexPreTransform):
        for place in range(index.chain.size()):
            block = index.chain.at(place).apply(block)
    return np.ascontiguousarray(block)


class _Places:
    """Where in a file the next codes and rows of each list belong."""

    def __init__(self, descriptor: int, start: int, sizes: NDArray[np.int64], code_size: int) -> None:
        self._descriptor = descriptor
        self._code_size = code_size
        ends = start + np.cumsum(sizes * (code_size + ROW))
        self._rows = ends - sizes * ROW
        self._codes = self._rows - sizes * code_size

    def write(self, assigned: Assigned, codes: NDArray[np.uint8], rows: Rows) -> None:
        """Add vectors to the ends of their lists, in the order given."""
        order = np.argsort(assigned, kind="stable")
        codes, rows = codes[order], rows[order].astype("<i8")
        touched, firsts = np.unique(assigned[order], return_index=True)
        for number, first, stop in zip(touched, firsts, [*firsts[1:], len(rows)], strict=True):
            self._put(codes[first:stop], int(self._codes[number]))
            self._put(rows[first:stop], int(self._rows[number]))
            self._codes[number] += (stop - first) * self._code_size
            self._rows[number] += (stop - first) * ROW

    def _put(self, values: NDArray[Any], place: int) -> None:
        left = values.data.cast("B")
        while left:  # a disk that is almost full takes a part
            taken = os.pwrite(self._descriptor, left, place)
            left, place = left[taken:], place + taken
