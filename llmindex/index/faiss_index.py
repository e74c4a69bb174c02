"""The nearest-neighbour index: built from the store, saved beside it, mapped into memory to search.

A vector's number in FAISS is its row in the store. The index knows which vectors it was built from and is refused
when the store has others. FAISS does not survive hostile files: an index folder is trusted input. What is checked
on loading is that the file is there, has the size it was recorded with, and holds as many vectors as the store;
`llmindex verify` compares its hash.
"""

import hashlib
import logging
import re
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from llmindex.errors import StaleIndex, StorageError, UsageError
from llmindex.index.planner import IndexPlan, faiss_reason, plan, require_faiss
from llmindex.index.recall import NEIGHBORS, SAMPLE, Sample, draw_sample, least_effort, recalls
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors
from llmindex.store.files import make_folder, replacing, sync
from llmindex.store.manifest import IndexRecord, Manifest
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter

logger = logging.getLogger(__name__)

_SEED = 20_250_722
_PARAMETERS = re.compile(r"((nprobe|efSearch)=[1-9]\d{0,8})?")

# FAISS on a GPU keeps its candidates in shared memory, of which there is so much.
_GPU_MOST: Final = 2_048

Index = Any
"""A ``faiss.Index``: FAISS has no types."""


@dataclass(frozen=True, slots=True)
class BuiltIndex:
    """An index in memory, with what the manifest will say of it.

    Attributes:
        index: the FAISS index.
        factory: FAISS factory string.
        parameters: what the search effort was tuned to, such as "nprobe=16"; "" where there is nothing to tune.
        built_from: ``vectors_id`` of the store.
        recall_target: the recall@10 that was asked for.
        recall_at_10: the recall@10 measured against exact search.
    """

    index: Index
    factory: str
    parameters: str
    built_from: str
    recall_target: float
    recall_at_10: float


@dataclass(frozen=True, slots=True)
class Neighbors:
    """The nearest stored vectors of some queries, nearest first.

    Attributes:
        rows: ``(q, k) int64``; -1 where fewer than k were found, at the end.
        scores: inner products, ``(q, k) float32``; -inf where there is no row.
    """

    rows: Rows
    scores: NDArray[np.float32]


def build_index(
    store: VectorStore,
    *,
    factory: str | None = None,
    recall: float = 0.95,
    on_progress: ProgressCallback | None = None,
) -> BuiltIndex:
    """Train and fill an index, tune its search effort, and measure what it finds.

    The result depends on the store and the arguments alone, up to the rounding of FAISS's threads.

    Args:
        store: where the vectors are.
        factory: FAISS factory string; None for the planner's choice.
        recall: the recall@10 that the search effort is to reach, on stored vectors as queries.
        on_progress: told of the stages "train", "add" and "tune".

    Raises:
        UsageError: the store is empty, the recall is not a share, or FAISS cannot make such an index.
        MissingPackage: FAISS is not installed.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"--recall must be above 0 and at most 1, got {recall}")
    if not store.count:
        raise UsageError(f"{store.path} holds no documents: there is nothing to index")
    chosen = plan(store.count, store.dim, factory)
    report = on_progress or (lambda _: None)
    index = _fill(store, chosen, report)
    report(Progress("tune", 0, None, "settings"))
    effort = _effort(index)
    if effort is None:
        parameters, fresh = "", draw_sample(store, SAMPLE, _SEED)
    else:
        # One pass over the store for two samples: one to tune on, a fresh one to measure on.
        both = draw_sample(store, 2 * SAMPLE, _SEED)
        enough = len(both.rows) == 2 * SAMPLE
        parameters = _tune(store, index, effort, both.part(0, SAMPLE) if enough else both, recall, report)
        fresh = both.part(SAMPLE, 2 * SAMPLE) if enough else both
    reached = float(_measure(store, index, fresh).mean())
    if reached < recall:
        logger.warning("recall@10 of %s is %.3f, below the %.3f asked for", chosen.factory, reached, recall)
    return BuiltIndex(index, chosen.factory, parameters, store.vectors_id, recall, reached)


def rebuild(
    writer: VectorWriter,
    *,
    factory: str | None = None,
    recall: float = 0.95,
    on_progress: ProgressCallback | None = None,
) -> IndexRecord:
    """Build an index of what a writer has committed, save it and commit it in place of the one before.

    Raises:
        UsageError: as :func:`build_index`.
        MissingPackage: FAISS is not installed.
        StorageError: the disk refused; the index before still counts.
    """
    built = build_index(VectorStore.open(writer.path), factory=factory, recall=recall, on_progress=on_progress)
    try:
        record = save(built, writer.path)
    except StorageError as error:
        safe = f"{writer.manifest.count:,} documents are safe"
        raise StorageError(f"{error}; {safe}; free space and run `llmindex reindex -i {writer.path}`") from error
    writer.set_index(record)
    return record


def save(built: BuiltIndex, folder: Path) -> IndexRecord:
    """Write an index into its folder; it counts once :meth:`VectorWriter.set_index` has committed the record.

    The file is named after its contents: the index that counts so far is never written over by another.

    Raises:
        StorageError: the disk refused; nothing is left of the file.
    """
    faiss = require_faiss()
    make_folder(folder / "faiss")
    written = folder / "faiss" / "written.faiss"
    with replacing(written) as temporary, temporary.open("wb") as file:
        sink = _Sink(file)
        faiss.write_index(built.index, faiss.PyCallbackIOWriter(sink))
    sha256 = sink.hash.hexdigest()
    name = f"faiss/{built.built_from[:16]}-{sha256[:16]}.faiss"
    written.replace(folder / name)
    sync(folder / "faiss")
    return IndexRecord(
        file=name,
        sha256=sha256,
        bytes=sink.bytes,
        factory=built.factory,
        parameters=built.parameters,
        built_from=built.built_from,
        recall_target=built.recall_target,
        recall_at_10=built.recall_at_10,
    )


class _Sink:
    """What FAISS writes to: FAISS's own writer does not notice a disk that is full at the last moment."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.hash = hashlib.sha256()
        self.bytes = 0

    def __call__(self, data: bytes) -> None:
        self.file.write(data)
        self.hash.update(data)
        self.bytes += len(data)


