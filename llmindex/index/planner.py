"""Which FAISS index suits so many vectors: a pure decision, and checks that need no vectors.

Up to 50,000 vectors exact search takes some milliseconds a query, and nothing is to be gained by less. Above,
inverted lists of float16 vectors: an order of magnitude cheaper to build than a graph, and as exact as one lets
them be, since the number of lists that are searched is chosen by measurement afterwards.
"""

import importlib
import importlib.metadata
import math
import re
from dataclasses import dataclass
from typing import Any, Final

from llmindex.errors import MissingPackage, UsageError

EXACT_UP_TO: Final = 50_000
"""Below this many vectors the index is exact."""

# k-means asks for 39 at the least, and gains nothing noticeable from more than this.
_TRAIN_PER_LIST = 64
_LEAST_PER_LIST = 39
# What the codes of a factory of the user's own may need: 256 centroids at 256 points each, with some to spare.
_TRAIN_OTHER = 100_000

# FAISS reserves memory for what such a number asks for before it looks at a vector.
_LARGEST_NUMBER = 2**24
_LONGEST_FACTORY = 200

_FAISS_PACKAGES = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cu11", "faiss-gpu-cu12", "faiss-gpu-cu13")


@dataclass(frozen=True, slots=True)
class IndexPlan:
    """How to index so many vectors.

    Attributes:
        factory: FAISS factory string.
        nlist: inverted lists, or None where there are none.
        train_vectors: how many vectors to train on, if the index needs training.
        note: why, in a few words.
    """

    factory: str
    nlist: int | None
    train_vectors: int
    note: str


def plan(count: int, dim: int, factory: str | None = None) -> IndexPlan:
    """Choose an index for ``count`` vectors of length ``dim``, unless the user has chosen.

    Raises:
        UsageError: FAISS does not take the user's factory string.
    """
    if factory is not None:
        check_factory(factory, dim, count)
        lists = re.search(r"\bIVF(\d+)", factory)
        nlist = int(lists[1]) if lists else None
        return IndexPlan(factory, nlist, min(count, max(_TRAIN_OTHER, _TRAIN_PER_LIST * (nlist or 0))), "as asked for")
    if count < EXACT_UP_TO:
        return IndexPlan("Flat", None, 0, f"exact search, for fewer than {EXACT_UP_TO:,} vectors")
    nlist = 2 ** round(math.log2(4 * math.sqrt(count)))
    while nlist * _LEAST_PER_LIST > count:
        nlist //= 2
    return IndexPlan(
        f"IVF{nlist},SQfp16",
        nlist,
        min(count, _TRAIN_PER_LIST * nlist),
        f"{nlist:,} inverted lists of float16 vectors, for {EXACT_UP_TO:,} vectors and more",
    )


def check_factory(factory: str, dim: int, count: int | None = None) -> None:
    """Find out, before anything is encoded, whether FAISS can make such an index.

    Args:
        factory: FAISS factory string.
        dim: length of the vectors.
        count: how many vectors there will be, where known.

    Raises:
        UsageError: the string is unknown, does not fit the length or the number of the vectors, or makes an index
            that cannot search by inner product or does not number its vectors itself.
        MissingPackage: FAISS is not installed.
    """
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
    least = _least_vectors(faiss, index)
    if count is not None and least > count:
        raise UsageError(f'"{factory}" needs at least {least:,} vectors to train on and there are {count:,}')


def _least_vectors(faiss: Any, index: Any) -> int:  # noqa: ANN401 - FAISS has no types
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
