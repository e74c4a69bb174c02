"""Searches among the documents that satisfy a condition: as good as a search of an index of these alone.

FAISS can be told to skip vectors, but it goes on looking where it would have looked anyway: the lists nearest to a
query may hold none that qualifies, and a graph leads through vectors that do not. So:

- Few qualify: their vectors are kept in memory, and each is compared with the query. Exact, and a millisecond.
- Inverted lists: the nearest lists are looked at until these hold enough qualifying vectors for the recall of an
  unfiltered search; where one document in ten qualifies that is six times the lists. If even lists far away hold
  too few, because what qualifies lies apart from the query, all lists are. Codes that an unfiltered search scores
  again are scored again here, too.
- A flat index passes over what does not qualify. Exact.
- A graph is searched with more effort where most qualify, and else as a flat index.
- Any other index: the store is read through. Exact, and slow.

benchmarks/filtered_search.py measures it.
"""

import math
import threading
from collections.abc import Iterator
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from llmindex.index.neighbors import Neighbors, compare
from llmindex.index.planner import Index, require_faiss
from llmindex.index.rescore import nearest_of
from llmindex.records import Rows, Vectors
from llmindex.store.reader import VectorStore
from llmindex.store.where import Where, identity_of, qualifying

AT_HAND: Final = 2**22
"""Few are so many that their vectors have no more numbers than this, which take 16 MB."""

# Below this share, what qualifies may lie where a graph search hardly gets to, whatever its effort.
_GRAPH_SHARE: Final = 0.25

# Where lists that come this much farther than a condition would need that has nothing to do with the query still hold
# too little, what qualifies lies apart from the query, and could be in any list.
_AS_FAR: Final = 4

# The neighbours of a thinner crowd lie farther apart, and fewer of it need to be compared with for the same recall: as
# many as an unfiltered search does, times this power of the share that qualifies (benchmarks/filtered_search.py).
_THINNED: Final = 0.25

# Queries whose lists are chosen together: 12 MB for 4,096 lists.
_AT_ONCE: Final = 256

_KEPT: Final = 4


def _searched_in_lists(faiss: Any) -> tuple[type, ...]:  # noqa: ANN401 - FAISS has no types
    """Inverted lists whose scanners honour a selector and lists that are given."""
    return faiss.IndexIVFFlat, faiss.IndexIVFScalarQuantizer, faiss.IndexIVFPQ, faiss.IndexIVFRaBitQ


