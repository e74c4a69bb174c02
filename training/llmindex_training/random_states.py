"""The random numbers of a process, which a training seeds for itself: transformers seeds all that there are.

A program that draws its own, as to shuffle or to name things, would otherwise draw the same ones after each training.
"""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


@contextmanager
def kept() -> Iterator[None]:
    """Leave the states of Python's, NumPy's and torch's generators as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - who has no generator of their own
    # Asking a GPU for its state takes it up; who has not used it has nothing drawn from it.
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(gpus):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
