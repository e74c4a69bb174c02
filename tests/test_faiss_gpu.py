"""The index on a GPU, pretended: what fits is copied there, and what does not stays on the CPU."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from llmindex.index.building import build_index
from llmindex.records import Vectors
from tests.samples import make_index, make_store, make_vectors


class FakeGpu:
    """Stands for FAISS on a GPU: copies go to the CPU, and are counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.copies: list[Any] = []
        self.broken = False
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(faiss, "StandardGpuResources", object, raising=False)
        monkeypatch.setattr(faiss, "index_cpu_to_gpu", self.to_gpu, raising=False)
        monkeypatch.setattr(faiss, "index_gpu_to_cpu", faiss.clone_index, raising=False)

    def to_gpu(self, _resources: object, device: int, index: Any) -> Any:  # noqa: ANN401
        assert device == 0
        if isinstance(index, faiss.IndexRefine):
            raise RuntimeError("This index type is not implemented on GPU.")
        copy: Any = faiss.clone_index(index)
        if self.broken:
            copy.train = copy.assign = self.fail
        self.copies.append(copy)
        return copy

    @staticmethod
    def fail(*_: object) -> None:
        raise RuntimeError("Error in add at /x/y.cu.cpp:3: Error: 'ok' failed: out of memory")


@pytest.mark.parametrize(("factory", "copies"), [("Flat", 1), ("IVF16,SQfp16", 3)])
def test_training_and_search_on_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, copies: int
) -> None:
    vectors = make_vectors(3_000, 8)
    _, expected = make_index(tmp_path / "cpu", vectors, factory)
    gpu = FakeGpu(monkeypatch)
    _, index = make_index(tmp_path / "gpu", vectors, factory)
    assert len(gpu.copies) == copies  # one to train, one of the lists' centroids to assign, one to search
    assert gpu.copies[-1].ntotal == 3_000
    searched: list[int] = []
    original = gpu.copies[-1].search

    def search(queries: Vectors, k: int, *, params: None) -> Any:  # noqa: ANN401
        searched.append(k)
        return original(queries, k, params=params)

    gpu.copies[-1].search = search
    queries = make_vectors(5, 8, seed=1)
    for k in (10, 2_500):
        np.testing.assert_array_equal(index.search(queries, k).rows, expected.search(queries, k).rows)
    assert searched == [10]


@pytest.mark.parametrize("factory", ["HNSW8", "IVF4,SQ8,RFlat"])
def test_what_a_gpu_cannot_hold_stays_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str) -> None:
    gpu = FakeGpu(monkeypatch)
    _, index = make_index(tmp_path / "index", make_vectors(100, 8), factory)
    assert gpu.copies == []
    assert index.search(make_vectors(1, 8), 3).rows.shape == (1, 3)


def test_a_gpu_that_gives_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    store = make_store(tmp_path / "index", make_vectors(100, 8))
    FakeGpu(monkeypatch).broken = True
    record = build_index(store, factory="IVF4,Flat")
    assert record.recall_at_10 >= 0.95
    assert caplog.messages == 2 * ["the GPU could not build the index (out of memory); the CPU does"]