class VectorIndex:
    """An index that is ready to search. May be used from several threads."""

    def __init__(self, index: Index) -> None:
        """Use :meth:`load`."""
        faiss = require_faiss()
        self._index = index
        self._lists = faiss.try_extract_index_ivf(index)
        self._widening = threading.Lock()
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
                return cls(_read(store, record))
        raise _stale(store, fault)

    def search(self, queries: Vectors, k: int) -> Neighbors:
        """The ``k`` nearest of each query, by descending score; equal scores by ascending row.

        Where inverted lists hold fewer than ``k`` vectors in those that the index is tuned to look at, more lists
        are looked at, if need be all.

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
        index = self._gpu if self._gpu is not None and k <= _GPU_MOST else self._index
        scores, rows = index.search(np.ascontiguousarray(queries), k)
        if self._lists is not None and (rows < 0).any():
            self._widen(queries, scores, rows)
        scores[rows < 0] = -np.inf
        order = np.lexsort((rows, -scores), axis=1)
        return Neighbors(np.take_along_axis(rows, order, 1), np.take_along_axis(scores, order, 1))

    def _widen(self, queries: Vectors, scores: NDArray[np.float32], rows: Rows) -> None:
        """Fill up, in place, what was found of the queries that lack some: look at ever more lists."""
        with self._widening:
            tuned = self._lists.nprobe
            try:
                while self._lists.nprobe < self._lists.nlist:
                    lacking = (rows < 0).any(axis=1)
                    if not lacking.any():
                        break
                    self._lists.nprobe = min(4 * self._lists.nprobe, self._lists.nlist)
                    scores[lacking], rows[lacking] = self._index.search(queries[lacking], rows.shape[1])
            finally:
                self._lists.nprobe = tuned


def fault_of(store: VectorStore, record: IndexRecord | None) -> str:
    """Why an index cannot be searched, as the beginning of a sentence; empty if it can."""
    if record is None:
        return f"{store.path} has no search index yet"
    path = store.path / record.file
    if record.built_from != store.vectors_id:
        return f"the search index of {store.path} was built from other vectors than those stored"
    if not path.is_file():
        return f"{path} is missing"
    if path.stat().st_size != record.bytes:
        return f"{path} has {path.stat().st_size:,} bytes instead of {record.bytes:,}"
    return "" if _PARAMETERS.fullmatch(record.parameters) else f'{path} has search parameters "{record.parameters}"'


def _stale(store: VectorStore, fault: str) -> StaleIndex:
    remedy = f"run `llmindex reindex -i {store.path}`"
    if not store.manifest.corpus.complete:
        remedy = f"its build is unfinished: run the same build again, or {remedy} for the part that is stored"
    return StaleIndex(f"{fault}; {remedy}")


def _read(store: VectorStore, record: IndexRecord) -> Index:
    """Read an index file, mapped if possible, and set the search effort it was tuned to."""
    faiss = require_faiss()
    path = store.path / record.file
    mapped = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY if "IVF" in record.factory else faiss.IO_FLAG_MMAP_IFC
    try:
        try:
            index = faiss.read_index(str(path), mapped)
        except RuntimeError:  # some kinds cannot be mapped
            index = faiss.read_index(str(path))
        faiss.ParameterSpace().set_index_parameters(index, record.parameters)
    except (RuntimeError, MemoryError) as error:
        raise _stale(store, f"{path} cannot be read ({faiss_reason(error)})") from error
    if (index.d, index.ntotal) != (store.dim, store.count):
        found = f"{index.ntotal:,} vectors of length {index.d}"
        raise _stale(store, f"{path} holds {found} instead of {store.count:,} of length {store.dim}")
    return index


def _fill(store: VectorStore, chosen: IndexPlan, report: ProgressCallback) -> Index:
    """An index that holds all vectors; trained and filled on the GPU where there is one that can."""
    faiss = require_faiss()
    index = _empty(faiss, chosen.factory, store.dim)
    gpu = _on_gpu(faiss, index)
    if gpu is not None:
        try:
            _train_and_add(store, gpu, chosen, report)
            return faiss.index_gpu_to_cpu(gpu)
        except (RuntimeError, MemoryError) as error:
            logger.warning("the GPU could not build the index (%s); the CPU does", faiss_reason(error))
    try:
        _train_and_add(store, index, chosen, report)
    except RuntimeError as error:
        what = f'"{chosen.factory}" from {store.count:,} vectors of length {store.dim}'
        raise UsageError(f"FAISS cannot build {what}: {faiss_reason(error)}; try another --factory") from error
    return index


def _train_and_add(store: VectorStore, index: Index, chosen: IndexPlan, report: ProgressCallback) -> None:
    if not index.is_trained:
        report(Progress("train", 0, chosen.train_vectors, "vectors"))
        rows = np.random.default_rng(_SEED).choice(store.count, chosen.train_vectors, replace=False)
        index.train(store.take_vectors(np.sort(rows)))
        report(Progress("train", chosen.train_vectors, chosen.train_vectors, "vectors"))
    for block in store.iter_vectors():
        index.add(block)
        report(Progress("add", int(index.ntotal), store.count, "vectors"))


def _empty(faiss: Any, factory: str, dim: int) -> Index:  # noqa: ANN401
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.try_extract_index_ivf(index)
    inner = index if lists is None else faiss.downcast_index(lists)
    if lists is not None and hasattr(inner, "sq") and inner.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
        # Stored vectors are float16 as they are; less their centroid they would be rounded once more.
        inner.by_residual = False
    # FAISS writes to stderr when k-means has fewer vectors than it would like.
    for clustering in (getattr(inner, "cp", None), getattr(getattr(inner, "pq", None), "cp", None)):
        if clustering is not None:
            clustering.min_points_per_centroid = 1
    return index


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


@dataclass(frozen=True, slots=True)
class _Effort:
    """The search parameter by which an index trades time for recall, and its range."""

    name: str
    least: int
    most: int


def _effort(index: Index) -> _Effort | None:
    faiss = require_faiss()
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        return _Effort("nprobe", 1, lists.nlist)
    graph = _Effort("efSearch", 2 * NEIGHBORS, 4_096)
    try:
        faiss.ParameterSpace().set_index_parameter(index, graph.name, graph.least)
    except RuntimeError:
        return None
    return graph


def _tune(
    store: VectorStore, index: Index, effort: _Effort, sample: Sample, recall: float, report: ProgressCallback
) -> str:
    """Set the search effort to what reaches the recall, and return it as FAISS's parameter string."""
    space = require_faiss().ParameterSpace()
    tried = 0

    def reaches(value: int) -> bool:
        nonlocal tried
        space.set_index_parameter(index, effort.name, value)
        shares = _measure(store, index, sample)
        tried += 1
        report(Progress("tune", tried, None, "settings"))
        # By a standard error, so that queries that were not tuned on reach it, too.
        return bool(shares.mean() - shares.std() / np.sqrt(len(shares)) >= recall)

    chosen = least_effort(reaches, effort.least, effort.most)
    space.set_index_parameter(index, effort.name, chosen)
    return f"{effort.name}={chosen}"


def _measure(store: VectorStore, index: Index, sample: Sample) -> NDArray[np.float64]:
    _, found = index.search(sample.queries, min(NEIGHBORS + 1, store.count))
    return recalls(sample, found, store)
