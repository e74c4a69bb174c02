"""Builds end to end with a tiny model: resuming, refusing, and what kill -9 leaves behind."""

import copy
import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import llmindex
from llmindex import CorpusOptions, Encoder
from llmindex.errors import (
    BuildInterrupted,
    CorpusError,
    IndexLocked,
    LlmindexError,
    SpecMismatch,
    StaleIndex,
    UsageError,
)
from llmindex.index import planner
from llmindex.store.reader import VectorStore
from llmindex.store.verify import verify
from tests.conftest import make_tiny_model

WORDS = "fox dog cat river mountain vector cluster sentence politics science business sport music food".split()


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.load(str(tiny_model), device="cpu", dtype="float32")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "docs.parquet", 300)


def write_corpus(path: Path, rows: int, seed: int = 0) -> Path:
    """Random sentences of one to thirty words, with some rows that cannot become documents."""
    rng = random.Random(seed)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 30))) for _ in range(rows)]
    table = pa.table(
        {
            "id": [f"d{row}" for row in range(rows)],
            "text": [None if row % 50 == 7 else "  " if row % 50 == 9 else text for row, text in enumerate(texts)],
            "year": pa.array([2000 + row % 25 for row in range(rows)], pa.int16()),
        }
    )
    pq.write_table(table, path, row_group_size=1000)
    return path


def contents(index: Path) -> dict[str, Any]:
    """Everything in an index folder that two builds of the same corpus must share."""
    manifest = json.loads((index / "manifest.json").read_text())
    manifest.pop("created_at")
    shards = {path.name: path.read_bytes() for path in sorted((index / "vectors").iterdir())}
    return {"manifest": manifest, "shards": shards}


def test_a_build_stores_and_indexes_every_good_row(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    report = llmindex.build(corpus, tmp_path / "x.llmindex", encoder=encoder)
    assert report.documents == report.added == 288
    assert dict(report.bad_rows) == {"null": 6, "empty": 6}
    assert report.index.factory == "Flat"
    assert report.index.recall_at_10 == 1.0
    assert set(report.seconds) == {"read", "encode", "write", "index", "total"}
    json.dumps(report.to_json())
    index = llmindex.open(tmp_path / "x.llmindex")
    assert index.store.schema.field("year").type == pa.int16()
    text = index.store.take(np.array([5])).column("text")[0].as_py()
    (hits,) = index.search(text, k=3)
    assert [hit.rank for hit in hits] == [1, 2, 3]
    assert hits[0].metadata["year"] >= 2000
    assert hits[0].score >= hits[1].score >= hits[2].score
    assert verify(index.path).problems == ()


def test_search_equals_brute_force(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder, vector_dtype="float32")
    index = llmindex.open(tmp_path / "x", device="cpu", dtype="float32")
    queries = ["the river and the mountain", "politics", "sport"]
    scores = encoder.encode(queries, role="query") @ index.store.vectors().T
    for row, hits in zip(scores, index.search(queries, k=1000), strict=True):
        assert sorted(hit.row for hit in hits) == list(range(len(row)))
        np.testing.assert_allclose([hit.score for hit in hits], row[[hit.row for hit in hits]], atol=1e-5)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1], atol=1e-5)
    (hits,) = index.search("sport", k=1000, min_score=float(np.median(scores[2])))
    assert len(hits) == pytest.approx(len(scores[2]) / 2, abs=2)


