"""Overwriting clears away what another build made, and goes on with what the same one has begun."""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import llmindex
from llmindex import Encoder
from llmindex.errors import BuildInterrupted
from llmindex.store.manifest import Manifest
from llmindex.store.verify import verify
from tests.test_builder import contents, write_corpus


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.load(str(tiny_model), device="cpu", dtype="float32")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "docs.parquet", 1000)


def stop_at(stage: str, done: int = 0) -> Callable[[llmindex.Progress], None]:
    def interrupt(progress: llmindex.Progress) -> None:
        if progress.stage == stage and progress.done >= done:
            raise KeyboardInterrupt

    return interrupt


def interrupt(corpus: Path, index: Path, encoder: Encoder, stage: str = "encode", **options: Any) -> int:  # noqa: ANN401
    """A build that is stopped after some windows, or in another stage; how many documents are stored."""
    with pytest.raises(BuildInterrupted) as stopped:
        llmindex.build(corpus, index, encoder=encoder, on_progress=stop_at(stage, 600), **options)
    assert stopped.value.committed > 0
    return stopped.value.committed


def test_an_interrupted_overwriting_goes_on_by_the_same_call(
    corpus: Path, encoder: Encoder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = tmp_path / "x"
    llmindex.build(write_corpus(tmp_path / "other.parquet", 300, seed=1), index, encoder=encoder)
    committed = interrupt(corpus, index, encoder, overwrite=True)
    with caplog.at_level(logging.WARNING):
        report = llmindex.build(corpus, index, encoder=encoder, overwrite=True)
    assert (report.added, report.documents) == (960 - committed, 960)
    assert f"going on with {committed} documents" in caplog.text
    llmindex.build(corpus, tmp_path / "whole", encoder=encoder)
    assert contents(index) == contents(tmp_path / "whole")


def test_an_overwriting_that_lacks_its_search_index_only_makes_that(
    corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    assert interrupt(corpus, tmp_path / "x", encoder, "add", overwrite=True) == 960
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder, overwrite=True)
    assert (report.added, report.documents) == (0, 960)
    assert verify(tmp_path / "x").problems == ()


def test_overwriting_clears_what_is_finished(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    assert llmindex.build(corpus, tmp_path / "x", encoder=encoder, overwrite=True).added == 960


def test_overwriting_clears_what_is_of_another_making(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path / "x", encoder)
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder, vector_dtype="float32", overwrite=True)
    assert report.added == 960


def test_overwriting_clears_what_was_computed_in_another_precision(
    corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    interrupt(corpus, tmp_path / "x", encoder)
    manifest = Manifest.load(tmp_path / "x")
    replace(manifest, encoder=replace(manifest.encoder, dtype="bfloat16")).save(tmp_path / "x")
    assert llmindex.build(corpus, tmp_path / "x", encoder=encoder, overwrite=True).added == 960


def test_overwriting_clears_what_is_damaged(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    interrupt(corpus, tmp_path / "x", encoder)
    (shard,) = (tmp_path / "x" / "vectors").iterdir()
    whole = bytearray(shard.read_bytes())
    whole[len(whole) // 2] ^= 1
    shard.write_bytes(whole)
    assert llmindex.build(corpus, tmp_path / "x", encoder=encoder, overwrite=True).added == 960
    assert verify(tmp_path / "x").problems == ()
