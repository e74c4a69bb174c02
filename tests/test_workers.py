"""Pieces of work on several threads."""

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from llmindex.cluster import workers
from llmindex.cluster.neighbors import neighbor_graph
from llmindex.cluster.workers import processors, side_by_side
from tests.samples import make_vectors


def blas_threads() -> set[int]:
    """Threads of NumPy's BLAS; that of FAISS counts them for each thread that calls it."""
    libraries = [each for each in threadpool_info() if each["user_api"] == "blas" and "numpy" in each["filepath"]]
    return {each["num_threads"] for each in libraries}


def test_results_come_in_order_and_few_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "processors", lambda: 3)
    taken: list[int] = []

    def pieces() -> Iterator[int]:
        for piece in range(20):
            taken.append(piece)
            yield piece

    def work(piece: int) -> tuple[int, str]:
        time.sleep(0.02 if piece % 3 == 0 else 0)
        return piece, threading.current_thread().name

    found = []
    for result in side_by_side(work, pieces()):
        found.append(result)
        assert len(taken) <= len(found) + 3
    assert [piece for piece, _ in found] == list(range(20))
    assert len({name for _, name in found}) > 1


def test_products_take_one_thread_meanwhile() -> None:
    before = blas_threads()
    running = side_by_side(lambda piece: blas_threads(), range(4))
    assert next(running) in ({1}, set())
    running.close()  # type: ignore[attr-defined]
    assert blas_threads() == before


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_two_at_a_time_leave_products_their_threads(order: tuple[int, int]) -> None:
    before = blas_threads()
    running = [side_by_side(lambda piece: piece, range(30)) for _ in range(2)]
    for each in running:
        assert next(each) == 0
    for number in order:
        assert len(list(running[number])) == 29
    assert blas_threads() == before


def test_the_first_failure_ends_it() -> None:
    before = blas_threads()

    def work(piece: int) -> int:
        if piece == 2:
            raise ValueError("the third")
        return piece

    with pytest.raises(ValueError, match="the third"):
        list(side_by_side(work, range(1000)))
    assert blas_threads() == before


def test_as_many_threads_as_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert processors() == 5
    for nonsense in ("", "0", "many"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert processors() >= 1


@pytest.mark.parametrize("exact", [True, False])
def test_neighbours_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    monkeypatch.setattr("llmindex.cluster.lookup._POINTS", 500)
    vectors = make_vectors(4000, 24, clusters=30)
    graphs = []
    for threads in (1, 4):
        monkeypatch.setattr(workers, "processors", lambda count=threads: count)
        graphs.append(neighbor_graph(vectors, 10, exact=exact))
    np.testing.assert_array_equal(graphs[0].rows, graphs[1].rows)
    np.testing.assert_array_equal(graphs[0].squared, graphs[1].squared)
