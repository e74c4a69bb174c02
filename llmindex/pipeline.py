"""The streaming run: read | encode | write, side by side.

A reader thread reads and tokenises the next windows while the caller's thread runs the model, and a writer thread
stores what came out. Queues between them are short, so memory does not depend on the corpus. The model stays in the
caller's thread, where Ctrl-C arrives: whatever happens there or in another thread, all windows that the model has
finished are committed before the error goes on to the caller.

With several devices, :class:`~llmindex.encode.helpers.Helpers` take windows, too. Whoever is done first, windows are
stored in their order.
"""

import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from llmindex.corpus import Corpus, Position, Window
from llmindex.encode.encoder import Encoder
from llmindex.encode.helpers import Helpers
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Tokens, Vectors
from llmindex.store.manifest import EncoderRecord
from llmindex.store.writer import VectorWriter

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Texts are sorted by length within a window, and an interruption costs the window under way. A slow device wants a
# short one; on a GPU a batch alone holds hundreds of texts.
_CPU_WINDOW_ROWS = 256
_GPU_WINDOW_ROWS = 4096
_CHECKPOINT_SECONDS = 30.0
_QUEUE_LENGTH = 2
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
    vectors: "Future[Vectors]"
    reported: bool

    def is_sound(self) -> bool:
        """Whether it has been encoded."""
        return self.vectors.done() and not self.vectors.cancelled() and self.vectors.exception() is None


@dataclass(frozen=True, slots=True)
class _Encoded:
    window: Window
    tokens: Tokens
    vectors: Vectors
    self_check: float | None


class _Stopped(Exception):
    """Raised in a thread that waits for a queue when the run has ended."""


