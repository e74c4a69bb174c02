"""Which FAISS index suits so many vectors: a pure decision, and checks that need no vectors.

Up to 50,000 vectors exact search takes some milliseconds a query, and nothing is to be gained by less. Above,
inverted lists of float16 vectors: an order of magnitude cheaper to build than a graph, and as exact as one lets
them be, since the number of lists that are searched is chosen by measurement afterwards.
"""

import functools
import importlib
import importlib.metadata
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from llmindex.errors import MissingPackage, UsageError
from llmindex.index.footprint import Footprint, in_lists, in_memory

EXACT_UP_TO: Final = 50_000
"""Below this many vectors the index is exact."""

DEFAULT_RECALL: Final = 0.95
"""The recall@10 that an index is tuned to."""

ROUNDS: Final = 6
"""Rounds of k-means over the lists' centroids: ten find nothing better, after four a seventh more is looked at."""

# Twice as many vectors to train on find nothing better either; with half as many a seventh more is looked at.
_TRAIN_PER_LIST = 32
_LEAST_PER_LIST = 16
# Smaller lists are not worth their centroids.
_VECTORS_PER_LIST = 39
# Of fewer vectors than this inverted lists would save less than a process needs anyway.
_LISTS_FROM = 10_000
RESCORED: Final = 10
"""Codes of a bit a number find so many times as many candidates, from which the stored vectors pick."""

# What the codes of a factory of the user's own may need: 256 centroids at 256 points each, with some to spare.
_TRAIN_OTHER = 100_000

# FAISS reserves memory for what such a number asks for before it looks at a vector.
_LARGEST_NUMBER = 2**24
_LONGEST_FACTORY = 200

_FLOAT = 4
# Bytes of a link of a graph, and of a vector's place among them.
_LINK, _LINK_HEAD = 4, 16

Index = Any
"""A ``faiss.Index``: FAISS has no types."""

_FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cu13")


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How to index so many vectors.

    Attributes:
        factory: FAISS factory string.
        train_vectors: how many vectors to train on, if the index needs training.
        footprint: what it takes on disk and in memory.
        operations: multiplications and additions of training, filling and measuring it.
    """

    factory: str
    train_vectors: int
    footprint: Footprint
    operations: int


@dataclass(frozen=True, slots=True)
class _Codes:
    """A way to keep vectors in inverted lists.

    Attributes:
        name: FAISS's name of it.
        bits: of a number.
        more: bytes of a vector beside these.
        recall: the recall@10 that it reaches where all lists are looked at.
        residuals: the most vectors that FAISS fits the codes to; None for all that it trains on.
    """

    name: str
    bits: int
    more: int
    recall: float
    residuals: int | None


_CODES = (
    _Codes("SQfp16", 16, 0, 1.0, 0),
    _Codes("SQ8", 8, 0, 0.98, 100_000),
    _Codes("RaBitQ", 1, 8, 0.96, None),
)


def plan(
    count: int, dim: int, factory: str | None = None, *, recall: float = DEFAULT_RECALL, memory: int | None = None
) -> IndexPlan:
    """Choose an index for ``count`` vectors of length ``dim``, unless the user has chosen.

    Args:
        count: how many vectors.
        dim: their length.
        factory: FAISS factory string; None for the planner's choice.
        recall: the recall@10 that the index has to be able to reach.
        memory: the most bytes that building and searching the index may take, each in a process of its own that
            holds no model; None for no bound.

    Raises:
        UsageError: FAISS does not take the user's factory string, or it is bounded in memory, or nothing reaches the
            recall in so much memory.
    """
    check_together(factory, memory)
    if factory is not None:
        return _asked_for(count, dim, factory)
    for recalled, planned in _candidates(count, dim, memory):
        if recalled >= recall and (memory is None or planned.footprint.peak <= memory):
            return planned
    raise _too_little(count, dim, recall, memory or 0)


def _asked_for(count: int, dim: int, factory: str) -> IndexPlan:
    index = _empty(factory, dim)
    faiss = require_faiss()
    lists = faiss.try_extract_index_ivf(index)
    nlist = lists.nlist if lists is not None else 0
    if (least := _least_vectors(faiss, index)) > count:
        raise UsageError(f'"{factory}" needs at least {least:,} vectors to train on and there are {count:,}')
    train_vectors = min(count, max(_TRAIN_OTHER, _TRAIN_PER_LIST * nlist))
    operations = _operations(count, dim, nlist, train_vectors)
    if lists is not None:
        residuals = next((codes.residuals for codes in _CODES if factory.endswith(f",{codes.name}")), None)
        fitted = train_vectors if residuals is None else min(train_vectors, residuals)
        footprint = in_lists(count, dim, nlist, lists.code_size, train_vectors, fitted)
    elif hasattr(index, "hnsw"):
        links = index.hnsw.nb_neighbors(0)
        footprint = in_memory(count, faiss.downcast_index(index.storage).code_size, _LINK * links + _LINK_HEAD)
        operations += dim * index.hnsw.efConstruction * links * math.ceil(math.log2(count + 1)) * count
    else:
        inner = faiss.downcast_index(index.index) if hasattr(index, "index") else index
        footprint = in_memory(count, getattr(inner, "code_size", _FLOAT * dim))
    return IndexPlan(factory, train_vectors, footprint, operations)


def _candidates(count: int, dim: int, memory: int | None) -> Iterator[tuple[float, IndexPlan]]:
    """The recall that can be reached with each kind of index, and its plan; the best first."""
    if count < EXACT_UP_TO:
        yield 1.0, IndexPlan("Flat", 0, in_memory(count, _FLOAT * dim), _operations(count, dim, 0, 0))
    if count < min(_LISTS_FROM, EXACT_UP_TO):
        return
    for codes in _CODES:
        yield codes.recall, _in_lists(count, dim, codes, memory)


def _in_lists(count: int, dim: int, codes: _Codes, memory: int | None) -> IndexPlan:
    """Inverted lists of these codes, trained on as many vectors as there is room for."""
    nlist = 2 ** round(math.log2(4 * math.sqrt(count)))
    while nlist * _VECTORS_PER_LIST > count:
        nlist //= 2
    per_list = _TRAIN_PER_LIST
    while True:
        train_vectors = min(count, per_list * nlist)
        residuals = train_vectors if codes.residuals is None else min(train_vectors, codes.residuals)
        code_bytes = math.ceil(dim * codes.bits / 8) + codes.more
        footprint = in_lists(count, dim, nlist, code_bytes, train_vectors, residuals)
        if memory is None or footprint.build <= memory or nlist == 1:
            break
        # Fewer vectors first, then also fewer lists.
        per_list, nlist = (_LEAST_PER_LIST, nlist) if per_list > _LEAST_PER_LIST else (per_list, nlist // 2)
    operations = _operations(count, dim, nlist, train_vectors)
    return IndexPlan(f"IVF{nlist},{codes.name}", train_vectors, footprint, operations)


def _operations(count: int, dim: int, nlist: int, train_vectors: int) -> int:
    """Multiplications and additions: k-means, a list for each vector, exact search of 2,000 queries."""
    return 2 * dim * (nlist * (ROUNDS * train_vectors + count) + 2_000 * count)


def _too_little(count: int, dim: int, recall: float, memory: int) -> UsageError:
    """The refusal, with what is nearest: how much memory would do, and which recall can be had."""

    def suffices(megabytes: int) -> bool:
        most = megabytes * 10**6
        candidates = _candidates(count, dim, most)
        return any(recalled >= recall and planned.footprint.peak <= most for recalled, planned in candidates)

    less, enough = memory // 10**6, memory // 10**6 + 1
    while not suffices(enough):
        less, enough = enough, 2 * enough
    while enough - less > 1:
        middle = (less + enough) // 2
        less, enough = (less, middle) if suffices(middle) else (middle, enough)
    reached = [recalled for recalled, fits in _candidates(count, dim, memory) if fits.footprint.peak <= memory]
    other = f", or --recall {max(reached):g}" if reached else ""
    return UsageError(
        f"{count:,} vectors of length {dim} cannot be indexed for recall {recall:g} in {memory / 1e6:,.0f} MB; "
        f"--memory {enough}MB would do{other}"
    )


def check_recall(recall: float) -> None:
    """Refuse a recall that is none.

    Raises:
        UsageError: it is not above 0 and at most 1.
    """
    if not 0 < recall <= 1:
        raise UsageError(f"recall must be above 0 and at most 1, got {recall}")


def check_together(factory: str | None, memory: int | None) -> None:
    """Find out, before anything is read, whether both were given, each of which chooses the index.

    Raises:
        UsageError: they were.
    """
    if factory is not None and memory is not None:
        raise UsageError("--memory chooses the index, and so does --factory: leave one of them out")


def check_least(memory: int | None) -> None:
    """Find out, before a document is read, whether any index at all could be built in so many bytes.

    Raises:
        UsageError: not even of a single vector.
    """
    least = in_memory(1, 1).peak
    if memory is not None and memory < least:
        raise UsageError(
            f"no index can be built in {memory / 1e6:,.0f} MB, however few the documents; "
            f"--memory takes at least {math.ceil(least / 1e6)}MB"
        )


def rescoring(factory: str) -> int:
    """How many times as many candidates an index finds for the stored vectors to pick from; 0 where it is exact enough.

    Codes of a bit a number find little more than half of what is near; the rest is among what they rank next.
    """
    return RESCORED if re.search(r"RaBitQ\w*$", factory) else 0


def check_factory(factory: str, dim: int) -> None:
    """Find out, before anything is encoded, whether FAISS can make such an index of vectors of this length.

    Raises:
        UsageError: the string is unknown, does not fit the length, or makes an index that cannot search by inner
            product or does not number its vectors itself.
        MissingPackage: FAISS is not installed.
    """
    _empty(factory, dim)


def _empty(factory: str, dim: int) -> Index:
    """An index of the factory string that holds nothing; refused as :func:`check_factory` says."""
    numbers = [int(digits) for digits in re.findall(r"\d{1,20}", factory)]
    if len(factory) > _LONGEST_FACTORY or max(numbers, default=0) > _LARGEST_NUMBER:
        raise UsageError(f'FAISS factory string "{factory[:_LONGEST_FACTORY]}" asks for too much; --factory takes less')
    if not factory.isascii() or re.search(r"HNSW[01](?!\d)|IVF0", factory):
        raise UsageError(f"unknown FAISS factory string {factory!a}")  # FAISS itself would crash
    faiss = require_faiss()
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, MemoryError) as error:
        raise UsageError(f'unknown FAISS factory string "{factory}": {faiss_reason(error)}') from error
    if index.metric_type != faiss.METRIC_INNER_PRODUCT:
        raise UsageError(f'FAISS factory string "{factory}" makes an index that cannot search by inner product')
    if "IDMap" in factory:
        raise UsageError(f'FAISS factory string "{factory}": leave IDMap out, vectors are known by their row')
    return index


def _least_vectors(faiss: Any, index: Index) -> int:  # noqa: ANN401 - FAISS has no types
    """How many vectors k-means must have: one for each list and each entry of a codebook."""
    lists = faiss.try_extract_index_ivf(index)
    inner = faiss.downcast_index(lists) if lists is not None else index
    codebook = inner.pq.ksub if hasattr(inner, "pq") else 1
    return max(codebook, lists.nlist if lists is not None else 1)


def faiss_reason(error: Exception) -> str:
    """What FAISS means, out of an error that starts with C++ signatures and source lines."""
    text = " ".join(str(error).split()) or type(error).__name__
    said = re.sub(r"^.*\.cpp:\d+: ", "", text)
    return re.sub(r"^Error: ('.*?' failed)(: )?", lambda found: "" if found[2] else found[1], said)[:200]


@functools.cache  # looking for both packages takes longer than a search
def require_faiss() -> Any:  # noqa: ANN401 - FAISS has no types
    """The ``faiss`` module.

    Raises:
        MissingPackage: it is not installed, or twice, or does not load.
    """
    installed = [name for name in _FAISS_PACKAGES if _is_installed(name)]
    if len(installed) > 1:
        both = " and ".join(installed)
        raise MissingPackage(
            f"{both} are both installed and own the same folder: exactly one may be; "
            f"pip uninstall {' '.join(installed)}, then install one again"
        )
    try:
        return importlib.import_module("faiss")
    except ModuleNotFoundError as error:
        if error.name != "faiss":
            raise MissingPackage(f"FAISS does not load: {error}; install it again") from error
        raise MissingPackage(
            "FAISS is not installed: pip install faiss-cpu (or faiss-gpu-cu12 on Linux x86-64 with an NVIDIA GPU)"
        ) from error
    except ImportError as error:
        raise MissingPackage(f"FAISS does not load: {error}; install it again") from error


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
