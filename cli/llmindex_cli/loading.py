"""Loading what stays: torch, transformers, a model."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading() -> Iterator[None]:
    """Keep the garbage collector from looking through what is being loaded.

    It would at every few hundred new objects, through a million in the end, and find none to free: a second of each
    search.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
