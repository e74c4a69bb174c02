"""The streaming run, with a fake encoder where a failure at a chosen place is wanted."""

import hashlib
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from llmindex import pipeline
from llmindex.corpus import Corpus, Position
from llmindex.encode.device import Placement
from llmindex.encode.helpers import Awaited
from llmindex.encode.spec import EncoderSpec
from llmindex.errors import CorpusError, LlmindexError, ModelError, StorageError, UsageError
from llmindex.pipeline import Pipeline
from llmindex.progress import Progress
from llmindex.records import Tokens, Vectors
from llmindex.store.manifest import CorpusRecord, EncoderRecord, Manifest
from llmindex.store.reader import VectorStore
from llmindex.store.shard import write_shard
from llmindex.store.writer import VectorWriter

LOCKING, WAITING = (queue.__file__, threading.__file__), ("get", "put", "wait", "set")
SPEC = EncoderSpec("fake", None, "0" * 64, "{text}", "{text}", "mean", -1, "causal", 8, 4)


class FakeEncoder:
    """A vector for each text, out of its hash; may fail at the n-th window."""

    spec = SPEC
    dtype = "float32"
    placement = Placement(torch.device("cpu"), torch.float32, 2048)

    def __init__(self, fail_at: int = -1, error: BaseException | None = None) -> None:
        self.windows = 0
        self._fail_at, self._error = fail_at, error

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        ids = np.array([int(hashlib.sha256(text.encode()).hexdigest()[:7], 16) for text in texts], np.int32)
        offsets = np.arange(len(texts) + 1, dtype=np.int64)
        return Tokens(ids, offsets, np.zeros((len(texts), 2), np.int64), np.zeros(len(texts), np.bool_))

    def forward(self, tokens: Tokens, on_tokens: Callable[[int, int], None] | None = None) -> Vectors:
        if self.windows == self._fail_at and self._error is not None:
            raise self._error
        self.windows += 1
        vectors = np.stack([np.random.default_rng(int(token)).normal(size=4) for token in tokens.ids])
        if on_tokens is not None:
            on_tokens(len(tokens), len(tokens))
        unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        return unit

    def self_check(self, tokens: Tokens, vectors: Vectors) -> float:
        return 1.0


def table(rows: int) -> pa.Table:
    return pa.table({"id": [f"d{i}" for i in range(rows)], "text": [f"document {i}" for i in range(rows)]})


def run(
    folder: Path,
    corpus: Corpus,
    encoder: FakeEncoder,
    on_progress: Callable[[Progress], None] | None = None,
    helpers: Any = None,  # noqa: ANN401 - what starts futures of vectors
) -> Pipeline:
    """One run, new or resumed, as the builder does it."""
    fake: Any = encoder
    if (folder / "manifest.json").exists():
        writer = VectorWriter.open(folder)
    else:
        writer = VectorWriter.create(folder, EncoderRecord(encoder.spec, "float32"), CorpusRecord(corpus.record))
    with writer:
        pipeline = Pipeline(corpus, fake, writer, on_progress, helpers)
        stored = writer.manifest.corpus
        ids = [row for batch in VectorStore.open(folder).iter_columns(["id"]) for row in batch.column(0).to_pylist()]
        pipeline.run(Position(stored.source_rows, stored.bad_rows), iter(ids))
    return pipeline


def test_everything_arrives_in_order(tmp_path: Path) -> None:
    reports: list[Progress] = []
    with Corpus.open(table(1000)) as corpus:
        pipeline = run(tmp_path / "x", corpus, FakeEncoder(), reports.append)
    store = VectorStore.open(tmp_path / "x")
    assert store.take(np.arange(1000)).column("id").to_pylist() == [f"d{i}" for i in range(1000)]
    encoder = FakeEncoder()
    expected = encoder.forward(encoder.tokenize([f"document {i}" for i in range(1000)]))
    np.testing.assert_array_equal(store.vectors(), expected.astype(np.float16).astype(np.float32))
    assert store.manifest.corpus.complete
    assert store.manifest.encoder.self_check == 1.0
    assert pipeline.added == 1000
    assert set(pipeline.seconds) == {"read", "encode", "write"}
    assert (reports[-1].done, reports[-1].total, reports[-1].fresh) == (1000, 1000, 1000)


