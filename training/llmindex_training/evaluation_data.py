"""Evaluation sets, read from one's own Parquet files and checked before any model is loaded.

Three layouts: a clustering file has the columns ``text`` and ``label``; a sentence-pair file ``sentence1``,
``sentence2``, ``score`` and perhaps ``split``; a retrieval folder holds ``corpus.parquet`` (``id``, ``text``, perhaps
``title``), ``queries.parquet`` (``id``, ``text``) and ``qrels.parquet`` (``query_id``, ``doc_id``, ``score``).
A set that has been read is whole: no null, two classes or more, every judgement about a known query and document.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from llmindex.errors import CorpusError, UsageError
from llmindex.metrics import Codes
from llmindex.records import at_least_one
from llmindex_training import text_columns

TEXT, LABEL = "text", "label"
PAIR_COLUMNS = ("sentence1", "sentence2", "score")
_OTHER_LABELS = "; rename the one that holds the labels; `evaluate clustering` takes its name as --label-column"
RETRIEVAL_FILES = ("corpus.parquet", "queries.parquet", "qrels.parquet")
MEAN = "mean"
"""What the mean of several sets is called beside them."""


@dataclass(frozen=True, slots=True, eq=False)
class LabelledTexts:
    """Texts with one label each.

    Attributes:
        name: what the set is called in tables.
        texts: n texts.
        truth: ``(n,) int64``, a number for each label; all from 0 to classes - 1 occur.
        classes: how many labels, at least 2.
    """

    name: str
    texts: Sequence[str]
    truth: Codes
    classes: int

    def __post_init__(self) -> None:
        """A column of pandas would be asked for its rows by their names, not by their places."""
        object.__setattr__(self, "truth", np.asarray(self.truth, np.int64))

    @property
    def size(self) -> int:
        """How many texts are embedded."""
        return len(self.texts)


@dataclass(frozen=True, slots=True, eq=False)
class RetrievalSet:
    """Documents, queries, and which documents answer which query.

    Attributes:
        name: what the set is called in tables.
        document_ids: n ids, all different.
        documents: n texts, a title before its text and on a line of its own.
        queries: q texts, each with one relevant document at least.
        grades: for each query, the grade of each judged document by its id; above 0 is relevant.
    """

    name: str
    document_ids: Sequence[str]
    documents: Sequence[str]
    queries: Sequence[str]
    grades: Sequence[Mapping[str, float]]

    def __post_init__(self) -> None:
        """As for the truth of labelled texts."""
        object.__setattr__(self, "document_ids", list(self.document_ids))
        object.__setattr__(self, "grades", list(self.grades))

    @property
    def size(self) -> int:
        """How many texts are embedded."""
        return len(self.documents) + len(self.queries)


@dataclass(frozen=True, slots=True, eq=False)
class SentencePairs:
    """Pairs of sentences with a human's score of how alike they are.

    Attributes:
        name: what the set is called in tables.
        first: n sentences.
        second: n sentences.
        scores: ``(n,) float64``, not all equal.
    """

    name: str
    first: Sequence[str]
    second: Sequence[str]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        """As for the truth of labelled texts."""
        object.__setattr__(self, "scores", np.asarray(self.scores, np.float64))

    @property
    def size(self) -> int:
        """How many texts are embedded."""
        return len(self.first) + len(self.second)


EvaluationSet = LabelledTexts | RetrievalSet | SentencePairs

AnySet = TypeVar("AnySet", LabelledTexts, RetrievalSet, SentencePairs, EvaluationSet)


def listed(sets: Iterable[AnySet]) -> list[AnySet]:
    """Sets to be scored side by side, however they are held; their names tell their scores apart.

    Raises:
        UsageError: there is none, two have the same name, or one of several has that of their mean.
    """
    found = list(sets)
    if not found:
        raise UsageError("no sets are named: there is nothing to score")
    names = [each.name for each in found]
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise UsageError(f'two sets have the name "{twice[0]}"; read them with different names')
    if len(found) > 1 and MEAN in names:
        raise UsageError(f'a set has the name "{MEAN}", which is that of the mean of all; give it another one')
    return found


def set_names(paths: Sequence[Path]) -> list[str]:
    """A name for each set: the file's stem or the folder's name; the whole path where two would be the same.

    Raises:
        UsageError: a path is there twice.
    """
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UsageError(f"{path} is named twice; name each set once")
    stems = [path.resolve().stem if path.suffix == ".parquet" else path.resolve().name for path in paths]
    return [str(path) if stems.count(stem) > 1 else stem for path, stem in zip(paths, stems, strict=True)]


def read_clustering(
    path: str | Path, *, name: str | None = None, label_column: str = LABEL, sample: int | None = None, seed: int = 0
) -> LabelledTexts:
    """Read a labelled file.

    Args:
        path: Parquet file with the column ``text`` and one with the labels.
        name: what the set is called; by default the file's stem.
        label_column: where the labels are.
        sample: the most texts; more are sampled at random.
        seed: of the sample.

    Raises:
        CorpusError: it cannot be read, lacks a column, or holds fewer than two classes.
    """
    path = Path(path)
    table = _read(path)
    texts = _strings(table, TEXT, path)
    labels = _strings(table, label_column, path, _OTHER_LABELS if label_column == LABEL else "")
    rows = _sampled(len(texts), sample, seed)
    kept = [labels[row] for row in rows]
    classes, truth = np.unique(kept, return_inverse=True)
    if len(classes) < 2:
        where = f"a sample of {len(kept):,} of its texts" if len(kept) < len(texts) else f'the column "{label_column}"'
        raise CorpusError(f'{path} has one class only, "{classes[0]}", in {where}: clustering is scored on two or more')
    return LabelledTexts(
        name or path.stem, [texts[row] for row in rows], truth.astype(np.int64).reshape(-1), len(classes)
    )


def read_sts(
    path: str | Path, *, name: str | None = None, split: str = "test", sample: int | None = None, seed: int = 0
) -> SentencePairs:
    """Read a file of sentence pairs.

    Args:
        path: Parquet file with the columns ``sentence1``, ``sentence2`` and ``score``.
        name: what the set is called; by default the file's stem.
        split: which rows count, by the column ``split``; all where there is no such column.
        sample: the most pairs; more are sampled at random.
        seed: of the sample.

    Raises:
        CorpusError: it cannot be read, lacks a column or the split, or all its scores are equal.
    """
    path = Path(path)
    table = _read(path)
    if "split" in table.column_names:
        splits = _strings(table, "split", path)
        if split not in splits:
            known = ", ".join(f'"{each}"' for each in sorted(set(splits))[:10])
            raise CorpusError(
                f'{path} has no rows of the split "{split}"; it has {known}: `evaluate sts --split` takes another'
            )
        table = table.take(np.flatnonzero(np.array(splits) == split))
    first, second = (_strings(table, column, path) for column in PAIR_COLUMNS[:2])
    scores = _numbers(table, PAIR_COLUMNS[2], path)
    rows = _sampled(len(first), sample, seed)
    if len(np.unique(scores[rows])) < 2:
        raise CorpusError(f"{path}: all {len(rows):,} scores are equal, so that nothing can correlate with them")
    return SentencePairs(name or path.stem, [first[row] for row in rows], [second[row] for row in rows], scores[rows])


def read_retrieval(
    folder: str | Path, *, name: str | None = None, sample: int | None = None, seed: int = 0
) -> RetrievalSet:
    """Read a retrieval folder; queries without a relevant document are left out.

    Args:
        folder: holds corpus.parquet, queries.parquet and qrels.parquet.
        name: what the set is called; by default the folder's name.
        sample: the most queries, sampled at random; and the most documents: those that are judged for a query, all of
            them, and others up to that number. Fewer documents make the task easier.
        seed: of the sample.

    Raises:
        CorpusError: a file cannot be read or lacks a column, an id comes twice, a judgement names an unknown query
            or document, or no document is relevant.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CorpusError(f"there is no folder {folder}; name one that holds {', '.join(RETRIEVAL_FILES)}")
    corpus, queries, qrels = (folder / file for file in RETRIEVAL_FILES)
    table = _read(corpus)
    texts = _strings(table, TEXT, corpus)
    if "title" in table.column_names:
        # As a build joins columns, so that an index of both columns holds these very texts.
        titles = _strings(table, "title", corpus)
        texts = [f"{title}\n{text}".strip() for title, text in zip(titles, texts, strict=True)]
    documents = _by_id(table, texts, corpus)
    asked = _read(queries)
    query_texts = _by_id(asked, _strings(asked, TEXT, queries), queries)
    grades = _judgements(_read(qrels), qrels, documents, query_texts)
    answered = [query for query in query_texts if any(grade > 0 for grade in grades.get(query, {}).values())]
    if not answered:
        raise CorpusError(f"{qrels} names no relevant document (score above 0): there is nothing to find")
    chosen = [answered[row] for row in _sampled(len(answered), sample, seed)]
    kept = _with_others(documents, {document for query in chosen for document in grades[query]}, sample, seed)
    return RetrievalSet(
        name or folder.resolve().name,
        kept,
        [documents[document] for document in kept],
        [query_texts[query] for query in chosen],
        [grades[query] for query in chosen],
    )


