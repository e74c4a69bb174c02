"""What building an index of stored vectors will take, said before it is built. Nothing is read but their number.

The seconds are those of this machine: the plan's operations at the speed of a matrix product that is timed here.
"""

import time
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from llmindex.index.building import choose
from llmindex.index.planner import DEFAULT_RECALL, IndexPlan
from llmindex.store.reader import VectorStore

# Indexing takes so much longer than its matrix products alone: selecting the best, reading, tuning.
_SLACK: Final = 2


@dataclass(frozen=True, slots=True)
class ReindexPlan:
    """What building the index anew would take; predictions all.

    Attributes:
        documents: how many it would hold.
        recall: the recall@10 asked for.
        factory: FAISS factory string.
        index_seconds: time to build it, from the speed of a matrix product.
        disk_bytes: of its file; the index before is removed when that is there.
        index_memory_bytes: peak of building it, without a model.
        search_memory_bytes: what a search has in memory, without a model.
    """

    documents: int
    recall: float
    factory: str
    index_seconds: float
    disk_bytes: int
    index_memory_bytes: int
    search_memory_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON values."""
        return asdict(self)


def forecast(
    store: VectorStore, *, factory: str | None = None, recall: float = DEFAULT_RECALL, memory: int | None = None
) -> ReindexPlan:
    """What :func:`~llmindex.index.building.build_index` would take with the same arguments; writes nothing.

    Raises:
        UsageError: what build_index refuses before it starts, in the same words.
        MissingPackage: a factory string is given and FAISS, which has to know it, is not installed.
    """
    chosen = choose(store, factory=factory, recall=recall, memory=memory)
    footprint = chosen.footprint
    return ReindexPlan(
        documents=store.count,
        recall=recall,
        factory=chosen.factory,
        index_seconds=seconds_of(chosen),
        disk_bytes=footprint.file,
        index_memory_bytes=footprint.build,
        search_memory_bytes=footprint.search,
    )


def seconds_of(planned: IndexPlan) -> float:
    """How long building an index so planned takes on this machine, about."""
    return _SLACK * planned.operations / _operations_per_second()


def _operations_per_second() -> float:
    """Multiplications and additions a second of a matrix product as large as the index's."""
    left, right = np.ones((2, 1_024, 512), np.float32)
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        left @ right.T
        seconds.append(time.perf_counter() - started)
    return 2.0 * left.size * len(right) / min(seconds)
