"""Encoders in processes of their own, for each further device of the host.

A build's own encoder has the first device, these have the others. Each computes whole windows, of which a vector's bits
are a pure function, so it does not matter who computed which. A helper is a fresh Python that runs this module, not a
fork, which hangs once threads of OpenMP or CUDA run, nor multiprocessing's, which would run the caller's script again.
It is spoken to by pickles over its standard streams, and ends when these end, however the process that started it does.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

from llmindex.encode import device
from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import EncoderSpec
from llmindex.errors import LlmindexError, ModelError
from llmindex.records import Tokens, Vectors

# One that is computed and one that waits, so that no device does.
_WINDOWS_EACH = 2
# How often vectors that are waited for are looked for.
_LOOK_SECONDS = 0.01


class Awaited:
    """Vectors that another thread brings, or an error in their place.

    A future of the standard library has a lock, which Ctrl-C can leave taken in the thread that waits; the other one
    then never gets rid of what it brings.

    Attributes:
        vectors: None until they are there.
        error: None unless there is one instead.
    """

    def __init__(self, vectors: Vectors | None = None) -> None:
        self.vectors = vectors
        self.error: BaseException | None = None

    def done(self) -> bool:
        """Whether there is anything to wait for no more."""
        return self.vectors is not None or self.error is not None

    def result(self) -> Vectors:
        """Wait for the vectors; raises the error that came instead."""
        while not self.done():
            time.sleep(_LOOK_SECONDS)
        if self.error is not None:
            raise self.error
        assert self.vectors is not None
        return self.vectors


class Helpers:
    """The same encoder once more on each of some devices.

    Attributes:
        helpers: one a device.
    """

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
        options = {"dtype": dtype, "trust_remote_code": trust_remote_code}
        self.helpers: list[Helper] = []
        try:
            for name in devices:
                order = {"spec": spec.to_json(), "device_name": name, **options}
                self.helpers.append(Helper(order, 1 + len(devices)))
        except BaseException:  # Ctrl-C among them
            self.close()
            raise

    def start(self, tokens: Tokens) -> Awaited | None:
        """Have texts encoded; None where no helper is ready, or all have enough to do.

        Waiting raises ModelError where the helper could not load the model, or died.
        """
        free = min(self.helpers, key=lambda helper: helper.windows)
        return free.start(tokens) if free.windows < _WINDOWS_EACH else None

    def close(self) -> None:
        """End them, whatever they are at."""
        for helper in self.helpers:
            helper.close()


class Helper:
    """A process with an encoder, and the thread that speaks with it.

    Attributes:
        ready: set when the encoder is loaded, or has failed to.
        process: the process.
    """

    def __init__(self, order: dict[str, Any], processes: int) -> None:
        self.ready = threading.Event()
        # A session of its own: Ctrl-C is for the process that started it. -P: a file of the working directory must not
        # be taken for a package.
        command = [sys.executable, "-P", "-m", "llmindex.encode.helpers"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        self._jobs: queue.SimpleQueue[tuple[Tokens, Awaited] | None] = queue.SimpleQueue()
        self._windows = 0
        self._counting = threading.Lock()
        self._thread = threading.Thread(target=self._speak, args=((order, processes),), daemon=True)
        self._thread.start()

    @property
    def windows(self) -> int:
        """How many it has to compute; too many until it is ready."""
        return self._windows if self.ready.is_set() else _WINDOWS_EACH

    def start(self, tokens: Tokens) -> Awaited:
        """Have texts encoded."""
        awaited = Awaited()
        self._count(1)
        self._jobs.put((tokens, awaited))
        return awaited

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self._jobs.put(None)
        self._thread.join()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(OSError):  # what was not sent cannot be flushed any more
                    stream.close()

    def _speak(self, order: object) -> None:
        failure = self._ask(order)
        self.ready.set()
        while (job := self._jobs.get()) is not None:
            tokens, awaited = job
            answer = failure or self._ask(tokens)
            self._count(-1)
            if isinstance(answer, BaseException):
                awaited.error = answer
            else:
                awaited.vectors = answer

    def _ask(self, message: object) -> Any:  # noqa: ANN401 - what comes back is vectors, nothing, or an error
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            _send(self.process.stdin, message)
            return pickle.load(self.process.stdout)
        except (OSError, EOFError, ValueError, pickle.UnpicklingError):
            return ModelError(
                "the encoder's process on another device has died, killed perhaps for want of memory; what is encoded "
                "is stored: run the same command again, perhaps on fewer devices"
            )
        except Exception as error:  # an answer that cannot be read
            return error

    def _count(self, change: int) -> None:
        with self._counting:
            self._windows += change


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
    trust = encoder.trust_remote_code
    on_cpu = loaded.placement.device.type == "cpu"
    sharing = device.share_threads(len(names)) if on_cpu else nullcontext()
    with sharing, closing(Helpers(loaded.spec, names[1:], dtype=loaded.dtype, trust_remote_code=trust)) as helpers:
        yield helpers


def main() -> None:
    """What a helper does: load the encoder that it is told of, then encode what comes until nothing does."""
    # Whatever prints must not be taken for an answer.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with suppress(EOFError, OSError), ExitStack() as lasting:
        order, processes = pickle.load(sys.stdin.buffer)
        encoder = None
        try:
            spec = EncoderSpec.from_json(order.pop("spec"))
            encoder = Encoder.from_spec(spec, **order)
            lasting.enter_context(device.share_threads(processes))
            _send(answers, None)
        except LlmindexError as error:
            _send(answers, error)
        while encoder is not None:
            tokens = pickle.load(sys.stdin.buffer)
            try:
                answer: object = encoder.forward(tokens)
            except LlmindexError as error:
                answer = error
            except Exception as error:  # of any class, which the other side need not have
                answer = RuntimeError(f"{type(error).__name__} on another device: {error}")
            _send(answers, answer)


def _send(stream: Any, message: object) -> None:  # noqa: ANN401 - a binary stream
    pickle.dump(message, stream, pickle.HIGHEST_PROTOCOL)
    stream.flush()


if __name__ == "__main__":
    main()
