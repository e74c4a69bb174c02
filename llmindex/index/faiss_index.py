"""The nearest-neighbour index: built from the store, saved beside it, mapped into memory to search.

A vector's number in FAISS is its row in the store. The index knows which vectors it was built from and is refused
when the store has others. FAISS does not survive hostile files: an index folder is trusted input. What is checked
on loading is that the file is there, has the size it was recorded with, and holds as many vectors as the store;
`llmindex verify` compares its hash.
"""

import logging
import re
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from llmindex.errors import StaleIndex, UsageError, reindex_command
from llmindex.index.filtered import FilteredIndex, Filters
from llmindex.index.neighbors import Neighbors
from llmindex.index.planner import Index, faiss_reason, require_faiss
from llmindex.index.rescore import nearest_of
from llmindex.records import Rows, Vectors
from llmindex.store.manifest import IndexRecord, Manifest
from llmindex.store.reader import VectorStore

logger = logging.getLogger(__name__)

_PARAMETERS = re.compile(r"((?:nprobe|efSearch)=[1-9]\d{0,8})?(?:,rescore=([1-9]\d?))?")

# FAISS on a GPU keeps its candidates in shared memory, of which there is so much.
_GPU_MOST: Final = 2_048

T = TypeVar("T")


class VectorIndex:
    """An index that is ready to search. May be used from several threads.

    Attributes:
        count: how many vectors it holds.
    """

    def __init__(self, index: Index, store: VectorStore, rescored: int = 0) -> None:
        """Use :meth:`load`.

        Args:
            index: the FAISS index.
            store: the vectors that it was built from.
            rescored: how many times as many candidates the stored vectors score again; 0 for none.
        """
        faiss = require_faiss()
        self.count = int(index.ntotal)
        self._index = index
        self._store = store
        self._rescored = rescored
        self._lists = faiss.try_extract_index_ivf(index)
        too_wide = self._lists is not None and self._lists.nprobe > _GPU_MOST
        self._gpu = None if too_wide else _on_gpu(faiss, index)

    @classmethod
    def load(cls, store: VectorStore) -> "VectorIndex":
        """Open the index of a store: mapped into memory where FAISS can, on the GPU where there is one.

        Raises:
            StaleIndex: there is none, or it is not of these vectors, or its file is missing or has another size.
            MissingPackage: FAISS is not installed.
        """
        # A writer may have replaced the index since the store was opened, and removed the file.
        for manifest in (store.manifest, Manifest.load(store.path)):
            record = manifest.index
            fault = fault_of(store, record)
            if record is not None and not fault:
                return cls(_read(store, record), store, rescored_by(record.parameters))
        raise _stale(store, fault)

    def search(self, queries: Vectors, k: int) -> Neighbors:
        """The ``k`` nearest of each query, by descending score; equal scores by ascending row.

        Where inverted lists hold fewer than ``k`` vectors in those that the index is tuned to look at, more lists
        are looked at, if need be all. A query that a graph leads to fewer, as one of clustered vectors may, is compared
        with every vector.

        Args:
            queries: ``(q, dim) float32``.
            k: at least 1; more than there are vectors are not found.

        Raises:
            ValueError: the queries have another shape or dtype.
            UsageError: k is below 1.
        """
        if queries.ndim != 2 or queries.shape[1] != self._index.d or queries.dtype != np.float32:
            raise ValueError(f"expected (q, {self._index.d}) float32 queries, got {queries.shape} {queries.dtype}")
        if k < 1:
            raise UsageError(f"k must be at least 1, got {k}")
        k = min(k, self._index.ntotal)
        wanted = min(max(1, self._rescored) * k, self._index.ntotal)
        index = self._gpu if self._gpu is not None and wanted <= _GPU_MOST else self._index
        scores, rows = index.search(np.ascontiguousarray(queries), wanted, params=_effort_for(index, wanted))
        if self._lists is None:
            rows[_repeats(rows)] = -1
        if (rows[:, :k] < 0).any():
            look_further = self._widen if self._can_widen else self._look_everywhere
            look_further(queries, scores, rows)
        if self._rescored:
            scores, rows = nearest_of(self._store, queries, rows, k)
        return Neighbors.ordered(scores, rows)

    def filters(self) -> Filters:
        """For searches among some of its vectors."""
        return Filters(self._index, self._store, self._rescored)

    @cached_property
    def _can_widen(self) -> bool:
        """Whether there are inverted lists of which a search can be told how many to look at."""
        faiss = require_faiss()
        deaf = faiss.IndexIVFAdditiveQuantizerFastScan
        return self._lists is not None and not isinstance(faiss.downcast_index(self._lists), deaf)

    @cached_property
    def _among_all(self) -> FilteredIndex:
        """The search that does not rely on a graph's holding together."""
        return FilteredIndex(self._index, self._store, np.ones(self.count, np.bool_))

    def _look_everywhere(self, queries: Vectors, scores: NDArray[np.float32], rows: Rows) -> None:
        """Replace, in place, what was found of the queries that lack some by what is found among all vectors."""
        lacking = (rows < 0).any(axis=1)
        found = self._among_all.search(queries[lacking], rows.shape[1])
        scores[lacking], rows[lacking] = found.scores, found.rows

    def _widen(self, queries: Vectors, scores: NDArray[np.float32], rows: Rows) -> None:
        """Fill up, in place, what was found of the queries that lack some: look at ever more lists."""
        probes, wanted = self._lists.nprobe, rows.shape[1]
        while (lacking := (rows < 0).any(axis=1)).any() and probes < self._lists.nlist:
            probes = min(4 * probes, self._lists.nlist)
            # Not by changing the index, in which another thread may be searching.
            parameters = _effort_for(self._index, wanted, probes)
            scores[lacking], rows[lacking] = self._index.search(queries[lacking], wanted, params=parameters)


