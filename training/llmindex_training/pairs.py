"""Positive pairs: read from Parquet files, checked row by row, and dealt into the batches of a run.

The deal is a pure function of the pairs and the recipe: a resumed run gets the same batches.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmindex.errors import CorpusError, UsageError
from llmindex_training import text_columns
from llmindex_training.recipe import Data

logger = logging.getLogger(__name__)

TEXT, PAIR, SOURCE, NEGATIVE = "text", "text_pair", "source", "negative"
# Sources that a message lists.
_NAMED = 5
HINT = f"; pairs need the columns {TEXT} and {PAIR}"


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pairs of texts that mean the same, or answer each other.

    Attributes:
        table: string columns text, text_pair, source; negative, which may be null but not blank.
        sha256: identity of the files' rows, in their order.
    """

    table: pa.Table
    sha256: str

    def __len__(self) -> int:
        return int(self.table.num_rows)


@dataclass(frozen=True, slots=True)
class Deal:
    """Which pairs are trained on, when, and which are kept to score.

    Attributes:
        steps: row numbers of each step's batch, ``(steps, batch_size) int64``.
        held_out: row numbers of the pairs that are kept to score, all different and none in a step, ``(h,) int64``.
        too_small: pairs by source that no step has either, since batches are of one source and theirs fills none.
    """

    steps: NDArray[np.int64]
    held_out: NDArray[np.int64]
    too_small: Mapping[str, int] = field(default_factory=dict)


def listed(files: str | Path | Iterable[str | Path]) -> list[Path]:
    """The paths of pairs files, however they are held; one may come by itself.

    Raises:
        UsageError: there is none, or something else than paths, such as a data frame.
    """
    # What is made of columns would be taken for files of their names.
    given: list[Any] = [files] if isinstance(files, str | Path) or hasattr(files, "columns") else list(files)
    if not given:
        raise UsageError("no pairs are named; name a Parquet file")
    for file in given:
        if not isinstance(file, str | Path):
            raise UsageError(f"pairs are Parquet files, not {type(file).__name__}; write them to one first")
    return [Path(file) for file in given]


def read(files: str | Path | Iterable[str | Path]) -> Pairs:
    """Read pairs files one after the other.

    Raises:
        UsageError: as :func:`listed`.
        CorpusError: a file is missing or no Parquet file, lacks a column, or has a row with an empty side.
    """
    tables = [_read(file) for file in listed(files)]
    digest = hashlib.sha256()
    for table in tables:
        for column in table.columns:
            for value in column.to_pylist():
                digest.update(b"\0" if value is None else value.encode() + b"\1")
    return Pairs(pa.concat_tables(tables).combine_chunks(), digest.hexdigest())


def check(files: Sequence[str | Path]) -> None:
    """Refuse what :func:`read` would, as far as that shows without reading a row.

    Raises:
        CorpusError: a file is missing or no Parquet file, or lacks a column.
    """
    for file in files:
        with text_columns.open_file(Path(file)) as opened:
            text_columns.check_names(Path(file), opened.schema_arrow.names, (TEXT, PAIR), HINT)


def deal(pairs: Pairs, data: Data, batch_size: int, steps: int) -> Deal:
    """Draw the batches of a run, pass after pass; a pass has every pair once, but for those that fill no batch.

    Args:
        pairs: what :func:`read` gave.
        data: how to draw.
        batch_size: pairs a step.
        steps: how many; 0 for one pass.

    Raises:
        CorpusError: there are too few pairs for a single batch beside those held out.
    """
    if not len(pairs):
        raise _too_few(0, data, batch_size)
    rng = np.random.default_rng(data.seed)
    sources = pc.rank(pairs.table[SOURCE].combine_chunks(), tiebreaker="dense").to_numpy()
    order = rng.permutation(len(pairs))
    if data.max_per_source:
        order = _capped(order, sources, data.max_per_source)
    # Each pair once: one that is there again, as with another hard negative, is either trained on or scored.
    pair = _numbered(pairs.table)
    firsts = np.sort(np.unique(pair[order], return_index=True)[1])
    held_out = order[firsts[: data.held_out]]
    order = order[~np.isin(pair[order], pair[held_out])]
    passes: list[NDArray[np.int64]] = []
    made = 0
    while not made or made < steps:
        batches = _batches(order, sources, batch_size, data, rng)
        if not len(batches):
            raise _too_few(len(held_out) + len(order), data, batch_size)
        passes.append(batches)
        made += len(batches)
        order = rng.permutation(order)
    dealt = np.concatenate(passes)
    too_small = _too_small(pairs.table[SOURCE].take(pa.array(order)), batch_size) if data.batches == "source" else {}
    return Deal(dealt[:steps] if steps else dealt, np.sort(held_out), too_small)


