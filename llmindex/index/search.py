"""Searcher: an encoder, a FAISS index and the store, together answering questions with documents."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from llmindex.errors import UsageError
from llmindex.index.faiss_index import VectorIndex
from llmindex.records import Hit, Vectors
from llmindex.store.reader import VectorStore
from llmindex.store.values import to_pylist

if TYPE_CHECKING:  # what needs no model, such as `similar`, does without torch
    from llmindex.encode.encoder import Encoder


class Searcher:
    """Answers queries from one index; the model is loaded at the first query that has words."""

    def __init__(self, store: VectorStore, load_encoder: "Callable[[], Encoder]") -> None:
        """Search a store.

        Args:
            store: the documents and vectors.
            load_encoder: gives the encoder that made the vectors.

        Raises:
            StaleIndex: there is no FAISS index of these vectors.
        """
        self._store = store
        self._index = VectorIndex.load(store)
        self._load_encoder = load_encoder

    @cached_property
    def encoder(self) -> "Encoder":
        """The encoder that made the vectors."""
        return self._load_encoder()

    def search(self, queries: Sequence[str], k: int = 10, min_score: float | None = None) -> list[list[Hit]]:
        """The nearest documents of each query, best first.

        Args:
            queries: texts; they get the query prompt.
            k: the most hits of a query; fewer where the index is smaller.
            min_score: leave out hits below this score.

        Raises:
            UsageError: k is below 1, or min_score is not a number.
            ModelError: the index's model is not there any more.
            SpecMismatch: it has changed since.
        """
        _check(k, min_score)
        if not queries:
            return []
        return self.search_vectors(self.encoder.encode(queries, role="query"), k, min_score)

    def search_vectors(self, vectors: Vectors, k: int = 10, min_score: float | None = None) -> list[list[Hit]]:
        """The same for query vectors ``(q, dim) float32`` of unit length."""
        _check(k, min_score)
        found = self._index.search(vectors, k)
        kept = found.rows >= 0
        if min_score is not None:
            kept &= found.scores >= min_score
        documents = to_pylist(self._store.take(found.rows[kept]))
        hits: list[list[Hit]] = []
        taken = iter(documents)
        for rows, scores, keep in zip(found.rows, found.scores, kept, strict=True):
            best = zip(rows[keep].tolist(), scores[keep].tolist(), strict=True)
            hits.append([_hit(rank, row, score, next(taken)) for rank, (row, score) in enumerate(best, start=1)])
        return hits

    def similar(self, document_id: str, k: int = 10, min_score: float | None = None) -> list[Hit]:
        """The documents nearest to a stored one, itself left out.

        Raises:
            UsageError: there is no such id, or k is below 1.
        """
        _check(k, min_score)
        row = self._store.rows_of([document_id])
        (hits,) = self.search_vectors(self._store.take_vectors(row), k + 1, min_score)
        others = [hit for hit in hits if hit.row != int(row[0])][:k]
        return [replace(hit, rank=rank) for rank, hit in enumerate(others, start=1)]


def _hit(rank: int, row: int, score: float, document: dict[str, object]) -> Hit:
    return Hit(rank, row, str(document.pop("id")), score, str(document.pop("text")), document)


def _check(k: int, min_score: float | None) -> None:
    if k < 1:
        raise UsageError(f"-k {k} must be at least 1")
    if min_score is not None and math.isnan(min_score):
        raise UsageError("--min-score must be a number, not nan")
