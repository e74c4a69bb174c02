"""The batch planner: a pure function, so its promises are stated as properties."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmindex.encode.batching import distinct, plan
from llmindex.records import Tokens

lengths = st.lists(st.integers(1, 900), max_size=200)


@given(lengths=lengths, budget=st.integers(1, 4096))
def test_each_row_is_in_one_batch_within_the_budget(lengths: list[int], budget: int) -> None:
    rows = np.array(lengths, np.int64)
    batches = list(plan(rows, budget))
    assert sorted(np.concatenate(batches).tolist() if batches else []) == list(range(len(rows)))
    for batch in batches:
        assert len(batch) == 1 or rows[batch].max() * len(batch) <= budget


@given(lengths=lengths, budget=st.integers(1, 4096))
def test_batches_fall_in_length_and_waste_little(lengths: list[int], budget: int) -> None:
    rows = np.array(lengths, np.int64)
    in_order = [int(length) for batch in plan(rows, budget) for length in rows[batch]]
    assert in_order == sorted(in_order, reverse=True)


@given(rows=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=3), max_size=40))
def test_of_equal_rows_the_first_stands_for_all(rows: list[list[int]]) -> None:
    offsets = np.cumsum([0, *map(len, rows)])
    ids = np.array([token for row in rows for token in row], np.int32)
    tokens = Tokens(ids, offsets, np.zeros((len(rows), 2), np.int64), np.zeros(len(rows), np.bool_))
    first, same = distinct(tokens)
    assert [rows[row] for row in first] == list(map(list, dict.fromkeys(map(tuple, rows))))
    assert [rows[first[place]] for place in same] == rows