def test_similar_leaves_the_document_itself_out(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    index = llmindex.open(tmp_path / "x")
    hits = index.similar("d3", k=5)
    assert len(hits) == 5
    assert "d3" not in [hit.id for hit in hits]
    assert [hit.rank for hit in hits] == [1, 2, 3, 4, 5]
    with pytest.raises(UsageError, match="d33333"):
        index.similar("d33333")


def test_again_says_complete_and_changes_nothing(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    before = contents(tmp_path / "x")
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    assert (report.complete_before, report.added, report.documents) == (True, 0, 288)
    assert contents(tmp_path / "x") == before
    wanted = llmindex.build(corpus, tmp_path / "x", encoder=encoder, factory="HNSW8").index
    assert wanted.factory == "HNSW8"
    assert llmindex.build(corpus, tmp_path / "x", encoder=encoder).index == wanted
    assert contents(tmp_path / "x")["shards"] == before["shards"]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"encoder": {"prompt": "eol"}}, SpecMismatch, "prompt, query_prompt"),
        ({"vector_dtype": "float32"}, UsageError, "stores vectors as float16, not float32"),
        ({"corpus": CorpusOptions(id_column="year")}, CorpusError, "another corpus"),
        ({"factory": "Flatt"}, UsageError, 'unknown FAISS factory string "Flatt"'),
        ({"recall": 0.0}, UsageError, "recall must be above 0 and at most 1, got 0.0"),
    ],
)
def test_a_build_of_another_making_is_refused(
    corpus: Path,
    encoder: Encoder,
    tiny_model: Path,
    tmp_path: Path,
    change: dict[str, Any],
    error: type[LlmindexError],
    said: str,
) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    before = contents(tmp_path / "x")
    if "encoder" in change:
        other = Encoder.load(str(tiny_model), device="cpu", dtype="float32", **change["encoder"])
        change = change | {"encoder": other}
    with pytest.raises(error, match=said):
        llmindex.build(corpus, tmp_path / "x", **({"encoder": encoder} | change))
    assert contents(tmp_path / "x") == before


@pytest.mark.parametrize("adapted", ["before", "now"])
def test_a_build_with_an_adapter_on_one_side_alone_is_refused(
    corpus: Path, encoder: Encoder, tmp_path: Path, adapted: str
) -> None:
    other = copy.copy(encoder)
    other.spec = replace(encoder.spec, adapter="/an/adapter", adapter_sha256="1" * 64, whitened=True)
    first, second = (other, encoder) if adapted == "before" else (encoder, other)
    llmindex.build(corpus, tmp_path / "x", encoder=first)
    with pytest.raises(SpecMismatch, match=r": adapter, adapter_sha256, whitened differ\); add --overwrite"):
        llmindex.build(corpus, tmp_path / "x", encoder=second)


def test_a_corpus_that_changed_is_refused_and_overwrite_starts_afresh(
    corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    llmindex.open(tmp_path / "x").cluster()
    write_corpus(corpus, 120, seed=1)
    with pytest.raises(CorpusError, match="--overwrite"):
        llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder, overwrite=True)
    assert report.documents < 120
    assert verify(tmp_path / "x").problems == ()


@pytest.mark.parametrize("at", [1, 200, 600])
def test_ctrl_c_commits_and_the_same_call_goes_on(encoder: Encoder, tmp_path: Path, at: int) -> None:
    corpus = write_corpus(tmp_path / "docs.parquet", 1000)

    def interrupt(progress: llmindex.Progress) -> None:
        if progress.stage == "encode" and progress.done >= at:
            raise KeyboardInterrupt

    with pytest.raises(BuildInterrupted) as stopped:
        llmindex.build(corpus, tmp_path / "x", encoder=encoder, on_progress=interrupt)
    assert stopped.value.committed == VectorStore.open(tmp_path / "x").count
    with pytest.raises(StaleIndex, match="llmindex reindex"):
        llmindex.open(tmp_path / "x").search("fox")
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    assert report.added + stopped.value.committed == report.documents == 960
    llmindex.build(corpus, tmp_path / "whole", encoder=encoder)
    assert contents(tmp_path / "x") == contents(tmp_path / "whole")


