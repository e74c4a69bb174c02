"""Candidates of coarse codes are scored again from the store: exact scores, in the order of exact search."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llmindex.errors import StaleIndex
from llmindex.index import rescore
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.planner import plan, rescoring
from llmindex.index.rescore import nearest_of
from llmindex.store.reader import VectorStore
from tests.samples import make_index, make_store, make_vectors


@pytest.mark.parametrize("at_once", [1, 100, 16_384])
def test_the_nearest_of_candidates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(rescore, "_AT_ONCE", at_once)
    store = make_store(tmp_path / "index", make_vectors(9_000, 8))
    random = np.random.default_rng(1)
    candidates = np.stack([random.choice(store.count, 30, replace=False) for _ in range(12)])
    candidates[0] = -1
    candidates[1, 3:] = -1
    queries = make_vectors(12, 8, seed=2)
    scores, rows = nearest_of(store, queries, candidates, 5)
    vectors = store.vectors()
    for query, some, found, exact in zip(queries[2:], candidates[2:], rows[2:], scores[2:], strict=True):
        all_scores = vectors[some] @ query
        order = np.argsort(-all_scores)[:5]
        np.testing.assert_array_equal(found, some[order])
        np.testing.assert_allclose(exact, all_scores[order], atol=1e-6)
    assert (rows[0] == -1).all()
    assert sorted(rows[1].tolist())[:2] == [-1, -1]
    assert np.isneginf(scores[rows < 0]).all()
    assert np.isfinite(scores[rows >= 0]).all()


def test_codes_of_a_bit_find_what_exact_search_finds(tmp_path: Path) -> None:
    vectors = make_vectors(12_000, 64, clusters=60)
    store, index = make_index(tmp_path / "index", vectors, "IVF64,RaBitQ", recall=0.9)
    record = store.manifest.index
    assert record is not None
    assert record.recall_at_10 >= 0.9
    assert record.parameters.endswith(",rescore=10")
    assert record.bytes < 0.4 * store.count * 64  # of 2 bytes a number in the store
    queries = vectors[:50]
    found = index.search(queries, 10)
    exact = store.vectors()
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        np.testing.assert_allclose(scores, exact[rows] @ query, atol=1e-6)
    assert (np.diff(found.scores, axis=1) <= 0).all()
    assert found.rows[:, 0].tolist() == list(range(50))
    everything = index.search(queries[:1], store.count)
    assert sorted(everything.rows[0].tolist()) == list(range(store.count))


def test_parameters_that_cannot_be(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(500, 64), "IVF4,RaBitQ")
    assert store.manifest.index is not None
    for parameters in ("nprobe=3,rescore=0", "rescore=10", "nprobe=3,rescore=10,rescore=10", "nprobe=3,rescore=1000"):
        replace(store.manifest, index=replace(store.manifest.index, parameters=parameters)).save(store.path)
        with pytest.raises(StaleIndex, match="has search parameters"):
            VectorIndex.load(VectorStore.open(store.path))


def test_which_kinds_are_scored_again() -> None:
    assert [rescoring(factory) for factory in ("IVF64,RaBitQ", "PCA8,IVF64,RaBitQfs", "RaBitQ")] == [10, 10, 10]
    assert [rescoring(factory) for factory in ("Flat", "IVF64,SQfp16", "IVF64,RaBitQ,RFlat", "PQ8")] == [0, 0, 0, 0]
    assert plan(10_000_000, 384, memory=2 * 10**9).factory == "IVF16384,RaBitQ"
