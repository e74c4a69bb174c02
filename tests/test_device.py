"""Torch's threads: a number of the whole process, which is changed for a while and given back."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmindex import EncoderOptions
from llmindex.encode import helpers
from llmindex.encode.device import one_thread, side_by_side


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def in_new_thread(work: Callable[[], Any]) -> Any:  # noqa: ANN401
    given: list[Any] = []
    thread = threading.Thread(target=lambda: given.append(work()))
    thread.start()
    thread.join()
    return given[0]


class Meanwhile:
    """A thread that computes alone until it is told to go on."""

    def __init__(self) -> None:
        self._inside, self._go_on = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work)
        self._thread.start()
        assert self._inside.wait(60)

    def end(self) -> None:
        self._go_on.set()
        self._thread.join()

    def _work(self) -> None:
        with one_thread():
            self._inside.set()
            self._go_on.wait(60)


def test_a_thread_that_begins_during_a_change_does_not_make_it_last() -> None:
    other = Meanwhile()

    def work() -> int:
        with one_thread():
            other.end()
        return torch.get_num_threads()

    assert in_new_thread(work) == 3
    assert torch.get_num_threads() == 3
    assert in_new_thread(torch.get_num_threads) == 3


def test_nor_does_one_that_comes_back_to_it_later() -> None:
    with one_thread():
        pass
    other = Meanwhile()

    def work() -> int:
        torch.get_num_threads()  # from now on this thread has what it found
        other.end()
        with one_thread():
            pass
        return torch.get_num_threads()

    assert in_new_thread(work) == 3
    assert in_new_thread(torch.get_num_threads) == 3


def test_work_that_begins_during_a_change_gets_all_threads() -> None:
    other = Meanwhile()

    def threads() -> torch.Tensor:
        return torch.tensor(torch.get_num_threads())

    def work() -> list[float]:
        with side_by_side(1) as start:
            alone = start(threads)().item()
        with side_by_side(3) as start:
            return [alone, *(start(threads)().item() for _ in range(3))]

    assert in_new_thread(work) == [3, 1, 1, 1]
    other.end()
    assert in_new_thread(torch.get_num_threads) == 3


def test_one_thread_inside_another_and_inside_a_worker() -> None:
    seen: list[int] = []

    def job() -> torch.Tensor:
        with one_thread():
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())
        return torch.zeros(1)

    with side_by_side(3) as start:
        start(job)()
    with one_thread():
        job()
    assert seen == [1, 1, 1, 1]
    assert torch.get_num_threads() == 3


def test_threads_are_shared_only_while_devices_compute_beside_each_other(tiny_model: Path) -> None:
    options = EncoderOptions(str(tiny_model), device="cpu,cpu")
    loaded = helpers.load(options)
    before = torch.get_num_threads()
    with helpers.beside(options, loaded):
        assert torch.get_num_threads() == max(1, before // 2)
    assert torch.get_num_threads() == before