def read_any(path: str | Path, *, name: str | None = None, sample: int | None = None, seed: int = 0) -> EvaluationSet:
    """Read a set of whichever layout it has: a folder is retrieval, a file with ``sentence1`` pairs, else clustering.

    Raises:
        CorpusError: as the reader of that layout.
    """
    path = Path(path)
    if path.is_dir():
        return read_retrieval(path, name=name, sample=sample, seed=seed)
    with text_columns.open_file(path) as file:
        columns = file.schema_arrow.names
    if PAIR_COLUMNS[0] in columns:
        return read_sts(path, name=name, sample=sample, seed=seed)
    return read_clustering(path, name=name, sample=sample, seed=seed)


def _judgements(
    table: pa.Table, path: Path, documents: Mapping[str, str], queries: Mapping[str, str]
) -> dict[str, dict[str, float]]:
    """Grades by query and document."""
    query_ids, document_ids = _strings(table, "query_id", path), _strings(table, "doc_id", path)
    for what, named, known in (("query", query_ids, queries), ("document", document_ids, documents)):
        unknown = sorted(set(named) - set(known))
        if unknown:
            more = f" and {len(unknown) - 1:,} more" if len(unknown) > 1 else ""
            file = RETRIEVAL_FILES[1] if what == "query" else RETRIEVAL_FILES[0]
            raise CorpusError(f'{path} names the {what} "{unknown[0]}"{more}, which {file} beside it does not have')
    grades: dict[str, dict[str, float]] = {}
    scores = _numbers(table, "score", path).tolist()
    for query, document, score in zip(query_ids, document_ids, scores, strict=True):
        if grades.setdefault(query, {}).setdefault(document, score) != score:
            raise CorpusError(f'{path} grades the document "{document}" for the query "{query}" twice, differently')
    return grades