def test_the_callers_thread_takes_no_lock_that_ctrl_c_could_leave_taken(tmp_path: Path) -> None:
    """Queues and events written in Python take one, and Ctrl-C can come when they have just done so."""
    waits: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        before = frame.f_back
        if event == "call" and frame.f_code.co_filename in LOCKING and before is not None:
            if frame.f_code.co_name in WAITING and before.f_code.co_filename == pipeline.__file__:
                waits.append(f"{frame.f_code.co_name} at line {before.f_lineno}")

    with Corpus.open(table(256 * 12)) as corpus:
        sys.setprofile(note)
        try:
            run(tmp_path / "x", corpus, FakeEncoder())
        finally:
            sys.setprofile(None)
    assert waits == []


def test_a_self_check_that_is_no_number_is_told_and_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeEncoder, "self_check", lambda self, tokens, vectors: float("nan"))
    with Corpus.open(table(10)) as corpus:
        run(tmp_path / "x", corpus, FakeEncoder())
    manifest = VectorStore.open(tmp_path / "x").manifest
    assert (manifest.count, manifest.corpus.complete, manifest.encoder.self_check) == (10, True, None)
    assert "cosine nan to itself in a batch; try --dtype float32" in caplog.text


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("the model broke")])
@pytest.mark.parametrize("fail_at", [0, 1, 3])
def test_a_stop_commits_what_was_encoded_and_the_rest_follows(
    tmp_path: Path, error: BaseException, fail_at: int
) -> None:
    with Corpus.open(table(1000)) as corpus:
        with pytest.raises(type(error)):
            run(tmp_path / "x", corpus, FakeEncoder(fail_at, error))
        store = VectorStore.open(tmp_path / "x")
        assert store.count == 256 * fail_at
        assert not store.manifest.corpus.complete
        pipeline = run(tmp_path / "x", corpus, FakeEncoder())
        assert pipeline.added == 1000 - 256 * fail_at
        run(tmp_path / "whole", corpus, FakeEncoder())
    assert files(tmp_path / "x") == files(tmp_path / "whole")


def files(folder: Path) -> dict[str, bytes]:
    """Names and bytes of all shards."""
    return {path.name: path.read_bytes() for path in sorted((folder / "vectors").iterdir())}


def test_a_bad_row_met_on_the_way_stops_the_run_and_loses_nothing(tmp_path: Path) -> None:
    from llmindex.corpus import CorpusOptions

    rows = [*table(600).to_pylist(), {"id": "bad", "text": ""}]
    with Corpus.open(pa.Table.from_pylist(rows), CorpusOptions(on_bad_row="fail")) as corpus:
        with pytest.raises(CorpusError, match="bad"):
            run(tmp_path / "x", corpus, FakeEncoder())
    store = VectorStore.open(tmp_path / "x")
    assert store.count % 256 == 0
    assert not store.manifest.corpus.complete