def tell_too_small(deal: Deal, batch_size: int) -> None:
    """Warn of the pairs that no step has, since their sources are smaller than a batch."""
    if deal.too_small:
        named = ", ".join(f'"{source}" {count:,}' for source, count in list(deal.too_small.items())[:_NAMED])
        more = f" and {len(deal.too_small) - _NAMED:,} more" if len(deal.too_small) > _NAMED else ""
        logger.warning(
            'data.batches is "source", and %s pairs are not trained on, since their sources do not fill a batch of %d: '
            '%s%s; lower optim.batch_size, or take "mixed"',
            *(f"{sum(deal.too_small.values()):,}", batch_size, named, more),
        )


def text_keys(texts: Sequence[str]) -> NDArray[np.int64]:
    """``(n,) int64``, equal for texts that differ in case and white space at most."""
    digests = [hashlib.blake2b(" ".join(text.lower().split()).encode(), digest_size=8).digest() for text in texts]
    return np.frombuffer(b"".join(digests), np.int64)


def _numbered(table: pa.Table) -> NDArray[np.int64]:
    """``(n,) int64``, equal for rows of the same two texts."""
    keys = np.stack([text_keys(table[side].to_pylist()) for side in (TEXT, PAIR)], axis=1)
    numbers: NDArray[np.int64] = np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1)
    return numbers


def _too_small(sources: pa.ChunkedArray, size: int) -> dict[str, int]:
    """How many pairs each source has that does not fill a batch."""
    counted = sorted((each["values"], each["counts"]) for each in sources.value_counts().to_pylist())
    return {source: count for source, count in counted if count < size}


def _too_few(left: int, data: Data, batch_size: int) -> CorpusError:
    capped = ", data.max_per_source" if data.max_per_source else ""
    return CorpusError(
        f"{left:,} pairs are too few for batches of {batch_size} beside {data.held_out} held out; "
        f"give more, or change optim.batch_size{capped} or data.held_out"
    )


def _batches(
    order: NDArray[np.int64], sources: NDArray[np.int64], size: int, data: Data, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Whole batches in the order of their rows; with "source", each of one source, in random order."""
    if data.batches == "mixed":
        return order[: len(order) // size * size].reshape(-1, size)
    groups = [order[sources[order] == source] for source in np.unique(sources)]
    batches = [group[: len(group) // size * size].reshape(-1, size) for group in groups]
    return rng.permutation(np.concatenate(batches))


def _capped(order: NDArray[np.int64], sources: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """The first rows of each source, their order kept."""
    kept = [order[sources[order] == source][:most] for source in np.unique(sources)]
    chosen = np.zeros(len(sources), np.bool_)
    chosen[np.concatenate(kept)] = True
    return order[chosen[order]]


def _read(file: Path) -> pa.Table:
    table = text_columns.read(file)
    present = [name for name in (SOURCE, NEGATIVE) if name in table.column_names]
    text_columns.check_names(file, table.column_names, [TEXT, PAIR, *present], HINT)
    columns = {name: text_columns.strings(file, name, table[name]) for name in (TEXT, PAIR, *present)}
    for name in (TEXT, PAIR):
        check_filled(file, name, columns[name])
    columns[SOURCE] = (
        pc.fill_null(columns[SOURCE], "")
        if SOURCE in present
        else pa.chunked_array([pa.array([file.stem] * table.num_rows, pa.string())])
    )
    if NEGATIVE in present:  # blank, as a CSV file has what is not there
        blank = pc.equal(pc.utf8_trim_whitespace(columns[NEGATIVE]), "")
        columns[NEGATIVE] = pc.if_else(blank, pa.scalar(None, pa.string()), columns[NEGATIVE])
    else:
        columns[NEGATIVE] = pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    return pa.table({name: columns[name] for name in (TEXT, PAIR, SOURCE, NEGATIVE)})


def check_filled(file: Path, name: str, column: pa.ChunkedArray, row: int = 0) -> None:
    """Refuse a side of a pair that is null or blank; the column's first row has the given number.

    Raises:
        CorpusError: naming the row.
    """
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), True)
    if (place := pc.index(empty, True).as_py()) >= 0:
        raise CorpusError(f'{file}, row {row + place:,}: "{name}" is empty; remove such rows first')