def _with_others(documents: Mapping[str, str], judged: set[str], sample: int | None, seed: int) -> list[str]:
    """Ids of the judged documents and of others up to the sample's size, in the order of the corpus."""
    if sample is None or sample >= len(documents):
        return list(documents)
    others = [document for document in documents if document not in judged]
    room = max(0, sample - len(judged))
    drawn = {others[row] for row in _sampled(len(others), room, seed)} if room else set()
    return [document for document in documents if document in judged or document in drawn]


def _by_id(table: pa.Table, texts: Sequence[str], path: Path) -> dict[str, str]:
    ids = _strings(table, "id", path)
    found = dict(zip(ids, texts, strict=True))
    if len(found) < len(ids):
        seen: set[str] = set()
        twice = next(each for each in ids if each in seen or seen.add(each))  # type: ignore[func-returns-value]
        raise CorpusError(f'{path} has the id "{twice}" more than once')
    return found


def _sampled(count: int, sample: int | None, seed: int) -> list[int]:
    """Row numbers: all in their order, or so many of a seeded permutation."""
    if sample is None or at_least_one("--sample", sample) >= count:
        return list(range(count))
    rows: list[int] = np.random.default_rng(seed).permutation(count)[:sample].tolist()
    return rows


def _read(path: Path) -> pa.Table:
    table = text_columns.read(path)
    if not len(table):
        raise CorpusError(f"{path} holds no rows")
    return table


def _column(table: pa.Table, name: str, path: Path, hint: str = "") -> pa.ChunkedArray:
    text_columns.check_names(path, table.column_names, [name], hint)
    column = table[name]
    if column.null_count:
        row = column.is_null().to_pylist().index(True)
        raise CorpusError(f'{path}, row {row:,}: the column "{name}" is null')
    return column


def _strings(table: pa.Table, name: str, path: Path, hint: str = "") -> list[str]:
    """A column of strings, or of whole numbers as their digits."""
    column = _column(table, name, path, hint)
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if name != TEXT and pa.types.is_integer(kind):
        return list(map(str, column.to_pylist()))
    values: list[str] = text_columns.strings(path, name, column).to_pylist()
    return values


def _numbers(table: pa.Table, name: str, path: Path) -> NDArray[np.float64]:
    """A column of finite numbers, ``(n,) float64``."""
    column = _column(table, name, path)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        raise CorpusError(f'{path}: the column "{name}" holds {column.type}; expected numbers')
    values: NDArray[np.float64] = column.to_numpy().astype(np.float64)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values))[0])
        raise CorpusError(f'{path}, row {row:,}: the column "{name}" is not a finite number')
    return values
