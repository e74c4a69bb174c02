"""Hard negatives from an index: documents that lie near a text and are not what it was paired with.

A pair's negatives are the stored documents nearest to its text, encoded as a query with the index's own encoder, whose
score stays a margin below that of the text's own positive. Nearer ones are too likely to be positives that nobody
paired (the margin is TopK-MarginPos of NV-Retriever, Moreira et al. 2024, arXiv 2407.15831). A text that stands in
several pairs has several positives, none of which becomes its negative. Pairs stream through: of all of them, two
numbers each are kept in memory, and the output appears whole or not at all.
"""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmindex.corpus.column_types import is_text
from llmindex.encode.encoder import Encoder
from llmindex.errors import CorpusError, UsageError
from llmindex.index.faiss_index import VectorIndex
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import at_least_one
from llmindex.store.files import check_name, replacing
from llmindex.store.reader import VectorStore
from llmindex_training import pairs as pair_files
from llmindex_training import text_columns
from llmindex_training.pairs import NEGATIVE, PAIR, TEXT

DEFAULT_K = 30
DEFAULT_MARGIN = 0.05

# Pairs that are encoded and looked up together.
_WINDOW = 1024


@dataclass(frozen=True, slots=True)
class MiningReport:
    """What was mined.

    Attributes:
        file: the pairs with their negatives.
        pairs: pairs read.
        rows: rows written: one a negative, and one for each pair without any.
        with_negative: pairs that got at least one.
        without: pairs that got none.
        held_back: documents among the nearest that were too near to be surely negative.
        positive_score: mean score between a text and its positive, over the pairs that got a negative; None without.
        negative_score: mean score between a text and its negatives; None where there are none.
        seconds: of the whole call.
    """

    file: Path
    pairs: int
    rows: int
    with_negative: int
    without: int
    held_back: int
    positive_score: float | None
    negative_score: float | None
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"file": str(self.file)}


def mine(
    files: str | Path | Iterable[str | Path],
    index: str | Path,
    output: str | Path,
    *,
    k: int = DEFAULT_K,
    margin: float = DEFAULT_MARGIN,
    negatives: int = 1,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    on_progress: ProgressCallback | None = None,
) -> MiningReport:
    """Add a column ``negative`` to pairs, with documents of an index.

    Args:
        files: Parquet files with the columns text and text_pair; their other columns are kept.
        index: the index folder; its encoder embeds the pairs, ``text`` as a query, ``text_pair`` as a document.
        output: the Parquet file to write, a row a negative. A pair without any keeps its row, with a null.
        k: how many of the nearest documents are considered; scores are those that the index gives.
        margin: how far a negative's score has to stay below the positive's.
        negatives: the most of a pair.
        device: where the encoder runs.
        dtype: what it computes in.
        trust_remote_code: run the Python files that came with the index's model.
        on_progress: called with the stage "mine", in pairs.

    Raises:
        UsageError: an option has an impossible value, or the output is one of the inputs, lies in the index, or is
            there and was not mined.
        CorpusError: a file is missing, is not Parquet, lacks a column, or has a row with an empty side.
        LlmindexError: the index or its model is not there or not usable; see :func:`llmindex.open`.
    """
    started = time.perf_counter()
    k, negatives = at_least_one("-k", k), at_least_one("--negatives", negatives)
    _check_options(k, margin, negatives)
    sources = pair_files.listed(files)
    path = Path(output)
    check_name(path)
    if any(source.exists() and path.exists() and source.samefile(path) for source in sources):
        raise UsageError(f"{path} is one of the pairs files; write to another file")
    _check_replaceable(path, Path(index))
    schema, known = _checked(sources)
    store = VectorStore.open(index)
    found = VectorIndex.load(store)
    encoder = Encoder.from_spec(
        store.manifest.encoder.spec, device_name=device, dtype=dtype, trust_remote_code=trust_remote_code
    )
    miner = _Miner(store, found, encoder, known, k, margin, negatives)
    with replacing(path) as temporary, pq.ParquetWriter(temporary, schema.append(_NEGATIVE)) as writer:
        for table in _windows(sources, schema):
            writer.write_table(miner.add_negatives(table))
            if on_progress is not None:
                on_progress(Progress("mine", miner.pairs, len(known.texts), "pairs"))
        writer.add_key_value_metadata({_MINED_KEY: b"1"})
    return MiningReport(
        file=path,
        pairs=miner.pairs,
        rows=miner.rows,
        with_negative=miner.pairs - miner.without,
        without=miner.without,
        held_back=miner.held_back,
        positive_score=_mean(miner.positive_scores),
        negative_score=_mean(miner.negative_scores),
        seconds=time.perf_counter() - started,
    )


