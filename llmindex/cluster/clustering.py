"""Clustering the documents of an index: stored vectors in, labels with names out.

The stages are those of HDBSCAN over reduced vectors; then noise follows its neighbours, clusters are numbered by size,
and each gets its keywords and its central documents. A clustering knows what it needs to place new documents, so that
they can be labelled without clustering again.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.assign import PLACED, Space, place
from llmindex.cluster.assign import Assignment as Assignment
from llmindex.cluster.assign import assign as assign
from llmindex.cluster.central import central_rows
from llmindex.cluster.distinct import first_rows
from llmindex.cluster.groups import Groups, by_size, group
from llmindex.cluster.keywords import keywords
from llmindex.cluster.membership import Membership as Membership
from llmindex.cluster.membership import memberships as memberships
from llmindex.cluster.options import ClusterOptions as ClusterOptions
from llmindex.cluster.plan import plan
from llmindex.cluster.result import Clustering as Clustering
from llmindex.cluster.result import ClusterSummary as ClusterSummary
from llmindex.cluster.sampling import every
from llmindex.cluster.saved import load as load
from llmindex.cluster.saved import save as save
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows
from llmindex.store.reader import VectorStore


def cluster(
    store: VectorStore, options: ClusterOptions | None = None, on_progress: ProgressCallback | None = None
) -> Clustering:
    """Cluster the documents of an index.

    Args:
        store: the index's documents and vectors.
        options: None for the defaults.
        on_progress: told of the stages "reduce", "neighbors", "spanning tree", "tree" and "keywords".

    Raises:
        MissingPackage: UMAP is asked for and not installed.
    """
    started = time.monotonic()
    options = (options or ClusterOptions()).resolve(store.count)
    step = plan(store.count, store.dim, options).step
    first = first_rows(store.iter_vectors())
    groups = _groups(store, first, options, step, on_progress)
    words = keywords(_texts(store, on_progress), groups.labels)
    return Clustering(
        groups.labels,
        groups.probabilities,
        options,
        tuple(_summaries(store, groups, words, first)),
        noise_share=_share(groups.labels < 0),
        assigned_share=_share(groups.assigned),
        built_from=store.vectors_id,
        seconds=time.monotonic() - started,
        placement=groups.placement,
    )


def _groups(
    store: VectorStore, first: Rows, options: ClusterOptions, step: int, on_progress: ProgressCallback | None
) -> Groups:
    """Group all documents, or every ``step``-th one and the others by those."""
    if step == 1:
        return group(store.iter_vectors, first, options, on_progress)
    sampled = first_rows(every(step, store.iter_vectors()))
    groups = group(lambda: every(step, store.iter_vectors()), sampled, options.for_sample(step), on_progress)
    placement = replace(groups.placement, step=step)
    labels, probabilities = np.full(store.count, -1, np.int32), np.zeros(store.count, np.float32)
    if (groups.labels >= 0).any():
        space, start = Space(placement, store), 0
        for block in store.iter_vectors(PLACED):
            part = slice(start, start + len(block))
            labels[part], probabilities[part] = place(placement, groups.labels, space, block)
            start += len(block)
    assigned = np.zeros(store.count, bool)
    assigned[::step], labels[::step], probabilities[::step] = groups.assigned, groups.labels, groups.probabilities
    return by_size(Groups(labels, probabilities, assigned, placement))


def _share(which: NDArray[np.bool_]) -> float:
    return float(which.mean()) if len(which) else 0.0


def _texts(store: VectorStore, on_progress: ProgressCallback | None) -> Iterator[str]:
    done = 0
    for batch in store.iter_columns(["text"]):
        yield from batch.column(0).to_pylist()
        done += len(batch)
        if on_progress is not None:
            on_progress(Progress("keywords", done, store.count))


def _summaries(
    store: VectorStore, groups: Groups, words: Mapping[int, tuple[str, ...]], first: Rows
) -> Iterator[ClusterSummary]:
    sizes = np.bincount(groups.labels + 1, minlength=1)[1:].tolist()
    central = central_rows(store.iter_vectors, groups.labels, first)
    ids = iter(store.take(np.array([row for rows in central for row in rows], np.int64), ["id"])["id"].to_pylist())
    for label, (size, rows) in enumerate(zip(sizes, central, strict=True)):
        persistence = float(groups.placement.tree.persistence[label])
        yield ClusterSummary(label, size, words[label], rows, tuple(islice(ids, len(rows))), persistence)
