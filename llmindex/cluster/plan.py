"""What a clustering will take, told before it starts: of too many vectors for the memory a sample is clustered.

Both were fitted to what up to 200,000 vectors took (benchmarks/cluster_scale.py): bytes are rounded up; seconds, of one
processor core, may be wrong by a third. UMAP's are a guess.
"""

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llmindex.cluster.lookup import CANDIDATES
from llmindex.cluster.options import ClusterOptions
from llmindex.cluster.reduce import COMPONENTS, UMAP_DIM
from llmindex.cluster.spanning_tree import EXACT_LIMIT, NEIGHBORS
from llmindex.cluster.workers import processors
from llmindex.errors import UsageError

logger = logging.getLogger(__name__)

_BASE: Final = 350_000_000
"""Bytes of a process that clusters almost nothing: Python, the packages, a block of the store and its texts."""

_STORED: Final = 300
"""Bytes of a stored vector whether it is clustered or not: its digest, its label and what is kept for its summary."""

_CLUSTERED: Final = 2_000
"""Bytes of a clustered vector besides its numbers: neighbours, edges, its rows of the trees."""

_NEIGHBOR: Final = 20
"""Bytes of each further neighbour of a vector, where ``min_samples`` asks for more than the usual, ..."""

_NEIGHBOR_EXACT: Final = 42
"""... and where all pairs are compared, and ties decided."""

_THREAD: Final = 110_000_000
"""Bytes of each further thread: the neighbours that a block of vectors may have, before they are sorted."""

_COPIES: Final = 4
"""Of its numbers: as given, centred, in the order of cells, and what is being made of them."""

_FLOAT: Final = 4
_UMAP: Final = 3_000
_UMAP_SECONDS: Final = 3e-3

_PAIR: Final = 1.5e-9
"""Seconds that it takes to compare two vectors of one dimension, ..."""

_PAIR_DIM: Final = 2.5e-11
"""... and those of each dimension."""

_WITHIN_REACH: Final = 0.5
"""Share of the candidates with which a vector is compared indeed."""

_LOOKED_UP: Final = 1.5e-5
"""Seconds that it takes to choose what a vector is compared with, and the nearest of these."""

_VECTOR: Final = 3.5e-5
"""Seconds of a vector for all else: hashes, projection, edges, trees."""

_NEIGHBOR_SECONDS: Final = 3.5e-7
"""Seconds of each further neighbour of a vector, where ``min_samples`` asks for more than the usual, ..."""

_NEIGHBOR_SECONDS_EXACT: Final = 6.5e-7
"""... and where all pairs are compared, and ties decided."""

_LEAST: Final = 1_000
"""Vectors that are worth to be clustered."""

_GROUP: Final = Path("/sys/fs/cgroup")
"""Where a container says what it may have."""

_LIMITS: Final = (
    ("memory.max", "memory.current", "memory.stat"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat"),
)
"""In which files: of version 2 of Linux's control groups, and of version 1."""


@dataclass(frozen=True, slots=True)
class ClusterPlan:
    """How a corpus will be clustered.

    Attributes:
        step: every so many-th document is clustered, from the first; the others are assigned to their clusters.
        documents: how many are clustered.
        memory: bytes that the process will have at its peak.
        seconds: CPU seconds that the clustering will take, about.
    """

    step: int
    documents: int
    memory: int
    seconds: float


def plan(count: int, dim: int, options: ClusterOptions) -> ClusterPlan:
    """Plan the clustering of so many vectors of a length, and log it.

    Where they do not fit into ``options.memory``, or into what the machine has free, a sample is clustered, the largest
    that fits.

    Raises:
        UsageError: not even a small sample would fit into ``options.memory``.
    """
    limit = options.memory or available_memory()
    step = 1
    while limit is not None and memory(count, dim, options, step) > limit and count // step > _LEAST:
        step += 1
    needed, seconds = memory(count, dim, options, step), _seconds(count, dim, options, step)
    planned = ClusterPlan(step, -(-count // step), needed, seconds)
    if options.memory is not None and planned.memory > options.memory:
        enough = -(-planned.memory // 1_000_000)
        raise UsageError(f"{count:,} vectors of length {dim} cannot be clustered in so little memory: give {enough}MB")
    if step > 1:
        logger.warning(
            "clustering all %s documents would take %.1f GB; every %d. is clustered, the others are assigned",
            f"{count:,}",
            memory(count, dim, options, 1) / 1e9,
            step,
        )
    logger.info("clustering will take about %.1f GB and %.0f CPU seconds", planned.memory / 1e9, planned.seconds)
    return planned


def memory(count: int, dim: int, options: ClusterOptions, step: int = 1) -> int:
    """Return the bytes that a process has at its peak that clusters every ``step``-th of so many vectors."""
    numbers, clustered = COMPONENTS if options.reduce == "pca" else dim, -(-count // step)
    each = _COPIES * _FLOAT * min(numbers, dim) + _CLUSTERED + (_UMAP if options.reduce == "umap" else 0)
    # How many vectors have copies is not known yet; of up to so many different ones all pairs are compared.
    neighbor = max(clustered * _NEIGHBOR, min(clustered, EXACT_LIMIT) * _NEIGHBOR_EXACT)
    # The others are looked up among those that were clustered; what that takes is less than the clustering took.
    threads = (processors() - 1) * _THREAD
    return _BASE + threads + count * _STORED + clustered * each + neighbor * _further(clustered, options)


def _further(clustered: int, options: ClusterOptions) -> int:
    """Return how many neighbours of each vector are looked for beyond the usual."""
    return max(0, min(options.min_samples or 0, clustered) - NEIGHBORS)


def _seconds(count: int, dim: int, options: ClusterOptions, step: int) -> float:
    clustered = -(-count // step)
    pairs = clustered * (clustered if clustered <= EXACT_LIMIT else _WITHIN_REACH * CANDIDATES)
    numbers, graphs = {"pca": (COMPONENTS, 2), "umap": (UMAP_DIM, 1), "none": (dim, 1)}[options.reduce]
    pairs += (count - clustered) * _WITHIN_REACH * CANDIDATES
    neighbor = _NEIGHBOR_SECONDS_EXACT if clustered <= EXACT_LIMIT else _NEIGHBOR_SECONDS
    further = clustered * _further(clustered, options) * neighbor
    umap = clustered * _UMAP_SECONDS if options.reduce == "umap" else 0
    return graphs * (pairs * (_PAIR + _PAIR_DIM * numbers) + count * _LOOKED_UP) + count * _VECTOR + further + umap


def available_memory() -> int | None:
    """Return the bytes that this machine, or the container, has free; None where it does not say."""
    found = []
    with suppress(OSError, KeyError, ValueError):  # another system
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        found.append(int(lines["MemAvailable"].split()[0]) * 1024)
    for names in _LIMITS:
        with suppress(OSError, KeyError, ValueError):  # no container, the other version, or a limit of "max"
            limit, used, parts = ((_GROUP / name).read_text(encoding="ascii") for name in names)
            of = dict(line.split() for line in parts.splitlines())
            # Files that were read or written count as used, and are given up when memory is wanted.
            cached = sum(int(of.get(f"total_{kind}", of[kind])) for kind in ("active_file", "inactive_file"))
            found.append(int(limit) - int(used) + cached)
    return max(0, min(found)) if found else None