_NEGATIVE = pa.field(NEGATIVE, pa.string())
_MINED_KEY = b"llmindex.mined"


def _check_replaceable(path: Path, index: Path) -> None:
    """Refuse to write over anything but what was mined before."""
    if path.absolute().resolve().is_relative_to(index.resolve()):
        raise UsageError(f"{path} lies in the index {index}; write to another folder with -o")
    if not path.is_file():
        return
    try:
        mined = _MINED_KEY in (pq.read_metadata(path).metadata or {})
    except (OSError, pa.ArrowException):
        mined = False
    if not mined:
        raise UsageError(f"{path} is there and was not mined; write to another file with -o")


@dataclass(slots=True)
class _Sum:
    total: float = 0.0
    count: int = 0

    def add(self, values: NDArray[np.float32]) -> None:
        self.total += float(values.sum(dtype=np.float64))
        self.count += len(values)


def _mean(scores: _Sum) -> float | None:
    return scores.total / scores.count if scores.count else None


@dataclass(frozen=True, slots=True, eq=False)
class _Positives:
    """All pairs, by their text.

    Attributes:
        texts: ``(n,) int64``, keys of the pairs' first sides, ascending.
        positives: ``(n,) int64``, keys of their second sides.
    """

    texts: NDArray[np.int64]
    positives: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[NDArray[np.int64]], positives: Sequence[NDArray[np.int64]]) -> "_Positives":
        keys, others = (np.concatenate([np.empty(0, np.int64), *side]) for side in (texts, positives))
        order = np.argsort(keys)
        return cls(keys[order], others[order])

    def __call__(self, text: np.int64) -> NDArray[np.int64]:
        """The positives of a text."""
        begin, end = (np.searchsorted(self.texts, text, side) for side in ("left", "right"))
        return self.positives[begin:end]


@dataclass(slots=True)
class _Miner:
    """Finds the negatives of one window of pairs after the other, and counts."""

    store: VectorStore
    index: VectorIndex
    encoder: Encoder
    known: _Positives
    k: int
    margin: float
    negatives: int
    pairs: int = 0
    rows: int = 0
    without: int = 0
    held_back: int = 0
    positive_scores: _Sum = field(default_factory=_Sum)
    negative_scores: _Sum = field(default_factory=_Sum)

    def add_negatives(self, table: pa.Table) -> pa.Table:
        """The pairs with their negatives, in the order of the pairs, nearest negatives first."""
        texts, positives = (table[name].to_pylist() for name in (TEXT, PAIR))
        queries = self.encoder.encode(texts, role="query")
        positive_scores = (queries * self.encoder.encode(positives, role="document")).sum(axis=1)
        found = self.index.search(queries, self.k)
        kept = found.rows >= 0
        documents = self.store.take(found.rows[kept], ["text"])["text"].to_pylist()
        stored = zip(documents, pair_files.text_keys(documents).tolist(), strict=True)
        pair_rows: list[int] = []
        chosen: list[str | None] = []
        scores: list[float] = []
        mined = np.zeros(len(texts), np.bool_)
        for pair, key in enumerate(pair_files.text_keys(texts)):
            own = {int(key), *self.known(key).tolist()}
            limit = float(positive_scores[pair]) - self.margin
            near = [(*next(stored), float(score)) for score in found.scores[pair][kept[pair]]]
            picked = self._pick(near, own, limit)
            pair_rows += [pair] * max(1, len(picked))
            chosen += [text for text, _ in picked] or [None]
            scores += [score for _, score in picked]
            mined[pair] = bool(picked)
        self.pairs += len(texts)
        self.rows += len(chosen)
        self.without += int((~mined).sum())
        self.positive_scores.add(positive_scores[mined])
        self.negative_scores.add(np.array(scores, np.float32))
        return table.take(pa.array(pair_rows, pa.int64())).append_column(_NEGATIVE, pa.array(chosen, pa.string()))

    def _pick(self, near: Sequence[tuple[str, int, float]], own: set[int], limit: float) -> list[tuple[str, float]]:
        """The nearest documents that may be negatives, each text once."""
        picked: list[tuple[str, float]] = []
        for text, key, score in near:
            if key in own:
                continue
            own.add(key)
            if score > limit:
                self.held_back += 1
            elif len(picked) < self.negatives:
                picked.append((text, score))
        return picked


