"""Small indexes for tests: seeded vectors and documents, a store made of them, and its search index."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from llmindex.encode.spec import EncoderSpec
from llmindex.index.building import rebuild
from llmindex.index.faiss_index import VectorIndex
from llmindex.progress import ProgressCallback
from llmindex.records import Vectors
from llmindex.store.manifest import CorpusRecord, EncoderRecord, VectorDtype
from llmindex.store.reader import VectorStore
from llmindex.store.writer import VectorWriter

CORPUS = CorpusRecord({"sources": [{"path": "corpus.jsonl"}]})
DTYPES: list[VectorDtype] = ["float16", "float32"]


def make_encoder(dim: int, *, normalize: bool = True) -> EncoderRecord:
    """The record of an encoder that never ran."""
    spec = EncoderSpec(
        backbone="default",
        revision=None,
        backbone_sha256="0" * 64,
        prompt="{text}",
        query_prompt="{text}",
        pooling="mean",
        layer=-1,
        attention="causal",
        max_tokens=100,
        dim=dim,
        normalize=normalize,
    )
    return EncoderRecord(spec, "float32", 1.0)


def make_vectors(count: int, dim: int, seed: int = 0, *, clusters: int = 0) -> Vectors:
    """Seeded unit vectors, ``(count, dim)``; spread evenly, or around so many centres."""
    random = np.random.default_rng(seed)
    vectors = random.standard_normal((count, dim), dtype=np.float32)
    if clusters:
        centres = random.standard_normal((clusters, dim), dtype=np.float32)
        vectors = 0.5 * vectors + centres[random.integers(clusters, size=count)]
    unit: Vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def as_stored(vectors: Vectors, dtype: str) -> Vectors:
    """What a store of these vectors gives back."""
    return vectors.astype(dtype).astype(np.float32)


def make_documents(start: int, stop: int, more: Mapping[str, Any] | None = None) -> pa.Table:
    """Documents ``d<start>`` … ``d<stop - 1>`` with their number as metadata."""
    numbers = range(start, stop)
    columns = {
        "id": pa.array([f"d{number}" for number in numbers], pa.string()),
        "text": pa.array([f"document number {number}" for number in numbers], pa.string()),
        "number": pa.array(numbers, pa.int32()),
    }
    return pa.table(columns | dict(more or {}))


def append(writer: VectorWriter, table: pa.Table, vectors: Vectors, source_rows: int | None = None) -> None:
    """Append a window; the rows of the source are those of the store unless said otherwise."""
    rows = writer.count + len(table) if source_rows is None else source_rows
    writer.append(table, vectors, source_rows=rows, bad_rows={}, truncated=1, tokens=7 * len(table))


def make_store(
    path: Path, vectors: Vectors, vector_dtype: VectorDtype = "float16", *, normalize: bool = True, window: int = 8192
) -> VectorStore:
    """A finished store of these vectors."""
    encoder = make_encoder(vectors.shape[1], normalize=normalize)
    with VectorWriter.create(path, encoder, CorpusRecord({"sources": []}), vector_dtype) as writer:
        for start in range(0, len(vectors), window):
            stop = min(start + window, len(vectors))
            append(writer, make_documents(start, stop), vectors[start:stop])
        writer.finish()
    return VectorStore.open(path)


def make_index(
    path: Path,
    vectors: Vectors,
    factory: str | None = None,
    recall: float = 0.95,
    on_progress: ProgressCallback | None = None,
) -> tuple[VectorStore, VectorIndex]:
    """A store of these vectors and its index, as they come from disk."""
    make_store(path, vectors)
    with VectorWriter.open(path) as writer:
        rebuild(writer, factory=factory, recall=recall, on_progress=on_progress)
    store = VectorStore.open(path)
    return store, VectorIndex.load(store)
