"""Where the evaluation sets lie, and how they are sampled: the same texts in every benchmark."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from llmindex.records import Vectors

CLUSTERING_SETS = ("agnews", "hwu64", "newsgroups20", "reuters21578", "stackoverflow")


@dataclass(frozen=True, slots=True)
class LabelledTexts:
    """Texts with one label each."""

    texts: list[str]
    labels: list[str]


@dataclass(frozen=True, slots=True)
class RetrievalSet:
    """Documents, queries, and which documents answer which query: ``judged[query id][document id] = grade``."""

    document_ids: list[str]
    documents: list[str]
    query_ids: list[str]
    queries: list[str]
    judged: dict[str, dict[str, int]]


def data_folder() -> Path:
    """``$LLMINDEX_SHARED/data``, or the folder ``shared/data`` beside the project."""
    folder = Path(os.environ.get("LLMINDEX_SHARED", Path(__file__).parents[2] / "shared")) / "data"
    if not folder.is_dir():
        raise SystemExit(f"no evaluation data at {folder}: set LLMINDEX_SHARED to the folder that holds data/")
    return folder


def clustering_set(name: str, sample: int, seed: int = 0) -> LabelledTexts:
    """A seeded sample of one labelled set."""
    table = pq.read_table(data_folder() / "clustering" / f"{name}.parquet", columns=["text", "label"])
    rows = np.random.default_rng(seed).permutation(len(table))[:sample]
    taken = table.take(rows)
    return LabelledTexts(taken.column("text").to_pylist(), taken.column("label").to_pylist())


def kept_vectors(path: Path | None, texts: Sequence[str], encode: Callable[[list[str]], Vectors]) -> Vectors:
    """Vectors of texts from a file, where it holds as many; else encoded, and kept there."""
    if path is not None and path.is_file():
        kept: Vectors = np.load(path)
        if len(kept) == len(texts):
            return kept
    vectors = encode(list(texts))
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, vectors)
    return vectors


def retrieval_set(name: str, queries: int, documents: int) -> RetrievalSet:
    """The first queries of a set, all documents judged for them, and others up to a number of documents."""
    folder = data_folder() / "retrieval" / name
    corpus = pq.read_table(folder / "corpus.parquet").to_pylist()
    asked = pq.read_table(folder / "queries.parquet").to_pylist()
    judged: dict[str, dict[str, int]] = {}
    for judgement in pq.read_table(folder / "qrels.parquet").to_pylist():
        judged.setdefault(judgement["query_id"], {})[judgement["doc_id"]] = judgement["score"]
    chosen = [query for query in asked if query["id"] in judged][:queries]
    needed = {document for query in chosen for document in judged[query["id"]]}
    corpus.sort(key=lambda document: document["id"] not in needed)
    kept = corpus[: max(documents, len(needed))]
    return RetrievalSet(
        [document["id"] for document in kept],
        [f"{document['title']}\n{document['text']}".strip() or "-" for document in kept],
        [query["id"] for query in chosen],
        [query["text"] for query in chosen],
        judged,
    )
