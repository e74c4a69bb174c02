"""How well queries find their documents, and, given an index, where what is lost gets lost.

Queries are embedded with the query prompt, documents with the documents'. Search is exact unless an index is given.
The scores of an index come in three stages, each with the same queries: "model" compares the encoder's float32 vectors
exactly, "stored" the vectors as the index stores them, "index" asks FAISS as a search would, for as many hits as a
score counts: an approximate search for more looks further, and finds more of the first ones, too. What the second loses
against the first is the quantiser's doing, what the third loses against the second that of approximate search.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.api import Index
from llmindex.errors import CorpusError
from llmindex.index.faiss_index import VectorIndex
from llmindex.metrics import Gains, ndcg, recall, reciprocal_rank
from llmindex.metrics import Scores as PerQuery
from llmindex.progress import ProgressCallback
from llmindex.records import Rows, Vectors, at_least_one
from llmindex_training.evaluate import Embedder, Encoding, Measure, Score, scores_of
from llmindex_training.evaluation_data import RetrievalSet, listed

K = NDCG_K = 10
DEPTH = 100
"""Hits of a query that are looked at: a first relevant hit behind them has the reciprocal rank 0."""

Search = Callable[[int], Rows]
"""Rows ``(q, at most depth)`` that a search for so many hits finds, the best first; -1 is nothing."""

# Inner products that are held at once.
_BLOCK = 8_000_000


@dataclass(frozen=True, slots=True)
class StageScore:
    """One score of an index, up to one stage.

    Attributes:
        task: name of the set.
        metric: name of the score.
        stage: "model", "stored" or "index".
        score: from 0 to 1.
        loss: what this stage lost against the one before; None of the first.
    """

    task: str
    metric: str
    stage: str
    score: float
    loss: float | None = None


@dataclass(frozen=True, slots=True)
class IndexEvaluation:
    """The scores of an index, stage by stage.

    Attributes:
        scores: metric by metric within each stage.
        queries: how many there were.
        documents: how many the index holds.
        absent: judged documents that it does not hold, and so cannot find.
    """

    scores: tuple[StageScore, ...]
    queries: int
    documents: int
    absent: int


def evaluate_retrieval(
    encoder: Embedder,
    sets: Iterable[RetrievalSet],
    *,
    baseline: Embedder | None = None,
    k: int = K,
    on_progress: ProgressCallback | None = None,
) -> list[Score]:
    """Score an encoder by exact search: "ndcg@10", "recall@k" and "mrr" of each set, and their means.

    Args:
        encoder: who is measured.
        sets: documents, queries and judgements.
        baseline: who is measured beside; differences then have a confidence interval, in which queries are sampled.
        k: how many hits recall counts.
        on_progress: told of the stage "encode".

    Raises:
        UsageError: there is no set, two have the same name, or k is below 1.
    """
    sets, k = listed(sets), at_least_one("-k", k)
    encoders = [encoder] if baseline is None else [encoder, baseline]
    encode = Encoding(len(encoders) * sum(each.size for each in sets), on_progress)
    measured = [
        [
            measure
            for each in sets
            for measure in retrieval_measures(encode(who, each.queries, "query"), encode(who, each.documents), each, k)
        ]
        for who in encoders
    ]
    return scores_of(*measured)


def retrieval_measures(queries: Vectors, documents: Vectors, judged: RetrievalSet, k: int = K) -> list[Measure]:
    """Score the vectors ``(q, dim)`` and ``(n, dim) float32`` of a set by exact search."""
    return _measures(judged, _exactly(queries, documents, k), judged.document_ids, k)


def evaluate_index(
    index: Index, judged: RetrievalSet, *, k: int = K, on_progress: ProgressCallback | None = None
) -> IndexEvaluation:
    """Score an index with its own encoder; its documents' ids are those of the judgements.

    Args:
        index: built from the documents of the set.
        judged: queries and judgements; its documents' own texts are not used, but those that the index holds, which
            have to be of the same lines or some of them, such as a text without its title.
        k: how many hits recall counts.
        on_progress: told of the stage "encode".

    Raises:
        CorpusError: the index holds none of the judged documents, or another text under the id of a document.
        StaleIndex: the index has no FAISS index of its vectors.
        ModelError: its encoder is not there any more.
        UsageError: k is below 1.
    """
    k = at_least_one("-k", k)
    # Before any text is embedded, as both may refuse.
    vector_index, encoder = VectorIndex.load(index.store), index.searcher.encoder
    ids, texts = _documents(index)
    named = {document for grades in judged.grades for document in grades}
    absent = named - set(ids)
    if absent == named:
        raise CorpusError(
            f'{index.path} holds none of the judged documents (say, "{min(absent)}"): build it from the corpus.parquet '
            "of this folder, so that its ids are the documents'"
        )
    _check_same_texts(index, judged, dict(zip(ids, texts, strict=True)))
    encode = Encoding(len(judged.queries) + len(texts), on_progress)
    queries = encode(encoder, judged.queries, "query")
    stages: dict[str, Search] = {
        "model": _exactly(queries, encode(encoder, texts), k),
        "stored": _exactly(queries, index.store.vectors(), k),
        "index": lambda depth: vector_index.search(queries, depth).rows,
    }
    scores: list[StageScore] = []
    before: dict[str, float] = {}
    for stage, search in stages.items():
        for each in _measures(judged, search, ids, k):
            loss = before[each.metric] - each.score if each.metric in before else None
            scores.append(StageScore(judged.name, each.metric, stage, each.score, loss))
            before[each.metric] = each.score
    return IndexEvaluation(tuple(scores), len(queries), len(ids), len(absent))


def _check_same_texts(index: Index, judged: RetrievalSet, texts: Mapping[str, str]) -> None:
    """Refuse an index of another corpus, whose ids, such as numbers, are those of this one by chance."""
    for document, text in zip(judged.document_ids, judged.documents, strict=True):
        here, there = ({line.strip() for line in each.splitlines()} for each in (text, texts.get(document, text)))
        if not (here <= there or there <= here):
            raise CorpusError(
                f'{index.path} holds another text under the id "{document}" than the corpus.parquet of '
                f'"{judged.name}": it is an index of another corpus; build one from that file'
            )


def _documents(index: Index) -> tuple[list[str], list[str]]:
    """Ids and texts of an index's documents, in row order."""
    ids: list[str] = []
    texts: list[str] = []
    for batch in index.store.iter_columns(["id", "text"]):
        ids += batch.column(0).to_pylist()
        texts += batch.column(1).to_pylist()
    return ids, texts


