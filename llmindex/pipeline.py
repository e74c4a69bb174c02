"""The streaming run: read | encode | write, side by side.

A reader thread reads and tokenises the next windows while the caller's thread runs the model, and a writer thread
stores what came out. Queues between them are short, so memory does not depend on the corpus. The model stays in the
caller's thread, where Ctrl-C arrives: whatever happens there or in another thread, all windows that the model has
finished are committed before the error goes on to the caller, and both threads have ended, however often Ctrl-C comes.
That thread takes no lock that is written in Python: Ctrl-C can come when one has just been taken, which then nobody
gives back. So queues are simple ones, written in C, and waiting is looking again.

With several devices, :class:`~llmindex.encode.helpers.Helpers` take windows, too. Whoever is done first, windows are
stored in their order: where one fails, or is not waited for after Ctrl-C, those after it are not.
"""

import logging
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from llmindex.corpus import Corpus, Position, Window
from llmindex.encode.encoder import Encoder
from llmindex.encode.helpers import Awaited, Helpers
from llmindex.errors import LlmindexError, StorageError
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Tokens
from llmindex.store.manifest import EncoderRecord
from llmindex.store.writer import VectorWriter

logger = logging.getLogger(__name__)

# Texts are sorted by length within a window, and an interruption costs the window under way. A slow device wants a
# short one; on a GPU a batch alone holds hundreds of texts.
_CPU_WINDOW_ROWS = 256
_GPU_WINDOW_ROWS = 4096
_CHECKPOINT_SECONDS = 30.0
_QUEUE_LENGTH = 2
# How often a thread looks whether it may go on, and whether there is anything to go on with.
_ROOM_SECONDS = 0.01
_LOOK_SECONDS = 0.1
_SELF_CHECK_MINIMUM = 0.99
# Windows that may wait for one before them, which a slower device still has.
_MOST_AHEAD = 16


@dataclass(frozen=True, slots=True)
class _Tokenised:
    window: Window
    tokens: Tokens


@dataclass(frozen=True, slots=True)
class _Started:
    item: _Tokenised
    vectors: Awaited
    reported: bool
    self_check: float | None = None

    def is_sound(self) -> bool:
        """Whether it has been encoded."""
        return self.vectors.vectors is not None


class _Stopped(Exception):
    """Raised in a thread that waits for another when the writer has ended."""