def test_a_writer_that_fails_stops_the_reader_and_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    append = VectorWriter.append

    def failing(self: VectorWriter, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == 2:
            raise StorageError("no room")
        append(self, *args, **kwargs)

    monkeypatch.setattr(VectorWriter, "append", failing)
    encoder = FakeEncoder()
    with Corpus.open(table(5000)) as corpus, pytest.raises(StorageError, match="no room"):
        run(tmp_path / "x", corpus, encoder)
    assert encoder.windows < 20
    assert VectorStore.open(tmp_path / "x").count == 0


def test_windows_are_read_ahead_but_not_far(tmp_path: Path) -> None:
    read = 0

    class Watched(Corpus):
        def windows(self, *args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401
            nonlocal read
            for window in super().windows(*args, **kwargs):
                read += 1
                yield window

    with Watched.open(table(256 * 40)) as corpus, pytest.raises(KeyboardInterrupt):
        run(tmp_path / "x", corpus, FakeEncoder(5, KeyboardInterrupt()))
    assert read <= 5 + 5


class Hooked(FakeEncoder):
    """Does something once a window is encoded, given their number, and before the run learns of it."""

    def __init__(self, then: Callable[[int], None]) -> None:
        super().__init__()
        self._then = then

    def forward(self, tokens: Tokens, on_tokens: Callable[[int, int], None] | None = None) -> Vectors:
        vectors = super().forward(tokens, on_tokens)
        self._then(self.windows)
        return vectors


class Handed:
    """Helpers that answer with these, one a window, then with none."""

    def __init__(self, *awaited: Awaited) -> None:
        self._awaited = list(awaited)

    def start(self, tokens: Tokens) -> Awaited | None:
        return self._awaited.pop(0) if self._awaited else None


def test_a_reader_that_fails_loses_no_window_that_the_model_has(tmp_path: Path) -> None:
    failed = threading.Event()

    class Failing(Corpus):
        def windows(self, *args: Any, **kwargs: Any) -> Iterator[Any]:  # noqa: ANN401
            for number, window in enumerate(super().windows(*args, **kwargs)):
                if number == 3:
                    failed.set()
                    raise CorpusError("row 800 is bad")
                yield window

    def outlast(windows: int) -> None:
        assert failed.wait(30)
        time.sleep(0.2)  # so that the run knows of it, too

    encoder = Hooked(outlast)
    with Failing.open(table(1000)) as corpus, pytest.raises(CorpusError, match="row 800 is bad"):
        run(tmp_path / "x", corpus, encoder)
    assert encoder.windows >= 1
    store = VectorStore.open(tmp_path / "x")
    assert store.count == 256 * encoder.windows
    assert not store.manifest.corpus.complete


def test_a_window_is_committed_in_time_although_no_other_follows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llmindex.pipeline._CHECKPOINT_SECONDS", 0.5)

    def wait_for_the_first(windows: int) -> None:
        deadline = time.monotonic() + 30
        while windows == 2 and Manifest.load(tmp_path / "x").count < 256:
            assert time.monotonic() < deadline, "the first window is not committed"
            time.sleep(0.01)

    with Corpus.open(table(1000)) as corpus:
        run(tmp_path / "x", corpus, Hooked(wait_for_the_first))
    assert VectorStore.open(tmp_path / "x").count == 1000


@pytest.mark.parametrize(("normalize", "error"), [(True, ModelError), (False, UsageError)])
def test_a_refused_vector_costs_its_window_and_those_after_it(
    tmp_path: Path, normalize: bool, error: type[LlmindexError]
) -> None:
    class Broken(FakeEncoder):
        spec = replace(SPEC, normalize=normalize)

        def forward(self, tokens: Tokens, on_tokens: Callable[[int, int], None] | None = None) -> Vectors:
            vectors = super().forward(tokens, on_tokens)
            if self.windows == 3:
                vectors[5] *= 1e6  # of no unit length, and beyond float16
            return vectors

    with Corpus.open(table(2000)) as corpus, pytest.raises(error, match="d517"):
        run(tmp_path / "x", corpus, Broken())
    store = VectorStore.open(tmp_path / "x")
    assert store.take(np.arange(store.count)).column("id").to_pylist() == [f"d{i}" for i in range(512)]
    assert not store.manifest.corpus.complete


def test_ctrl_c_again_and_again_waits_for_the_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each comes while the caller's thread waits for a shard to be written."""
    caller, arrived = threading.get_ident(), threading.Semaphore(0)

    def interrupt(*_: object) -> None:
        arrived.release()
        raise KeyboardInterrupt

    def interrupted(*arguments: Any) -> None:  # noqa: ANN401
        for _ in range(3):
            signal.pthread_kill(caller, signal.SIGINT)
            assert arrived.acquire(timeout=30)
            time.sleep(0.1)  # in which a caller that does not wait is gone
        write_shard(*arguments)

    monkeypatch.setattr("llmindex.store.writer.write_shard", interrupted)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with Corpus.open(table(1000)) as corpus, pytest.raises(KeyboardInterrupt):
            run(tmp_path / "x", corpus, FakeEncoder(2, KeyboardInterrupt()))
    finally:
        signal.signal(signal.SIGINT, before)
    assert VectorStore.open(tmp_path / "x").count == 512


def test_ctrl_c_while_waiting_for_a_helper_leaves_no_gap(tmp_path: Path) -> None:
    class Interrupted(Awaited):
        def result(self) -> Vectors:
            raise KeyboardInterrupt

    with Corpus.open(table(1000)) as corpus:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "x", corpus, FakeEncoder(), helpers=Handed(Interrupted()))
        assert VectorStore.open(tmp_path / "x").count == 256
        run(tmp_path / "x", corpus, FakeEncoder())
        run(tmp_path / "whole", corpus, FakeEncoder())
    assert files(tmp_path / "x") == files(tmp_path / "whole")