def nearest(queries: Vectors, documents: Vectors, depth: int) -> Rows:
    """Rows of the nearest documents by inner product, ``(q, min(depth, n)) int64``, the best first.

    Equal scores stand by rising row, as in an index.
    """
    depth = min(depth, len(documents))
    found = np.empty((len(queries), depth), np.int64)
    step = max(1, _BLOCK // max(1, len(documents)))
    for start in range(0, len(queries), step):
        scores = queries[start : start + step] @ documents.T
        best = np.argpartition(-scores, depth - 1, axis=1)[:, :depth]
        least = np.take_along_axis(scores, best, 1).min(axis=1, keepdims=True)
        for row in np.flatnonzero((scores >= least).sum(axis=1) > depth):  # equal ones at the cut: any of them came
            best[row] = np.argsort(-scores[row], kind="stable")[:depth]
        best.sort(axis=1)
        order = np.argsort(-np.take_along_axis(scores, best, 1), axis=1, kind="stable")
        found[start : start + step] = np.take_along_axis(best, order, 1)
    return found


def _exactly(queries: Vectors, documents: Vectors, k: int) -> Search:
    """Exact search, for at most as many hits as any score counts."""
    rows = nearest(queries, documents, max(k, DEPTH))
    return lambda depth: rows[:, :depth]


def _measures(judged: RetrievalSet, search: Search, ids: Sequence[str], k: int) -> list[Measure]:
    """Score what is found among documents with these ids."""
    gains = {depth: _gains(judged.grades, search(depth), ids) for depth in {NDCG_K, k, DEPTH}}
    most = max(map(len, judged.grades))
    ideal = np.zeros((len(judged.grades), most))
    for query, grades in enumerate(judged.grades):
        ideal[query, : len(grades)] = sorted((max(0.0, grade) for grade in grades.values()), reverse=True)
    relevant = (ideal > 0).sum(axis=1)
    return [
        _measure(judged.name, f"ndcg@{NDCG_K}", ndcg(gains[NDCG_K], ideal, NDCG_K)),
        _measure(judged.name, f"recall@{k}", recall(gains[k], relevant, k)),
        _measure(judged.name, "mrr", reciprocal_rank(gains[DEPTH])),
    ]


def _gains(grades: Sequence[Mapping[str, float]], rows: Rows, ids: Sequence[str]) -> Gains:
    gains: NDArray[np.float64] = np.zeros(rows.shape)
    for query, best in enumerate(rows):
        judged = grades[query]
        gains[query] = [max(0.0, judged.get(ids[row], 0.0)) if row >= 0 else 0.0 for row in best]
    return gains


def _measure(task: str, metric: str, values: PerQuery) -> Measure:
    """The mean over queries."""

    def resampled(rows: Rows, random: np.random.Generator) -> float:
        return float(values[rows].mean())

    return Measure(task, metric, float(values.mean()), len(values), resampled=resampled)
