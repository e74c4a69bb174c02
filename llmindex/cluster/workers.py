"""Work that is cut into pieces, on all processors."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from threadpoolctl import threadpool_limits

_MOST = 8
"""Threads at most: each holds what its piece takes."""

Piece = TypeVar("Piece")
Result = TypeVar("Result")

_guard = threading.Lock()
_limits: list[threadpool_limits] = []  # of the works under way, and before them what there was without any


def processors() -> int:
    """How many threads to work with: ``$OMP_NUM_THREADS``, else the processors that this process may run on; few."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdecimal() and int(asked) > 0:
        return min(int(asked), _MOST)
    return min(_MOST, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def side_by_side(work: Callable[[Piece], Result], pieces: Iterable[Piece]) -> Iterator[Result]:
    """Return the results of some work in the order of its pieces, several of which are worked on at a time.

    Matrix products take one thread each meanwhile. Products of a tile are too short to be shared out: threads that wait
    for each other after every one of them stand still whenever another process has a processor, which made a graph of
    200,000 vectors ten times slower on a busy machine.
    """
    threads = processors()
    waiting: deque[Future[Result]] = deque()
    with _products_in_one_thread(), ThreadPoolExecutor(threads) as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(work, piece))
                if len(waiting) > threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def _products_in_one_thread() -> Iterator[None]:
    """Limit BLAS, whose number of threads is the process's: the last of several works gives it back as it was."""
    mine: list[threadpool_limits] = []
    try:
        with _guard:
            mine.append(threadpool_limits(1, "blas"))
            _limits.extend(mine if _limits else mine * 2)
        yield
    finally:
        with _guard:
            for limit in mine:
                limit.restore_original_limits()  # of one that began during another, to one thread
                _limits.remove(limit)
            if len(_limits) == 1:
                _limits.pop().restore_original_limits()
