"""The search effort of an index: the parameter that trades time for recall, and the least of it that finds enough."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.index.planner import Index, require_faiss
from llmindex.index.recall import NEIGHBORS, Sample, least_effort, recalls
from llmindex.index.rescore import nearest_of
from llmindex.progress import Progress, ProgressCallback
from llmindex.store.reader import VectorStore


@dataclass(frozen=True, slots=True)
class Effort:
    """The search parameter by which an index trades time for recall, and its range."""

    name: str
    least: int
    most: int


def find_effort(index: Index) -> Effort | None:
    """The search effort that an index has; None where there is nothing to choose."""
    faiss = require_faiss()
    lists = faiss.try_extract_index_ivf(index)
    if lists is not None:
        return Effort("nprobe", 1, lists.nlist)
    graph = Effort("efSearch", 2 * NEIGHBORS, 4_096)
    try:
        faiss.ParameterSpace().set_index_parameter(index, graph.name, graph.least)
    except RuntimeError:
        return None
    return graph


def tune(
    store: VectorStore,
    index: Index,
    effort: Effort,
    sample: Sample,
    recall: float,
    rescored: int,
    report: ProgressCallback,
) -> str:
    """Set the search effort to what reaches the recall, and return it as FAISS's parameter string."""
    space = require_faiss().ParameterSpace()
    tried = 0

    def reaches(value: int) -> bool:
        nonlocal tried
        space.set_index_parameter(index, effort.name, value)
        shares = measure(store, index, sample, rescored)
        tried += 1
        report(Progress("tune", tried, None, "settings"))
        # By two standard errors, so that queries that were not tuned on reach it, too.
        return bool(shares.mean() - 2 * shares.std() / np.sqrt(len(shares)) >= recall)

    chosen = least_effort(reaches, effort.least, effort.most)
    space.set_index_parameter(index, effort.name, chosen)
    return f"{effort.name}={chosen}"


def measure(store: VectorStore, index: Index, sample: Sample, rescored: int) -> NDArray[np.float64]:
    """The recall@10 of each query of a sample, ``(q,)``, with the effort that is set, and so much scored again."""
    k = min(NEIGHBORS + 1, store.count)
    _, found = index.search(sample.queries, min(max(1, rescored) * k, store.count))
    if rescored:
        _, found = nearest_of(store, sample.queries, found, k)
    return recalls(sample, found, store)
