"""Making the nearest-neighbour index: trained, filled, tuned to the recall asked for, and saved beside the store."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from llmindex.errors import StorageError, UsageError
from llmindex.index.effort import find_effort, measure, tune
from llmindex.index.faiss_index import Index, on_gpu
from llmindex.index.planner import IndexPlan, faiss_reason, plan, require_faiss
from llmindex.index.recall import SAMPLE, draw_sample
from llmindex.progress import Progress, ProgressCallback
from llmindex.store.files import make_folder, replacing, sync
from llmindex.store.manifest import IndexRecord
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter

logger = logging.getLogger(__name__)

_SEED = 20_250_722


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
    effort = find_effort(index)
    if effort is None:
        parameters, fresh = "", draw_sample(store, SAMPLE, _SEED)
    else:
        # One pass over the store for two samples: one to tune on, a fresh one to measure on.
        both = draw_sample(store, 2 * SAMPLE, _SEED)
        enough = len(both.rows) == 2 * SAMPLE
        parameters = tune(store, index, effort, both.part(0, SAMPLE) if enough else both, recall, report)
        fresh = both.part(SAMPLE, 2 * SAMPLE) if enough else both
    reached = float(measure(store, index, fresh).mean())
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


def _fill(store: VectorStore, chosen: IndexPlan, report: ProgressCallback) -> Index:
    """An index that holds all vectors; trained and filled on the GPU where there is one that can."""
    faiss = require_faiss()
    index = _empty(faiss, chosen.factory, store.dim)
    gpu = on_gpu(faiss, index)
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
