"""Making the nearest-neighbour index: trained, filled, tuned to the recall asked for, and saved beside the store."""

import logging
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

from llmindex.errors import StorageError, UsageError, reindex_command
from llmindex.index.effort import find_effort, measure, tune
from llmindex.index.faiss_index import map_index, with_gpu
from llmindex.index.lists import are_last, write_lists
from llmindex.index.planner import (
    DEFAULT_RECALL,
    ROUNDS,
    Index,
    IndexPlan,
    check_recall,
    faiss_reason,
    plan,
    require_faiss,
    rescoring,
)
from llmindex.index.recall import SAMPLE, draw_sample, gather
from llmindex.progress import Progress, ProgressCallback
from llmindex.store.files import hash_file, make_folder, replacing, sync_names
from llmindex.store.manifest import IndexRecord
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter

logger = logging.getLogger(__name__)

_SEED: Final = 20_250_722


def choose(store: VectorStore, *, factory: str | None, recall: float, memory: int | None) -> IndexPlan:
    """How :func:`build_index` would index a store; whatever it refuses before it starts is refused here.

    Raises:
        UsageError: the store is empty, the recall is not a share, FAISS does not take the factory string, or no index
            reaches the recall in so much memory.
        MissingPackage: a factory string is given, and FAISS is not installed.
    """
    check_recall(recall)
    if not store.count:
        raise UsageError(f"{store.path} holds no documents: there is nothing to index")
    return plan(store.count, store.dim, factory, recall=recall, memory=memory)


def build_index(
    store: VectorStore,
    *,
    factory: str | None = None,
    recall: float = DEFAULT_RECALL,
    memory: int | None = None,
    on_progress: ProgressCallback | None = None,
) -> IndexRecord:
    """Train an index, fill its file, tune its search effort, and measure what it finds.

    The index counts once :meth:`VectorWriter.set_index` has committed the record. Its file is named after its
    contents: the one that counts so far is never written over by another. The result depends on the store and the
    arguments alone, up to the rounding of FAISS's threads.

    Args:
        store: where the vectors are, and its folder the index file goes to.
        factory: FAISS factory string; None for the planner's choice.
        recall: the recall@10 that the search effort is to reach, on stored vectors as queries.
        memory: the most bytes that building and searching it may take, besides a model; None for no bound.
        on_progress: told of the stages "train", "assign", "add", and "tune", or "measure" where nothing can be tuned.

    Raises:
        UsageError: the store is empty, the recall is not a share, FAISS cannot make such an index, or none reaches
            the recall in so much memory.
        MissingPackage: FAISS is not installed.
        StorageError: the disk refused; nothing is left of the file.
    """
    chosen = choose(store, factory=factory, recall=recall, memory=memory)
    report = on_progress or (lambda _: None)
    written = store.path / "faiss" / "written.faiss"
    make_folder(written.parent)
    try:
        with replacing(written) as temporary:
            _write(store, chosen, temporary, report)
        parameters, reached = _tune(store, map_index(written), recall, rescoring(chosen.factory), report)
        sha256, size = hash_file(written), written.stat().st_size
        name = f"faiss/{store.vectors_id[:16]}-{sha256[:16]}.faiss"
        written.replace(store.path / name)
        sync_names(written.parent)
    finally:
        with suppress(OSError):
            written.unlink()
    if reached < recall:
        logger.warning("recall@10 of %s is %.3f, below the %.3f asked for", chosen.factory, reached, recall)
    return IndexRecord(name, sha256, size, chosen.factory, parameters, store.vectors_id, float(recall), reached)


def rebuild(
    writer: VectorWriter,
    *,
    factory: str | None = None,
    recall: float = DEFAULT_RECALL,
    memory: int | None = None,
    on_progress: ProgressCallback | None = None,
) -> IndexRecord:
    """Build an index of what a writer has committed, and commit it in place of the one before.

    Raises:
        UsageError: as :func:`build_index`.
        MissingPackage: FAISS is not installed.
        StorageError: the disk refused; the index before still counts.
    """
    try:
        store = VectorStore.open(writer.path)
        record = build_index(store, factory=factory, recall=recall, memory=memory, on_progress=on_progress)
    except StorageError as error:
        safe = f"{writer.manifest.count:,} documents are safe"
        raise StorageError(f"{error}; {safe}; free space and run {reindex_command(writer.path)}") from error
    writer.set_index(record)
    return record


