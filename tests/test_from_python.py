"""Builds and indexes as a Python program asks for them: what it hands over, and what it lets go."""

import gc
import pickle
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import llmindex
from llmindex import CorpusOptions, Encoder
from llmindex.errors import BuildInterrupted, UsageError
from tests.samples import make_index, make_vectors
from tests.test_builder import write_corpus


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder.load(str(tiny_model), device="cpu", dtype="float32")


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "docs.parquet", 300)


def test_a_table_in_memory_is_a_corpus_too(encoder: Encoder, tmp_path: Path) -> None:
    table = pa.table({"text": ["one", "two"]})
    assert llmindex.build(table, tmp_path / "x", encoder=encoder).documents == 2
    assert {hit.id for hit in llmindex.open(tmp_path / "x").search("one")[0]} == {"0", "1"}


def test_sources_in_whatever_holds_them(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    planned = llmindex.plan(corpus, encoder=encoder).documents
    assert llmindex.plan((path for path in [corpus]), encoder=encoder).documents == planned
    frame = pytest.importorskip("pandas").DataFrame({"id": ["a"], "text": ["fox"]})
    for none, kind in ((frame, "DataFrame"), (pa.RecordBatch.from_pylist([{"text": "fox"}]), "RecordBatch")):
        with pytest.raises(UsageError, match=rf"^a corpus is files or a pyarrow\.Table, not {kind};"):
            llmindex.build(none, tmp_path / "x", encoder=encoder)
        assert llmindex.plan(pa.table(none), encoder=encoder).documents == 1


def test_a_text_column_by_itself_is_its_name(encoder: Encoder) -> None:
    table = pa.table({"t": ["letters"], "headline": ["fox"]})
    alone: Any = "headline"
    assert llmindex.plan(table, encoder=encoder, corpus=CorpusOptions(alone)).text_columns == ("headline",)


def test_an_index_that_is_let_go_is_gone(corpus: Path, encoder: Encoder, tmp_path: Path) -> None:
    """Its model and its open files, too: the garbage collector may be long in coming."""
    llmindex.build(corpus, tmp_path / "x", encoder=encoder)
    index = llmindex.open(tmp_path / "x")
    index.search("fox", where="id != 'x'")
    store, model = weakref.ref(index.store), weakref.ref(index.searcher.encoder)
    gc.disable()
    try:
        del index
        assert (store(), model()) == (None, None)
    finally:
        gc.enable()


def test_an_interruption_can_be_sent_to_another_process() -> None:
    sent = pickle.loads(pickle.dumps(BuildInterrupted(3_000)))
    assert (str(sent), sent.committed) == ("3,000 documents are stored", 3_000)


def test_numbers_of_numpy_are_taken_and_saved(tiny_model: Path, tmp_path: Path) -> None:
    table = pa.table({"text": ["fox", "hound"]})
    numbers: dict[str, Any] = {"dim": np.int64(8), "max_tokens": np.int32(9), "layer": np.int64(1)}
    options = llmindex.EncoderOptions(str(tiny_model), **numbers)
    recall: Any = np.float32(0.5)
    report = llmindex.build(table, tmp_path / "x", encoder=options, recall=recall)
    assert report.index.recall_target == 0.5
    spec = llmindex.open(tmp_path / "x").store.manifest.encoder.spec
    assert (spec.dim, spec.max_tokens, spec.layer) == (8, 9, 1)
    with pytest.raises(UsageError, match=r"^--max-tokens 9\.5 must be a whole number$"):
        llmindex.build(table, tmp_path / "y", encoder=llmindex.EncoderOptions(str(tiny_model), max_tokens=9.5))  # type: ignore[arg-type]


def test_clustering_takes_options_and_fields_beside_each_other(tmp_path: Path) -> None:
    make_index(tmp_path / "x", make_vectors(60, 8, clusters=3))
    options = llmindex.ClusterOptions(min_cluster_size=4, reduce="none")
    clustering = llmindex.open(tmp_path / "x").cluster(options, name="mine", min_cluster_size=5)
    asked = clustering.options
    assert (asked.name, asked.min_cluster_size, asked.reduce) == ("mine", 5, "none")