def _check_options(k: int, margin: float, negatives: int) -> None:
    if negatives > k:
        raise UsageError(f"--negatives {negatives} cannot come from the {k} nearest documents; raise -k")
    if not 0 <= margin <= 2:
        raise UsageError(f"--margin {margin} must lie between 0 and 2")


def _checked(files: Sequence[Path]) -> tuple[pa.Schema, _Positives]:
    """Columns of all files together, and their pairs; every row is checked before any is encoded."""
    schemas: list[pa.Schema] = []
    texts: list[NDArray[np.int64]] = []
    positives: list[NDArray[np.int64]] = []
    for file in files:
        opened = text_columns.open_file(file)
        schema = opened.schema_arrow.remove_metadata()
        text_columns.check_names(file, schema.names, [TEXT, PAIR, *schema.names], pair_files.HINT)
        if NEGATIVE in schema.names:
            raise CorpusError(f'{file} has a column "{NEGATIVE}" already; mine from pairs without it')
        for text_part, positive_part in _checked_rows(file, opened):
            texts.append(text_part)
            positives.append(positive_part)
        # Files may lay their strings out differently; take() cannot do all layouts.
        plain = [part.with_type(pa.string()) if is_text(part.type) else part for part in schema]
        for part in plain:
            _check_takable(file, part)
        schemas.append(pa.schema(plain))
    try:
        return pa.unify_schemas(schemas), _Positives.of(texts, positives)
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise CorpusError(f"the pairs files have a column of the same name in different types: {error}") from error


def _check_takable(file: Path, column: pa.Field) -> None:
    """Refuse a column whose rows Arrow cannot repeat, which it would say after all was encoded."""
    try:
        pa.nulls(1, column.type).take(pa.array([0]))
    except pa.ArrowNotImplementedError as error:
        raise CorpusError(
            f'{file}: the column "{column.name}" holds {column.type}, which cannot be copied; leave that column out'
        ) from error


def _checked_rows(file: Path, opened: pq.ParquetFile) -> Iterator[list[NDArray[np.int64]]]:
    """Keys of both sides, some rows at a time."""
    row = 0
    for batch in _read(file, opened, [TEXT, PAIR]):
        sides = [text_columns.strings(file, name, batch[name], row) for name in (TEXT, PAIR)]
        for name, side in zip((TEXT, PAIR), sides, strict=True):
            pair_files.check_filled(file, name, side, row)
        yield [pair_files.text_keys(side.to_pylist()) for side in sides]
        row += batch.num_rows


def _windows(files: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
    for file in files:
        opened = text_columns.open_file(file)
        for batch in _read(file, opened, None):
            columns = [
                batch[part.name].cast(part.type) if part.name in batch.column_names else pa.nulls(len(batch), part.type)
                for part in schema
            ]
            yield pa.table(columns, schema=schema)


def _read(file: Path, opened: pq.ParquetFile, columns: list[str] | None) -> Iterator[pa.Table]:
    try:
        for batch in opened.iter_batches(batch_size=_WINDOW, columns=columns):
            yield pa.Table.from_batches([batch])
    except (pa.ArrowException, OSError) as error:
        raise CorpusError(f"{file} is damaged: {error}") from error
