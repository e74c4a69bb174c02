"""The searcher refuses what cannot be asked for, before it loads a model."""

import math
from pathlib import Path

import pytest

from llmindex.encode.encoder import Encoder
from llmindex.errors import UsageError
from llmindex.index.search import Searcher
from tests.samples import make_index, make_vectors


def no_encoder() -> Encoder:
    raise AssertionError("vectors need no encoder")


def test_a_least_score_that_is_no_number(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    searcher = Searcher(store, no_encoder)
    message = "^min_score must be a number, got nan$"
    with pytest.raises(UsageError, match=message):
        searcher.search_vectors(make_vectors(1, 8, seed=1), min_score=math.nan)
    with pytest.raises(UsageError, match=message):
        searcher.similar("d3", min_score=math.nan)
    with pytest.raises(UsageError, match=message):
        searcher.search(["no model is loaded for this"], min_score=math.nan)
    assert len(searcher.similar("d3", min_score=-math.inf)) == 10
    assert searcher.similar("d3", min_score=math.inf) == []


@pytest.mark.parametrize(
    ("query", "fault"),
    [("", "query 2 is empty"), (" \n", "query 2 is empty"), ("\ud800", r"query 2 .* not valid UTF-8")],
)
def test_a_query_without_text(query: str, fault: str, tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    with pytest.raises(UsageError, match=fault):
        Searcher(store, no_encoder).search(["no model is loaded for this", query])


def test_what_is_asked_for_is_named_as_the_argument_is(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    with pytest.raises(UsageError, match=r"^k must be at least 1, got 0$"):
        Searcher(store, no_encoder).similar("d3", k=0)
