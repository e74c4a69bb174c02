"""Hard negatives: equal to a search by hand, never the positive, the text or what is too near; whole or not at all."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import llmindex
from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.errors import CorpusError, IndexNotFound, UsageError
from llmindex.progress import Progress
from llmindex_training import mining
from llmindex_training.mining import mine

WORDS = ["goal", "match", "budget", "vote", "planet", "telescope", "bread", "oven"]
DOCUMENTS = [f"The {first} and the {second}." for first in WORDS for second in WORDS if first != second]


@pytest.fixture(scope="module")
def index(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mining") / "docs.llmindex"
    encoder = EncoderOptions(str(tiny_model), prompt="document", query_prompt="query", pooling="mean", dtype="float32")
    # One document twice: no negative may come twice for it.
    corpus = pa.table({"text": [*DOCUMENTS, DOCUMENTS[5]]})
    llmindex.build(corpus, path, encoder=encoder, vector_dtype="float32")
    return path


def write_pairs(path: Path, count: int = 12, **more: object) -> Path:
    rows = {
        "text": [f"About the {WORDS[n % 8]}, {n}." for n in range(count)],
        "text_pair": [DOCUMENTS[(7 * n) % len(DOCUMENTS)] for n in range(count)],
        "source": ["natural"] * count,
    }
    pq.write_table(pa.table({**rows, **more}), path)
    return path


def by_hand(tiny_model: Path, table: pa.Table, k: int, margin: float, negatives: int) -> list[tuple[int, str | None]]:
    """The same by plain matrix products: pair number and negative."""
    encoder = Encoder.load(str(tiny_model), prompt="document", query_prompt="query", pooling="mean", dtype="float32")
    documents = encoder.encode(DOCUMENTS)
    rows: list[tuple[int, str | None]] = []
    for number, (text, positive) in enumerate(
        zip(table["text"].to_pylist(), table["text_pair"].to_pylist(), strict=True)
    ):
        query = encoder.encode([text], role="query")[0]
        limit = float(query @ encoder.encode([positive])[0]) - margin
        scores = documents @ query
        near = np.argsort(-scores, kind="stable")[:k]
        picked = [DOCUMENTS[row] for row in near if DOCUMENTS[row] not in (text, positive) and scores[row] <= limit]
        rows += [(number, negative) for negative in picked[:negatives] or [None]]
    return rows


@pytest.mark.parametrize(("margin", "negatives"), [(0.0, 1), (0.0, 3), (0.002, 2), (2.0, 1)])
def test_it_equals_a_search_by_hand(
    tiny_model: Path, index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, margin: float, negatives: int
) -> None:
    monkeypatch.setattr(mining, "_WINDOW", 5)
    pairs = write_pairs(tmp_path / "pairs.parquet")
    done: list[Progress] = []
    # All documents are looked at, so that where equal scores are cut off does not matter.
    report = mine(
        [pairs],
        index,
        tmp_path / "mined.parquet",
        k=99,
        margin=margin,
        negatives=negatives,
        dtype="float32",
        on_progress=done.append,
    )
    source = pq.read_table(pairs)
    rows = by_hand(tiny_model, source, 99, margin, negatives)
    mined = pq.read_table(tmp_path / "mined.parquet")
    assert mined.column_names == ["text", "text_pair", "source", "negative"]
    assert mined["negative"].to_pylist() == [negative for _, negative in rows]
    assert mined.drop(["negative"]).equals(source.take([number for number, _ in rows]))
    without = sum(negative is None for _, negative in rows)
    assert (report.pairs, report.rows, report.without) == (12, len(rows), without)
    assert report.with_negative + report.without == report.pairs
    assert (without == 12) == (margin == 2.0) == (report.negative_score is None)
    assert [(each.stage, each.done, each.total) for each in done] == [("mine", n, 12) for n in (5, 10, 12)]


def test_no_positive_of_the_same_text_is_its_negative(index: Path, tmp_path: Path) -> None:
    """Of another file, too, and in other letters."""
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for file, answers in zip(files, (DOCUMENTS[:20], [text.upper() for text in DOCUMENTS[20:40]]), strict=True):
        pq.write_table(pa.table({"text": ["What is it?"] * 20, "text_pair": answers}), file)
    mine(files, index, tmp_path / "mined.parquet", k=99, margin=0.0, negatives=50)
    mined = {row["negative"] for row in pq.read_table(tmp_path / "mined.parquet").to_pylist()} - {None}
    assert mined
    assert not mined & set(DOCUMENTS[:40])


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.sampled_from(DOCUMENTS), st.sampled_from(DOCUMENTS)), min_size=1, max_size=6),
    st.integers(1, 20),
    st.integers(1, 3),
)
def test_a_negative_is_never_the_text_nor_its_positive(
    index: Path, tmp_path: Path, pairs: list[tuple[str, str]], k: int, negatives: int
) -> None:
    file, out = tmp_path / "pairs.parquet", tmp_path / "mined.parquet"
    texts, positives = ([pair[side] for pair in pairs] for side in (0, 1))
    pq.write_table(pa.table({"text": texts, "text_pair": [f"  {text}\n" for text in positives]}), file)
    report = mine([file], index, out, k=k, margin=0.0, negatives=min(k, negatives))
    rows = pq.read_table(out).to_pylist()
    assert report.rows == len(rows) >= len(pairs) == report.pairs
    for row in rows:
        assert row["negative"] not in (row["text"], row["text_pair"].strip())
    assert (report.positive_score is None) == (report.negative_score is None) == (report.with_negative == 0)
    if report.positive_score is not None and report.negative_score is not None and min(k, negatives) == 1:
        assert report.negative_score <= report.positive_score + 1e-5


def test_files_with_other_columns_go_together(index: Path, tmp_path: Path) -> None:
    first = write_pairs(tmp_path / "a.parquet", 2, year=pa.array([1999, 2001], pa.int16()))
    second = write_pairs(tmp_path / "b.parquet", 3, text=pa.array(["x", "y", "z"]).dictionary_encode(), tag=["u"] * 3)
    third = tmp_path / "c.parquet"
    pq.write_table(pq.read_table(first).drop(["source"]), third)
    mine([first, third], index, tmp_path / "ac.parquet")
    mined = pq.read_table(tmp_path / "ac.parquet")
    assert (mined["year"].type, mined["source"].to_pylist()) == (pa.int16(), ["natural"] * 2 + [None] * 2)
    mine([second], index, tmp_path / "mined.parquet")
    assert pq.read_table(tmp_path / "mined.parquet")["tag"].to_pylist() == ["u"] * 3
    pq.write_table(pq.read_table(first).set_column(3, "year", pa.array(["a", "b"])), third)
    with pytest.raises(CorpusError, match="same name in different types"):
        mine([first, third], index, tmp_path / "other.parquet")


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"text": ["a"]}, 'has no column "text_pair"'),
        ({"text": ["a"], "text_pair": [1]}, 'column "text_pair" holds int64, not text'),
        ({"text": ["a", "b"], "text_pair": ["c", " "]}, 'pairs.parquet, row 1: "text_pair" is empty'),
        ({"text": ["a", None], "text_pair": ["c", "d"]}, 'pairs.parquet, row 1: "text" is empty'),
        ({"text": ["a"], "text_pair": ["b"], "negative": ["c"]}, 'has a column "negative" already'),
        (
            {"text": ["a"], "text_pair": ["b"], "x": pa.array([b"c"], pa.binary_view())},
            'pairs.parquet: the column "x" holds binary_view, which cannot be copied; leave that column out',
        ),
        (
            {"text": ["a"], "text_pair": ["b"], "x": pa.array([["c"]], pa.list_(pa.string_view()))},
            'pairs.parquet: the column "x" holds list<element: string_view>, which cannot be copied',
        ),
        (
            {"text": ["a"], "text_pair": ["b"], "x": pa.array([{"y": "c"}], pa.struct([("y", pa.string_view())]))},
            'pairs.parquet: the column "x" holds struct<y: string_view>, which cannot be copied',
        ),
    ],
)
def test_bad_pairs(index: Path, tmp_path: Path, table: dict[str, Any], said: str) -> None:
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.table(table), file)
    with pytest.raises(CorpusError) as raised:
        mine([file], index, tmp_path / "mined.parquet")
    assert said in str(raised.value)
    assert list(tmp_path.iterdir()) == [file]


def test_no_pairs_at_all(index: Path, tmp_path: Path) -> None:
    file = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"text": pa.array([], pa.string()), "text_pair": pa.array([], pa.string())}), file)
    report = mine([file], index, tmp_path / "mined.parquet")
    assert (report.pairs, report.rows, report.positive_score) == (0, 0, None)
    assert pq.read_table(tmp_path / "mined.parquet").column_names == ["text", "text_pair", "negative"]


def test_only_what_was_mined_is_replaced(index: Path, tmp_path: Path) -> None:
    pairs, output = write_pairs(tmp_path / "pairs.parquet"), tmp_path / "mined.parquet"
    mine([pairs], index, output)
    mine([pairs], index, output)
    other = write_pairs(tmp_path / "other.parquet")
    kept = {path: path.read_bytes() for path in (other, *index.rglob("*.parquet"))}
    with pytest.raises(UsageError, match=r"other\.parquet is there and was not mined; write to another file"):
        mine([pairs], index, other)
    for path in (*index.rglob("*.parquet"), index / "new.parquet"):
        with pytest.raises(UsageError, match="lies in the index"):
            mine([pairs], index, path)
    assert {path: path.read_bytes() for path in (other, *index.rglob("*.parquet"))} == kept


def test_columns_in_other_layouts(index: Path, tmp_path: Path) -> None:
    """Files may lay out their strings each in its own way; what comes out is plain text."""
    plain = pq.read_table(write_pairs(tmp_path / "pairs.parquet")).slice(0, 6)
    views = pa.table({name: plain[name].cast(pa.string_view()) for name in plain.column_names})
    words = views.set_column(0, "text", plain["text"].dictionary_encode())
    for name, table in {"plain": plain, "views": views, "words": words}.items():
        pq.write_table(table, tmp_path / f"{name}.parquet")
    files = [tmp_path / f"{name}.parquet" for name in ("plain", "views", "words")]
    mine(files, index, tmp_path / "mined.parquet")
    mined = pq.read_table(tmp_path / "mined.parquet")
    assert {str(mined.schema.field(name).type) for name in ("text", "text_pair", "source")} == {"string"}
    assert mined.num_rows == 18
    thirds = [mined.slice(start, 6) for start in (0, 6, 12)]
    assert thirds[0] == thirds[1] == thirds[2]


def test_files_that_cannot_be_read(index: Path, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no such file:"):
        mine([tmp_path / "none.parquet"], index, tmp_path / "mined.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"no")
    with pytest.raises(CorpusError, match="cannot be read as Parquet"):
        mine([tmp_path / "bad.parquet"], index, tmp_path / "mined.parquet")
    pairs = write_pairs(tmp_path / "pairs.parquet")
    with pytest.raises(UsageError, match="is one of the pairs files"):
        mine([pairs], index, pairs)
    with pytest.raises(IndexNotFound):
        mine([pairs], tmp_path / "none.llmindex", tmp_path / "mined.parquet")
    assert not (tmp_path / "mined.parquet").exists()


def test_a_failure_half_way_leaves_the_old_file(index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mining, "_WINDOW", 5)
    pairs, out = write_pairs(tmp_path / "pairs.parquet"), tmp_path / "mined.parquet"
    mine([pairs], index, out, k=2)
    old = out.read_bytes()

    def stop(record: Progress) -> None:
        if record.done > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mine([pairs], index, out, on_progress=stop)
    assert out.read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mined.parquet", "pairs.parquet"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"k": 0}, "-k 0 must be at least 1"),
        ({"negatives": 0}, "--negatives 0 must be at least 1"),
        ({"k": 2, "negatives": 3}, "cannot come from the 2 nearest"),
        ({"margin": -0.1}, "--margin -0.1 must lie between"),
        ({"margin": float("nan")}, "--margin nan must lie between"),
    ],
)
def test_bad_options(index: Path, tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        mine([tmp_path / "pairs.parquet"], index, tmp_path / "mined.parquet", **options)
