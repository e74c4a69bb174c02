from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.errors import CorpusError, UsageError
from llmindex_training.evaluation_data import (
    LabelledTexts,
    RetrievalSet,
    SentencePairs,
    read_any,
    read_clustering,
    read_retrieval,
    read_sts,
    set_names,
)

CORPUS = {"id": ["d1", "d2", "d3", "d4"], "title": ["One", "", "Three", "Four"], "text": ["a", "b", "", "d"]}
QUERIES = {"id": ["q1", "q2", "q3"], "text": ["which a", "which b", "nothing"]}
QRELS = {"query_id": ["q1", "q1", "q2", "q3"], "doc_id": ["d1", "d3", "d2", "d2"], "score": [4, 0, 1, 0]}
PAIRS = {
    "sentence1": ["a", "b", "c", "d"],
    "sentence2": ["a", "x", "y", "d"],
    "score": pa.array([5.0, 1.0, 2.5, 5.0], pa.float32()),
    "split": ["test", "test", "test", "dev"],
}


def write(path: Path, columns: dict[str, Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def retrieval(tmp_path: Path, **changed: dict[str, Any]) -> Path:
    files: dict[str, dict[str, Any]] = {"corpus": CORPUS, "queries": QUERIES, "qrels": QRELS}
    for name, columns in files.items():
        write(tmp_path / "cranfield" / f"{name}.parquet", columns | changed.get(name, {}))
    return tmp_path / "cranfield"


def test_clustering(tmp_path: Path) -> None:
    path = write(tmp_path / "topics.parquet", {"text": ["a", "b", "c"], "label": ["y", "x", "y"]})
    read = read_clustering(path)
    assert (read.name, list(read.texts), read.truth.tolist(), read.classes) == ("topics", ["a", "b", "c"], [1, 0, 1], 2)
    assert read.truth.dtype == np.int64
    assert read.size == 3


def test_labels_may_be_numbers_or_categories(tmp_path: Path) -> None:
    texts = pa.array(["a", "b", "c"], pa.large_string())
    numbered = write(tmp_path / "n.parquet", {"text": texts, "topic": pa.array([7, 7, 9], pa.int8())})
    assert read_clustering(numbered, label_column="topic").truth.tolist() == [0, 0, 1]
    category = pa.array(["b", "a", "b"]).dictionary_encode()
    assert read_clustering(write(tmp_path / "c.parquet", {"text": texts, "label": category})).truth.tolist() == [
        1,
        0,
        1,
    ]


def test_samples_are_seeded_and_of_whole_rows(tmp_path: Path) -> None:
    numbers = list(range(500))
    path = write(tmp_path / "t.parquet", {"text": [f"t{n}" for n in numbers], "label": [f"l{n % 5}" for n in numbers]})
    first, same, other = (read_clustering(path, sample=50, seed=seed) for seed in (0, 0, 1))
    assert list(first.texts) == list(same.texts) != list(other.texts)
    assert len(set(first.texts)) == 50
    assert [int(text[1:]) % 5 for text in first.texts] == first.truth.tolist()
    assert list(read_clustering(path, sample=500).texts) == [f"t{n}" for n in numbers]
    with pytest.raises(UsageError, match="--sample 0"):
        read_clustering(path, sample=0)


def test_sts(tmp_path: Path) -> None:
    path = write(tmp_path / "stsb.parquet", PAIRS)
    read = read_sts(path)
    assert (list(read.first), list(read.second), read.scores.tolist()) == (
        ["a", "b", "c"],
        ["a", "x", "y"],
        [5, 1, 2.5],
    )
    unsplit = write(tmp_path / "all.parquet", {key: PAIRS[key] for key in ("sentence1", "sentence2", "score")})
    assert read_sts(unsplit).size == 8


def test_retrieval(tmp_path: Path) -> None:
    read = read_retrieval(retrieval(tmp_path))
    assert read.name == "cranfield"
    assert list(read.document_ids) == ["d1", "d2", "d3", "d4"]
    assert list(read.documents) == ["One\na", "b", "Three", "Four\nd"]
    # The third query has nothing to find.
    assert list(read.queries) == ["which a", "which b"]
    assert list(read.grades) == [{"d1": 4, "d3": 0}, {"d2": 1}]
    assert read.size == 6


def test_a_retrieval_sample_keeps_what_is_judged(tmp_path: Path) -> None:
    read = read_retrieval(retrieval(tmp_path), sample=1)
    (grades,) = read.grades
    assert set(read.document_ids) == set(grades)
    assert read_retrieval(retrieval(tmp_path), sample=3, seed=1).document_ids == ["d1", "d2", "d3"]
    assert len(read_retrieval(retrieval(tmp_path), sample=4).document_ids) == 4


def test_the_layout_is_found_by_content(tmp_path: Path) -> None:
    assert isinstance(read_any(retrieval(tmp_path)), RetrievalSet)
    assert isinstance(read_any(write(tmp_path / "s.parquet", PAIRS)), SentencePairs)
    topics = write(tmp_path / "t.parquet", {"text": ["a", "b"], "label": ["x", "y"]})
    assert isinstance(read_any(topics, name="mine"), LabelledTexts)


def test_names_tell_sets_apart() -> None:
    paths = [Path("a/test.parquet"), Path("b/test.parquet"), Path("c/cisi"), Path("v1.2/d.parquet")]
    assert set_names(paths) == ["a/test.parquet", "b/test.parquet", "cisi", "d"]


BAD_FILES: dict[str, tuple[Callable[[Path], object], dict[str, Any], str]] = {
    "no text": (read_clustering, {"txt": ["a"], "label": ["x"]}, r'no column "text"; did you mean "txt"\?'),
    "no label": (
        read_clustering,
        {"text": ["a"], "labels": ["x"]},
        r'"labels"\?.*rename the one that holds the labels',
    ),
    "no label at all": (read_clustering, {"text": ["a"]}, r'no column "label" \(columns: text\)'),
    "one class": (read_clustering, {"text": ["a", "b"], "label": ["x", "x"]}, 'has one class only, "x", in the column'),
    "float label": (read_clustering, {"text": ["a"], "label": [0.5]}, '"label" holds double, not text'),
    "number text": (read_clustering, {"text": [1], "label": ["x"]}, '"text" holds int64, not text'),
    "null label": (read_clustering, {"text": ["a", "b"], "label": ["x", None]}, 'row 1: the column "label" is null'),
    "no rows": (read_clustering, {"text": pa.array([], pa.string())}, "holds no rows"),
    "no score": (read_sts, {"sentence1": ["a"], "sentence2": ["b"]}, 'no column "score"'),
    "text score": (read_sts, {"sentence1": ["a"], "sentence2": ["b"], "score": ["1"]}, "expected numbers"),
    "nan score": (read_sts, {"sentence1": ["a"], "sentence2": ["b"], "score": [float("nan")]}, "row 0.*not a finite"),
    "flat scores": (read_sts, PAIRS | {"score": [1.0] * 4}, "all 3 scores are equal"),
    "no such split": (read_sts, PAIRS | {"split": ["train"] * 4}, 'no rows of the split "test"; it has "train"'),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_answered_in_one_line(case: str, tmp_path: Path) -> None:
    read, columns, said = BAD_FILES[case]
    path = write(tmp_path / "bad.parquet", columns)
    with pytest.raises(CorpusError, match=said) as caught:
        read(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_sample_of_one_class_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "t.parquet", {"text": [str(n) for n in range(90)], "label": ["x"] * 89 + ["y"]})
    with pytest.raises(CorpusError, match=r"one class only.*a sample of 2 of its texts"):
        read_clustering(path, sample=2)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"qrels": {"doc_id": ["d1", "d9", "d8", "d2"]}}, 'names the document "d8" and 1 more, which corpus.parquet'),
        ({"qrels": {"query_id": ["q1", "q1", "q2", "q7"]}}, 'names the query "q7", which queries.parquet'),
        ({"qrels": {"score": [0, 0, 0, 0]}}, "names no relevant document"),
        (
            {"qrels": {"query_id": ["q1"] * 4, "doc_id": ["d1"] * 4, "score": [1, 1, 0, 1]}},
            '"d1" for the query "q1" twice',
        ),
        ({"qrels": {"score": ["a"] * 4}}, '"score" holds string; expected numbers'),
        ({"corpus": {"id": ["d1", "d2", "d3", "d1"]}}, 'corpus.parquet has the id "d1" more than once'),
        ({"queries": {"id": ["q1", "q2", None]}}, 'queries.parquet, row 2: the column "id" is null'),
    ],
)
def test_bad_folders_are_answered_in_one_line(changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=said) as caught:
        read_retrieval(retrieval(tmp_path, **changed))
    assert "\n" not in str(caught.value)


def test_what_is_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "text.parquet").write_text("not parquet")
    whole = write(tmp_path / "whole.parquet", PAIRS).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    for name, said in {
        "text.parquet": "cannot be read as Parquet",
        "cut.parquet": "cannot be read as Parquet",
        "missing.parquet": "no such file:",
        ".": "is a folder",
    }.items():
        with pytest.raises(CorpusError, match=said):
            read_clustering(tmp_path / name)
    with pytest.raises(CorpusError, match=r"no such file: .*corpus\.parquet"):
        read_retrieval(tmp_path)