def _repeats(rows: Rows) -> Rows:
    """Which queries found a row twice, as in graphs of FAISS's NSG that hold copies."""
    ascending = np.sort(rows, axis=1)
    again = (ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)
    return np.flatnonzero(again.any(axis=1))


def _effort_for(index: Index, k: int, probes: int | None = None) -> Any | None:  # noqa: ANN401 - FAISS has no types
    """At least as many candidates as hits for a graph, on which FAISS gives up early with fewer; else as tuned.

    Args:
        index: to be searched.
        k: hits.
        probes: how many inverted lists to look at; None for as many as the index is tuned to.
    """
    faiss = require_faiss()
    if isinstance(index, faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=max(k, index.hnsw.efSearch))
    if isinstance(index, faiss.IndexIVF):
        return probes and faiss.SearchParametersIVF(nprobe=probes)
    if isinstance(index, faiss.IndexPreTransform):
        inner = _effort_for(faiss.downcast_index(index.index), k, probes)
        return inner and faiss.SearchParametersPreTransform(index_params=inner)
    if isinstance(index, faiss.IndexRefine):
        inner = _effort_for(faiss.downcast_index(index.base_index), round(k * index.k_factor), probes)
        return inner and faiss.IndexRefineSearchParameters(k_factor=index.k_factor, base_index_params=inner)
    return None


def fault_of(store: VectorStore, record: IndexRecord | None) -> str:
    """Why an index cannot be searched, as the beginning of a sentence; empty if it can."""
    if record is None:
        return f"{store.path} has no search index yet"
    path = store.path / record.file
    if record.built_from != store.vectors_id:
        return f"the search index of {store.path} was built from other vectors than those stored"
    try:
        size = path.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return f"{path} is missing"
    if size != record.bytes:
        return f"{path} has {size:,} bytes instead of {record.bytes:,}"
    return "" if _PARAMETERS.fullmatch(record.parameters) else f'{path} has search parameters "{record.parameters}"'


def rescored_by(parameters: str) -> int:
    """How many times as many candidates the parameters of a record have scored again."""
    found = _PARAMETERS.fullmatch(parameters)
    return int(found[2] or 0) if found else 0


def _stale(store: VectorStore, fault: str) -> StaleIndex:
    remedy = f"run {reindex_command(store.path)}"
    if not store.manifest.corpus.complete:
        remedy = f"its build is unfinished: run the same build again, or {remedy} for the part that is stored"
    return StaleIndex(f"{fault}; {remedy}")


def _read(store: VectorStore, record: IndexRecord) -> Index:
    """Read an index file, mapped if possible, and set the search effort it was tuned to."""
    path = store.path / record.file
    try:
        index = map_index(path)
        effort = record.parameters.partition(",")[0]
        require_faiss().ParameterSpace().set_index_parameters(index, effort)
    except (RuntimeError, MemoryError) as error:
        raise _stale(store, f"{path} cannot be read ({faiss_reason(error)})") from error
    if (index.d, index.ntotal) != (store.dim, store.count):
        found = f"{index.ntotal:,} vectors of length {index.d}"
        raise _stale(store, f"{path} holds {found} instead of {store.count:,} of length {store.dim}")
    faiss = require_faiss()
    if index.metric_type != faiss.METRIC_INNER_PRODUCT or isinstance(index, faiss.IndexIDMap):
        raise _stale(store, f"{path} has numbers or a metric of its own, as none has that was built here")
    return index


def map_index(path: Path) -> Index:
    """Open an index file: mapped into memory where FAISS can, else read.

    Raises:
        RuntimeError: it is no index file.
        MemoryError: it cannot be mapped, and is too large to be read.
    """
    faiss = require_faiss()
    try:
        # Not IO_FLAG_MMAP, which maps inverted lists, too: that starts 32 threads for each search.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError:
        return faiss.read_index(str(path))


def with_gpu(index: Index, work: Callable[[Index], T]) -> T:
    """Do some work with a copy of an index on the GPU; with itself where there is no GPU, or it gives up."""
    gpu = _on_gpu(require_faiss(), index)
    if gpu is not None:
        try:
            return work(gpu)
        except (RuntimeError, MemoryError) as error:
            logger.warning("the GPU could not build the index (%s); the CPU does", faiss_reason(error))
    return work(index)


def _on_gpu(faiss: Any, index: Index) -> Index | None:  # noqa: ANN401
    """A copy of the index on the GPU; None where there is no GPU, or it has no such index."""
    suitable = isinstance(index, faiss.IndexFlat) or faiss.try_extract_index_ivf(index) is not None
    if not suitable or not faiss.get_num_gpus():
        return None
    try:
        return faiss.index_cpu_to_gpu(faiss.StandardGpuResources(), 0, index)
    except (RuntimeError, MemoryError) as error:
        logger.info("the index stays on the CPU: %s", faiss_reason(error))
        return None
