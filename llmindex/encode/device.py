"""Where the model runs and in which dtype: the one place that asks torch, and that sets thread counts."""

import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from llmindex.errors import UsageError

logger = logging.getLogger(__name__)

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)

# Padded tokens of a batch. On a CPU larger batches fall out of the cache; a GPU wants thousands of rows to be full.
_CPU_TOKEN_BUDGET = 2048
_GPU_TOKEN_BUDGET = 32768

# Each worker holds the activations of a batch.
_MOST_WORKERS = 8

Job = Callable[[], Tensor]


@dataclass(frozen=True, slots=True)
class Placement:
    """Device, dtype and batch size that an encoder runs with.

    Attributes:
        device: where.
        dtype: of weights and activations; pooling and normalising are always float32.
        token_budget: the most padded tokens of a batch to begin with.
    """

    device: torch.device
    dtype: torch.dtype
    token_budget: int

    def __str__(self) -> str:
        return f"{self.device}, {dtype_name(self.dtype)}"


def resolve(device: str = "auto", dtype: str = "auto") -> Placement:
    """Choose device and dtype, and give torch as many threads as this process may use.

    Raises:
        UsageError: the device is unknown or not there, or the dtype is unknown.
    """
    chosen = _device(device)
    if dtype not in DTYPES:
        raise UsageError(f'unknown dtype "{dtype}"; one of {", ".join(DTYPES)}')
    torch_dtype = _native_dtype(chosen) if dtype == "auto" else getattr(torch, dtype)
    if chosen.type == "cpu":
        _set_threads()
    budget = _CPU_TOKEN_BUDGET if chosen.type == "cpu" else _GPU_TOKEN_BUDGET
    placement = Placement(chosen, torch_dtype, budget)
    logger.info("encoding on %s", placement)
    return placement


def split(names: str) -> list[str]:
    """The devices of a list such as "cuda:0,cuda:1"; most often one.

    Raises:
        UsageError: one of several is not there, or they are not of one kind.
    """
    listed = [name.strip() for name in names.split(",")]
    if len(listed) > 1 and len({_device(name).type for name in listed}) > 1:
        raise UsageError(f'devices "{names}" are of several kinds, which do not give the same bits; name those of one')
    return listed


def dtype_name(dtype: torch.dtype) -> str:
    """A dtype as the command line spells it."""
    return str(dtype).removeprefix("torch.")


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor from the CPU to a device; a GPU is not waited for."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class _Own(threading.local):
    """What a thread computes with, while that is not the process's number of threads; else 0."""

    threads = 0


_own = _Own()
_guard = threading.Lock()
_changes: set[object] = set()  # under way in whichever thread
_process = 0  # the process's number of threads, before the first of them


@contextmanager
def _changing_threads() -> Iterator[int]:
    """Give torch, in the end, the number of threads back that the calling thread has now; yields it.

    What a thread tells torch holds for all threads that begin meanwhile, too. One of these would give back what it
    found, and so make a change of another thread last: the process's own number is remembered instead.
    """
    global _process
    this, outer = object(), _own.threads
    before = outer
    try:
        with _guard:
            if not _changes:
                _process = _found()
            _changes.add(this)
            before = before or _process
        yield before
    finally:
        with _guard:
            _own.threads = outer
            if before:
                torch.set_num_threads(before)
            _changes.discard(this)


def _change_threads(threads: int) -> None:
    with _guard:
        _own.threads = threads
        torch.set_num_threads(threads)


def _found() -> int:
    """The process's number of threads, while nobody has changed it."""
    found = torch.get_num_threads()
    if _process in (0, found):
        return found
    # This thread may have begun during a change; one that begins now tells.
    with ThreadPoolExecutor(1) as fresh:
        return fresh.submit(torch.get_num_threads).result()


@contextmanager
def one_thread() -> Iterator[None]:
    """Have torch compute in the calling thread alone, for work that several threads make slower.

    To write to mapped pages for the first time is such work: with each page all processors that run the process are
    interrupted, which took eight times as long on a virtual machine with two of them.
    """
    with _changing_threads():
        _change_threads(1)
        yield


@contextmanager
def share_threads(processes: int) -> Iterator[None]:
    """Give torch its part of the processors, while so many processes compute side by side."""
    with _changing_threads() as threads:
        _change_threads(max(1, threads // processes))
        yield


@contextmanager
def side_by_side(jobs: int) -> Iterator[Callable[[Job], Job]]:
    """Have jobs share torch's threads by running at the same time, not by cutting up each of their steps.

    A step of a batch is too short to be shared out: two threads make one batch 1.35 times as fast, and two batches at a
    time 1.65 times. It also makes a job's result independent of how many processors there are.

    Args:
        jobs: how many there will be.

    Yields:
        what begins a job, and returns a function that waits for its result.
    """
    with _changing_threads() as threads:
        workers = min(threads, jobs, _MOST_WORKERS)
        if workers < 2:
            _change_threads(threads)  # a thread that has begun during another's change has too few
            yield lambda job: job
            return
        pool = ThreadPoolExecutor(workers, "encoding", _change_threads, (threads // workers,))
        try:
            yield lambda job: pool.submit(job).result
        finally:
            pool.shutdown(cancel_futures=True)


def _device(name: str) -> torch.device:
    if "," in name:
        raise UsageError(f'devices "{name}": only a build encodes on several; name one')
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f'unknown device "{name}"; one of auto, cpu, cuda, cuda:1, mps') from error
    there = {
        "cpu": True,
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
    }
    if not there.get(device.type, False):
        raise UsageError(f'device "{name}" is not available on this machine; --device auto takes what is there')
    return device


def _native_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        features: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()  # absent from older torch
        native = bool(features.get("avx512_bf16") or features.get("amx_bf16") or features.get("bf16"))
    else:
        native = False
    return torch.bfloat16 if native else torch.float32


def _set_threads() -> None:
    """Keep to the processors this process may run on; torch counts all that the machine has."""
    if "OMP_NUM_THREADS" not in os.environ and hasattr(os, "sched_getaffinity"):
        allowed = len(os.sched_getaffinity(0))
        if torch.get_num_threads() > allowed:
            torch.set_num_threads(allowed)
