"""Encoders in processes of their own, for each further device of the host.

A build's own encoder has the first device, these have the others. Each computes whole windows, of which a vector's bits
are a pure function, so it does not matter who computed which. A helper ends with the process that started it, however
that ends.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import replace
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from typing import Any

from llmindex.encode import device
from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import EncoderSpec
from llmindex.errors import LlmindexError, ModelError
from llmindex.records import Tokens, Vectors

# One that is computed and one that waits, so that no device does.
_WINDOWS_EACH = 2

_own: Encoder | LlmindexError | None = None
"""In a helper: its encoder, or why there is none."""


class Helpers:
    """The same encoder once more on each of some devices."""

    def __init__(
        self, spec: EncoderSpec, devices: Sequence[str], *, dtype: str = "auto", trust_remote_code: bool = False
    ) -> None:
        """Start them; they load the model meanwhile.

        Args:
            spec: of the encoder.
            devices: one or more, one for each helper.
            dtype: what they compute in.
            trust_remote_code: run Python files of the model's folder.
        """
        # Not by forking, which hangs once threads of OpenMP or CUDA have been started.
        context = get_context("spawn")
        names: Queue[str] = context.Queue()
        for name in devices:
            names.put(name)
        options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        self._most = _WINDOWS_EACH * len(devices)
        self._under_way: list[Future[Vectors]] = []
        self._pool = ProcessPoolExecutor(
            len(devices), context, _begin, (names, spec.to_json(), options, len(devices) + 1)
        )

    def start(self, tokens: Tokens) -> "Future[Vectors] | None":
        """Have texts encoded; None where all helpers have enough to do.

        Raises:
            ModelError: a helper has died.
        """
        self._under_way = [future for future in self._under_way if not future.done()]
        if len(self._under_way) >= self._most:
            return None
        try:
            future = self._pool.submit(_forward, tokens)
        except BrokenProcessPool as error:
            raise _died() from error
        self._under_way.append(future)
        return future

    def close(self) -> None:
        """End them, after the windows that they are at."""
        self._pool.shutdown(cancel_futures=True)


def result(future: "Future[Vectors]") -> Vectors:
    """Wait for what :meth:`Helpers.start` gave.

    Raises:
        LlmindexError: it could not be computed; a helper could not load the model, or has died.
    """
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise _died() from error


def devices(encoder: Encoder | EncoderOptions | None) -> list[str]:
    """Where a build encodes that is given this encoder, or is to load one."""
    return device.split(encoder.device) if isinstance(encoder, EncoderOptions) else ["auto"]


def load(encoder: Encoder | EncoderOptions | None) -> Encoder:
    """The encoder on the first of its devices; raises as :meth:`Encoder.load`."""
    if isinstance(encoder, Encoder):
        return encoder
    return Encoder.from_options(replace(encoder or EncoderOptions(), device=devices(encoder)[0]))


@contextmanager
def beside(encoder: Encoder | EncoderOptions | None, loaded: Encoder) -> Iterator[Helpers | None]:
    """Helpers on the other devices; None where there is but one."""
    if not isinstance(encoder, EncoderOptions) or len(names := devices(encoder)) == 1:
        yield None
        return
    if loaded.placement.device.type == "cpu":
        device.share_threads(len(names))
    trust = encoder.trust_remote_code
    with closing(Helpers(loaded.spec, names[1:], dtype=loaded.dtype, trust_remote_code=trust)) as helpers:
        yield helpers


def _died() -> ModelError:
    return ModelError(
        "the encoder's process on another device has died, killed perhaps for want of memory; what is encoded is "
        "stored: run the same command again, perhaps on fewer devices"
    )


def _begin(names: "Queue[str]", spec: dict[str, Any], options: dict[str, Any], processes: int) -> None:
    """What a helper does first."""
    global _own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        _own = Encoder.from_spec(EncoderSpec.from_json(spec), device_name=names.get(), **options)
        device.share_threads(processes)
    except LlmindexError as error:
        _own = error


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _forward(tokens: Tokens) -> Vectors:
    if not isinstance(_own, Encoder):
        raise _own or RuntimeError("a helper without an encoder")
    return _own.forward(tokens)