def test_a_build_mends_a_damaged_faiss_file(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    (file,) = (tmp_path / "x" / "faiss").iterdir()
    file.write_bytes(b"half")
    assert llmindex.build(corpus, tmp_path / "x", encoder=encoder).complete_before
    assert verify(tmp_path / "x").problems == ()


def test_any_kind_of_index_that_faiss_can_make(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    index = llmindex.open(tmp_path / "x")
    for factory in ("SQfp16", "IVF4,SQfp16", "HNSW8,SQ8", "PCA8,Flat"):
        assert index.reindex(factory=factory).factory == factory
        assert len(index.search("fox", k=3)[0]) == 3
    with pytest.raises(UsageError, match="needs at least 999"):
        llmindex.build(corpus, tmp_path / "y", encoder=encoder, factory="IVF999,Flat")
    assert not (tmp_path / "y").exists()


def test_a_second_writer_is_refused(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    refused: list[str] = []

    def build_again(progress: llmindex.Progress) -> None:
        if progress.stage == "encode" and not refused:
            with pytest.raises(IndexLocked) as caught:
                llmindex.build(corpus, tmp_path / "x", encoder=encoder)
            refused.append(str(caught.value))

    llmindex.build(corpus, tmp_path / "x", encoder=encoder, on_progress=build_again)
    assert "being written" in refused[0]


def test_progress_begins_before_the_first_batch(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    steps: list[llmindex.Progress] = []
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder, on_progress=steps.append)
    steps = [step for step in steps if step.stage == "encode"]
    assert (steps[0].done, steps[0].tokens) == (0, 0)
    assert (steps[-1].done, steps[-1].tokens) == (report.documents, report.tokens)


def test_a_corpus_without_usable_text_leaves_no_index_and_replaces_none(
    corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    useless = pa.table({"text": ["", None, "  "]})
    with pytest.raises(CorpusError, match="no usable text"):
        llmindex.build(useless, tmp_path / "x", encoder=encoder)
    assert not (tmp_path / "x").exists()
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    with pytest.raises(CorpusError, match="no usable text"):
        llmindex.build(useless, tmp_path / "x", encoder=encoder, overwrite=True)
    assert len(llmindex.open(tmp_path / "x").search("fox")[0]) == 10


def test_plan_counts_and_writes_nothing(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    steps: list[llmindex.Progress] = []
    plan = llmindex.plan(corpus, encoder=encoder, on_progress=steps.append)
    assert sorted(tmp_path.iterdir()) == before
    assert list(dict.fromkeys(step.stage for step in steps)) == ["measure", "count"]
    measured = [step for step in steps if step.stage == "measure"]
    assert [(step.done, step.total) for step in (measured[0], measured[-1])] == [(0, 64), (64, 64)]
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    assert (plan.documents, plan.tokens, dict(plan.bad_rows)) == (288, report.tokens, dict(report.bad_rows))
    assert plan.factory == "Flat"
    assert plan.seconds > 0
    size = sum(path.stat().st_size for path in (tmp_path / "x").rglob("*") if path.is_file())
    assert 0.3 < plan.disk_bytes / size < 3


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_manifest_of_something_else_is_not_a_damaged_index(
    overwrite: bool, corpus: Path, encoder: Encoder, tmp_path: Path
) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "manifest.json").write_text('{"name": "My web app"}')
    with pytest.raises(UsageError, match=r"app is neither empty nor an index \(it holds manifest.json\)"):
        llmindex.build(corpus, app, encoder=encoder, overwrite=overwrite)
    assert [path.name for path in app.iterdir()] == ["manifest.json"]


def test_memory_chooses_the_index_or_refuses_it(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    for run in (llmindex.build, llmindex.plan):
        with pytest.raises(UsageError, match=r"\d+ vectors of length \d+ cannot be indexed .*--memory \d+MB would do"):
            run(corpus, tmp_path / "x", encoder=encoder, memory=10**6)
        with pytest.raises(UsageError, match="leave one of them out"):
            run(corpus, tmp_path / "x", encoder=encoder, memory=10**9, factory="Flat")
    assert not (tmp_path / "x").exists()
    plan = llmindex.plan(corpus, encoder=encoder, memory=10**9)
    assert plan.search_memory_bytes < plan.index_memory_bytes < min(10**9, plan.memory_bytes)
    report = llmindex.build(corpus, tmp_path / "x", encoder=encoder, memory=10**9)
    assert report.index == llmindex.build(corpus, tmp_path / "x", encoder=encoder, memory=2 * 10**9).index
    index = llmindex.open(tmp_path / "x")
    assert index.reindex(memory=10**9) == report.index
    with pytest.raises(UsageError, match="--memory"):
        index.reindex(memory=10**6)


def test_an_index_is_refused_before_anything_is_encoded_by_the_documents_not_the_rows(
    encoder: Encoder, tmp_path: Path
) -> None:
    """Inverted lists, from 10,000 vectors on, need less memory to build than a few less long vectors as they are."""
    wide = Encoder.load(str(make_tiny_model(tmp_path / "wide", hidden_size=1_536)), device="cpu", dtype="float32")
    table = pa.table({"text": ["fox"] * 9_990 + [None] * 20})
    assert planner.plan(10_010, 1_536, memory=310 * 10**6).factory == "IVF256,SQfp16"
    with pytest.raises(UsageError, match=r"^9,990 vectors of length 1536 cannot be indexed"):
        llmindex.build(table, tmp_path / "x", encoder=wide, memory=310 * 10**6)
    with pytest.raises(UsageError, match='"IVF40,Flat" needs at least 40 vectors to train on and there are 39'):
        llmindex.build(
            pa.table({"text": ["fox"] * 39 + [""] * 9}), tmp_path / "x", encoder=encoder, factory="IVF40,Flat"
        )
    assert not (tmp_path / "x").exists()


def test_a_reindex_is_planned_as_it_is_run(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder, vector_dtype="float32")
    index = llmindex.open(tmp_path / "x")
    before = contents(index.path)
    planned = index.plan_reindex(factory="SQfp16", recall=0.9)
    assert contents(index.path) == before
    assert (planned.documents, planned.recall, planned.factory) == (288, 0.9, "SQfp16")
    assert 0 < planned.index_seconds < 60
    assert planned.search_memory_bytes < planned.index_memory_bytes
    json.dumps(planned.to_json())
    record = index.reindex(factory="SQfp16", recall=0.9)
    assert record.bytes == pytest.approx(planned.disk_bytes, rel=0.05)
    for options in ({"memory": 10**6}, {"factory": "Flatt"}, {"recall": 2.0}):
        refused = []
        for run in (index.reindex, index.plan_reindex):
            with pytest.raises(UsageError) as caught:
                run(**options)
            refused.append(str(caught.value))
        assert refused[0] == refused[1]
    assert index.plan_reindex(memory=10**9).factory == index.reindex(memory=10**9).factory == "Flat"


def test_over_long_texts_are_cut_and_counted(tiny_model: Path, tmp_path: Path) -> None:
    table = pa.table({"text": ["short", "long " * 400]})
    encoder = Encoder.load(str(tiny_model), device="cpu", max_tokens=100)
    assert llmindex.build(table, tmp_path / "x", encoder=encoder).truncated == 1


def test_reindex_mends_a_missing_or_stale_faiss_file(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    (file,) = (tmp_path / "x" / "faiss").iterdir()
    file.unlink()
    index = llmindex.open(tmp_path / "x")
    with pytest.raises(StaleIndex, match="llmindex reindex"):
        index.search("fox")
    assert index.info()["index"]["stale"]
    index.reindex()
    assert len(index.search("fox")[0]) == 10
    assert not index.info()["index"]["stale"]


RUN = """
import sys
import llmindex, llmindex.pipeline
llmindex.pipeline._CHECKPOINT_SECONDS = 0
encoder = llmindex.Encoder.load(sys.argv[3], device="cpu", dtype="float32")
print("ready", flush=True)
llmindex.build(sys.argv[1], sys.argv[2], encoder=encoder)
"""


@pytest.mark.slow
def test_kill_9_at_ten_random_moments_loses_and_doubles_nothing(tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "docs.parquet", 12_000)
    index, whole = tmp_path / "x", tmp_path / "whole"
    started = start(corpus, whole, tiny_model)
    began = time.perf_counter()
    assert started.wait(timeout=600) == 0
    length = time.perf_counter() - began
    rng, counts = random.Random(4), [0]
    for _ in range(10):
        process = start(corpus, index, tiny_model)
        time.sleep(rng.uniform(0, length / 4))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if (index / "manifest.json").exists():
            assert verify(index).problems == ()
            counts.append(VectorStore.open(index).count)
    assert counts == sorted(counts)
    assert start(corpus, index, tiny_model).wait(timeout=600) == 0
    assert contents(index) == contents(whole)
    assert verify(index).problems == ()


def start(corpus: Path, index: Path, model: Path) -> "subprocess.Popen[str]":
    """A build in a process of its own, from the moment when its model is loaded."""
    arguments = [sys.executable, "-c", RUN, str(corpus), str(index), str(model)]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.stdout.close()
    return process
