"""Pairs: checked row by row, dealt the same every time, each once before any comes again, the held-out ones never."""

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex.errors import CorpusError
from llmindex_training import pairs as pair_files
from llmindex_training.pairs import NEGATIVE, PAIR, SOURCE, TEXT, Deal, Pairs
from llmindex_training.recipe import Batches, Data
from tests.training_runs import write_pairs


def write(path: Path, **columns: object) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def refused(*files: Path) -> str:
    with pytest.raises(CorpusError) as caught:
        pair_files.read(files)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def make(sources: list[str]) -> Pairs:
    names = [f"t{n}" for n in range(len(sources))]
    columns = {TEXT: names, PAIR: names, SOURCE: pa.array(sources, pa.string())}
    return Pairs(pa.table({**columns, NEGATIVE: pa.nulls(len(names), pa.string())}), "")


def sources_of(pairs: Pairs, rows: NDArray[np.int64]) -> set[str]:
    return set(pairs.table[SOURCE].take(pa.array(rows)).to_pylist())


# Files


def test_files_are_read_one_after_the_other(tmp_path: Path) -> None:
    first = write(tmp_path / "first.parquet", text=["a", "b"], text_pair=["A", "B"], more=[1, 2])
    second = write(
        tmp_path / "second.parquet",
        text=pa.array(["c", "d"]).dictionary_encode(),
        text_pair=pa.array(["C", "D"], pa.large_string()),
        source=["s", None],
        negative=[None, "x"],
    )
    pairs = pair_files.read([first, str(second)])
    assert pairs.table.to_pydict() == {
        TEXT: ["a", "b", "c", "d"],
        PAIR: ["A", "B", "C", "D"],
        SOURCE: ["first", "first", "s", ""],
        NEGATIVE: [None, None, None, "x"],
    }
    assert len(pairs) == 4


def test_identity_is_that_of_the_rows(tmp_path: Path) -> None:
    write_pairs(tmp_path / "a.parquet", 10)
    write_pairs(tmp_path / "same.parquet", 10)
    write_pairs(tmp_path / "less.parquet", 9)
    write_pairs(tmp_path / "negative.parquet", 10, negative=["no", *[None] * 9])
    hashes = [pair_files.read([tmp_path / f"{name}.parquet"]).sha256 for name in ("a", "same", "less", "negative")]
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == 3
    assert pair_files.read([tmp_path / "a.parquet", tmp_path / "less.parquet"]).sha256 not in hashes


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    assert refused(tmp_path / "none.parquet") == f"no such file: {tmp_path}/none.parquet"
    assert refused(tmp_path) == f"{tmp_path} is a folder; name a Parquet file"
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path / "pipe") == f"{tmp_path}/pipe is no regular file; name a Parquet file"
    (tmp_path / "text.parquet").write_text("hello", encoding="utf-8")
    assert refused(tmp_path / "text.parquet").startswith(f"{tmp_path}/text.parquet cannot be read as Parquet")
    (tmp_path / "pairs.csv").write_text("text,text_pair\na,b\n", encoding="utf-8")
    assert refused(tmp_path / "pairs.csv") == (
        f"{tmp_path}/pairs.csv is not a Parquet file, which is what is read here; convert it first"
    )


def test_missing_columns(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", text=["a"], other=["b"])
    assert refused(path) == (
        f'{path} has no column "text_pair"; did you mean "text"? (columns: text, other); '
        "pairs need the columns text and text_pair"
    )
    assert 'has no column "text"' in refused(write(path, id=[1]))


@pytest.mark.parametrize(
    ("column", "values", "row"),
    [("text", ["a", "b", ""], 2), ("text_pair", ["a", " \t\n", ""], 1), ("text", [None, "a", "b"], 0)],
)
def test_an_empty_side_is_named_by_file_and_row(
    tmp_path: Path, column: str, values: list[str | None], row: int
) -> None:
    good = write(tmp_path / "good.parquet", text=["a"], text_pair=["b"])
    bad = write(tmp_path / "bad.parquet", **({"text": ["x"] * 3, "text_pair": ["y"] * 3} | {column: values}))
    assert refused(good, bad) == f'{bad}, row {row}: "{column}" is empty; remove such rows first'


@pytest.mark.parametrize("column", ["text", "text_pair", "source", "negative"])
def test_a_column_that_is_no_text(tmp_path: Path, column: str) -> None:
    columns = {"text": ["a"], "text_pair": ["b"], "source": ["c"], "negative": ["d"], column: [1.5]}
    path = write(tmp_path / "p.parquet", **columns)
    assert refused(path) == f'{path}: the column "{column}" holds double, not text'


def test_a_blank_negative_is_none(tmp_path: Path) -> None:
    path = write(tmp_path / "p.parquet", text=["a"] * 4, text_pair=["b"] * 4, negative=["", " \n", None, "c"])
    assert pair_files.read([path]).table[NEGATIVE].to_pylist() == [None, None, None, "c"]


# The deal


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 2)), min_size=12, max_size=40), st.integers(0, 6))
def test_a_pair_that_is_there_again_is_either_trained_on_or_scored(rows: list[tuple[int, int]], held_out: int) -> None:
    texts, others = ([f"{side}{row[side]}" for row in rows] for side in (0, 1))
    columns = {TEXT: texts, PAIR: [text.upper() for text in others], SOURCE: [""] * len(rows)}
    pairs = Pairs(pa.table({**columns, NEGATIVE: [f"no {n}" for n in range(len(rows))]}), "")
    different = len(set(rows))
    try:
        dealt = pair_files.deal(pairs, Data(held_out=held_out), 2, 0)
    except CorpusError:
        return
    scored = [rows[row] for row in dealt.held_out]
    assert len(set(scored)) == len(scored) == min(held_out, different)
    assert not set(scored) & {rows[row] for row in dealt.steps.ravel()}