def _write(store: VectorStore, chosen: IndexPlan, file: Path, report: ProgressCallback) -> None:
    """Write the file of an index that holds all vectors; inverted lists are never in memory."""
    faiss = require_faiss()
    try:
        index = _train(store, _empty(faiss, chosen.factory, store.dim), chosen, report)
        if are_last(index):
            write_lists(store, index, file, report)
            return
        for block in store.iter_vectors():
            index.add(block)
            report(Progress("add", int(index.ntotal), store.count, "vectors"))
    except (RuntimeError, MemoryError) as error:
        what = f'"{chosen.factory}" from {store.count:,} vectors of length {store.dim}'
        if isinstance(error, MemoryError):
            raise UsageError(f"no memory is left to build {what}; --memory chooses an index that fits") from error
        raise UsageError(f"FAISS cannot build {what}: {faiss_reason(error)}; try another --factory") from error
    with file.open("wb") as opened:
        # FAISS's own writer does not notice a disk that is full at the last moment.
        faiss.write_index(index, faiss.PyCallbackIOWriter(opened.write))


def _train(store: VectorStore, index: Index, chosen: IndexPlan, report: ProgressCallback) -> Index:
    """The index, trained; on the GPU where there is one that can."""
    if index.is_trained:
        return index
    report(Progress("train", 0, chosen.train_vectors, "vectors"))
    rows = np.sort(np.random.default_rng(_SEED).choice(store.count, chosen.train_vectors, replace=False))
    sample = gather(store, rows)

    def train(trained: Index) -> Index:
        trained.train(sample)
        return trained

    trained = with_gpu(index, train)
    report(Progress("train", chosen.train_vectors, chosen.train_vectors, "vectors"))
    return trained if trained is index else require_faiss().index_gpu_to_cpu(trained)


def _tune(
    store: VectorStore, index: Index, recall: float, rescored: int, report: ProgressCallback
) -> tuple[str, float]:
    """The search parameters that reach the recall, and the recall@10 measured with them on other queries."""
    effort = find_effort(index)
    if effort is None:
        report(Progress("measure", 0, min(SAMPLE, store.count), "queries"))
        parameters, fresh = "", draw_sample(store, SAMPLE, _SEED)
    else:
        report(Progress("tune", 0, None, "settings"))
        # One pass over the store for two samples: one to tune on, a fresh one to measure on.
        both = draw_sample(store, 2 * SAMPLE, _SEED)
        enough = len(both.rows) == 2 * SAMPLE
        tuned_on = both.part(0, SAMPLE) if enough else both
        parameters = tune(store, index, effort, tuned_on, recall, rescored, report)
        fresh = both.part(SAMPLE, 2 * SAMPLE) if enough else both
    reached = float(measure(store, index, fresh, rescored).mean())
    if effort is None:
        report(Progress("measure", len(fresh.rows), len(fresh.rows), "queries"))
    return f"{parameters},rescore={rescored}" if rescored else parameters, reached


def _empty(faiss: Any, factory: str, dim: int) -> Index:  # noqa: ANN401
    index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    lists = faiss.try_extract_index_ivf(index)
    inner = index if lists is None else faiss.downcast_index(lists)
    if lists is not None and hasattr(inner, "sq") and inner.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
        # Stored vectors are float16 as they are; less their centroid they would be rounded once more.
        inner.by_residual = False
    if hasattr(inner, "cp"):
        inner.cp.niter = ROUNDS
    # FAISS writes to stderr when k-means has fewer vectors than it would like.
    for clustering in (getattr(inner, "cp", None), getattr(getattr(inner, "pq", None), "cp", None)):
        if clustering is not None:
            clustering.min_points_per_centroid = 1
    return index