class FilteredIndex:
    """An index of which only some vectors can be found. May be used from several threads.

    Args:
        index: the whole index.
        store: the vectors that it was built from.
        mask: which can be found, ``(count,) bool``.
        rescored: how many times as many candidates the stored vectors score again; 0 for none.

    Attributes:
        count: how many can be found.
    """

    def __init__(self, index: Index, store: VectorStore, mask: NDArray[np.bool_], rescored: int = 0) -> None:
        self.count = int(np.count_nonzero(mask))
        self._index = index
        self._store = store
        self._mask = mask
        self._rescored = rescored

    def search(self, queries: Vectors, k: int) -> Neighbors:
        """The ``k`` nearest of each query, by descending score; equal scores by ascending row.

        Args:
            queries: ``(q, dim) float32``.
            k: at least 1; more than :attr:`count` are not found.
        """
        faiss = require_faiss()
        queries = np.ascontiguousarray(queries)
        k = min(k, self.count)
        if self.count * self._store.dim <= AT_HAND:
            return compare(queries, [(self._rows, self._vectors)] if k else [], k)
        if isinstance(self._index, _searched_in_lists(faiss)):
            return self._in_lists(queries, k)
        if isinstance(self._index, faiss.IndexHNSWFlat):
            return self._in_graph(queries, k)
        if isinstance(self._index, faiss.IndexFlat):
            return self._in_flat(self._index, queries, k)
        return compare(queries, self._blocks(), k)

    @cached_property
    def _rows(self) -> Rows:
        return np.flatnonzero(self._mask)

    @cached_property
    def _vectors(self) -> Vectors:
        return self._store.take_vectors(self._rows)

    def _blocks(self) -> Iterator[tuple[Rows, Vectors]]:
        start = 0
        for block in self._store.iter_vectors():
            inside = np.flatnonzero(self._mask[start : start + len(block)])
            if len(inside):
                yield start + inside, block[inside]
            start += len(block)

    @cached_property
    def _selector(self) -> Any:  # noqa: ANN401 - FAISS has no types
        return require_faiss().IDSelectorBitmap(np.packbits(self._mask, bitorder="little"))

    def _in_flat(self, index: Index, queries: Vectors, k: int) -> Neighbors:
        parameters = require_faiss().SearchParameters(sel=self._selector)
        return Neighbors.ordered(*index.search(queries, k, params=parameters))

    def _in_graph(self, queries: Vectors, k: int) -> Neighbors:
        faiss = require_faiss()
        storage = faiss.downcast_index(self._index.storage)
        share = self.count / len(self._mask)
        if share < _GRAPH_SHARE:
            return self._in_flat(storage, queries, k)
        effort = math.ceil(max(k, self._index.hnsw.efSearch) / share)
        parameters = faiss.SearchParametersHNSW(sel=self._selector, efSearch=effort)
        scores, rows = self._index.search(queries, k, params=parameters)
        stuck = (rows < 0).any(axis=1)
        if stuck.any():
            exact = self._in_flat(storage, queries[stuck], k)
            scores[stuck], rows[stuck] = exact.scores, exact.rows
        return Neighbors.ordered(scores, rows)

    def _in_lists(self, queries: Vectors, k: int) -> Neighbors:
        wanted = min(max(1, self._rescored) * k, self.count)
        scores = np.empty((len(queries), wanted), np.float32)
        rows = np.empty((len(queries), wanted), np.int64)
        for start in range(0, len(queries), _AT_ONCE):
            some = slice(start, start + _AT_ONCE)
            self._look_near(queries[some], scores[some], rows[some])
        if self._rescored:
            scores, rows = nearest_of(self._store, queries, rows, k)
        return Neighbors.ordered(scores, rows)

    def _look_near(self, queries: Vectors, scores: NDArray[np.float32], rows: Rows) -> None:
        """Look into the nearest lists until these hold enough, or into all where the near ones hold too little."""
        faiss, index = require_faiss(), self._index
        share = self.count / index.ntotal
        enough = max(scores.shape[1], round(index.nprobe * index.ntotal / index.nlist * share**_THINNED))
        probes = min(index.nlist, _AS_FAR * math.ceil(enough * index.nlist / self.count))
        distances, lists = index.quantizer.search(queries, probes)
        counts = self._in_list[lists]
        held = np.cumsum(counts, axis=1)
        lists[(held - counts >= enough) | (counts == 0)] = -1
        arrays = [faiss.swig_ptr(array) for array in (lists, distances, scores, rows)]
        parameters = faiss.SearchParametersIVF(sel=self._selector, nprobe=probes)
        # The method that FAISS has for Python takes no parameters here.
        number, k = scores.shape
        index.search_preassigned_c(number, faiss.swig_ptr(queries), k, *arrays, False, parameters)
        apart = held[:, -1] < enough
        if probes < index.nlist and apart.any():
            parameters = faiss.SearchParametersIVF(sel=self._selector, nprobe=index.nlist)
            scores[apart], rows[apart] = index.search(queries[apart], k, params=parameters)

    @cached_property
    def _in_list(self) -> NDArray[np.int64]:
        """How many can be found of each list."""
        faiss, lists = require_faiss(), self._index.invlists
        sizes = [lists.list_size(number) for number in range(self._index.nlist)]
        rows = [faiss.rev_swig_ptr(lists.get_ids(number), size) for number, size in enumerate(sizes) if size]
        counts = np.zeros(len(sizes), np.int64)
        counts[np.flatnonzero(sizes)] = [np.count_nonzero(self._mask[each]) for each in rows]
        return counts


class Filters:
    """The filtered indexes of the conditions asked for last; they last as long as their store, which does not change.

    Args:
        index: the whole index.
        store: the documents and vectors.
        rescored: as for :class:`FilteredIndex`.
    """

    def __init__(self, index: Index, store: VectorStore, rescored: int) -> None:
        self._index = index
        self._store = store
        self._rescored = rescored
        self._known: dict[str | bytes, FilteredIndex] = {}  # the last used is last
        self._lock = threading.Lock()

    def of(self, where: Where) -> FilteredIndex:
        """The index of the documents that satisfy a condition; raises as :func:`qualifying`."""
        name = identity_of(where)
        with self._lock:
            known = self._known.pop(name, None)
            if known is not None:
                self._known[name] = known
                return known
        found = qualifying(self._store, where)
        filtered = FilteredIndex(self._index, self._store, found.mask, self._rescored)
        if found.lasting:
            with self._lock:
                self._known[name] = filtered
                while len(self._known) > _KEPT:
                    del self._known[next(iter(self._known))]
        return filtered