def has_a_batch(sources: list[str], data: Data, size: int) -> bool:
    """Whether a batch is left after the cap and those held out; with batches of one source, whichever were drawn."""
    counts = [min(sources.count(source), data.max_per_source or len(sources)) for source in set(sources)]
    if data.batches == "mixed":
        return sum(counts) - data.held_out >= size
    rows = np.random.default_rng(data.seed).permutation(len(sources))
    taken: list[str] = []
    for row in rows:
        if not data.max_per_source or taken.count(sources[row]) < data.max_per_source:
            taken.append(sources[row])
    left = taken[data.held_out :]
    return any(left.count(source) >= size for source in set(left))


@given(
    st.lists(st.sampled_from(["a", "b", "c"]), min_size=1, max_size=60),
    st.integers(2, 6),
    st.integers(0, 12),
    st.integers(0, 20),
    st.sampled_from(["mixed", "source"]),
    st.sampled_from([0, 5, 15]),
)
def test_the_deal(sources: list[str], size: int, steps: int, held_out: int, batches: Batches, cap: int) -> None:
    pairs = make(sources)
    data = Data(held_out=held_out, batches=batches, max_per_source=cap)
    if not has_a_batch(sources, data, size):
        with pytest.raises(CorpusError, match="too few for batches"):
            pair_files.deal(pairs, data, size, steps)
        return
    deal = pair_files.deal(pairs, data, size, steps)
    again = pair_files.deal(pairs, data, size, steps)
    assert np.array_equal(deal.steps, again.steps)
    assert np.array_equal(deal.held_out, again.held_out)
    assert deal.steps.shape == (steps or len(deal.steps), size)
    assert len(deal.held_out) == min(held_out, len(set(deal.held_out)))
    assert not set(deal.held_out) & set(deal.steps.flat)
    for batch in deal.steps:
        assert len(set(batch)) == size
        assert batches == "mixed" or len(sources_of(pairs, batch)) == 1
    left = [source for row, source in enumerate(sources) if row not in deal.held_out]
    if batches == "mixed":
        assert not deal.too_small
    elif not cap:
        assert deal.too_small == {each: left.count(each) for each in set(left) if left.count(each) < size}
    if cap:
        used = sorted({*deal.steps.flat, *deal.held_out})
        assert all([sources[row] for row in used].count(source) <= cap for source in set(sources))


def test_every_pair_once_a_pass() -> None:
    pairs = make(["a"] * 26)
    deal = pair_files.deal(pairs, Data(held_out=2), 6, 8)
    first, second = deal.steps[:4], deal.steps[4:]
    everything = sorted(set(range(26)) - set(deal.held_out))
    assert sorted(first.flat) == everything
    assert sorted(second.flat) == everything
    assert not np.array_equal(first, second)


def test_one_pass_is_the_default_and_leaves_a_part_of_a_batch_over() -> None:
    assert pair_files.deal(make(["a"] * 25), Data(held_out=2), 6, 0).steps.shape == (3, 6)


def test_a_shorter_run_takes_the_first_steps_of_a_longer_one() -> None:
    pairs = make(["a", "b"] * 20)
    long, short = (pair_files.deal(pairs, Data(held_out=4), 6, steps) for steps in (20, 7))
    assert np.array_equal(long.steps[:7], short.steps)


def test_another_seed_is_another_deal() -> None:
    pairs = make(["a"] * 40)
    deals: list[Deal] = [pair_files.deal(pairs, Data(held_out=4, seed=seed), 6, 0) for seed in (0, 1)]
    assert not np.array_equal(deals[0].steps, deals[1].steps)


@pytest.mark.parametrize("batches", ["mixed", "source"])
@pytest.mark.parametrize("held_out", [0, 5, 100])
@pytest.mark.parametrize("count", [0, 5])
def test_too_few_pairs(batches: Batches, held_out: int, count: int) -> None:
    told = rf"^{min(count, 3)} pairs are too few for batches of 8 beside {held_out} held out; .*data.max_per_source or"
    with pytest.raises(CorpusError, match=told):
        pair_files.deal(make(["a"] * count), Data(held_out=held_out, batches=batches, max_per_source=3), 8, 3)


def test_text_keys_ignore_case_and_white_space() -> None:
    keys = pair_files.text_keys(["A  cat\n", "a cat", "a dog", "acat"])
    assert keys.dtype == np.int64
    assert len(set(keys)) == 3
    assert keys[0] == keys[1]
    assert pair_files.text_keys([]).shape == (0,)
