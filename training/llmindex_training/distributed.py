"""Several processes, one batch: embeddings gathered from all, gradients summed over all.

Each process embeds its own part of the batch, gathers the other parts as constants, and computes the loss of the whole
batch. Its gradient at the own part is exact, since the whole loss is there; summed over the processes, the weights'
gradients equal those of one process with the whole batch.
"""

import os
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from llmindex.encode.models import one_line
from llmindex.errors import LlmindexError, UsageError

T = TypeVar("T")


def start(device: str) -> None:
    """Join the other processes, where ``torchrun`` started this one.

    Args:
        device: what the training was asked to run on; "auto" takes a GPU for each process if there is one.

    Raises:
        UsageError: ``RANK`` is set, but what else ``torchrun`` sets is not, or they cannot be reached.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        return
    on_gpu = device.startswith(("auto", "cuda")) and torch.cuda.is_available()
    try:
        if on_gpu:
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo")
    except (KeyError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"RANK is set, as torchrun sets it, but its processes cannot be joined: {one_line(error)}; start them with "
            "torchrun, or unset RANK to train in this process alone"
        ) from error


def world() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return dist.get_rank() if world() > 1 else 0


def from_first(make: Callable[[], T]) -> T:
    """What the first process makes, in all of them; where it fails there, it fails everywhere.

    Raises:
        LlmindexError: as ``make`` did in the first process.
    """
    if world() == 1:
        return make()
    held: list[Any] = [None, None]
    if rank() == 0:
        try:
            held[0] = make()
        except LlmindexError as error:
            held[1] = error
    dist.broadcast_object_list(held)
    if held[1] is not None:
        raise held[1]
    made: T = held[0]
    return made


def wait() -> None:
    """Until all processes are here."""
    if world() > 1:
        dist.barrier()


def total(number: int) -> int:
    """The sum over all processes."""
    return int(gather(torch.tensor([number])).sum())


def gather(own: Tensor) -> Tensor:
    """The rows of all processes, in their order; gradients flow to the own rows alone.

    Processes may hold different numbers of rows.
    """
    if world() == 1:
        return own
    sizes = [torch.zeros(1, dtype=torch.int64, device=own.device) for _ in range(world())]
    dist.all_gather(sizes, torch.tensor([len(own)], device=own.device))
    longest = max(int(size) for size in sizes)
    padded = own.detach().new_zeros((longest, *own.shape[1:]))
    padded[: len(own)] = own.detach()
    parts = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(parts, padded)
    rows = [part[: int(size)] for part, size in zip(parts, sizes, strict=True)]
    rows[rank()] = own
    return torch.cat(rows)


def sum_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over all processes."""
    if world() == 1:
        return
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