@dataclass(slots=True)
class Pipeline:
    """One run from a corpus into a writer.

    Attributes:
        seconds: busy seconds of each stage: "read", "encode", "write".
        helpers: what encodes beside the encoder, on other devices.
        added: documents that this run has begun to encode; all of them are stored once it has ended well.
        tokens: model tokens of this run.
    """

    corpus: Corpus
    encoder: Encoder
    writer: VectorWriter
    on_progress: ProgressCallback | None = None
    helpers: Helpers | None = None
    seconds: dict[str, float] = field(default_factory=lambda: {"read": 0.0, "encode": 0.0, "write": 0.0})
    added: int = 0
    tokens: int = 0
    _before: int = 0  # documents that were stored when it began
    _fresh: int = 0
    _tokenised: "queue.SimpleQueue[_Tokenised | None]" = field(default_factory=queue.SimpleQueue)
    _windows: deque[_Started] = field(default_factory=deque)  # those that the writer has not been given
    _encoded: "queue.SimpleQueue[_Started | None]" = field(default_factory=queue.SimpleQueue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None
    _complete: bool = False  # the writer has been given every window that there is

    def run(self, start: Position, known_ids: Iterator[str]) -> None:
        """Encode everything from a position on and commit it.

        Raises:
            BaseException: whatever stopped it, once all finished windows are committed.
        """
        self._before = self.writer.count
        try:
            ended = [
                self._thread("reader", lambda: self._read(start, known_ids), lambda: self._tokenised.put(None)),
                self._thread("writer", self._write, self._stop.set),
            ]
        except BaseException:  # Ctrl-C while they start: whichever has is to end by itself
            self._stop.set()
            self._encoded.put(None)
            raise
        try:
            self._report(start, 0, 0)  # the first batch can take half a minute
            self._encode()
        except _Stopped:
            pass  # the writer failed; its error is raised below
        except BaseException as error:
            self._fail(error)
        finally:
            self._finish(ended)
        if self._failure is not None:
            raise self._failure

    def _read(self, start: Position, known_ids: Iterator[str]) -> None:
        rows = _CPU_WINDOW_ROWS if self.encoder.placement.device.type == "cpu" else _GPU_WINDOW_ROWS
        windows = self.corpus.windows(rows, start, known_ids)
        while True:
            with self._busy("read"):
                window = next(windows, None)
                if window is None:
                    return
                item = _Tokenised(window, self.encoder.tokenize(window.table.column("text").to_pylist()))
            self._wait_for_room(self._tokenised)
            self._tokenised.put(item)

    def _encode(self) -> None:
        """Encode what the reader brings until it ends, in whichever way."""
        windows = self._windows
        while self._failure is None and (item := self._next()) is not None:
            windows.append(self._start(item))
            while windows and (windows[0].vectors.done() or len(windows) > _MOST_AHEAD):
                self._await(windows[0])
                self._hand_over()
        while windows and not self._stop.is_set():
            self._await(windows[0])
            self._hand_over()
        self._complete = self._failure is None

    def _next(self) -> _Tokenised | None:
        """The next window, once the writer has room for it: encoded, it need not wait, and be lost to a Ctrl-C."""
        self._wait_for_room(self._encoded)
        while not self._stop.is_set():
            try:
                return self._tokenised.get(timeout=_LOOK_SECONDS)
            except queue.Empty:
                continue
        raise _Stopped

    def _start(self, item: _Tokenised) -> _Started:
        """Have a window encoded by a helper that has time, else here and now."""
        first = self._before + self.added == 0  # it is for the encoder, which checks itself on it
        self.added += len(item.tokens)
        awaited = self.helpers.start(item.tokens) if self.helpers is not None and not first else None
        if awaited is not None:
            return _Started(item, awaited, reported=False)
        with self._busy("encode"):
            vectors = self.encoder.forward(item.tokens, on_tokens=partial(self._report, item.window.position))
            check = self.encoder.self_check(item.tokens, vectors) if first and len(item.tokens) else None
        return _Started(item, Awaited(vectors), reported=True, self_check=check)

    def _await(self, window: _Started) -> None:
        """Wait for a window's vectors, if need be."""
        with self._busy("encode"):
            window.vectors.result()
        if not window.reported:
            item = window.item
            self._report(item.window.position, len(item.tokens), int(item.tokens.offsets[-1]))

    def _hand_over(self) -> None:
        """Give the first window to the writer.

        Only then it leaves the list: Ctrl-C in between has it given twice, of which the writer takes one, and never
        not at all, which would leave a gap before the next.
        """
        self._encoded.put(self._windows[0])
        self._windows.popleft()

    def _finish(self, ended: Sequence[threading.Event]) -> None:
        """Have what is encoded committed, and see both threads end, however often Ctrl-C comes meanwhile.

        Left behind, the writer's would go on in a folder whose lock another build may have by then.
        """
        while True:
            try:
                while self._windows and self._windows[0].is_sound():
                    self._hand_over()
                self._encoded.put(None)
                # Not joined: once in vain, and a thread of Python 3.11 seems to have ended.
                while not all(event.is_set() for event in ended):
                    time.sleep(_ROOM_SECONDS)
                return
            except KeyboardInterrupt as error:
                self._fail(error)

    def _report(self, position: Position, texts: int, tokens: int) -> None:
        self._fresh += texts
        self.tokens += tokens
        if self.on_progress is not None:
            total = self.corpus.rows - sum(position.bad_rows.values())
            done = self._before + self._fresh
            self.on_progress(Progress("encode", done, total, tokens=self.tokens, fresh=self._fresh))

    def _write(self) -> None:
        """Store what comes until nothing does, and commit it."""
        try:
            for window in self._arriving():
                with self._busy("write"):
                    self._store(window)
        except StorageError:
            raise  # the writer may commit no more
        except LlmindexError:
            self.writer.checkpoint()  # the window was refused; those before it are sound
            raise
        with self._busy("write"):
            if self._complete:
                self.writer.finish()
            else:
                self.writer.checkpoint()

    def _arriving(self) -> Iterator[_Started]:
        """The windows to store, each once; commits those that are due, also while none arrives."""
        last: _Started | None = None
        due: float | None = None
        while True:
            left = None if due is None else due - time.monotonic()
            if left is not None and left <= 0:
                with self._busy("write"):
                    self.writer.checkpoint()
                due = None
                continue
            try:
                window = self._encoded.get(timeout=left)
            except queue.Empty:
                continue
            if window is None:
                return
            if window is last:
                continue
            yield window
            last = window
            if due is None:
                due = time.monotonic() + _CHECKPOINT_SECONDS

    def _store(self, window: _Started) -> None:
        if window.self_check is not None:
            self._note_self_check(window.self_check)
        position, tokens = window.item.window.position, window.item.tokens
        self.writer.append(
            window.item.window.table,
            window.vectors.result(),
            source_rows=position.source_rows,
            bad_rows=position.bad_rows,
            truncated=int(tokens.truncated.sum()),
            tokens=int(tokens.offsets[-1]),
        )

    def _note_self_check(self, cosine: float) -> None:
        if not cosine >= _SELF_CHECK_MINIMUM:  # nor if it is no number
            logger.warning("a text encoded alone has cosine %.4f to itself in a batch; try --dtype float32", cosine)
        # Rounded: the last digits depend on the machine's mood, not on the encoder.
        noted = round(cosine, 6) if math.isfinite(cosine) else None
        self.writer.set_encoder(EncoderRecord(self.encoder.spec, self.encoder.dtype, noted))

    def _thread(self, name: str, work: Callable[[], None], at_end: Callable[[], None]) -> threading.Event:
        """Work on the side; set once that has ended. Others learn of its end only when its failure is noted."""
        ended = threading.Event()

        def guarded() -> None:
            try:
                work()
            except _Stopped:
                pass
            except BaseException as error:
                self._fail(error)
            at_end()
            ended.set()

        threading.Thread(target=guarded, name=f"llmindex-{name}", daemon=True).start()
        return ended

    def _fail(self, error: BaseException) -> None:
        self._failure = self._failure or error

    @contextmanager
    def _busy(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[stage] += time.perf_counter() - started

    def _wait_for_room(self, target: "queue.SimpleQueue[Any]") -> None:
        """Wait until no more than a few windows wait in a queue; raises ``_Stopped`` when the writer has ended."""
        while not self._stop.is_set():
            if target.qsize() < _QUEUE_LENGTH:
                return
            time.sleep(_ROOM_SECONDS)
        raise _Stopped