@dataclass(slots=True)
class Pipeline:
    """One run from a corpus into a writer.

    Attributes:
        seconds: busy seconds of each stage: "read", "encode", "write".
        helpers: what encodes beside the encoder, on other devices.
        added: documents encoded and handed to the writer by this run.
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
    _fresh: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _failure: BaseException | None = None
    _writer_works: bool = True

    def run(self, start: Position, known_ids: Iterator[str]) -> None:
        """Encode everything from a position on and commit it.

        Raises:
            BaseException: whatever stopped it, once all finished windows are committed.
        """
        before = self.writer.count
        tokenised: queue.Queue[_Tokenised | None] = queue.Queue(_QUEUE_LENGTH)
        encoded: queue.Queue[_Encoded | None] = queue.Queue(_QUEUE_LENGTH)
        reader = self._thread("reader", lambda: self._read(tokenised, start, known_ids))
        writer = self._thread("writer", lambda: self._write(encoded))
        windows: deque[_Started] = deque()
        try:
            while (item := self._get(tokenised)) is not None:
                windows.append(self._start(item, before))
                while windows and (windows[0].vectors.done() or len(windows) > _MOST_AHEAD):
                    self._put(encoded, self._encoded(windows.popleft(), before))
            while windows:
                self._put(encoded, self._encoded(windows.popleft(), before))
        except _Stopped:
            pass  # another thread failed; its error is raised below
        except BaseException as error:
            self._failure = self._failure or error
            with suppress(_Stopped):
                while windows and windows[0].is_sound():
                    self._put(encoded, self._encoded(windows.popleft(), before))
        finally:
            self._finish(encoded, writer)
            self._stop.set()
            reader.join()
        if self._failure is not None:
            if self._writer_works:
                self.writer.checkpoint()
            raise self._failure
        started = time.perf_counter()
        self.writer.finish()
        self.seconds["write"] += time.perf_counter() - started

    def _finish(self, encoded: "queue.Queue[_Encoded | None]", writer: threading.Thread) -> None:
        """Let the writer store what the model has finished; a failed writer has stopped already."""
        while writer.is_alive():
            try:
                encoded.put(None, timeout=0.1)
                break
            except queue.Full:
                continue
        writer.join()

    def _read(self, tokenised: "queue.Queue[_Tokenised | None]", start: Position, known_ids: Iterator[str]) -> None:
        rows = _CPU_WINDOW_ROWS if self.encoder.placement.device.type == "cpu" else _GPU_WINDOW_ROWS
        windows = self.corpus.windows(rows, start, known_ids)
        while True:
            started = time.perf_counter()
            window = next(windows, None)
            if window is None:
                break
            item = _Tokenised(window, self.encoder.tokenize(window.table.column("text").to_pylist()))
            self.seconds["read"] += time.perf_counter() - started
            self._put(tokenised, item)
        self._put(tokenised, None)

    def _start(self, item: _Tokenised, before: int) -> _Started:
        """Have a window encoded by a helper that has time, else here and now."""
        future = self.helpers.start(item.tokens) if self.helpers is not None else None
        if future is not None:
            return _Started(item, future, reported=False)
        started = time.perf_counter()
        made: Future[Vectors] = Future()
        made.set_result(self.encoder.forward(item.tokens, on_tokens=partial(self._report, item, before)))
        self.seconds["encode"] += time.perf_counter() - started
        return _Started(item, made, reported=True)

    def _encoded(self, window: _Started, before: int) -> _Encoded:
        """A window with its vectors, which are waited for if need be."""
        started = time.perf_counter()
        item, vectors = window.item, window.vectors.result()
        if not window.reported:
            self._report(item, before, len(item.tokens), int(item.tokens.offsets[-1]))
        check = None
        if before + self.added == 0 and len(item.tokens):
            check = self.encoder.self_check(item.tokens, vectors)
        self.added += len(item.tokens)
        self.seconds["encode"] += time.perf_counter() - started
        return _Encoded(item.window, item.tokens, vectors, check)

    def _report(self, item: _Tokenised, before: int, texts: int, tokens: int) -> None:
        self._fresh += texts
        self.tokens += tokens
        if self.on_progress is not None:
            total = self.corpus.rows - sum(item.window.position.bad_rows.values())
            done = before + self._fresh
            self.on_progress(Progress("encode", done, total, tokens=self.tokens, fresh=self._fresh))

    def _write(self, encoded: "queue.Queue[_Encoded | None]") -> None:
        committed = time.perf_counter()
        self._writer_works = False  # whatever ends the loop early leaves a writer that must not commit
        while (item := encoded.get()) is not None:
            started = time.perf_counter()
            self._store(item)
            if started - committed > _CHECKPOINT_SECONDS:
                self.writer.checkpoint()
                committed = time.perf_counter()
            self.seconds["write"] += time.perf_counter() - started
        self._writer_works = True

    def _store(self, item: _Encoded) -> None:
        if item.self_check is not None:
            self._note_self_check(item.self_check)
        self.writer.append(
            item.window.table,
            item.vectors,
            source_rows=item.window.position.source_rows,
            bad_rows=item.window.position.bad_rows,
            truncated=int(item.tokens.truncated.sum()),
            tokens=int(item.tokens.offsets[-1]),
        )

    def _note_self_check(self, cosine: float) -> None:
        if cosine < _SELF_CHECK_MINIMUM:
            logger.warning("a text encoded alone has cosine %.4f to itself in a batch; try --dtype float32", cosine)
        # Rounded: the last digits depend on the machine's mood, not on the encoder.
        self.writer.set_encoder(EncoderRecord(self.encoder.spec, self.encoder.dtype, round(cosine, 6)))

    def _thread(self, name: str, work: Callable[[], None]) -> threading.Thread:
        def guarded() -> None:
            try:
                work()
            except _Stopped:
                pass
            except BaseException as error:
                self._failure = self._failure or error
                self._stop.set()

        thread = threading.Thread(target=guarded, name=f"llmindex-{name}", daemon=True)
        thread.start()
        return thread

    def _put(self, target: "queue.Queue[T]", item: T) -> None:
        while not self._stop.is_set():
            try:
                return target.put(item, timeout=0.1)
            except queue.Full:
                continue
        raise _Stopped

    def _get(self, source: "queue.Queue[T]") -> T:
        while not self._stop.is_set():
            try:
                return source.get(timeout=0.1)
            except queue.Empty:
                continue
        raise _Stopped
