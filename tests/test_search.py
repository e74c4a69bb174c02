"""The searcher refuses what cannot be asked for, before it loads a model."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc
import pytest

from llmindex.encode.encoder import Encoder
from llmindex.errors import UsageError
from llmindex.index.search import Searcher
from tests.samples import make_index, make_vectors


def no_encoder() -> Encoder:
    raise AssertionError("vectors need no encoder")


def test_threads_that_ask_first_load_one_encoder(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    loaded: list[Any] = []

    def slowly() -> Encoder:
        loaded.append(object())
        time.sleep(0.2)
        return cast(Encoder, loaded[-1])

    searcher = Searcher(store, slowly)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: searcher.encoder, range(4)))
    assert found == loaded * 4


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
    with pytest.raises(UsageError, match=r"^k 0 must be at least 1$"):
        Searcher(store, no_encoder).similar("d3", k=0)


def test_a_number_of_hits_that_numpy_counted(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    searcher = Searcher(store, no_encoder)
    assert searcher.similar("d3", k=np.int64(3)) == searcher.similar("d3", k=3)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"^k 2\.5 must be a whole number$"):
        searcher.similar("d3", k=2.5)  # type: ignore[arg-type]


def test_an_id_that_is_no_string(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    with pytest.raises(UsageError, match=r"^the id 3 is not a string"):
        Searcher(store, no_encoder).similar(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("where", [None, pc.field("number") >= 0])
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda vectors: vectors[0], r"expected \(q, 8\) float32 queries, got \(8,\) float32"),
        (lambda vectors: vectors[:, :5], r"got \(2, 5\) float32"),
        (lambda vectors: vectors.astype(np.float64), r"got \(2, 8\) float64"),
        (lambda vectors: vectors * np.float32(np.nan), "finite"),
    ],
)
def test_query_vectors_that_are_none(change: Any, fault: str, where: Any, tmp_path: Path) -> None:  # noqa: ANN401
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    with pytest.raises(ValueError, match=fault):
        Searcher(store, no_encoder).search_vectors(change(make_vectors(2, 8)), where=where)


class AnyEncoder:
    """Gives some vector for each text."""

    def encode(self, texts: list[str], *, role: str) -> Any:  # noqa: ANN401
        return make_vectors(len(texts), 8)


def test_queries_in_whatever_holds_them(tmp_path: Path) -> None:
    store, _ = make_index(tmp_path / "index", make_vectors(20, 8))
    searcher = Searcher(store, AnyEncoder)  # type: ignore[arg-type]
    texts = ["one", "two", "three"]
    expected = searcher.search(texts)
    assert searcher.search(np.array(texts)) == expected
    assert searcher.search(text for text in texts) == expected
    assert searcher.search(dict.fromkeys(texts)) == expected
    assert searcher.search(np.array([], np.str_)) == []
    with pytest.raises(UsageError, match=r"^query 2 must be a string, not NoneType$"):
        searcher.search(["one", None])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="not one string"):
        searcher.search("one")
