"""Builds on several devices: the same bytes as on one, and nothing lost when a helper fails or dies."""

import io
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import llmindex
from llmindex import Encoder
from llmindex.encode import device
from llmindex.encode.helpers import Awaited, Helper, Helpers
from llmindex.encode.settings import EncoderOptions
from llmindex.errors import LlmindexError, ModelError, SpecMismatch, UsageError
from llmindex.progress import Progress
from llmindex.records import Tokens
from llmindex.store.verify import verify
from tests.test_builder import contents, write_corpus

TEXTS = ["fox", "the quick brown fox", "a vector index"]


def options(model: Path, devices: str) -> EncoderOptions:
    return EncoderOptions(str(model), device=devices, dtype="float32")


START = Helpers.start


def start_when_ready(self: Helpers, tokens: Tokens) -> Awaited | None:
    """As :meth:`Helpers.start`, but waits for the model to be loaded: these corpora would be done before."""
    assert all(helper.ready.wait(120) for helper in self.helpers)
    return START(self, tokens)


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.from_options(options(tiny_model, "cpu"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "docs.parquet", 3000)


def test_two_processes_make_the_index_that_one_makes(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    by_helpers = 0

    def counting(self: Helpers, tokens: Tokens) -> Awaited | None:
        nonlocal by_helpers
        future = start_when_ready(self, tokens)
        by_helpers += future is not None
        return future

    monkeypatch.setattr(Helpers, "start", counting)
    llmindex.build(corpus, tmp_path / "one", encoder=options(tiny_model, "cpu"))
    assert by_helpers == 0
    steps: list[Progress] = []
    report = llmindex.build(corpus, tmp_path / "two", encoder=options(tiny_model, "cpu,cpu"), on_progress=steps.append)
    assert by_helpers >= 2
    assert report.added == report.documents == 2880
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert [step.done for step in steps if step.stage == "encode"][-1] == 2880
    assert report.tokens == max(step.tokens or 0 for step in steps if step.stage == "encode")


def test_helpers_give_the_vectors_of_the_encoder(encoder: Encoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    team = Helpers(encoder.spec, ["cpu"], dtype="float32")
    try:
        assert team.start(tokens) is None  # not before it is ready
        first, second = start_when_ready(team, tokens), team.start(tokens)
        assert first is not None
        assert second is not None
        assert team.start(tokens) is None or first.done()  # both its places are taken
        np.testing.assert_array_equal(first.result(), encoder.forward(tokens))
        np.testing.assert_array_equal(second.result(), encoder.forward(tokens))
    finally:
        team.close()


def test_a_helper_that_cannot_load_says_why(encoder: Encoder, corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    changed = type(encoder.spec).from_json(encoder.spec.to_json() | {"backbone_sha256": "0" * 64})
    team = Helpers(changed, ["cpu"], dtype="float32")
    try:
        future = start_when_ready(team, encoder.tokenize(TEXTS))
        assert future is not None
        with pytest.raises(SpecMismatch, match="is not the one the vectors were made with"):
            future.result()
    finally:
        team.close()


def test_a_killed_helper_leaves_a_smaller_sound_index(
    corpus: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = False

    def killing(self: Helpers, tokens: Tokens) -> object:
        nonlocal killed
        future = start_when_ready(self, tokens)
        if not killed and future is not None:
            killed = True
            for helper in self.helpers:
                helper.process.kill()
        return future

    with monkeypatch.context() as patch:
        patch.setattr(Helpers, "start", killing)
        with pytest.raises(ModelError, match=r"has died, .* run the same command again"):
            llmindex.build(corpus, tmp_path / "x", encoder=options(tiny_model, "cpu,cpu"))
    assert killed
    if (tmp_path / "x" / "manifest.json").exists():
        assert verify(tmp_path / "x").problems == ()
    llmindex.build(corpus, tmp_path / "x", encoder=options(tiny_model, "cpu,cpu"))
    llmindex.build(corpus, tmp_path / "whole", encoder=options(tiny_model, "cpu"))
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def test_helpers_that_cannot_all_be_started_end(encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    plain = subprocess.Popen

    def once(*args: Any, **options: Any) -> subprocess.Popen[bytes]:  # noqa: ANN401
        if started:
            raise BlockingIOError("no more processes")
        started.append(plain(*args, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", once)
    with pytest.raises(BlockingIOError):
        Helpers(encoder.spec, ["cpu", "cpu"], dtype="float32")
    assert started[0].poll() is not None


def test_a_helper_that_dies_within_an_answer_has_died() -> None:
    answer = pickle.dumps(np.zeros(1000))[:500]
    helper = Helper.__new__(Helper)
    helper.process = SimpleNamespace(stdin=io.BytesIO(), stdout=io.BytesIO(answer))  # type: ignore[assignment]
    assert isinstance(said := helper._ask("texts"), ModelError)
    assert "has died" in str(said)


PARENT = """
import json, sys, time
from llmindex.encode.helpers import Helpers
from llmindex.encode.spec import EncoderSpec

team = Helpers(EncoderSpec.from_json(json.loads(sys.argv[1])), ["cpu", "cpu"], dtype="float32")
print(*(helper.process.pid for helper in team.helpers), flush=True)
time.sleep(600)
"""


def test_helpers_end_with_the_process_that_started_them(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    command = [sys.executable, str(tmp_path / "parent.py"), json.dumps(encoder.spec.to_json())]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        parent.kill()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a helper goes on without its parent"
        time.sleep(0.05)


def test_a_script_without_a_main_guard_and_two_ctrl_c(corpus: Path, tiny_model: Path, tmp_path: Path) -> None:
    script = (
        f"import llmindex\nllmindex.build({str(corpus)!r}, 'x', encoder=llmindex.EncoderOptions({str(tiny_model)!r}, "
    )
    (tmp_path / "script.py").write_text(script + "device='cpu,cpu', dtype='float32'))\n")
    command = [sys.executable, str(tmp_path / "script.py")]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, start_new_session=True) as process:
        while not (tmp_path / "x" / "manifest.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        for _ in range(2):
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.05)
        process.communicate(timeout=60)
    assert subprocess.run(command, cwd=tmp_path, check=False).returncode == 0
    assert verify(tmp_path / "x").problems == ()


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_devices_of_several_kinds_or_that_are_not_there_are_refused(tiny_model: Path, corpus: Path) -> None:
    assert device.split("cpu, cpu") == ["cpu", "cpu"]
    for devices, said in (("cpu,cuda:7", "cuda:7"), ("cpu,", 'unknown device ""')):
        with pytest.raises(UsageError, match=said):
            llmindex.build(corpus, encoder=options(tiny_model, devices))
    with pytest.raises(LlmindexError, match="only a build encodes on several"):
        Encoder.from_options(options(tiny_model, "cpu,cpu"))
