"""Equal vectors are found, and no others."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmindex.cluster.distinct import first_rows


@given(
    rows=st.lists(st.integers(0, 7), max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    dim=st.integers(1, 40),
    half=st.booleans(),
)
def test_each_row_knows_the_first_that_equals_it(rows: list[int], cuts: list[int], dim: int, half: bool) -> None:
    kinds = np.random.default_rng(dim).normal(size=(8, dim)).astype(np.float16 if half else np.float32)
    kinds[1] = np.nextafter(kinds[0], kinds.dtype.type(9))  # as near as can be
    kinds[2], kinds[3] = 0, -0.0
    vectors = kinds[np.array(rows, int)].astype(np.float32).reshape(-1, dim)
    blocks = np.split(vectors, sorted(min(cut, len(rows)) for cut in cuts))
    seen: dict[int, int] = {}
    expected = [seen.setdefault(2 if kind == 3 else kind, row) for row, kind in enumerate(rows)]
    assert first_rows(blocks).tolist() == expected


def test_nothing_has_no_copies() -> None:
    assert first_rows([]).shape == (0,)
