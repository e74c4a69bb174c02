"""Searcher: an encoder, a FAISS index and the store, together answering questions with documents."""

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from llmindex.errors import UsageError
from llmindex.index.faiss_index import VectorIndex
from llmindex.index.filtered import FilteredIndex
from llmindex.records import Hit, Vectors, at_least_one, text_list
from llmindex.store.reader import VectorStore
from llmindex.store.values import to_pylist
from llmindex.store.where import Where

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
        self._filters = self._index.filters()
        self._load_encoder = load_encoder
        self._encoder: Encoder | None = None
        self._loading = threading.Lock()

    @property
    def encoder(self) -> "Encoder":
        """The encoder that made the vectors; loaded once, however many threads ask first."""
        with self._loading:
            if self._encoder is None:
                self._encoder = self._load_encoder()
            return self._encoder

    def search(
        self, queries: Iterable[str], k: int = 10, min_score: float | None = None, where: Where | None = None
    ) -> list[list[Hit]]:
        """The nearest documents of each query, best first.

        Args:
            queries: texts; they get the query prompt.
            k: the most hits of a query; fewer where the index is smaller, or fewer documents qualify.
            min_score: leave out hits below this score.
            where: search only among the documents that satisfy this condition on their columns: SQL as after WHERE,
                such as ``"year >= 2020 AND lang = 'en'"``, or an expression of ``pyarrow.compute``.

        Raises:
            UsageError: a query is blank, not UTF-8 or no string, k is below 1 or not whole, min_score is not a number,
                or where is not a condition on these columns.
            MissingPackage: where is SQL, and duckdb is not installed.
            ModelError: the index's model is not there any more.
            SpecMismatch: it has changed since.
        """
        queries = text_list(queries, "query")
        _check_not_blank(queries)
        index, k = self._among(k, min_score, where)  # before the model is loaded, which takes its time
        if not queries or not index.count:
            return [[] for _ in queries]
        return self._hits(index, self.encoder.encode(queries, role="query"), k, min_score)

    def search_vectors(
        self, vectors: Vectors, k: int = 10, min_score: float | None = None, where: Where | None = None
    ) -> list[list[Hit]]:
        """The same for query vectors ``(q, dim) float32`` of unit length.

        Raises:
            ValueError: they have another shape or dtype, or are not finite.
            UsageError: as :meth:`search`.
            MissingPackage: as :meth:`search`.
        """
        dim = self._store.dim
        if vectors.ndim != 2 or vectors.shape[1] != dim or vectors.dtype != np.float32:
            raise ValueError(f"expected (q, {dim}) float32 queries, got {vectors.shape} {vectors.dtype}")
        if not np.isfinite(vectors).all():
            raise ValueError("expected queries that are finite, got some that are not")
        index, k = self._among(k, min_score, where)
        return self._hits(index, vectors, k, min_score)

    def similar(
        self, document_id: str, k: int = 10, min_score: float | None = None, where: Where | None = None
    ) -> list[Hit]:
        """The documents nearest to a stored one, itself left out; it need not satisfy the condition.

        Raises:
            UsageError: there is no such id, or as :meth:`search`.
            MissingPackage: as :meth:`search`.
        """
        index, k = self._among(k, min_score, where)
        row = self._store.rows_of([document_id])
        (hits,) = self._hits(index, self._store.take_vectors(row), k + 1, min_score)
        others = [hit for hit in hits if hit.row != int(row[0])][:k]
        return [replace(hit, rank=rank) for rank, hit in enumerate(others, start=1)]

    def _among(self, k: int, min_score: float | None, where: Where | None) -> tuple[VectorIndex | FilteredIndex, int]:
        """What to search in, and k as Python's own number, which alone FAISS takes."""
        k = _checked(k, min_score)
        return self._index if where is None else self._filters.of(where), k

    def _hits(
        self, index: VectorIndex | FilteredIndex, vectors: Vectors, k: int, min_score: float | None
    ) -> list[list[Hit]]:
        found = index.search(vectors, k)
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


def _hit(rank: int, row: int, score: float, document: dict[str, object]) -> Hit:
    return Hit(rank, row, str(document.pop("id")), score, str(document.pop("text")), document)


def _checked(k: int, min_score: float | None) -> int:
    k = at_least_one("k", k)
    if min_score is not None and math.isnan(min_score):
        raise UsageError("min_score must be a number, got nan")
    return k


def _check_not_blank(queries: Sequence[str]) -> None:
    # A blank one would be answered, too: by the documents nearest to the prompt alone.
    for number, query in enumerate(queries, 1):
        if not query.strip():
            raise UsageError(f"query {number} is empty")
