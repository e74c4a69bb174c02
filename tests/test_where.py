"""Which documents a condition selects, for columns of every type, and what is no condition."""

import signal
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex.errors import CorruptStore, UsageError
from llmindex.store.manifest import CorpusRecord
from llmindex.store.reader import VectorStore
from llmindex.store.shard import conform, storage_schema
from llmindex.store.where import identity_of, qualifying
from llmindex.store.writer import VectorWriter
from tests.samples import CORPUS, append, make_documents, make_encoder, make_vectors

COUNT = 9_000
WINDOW = 1_500
MOMENT = datetime(2024, 2, 29, 12, 30)
# A value and a condition that it satisfies, for each type that a corpus may have; every third document has none.
COLUMNS: dict[str, tuple[pa.DataType, object, str]] = {
    "bool": (pa.bool_(), True, "bool"),
    "int8": (pa.int8(), -3, "int8 = -3"),
    "uint64": (pa.uint64(), 2**64 - 1, "uint64 = 18446744073709551615"),
    "float16": (pa.float16(), np.float16(1.5), "float16 = 1.5"),
    "nan": (pa.float64(), float("nan"), "isnan(nan) AND nan > 1"),
    "decimal": (pa.decimal128(5, 2), Decimal("1.50"), "decimal = 1.5"),
    "day": (pa.date32(), date(2024, 2, 29), "day = '2024-02-29'"),
    "clock": (pa.time64("ns"), time(12, 30), "clock = '12:30'"),
    "seconds": (pa.timestamp("s"), MOMENT, "seconds > '2024-02-28' AND year(seconds) = 2024"),
    "nanoseconds": (pa.timestamp("ns"), MOMENT, "nanoseconds = '2024-02-29 12:30'"),
    "utc": (pa.timestamp("us", "UTC"), MOMENT.replace(tzinfo=UTC), "utc = '2024-02-29 12:30' AND hour(utc) = 12"),
    "zone": (pa.timestamp("us", "Asia/Tokyo"), MOMENT.replace(tzinfo=UTC), "zone = '2024-02-29 12:30'"),
    "fine": (
        pa.timestamp("ns", "Asia/Tokyo"),
        1_709_209_800_000_000_001,
        "year(fine) = 2024 AND fine < now() AND fine >= TIMESTAMPTZ '2024-02-29 12:30:00+00'",
    ),
    "duration": (pa.duration("ms"), timedelta(hours=2), "duration = INTERVAL 2 HOUR"),
    "large": (pa.large_string(), "großer Text", "large LIKE 'großer%'"),
    "category": (pa.dictionary(pa.int8(), pa.string()), "a", "category = 'a'"),
    "blob": (pa.binary(), b"\x00\xff", "octet_length(blob) = 2"),
    "tags": (pa.list_(pa.string()), ["a", None], "list_contains(tags, 'a')"),
    "pair": (pa.list_(pa.int8(), 2), [1, 2], "pair[2] = 2"),
    "nested": (pa.struct([("x", pa.struct([("y", pa.string())]))]), {"x": {"y": "z"}}, "nested.x.y = 'z'"),
    "map": (pa.map_(pa.string(), pa.int64()), [("k", 1)], "map['k'] = 1"),
    'a "quoted" name': (pa.string(), "v", '"a ""quoted"" name" = \'v\''),
    "Capitals": (pa.string(), "v", "capitals = 'v'"),
}
HAS = np.arange(COUNT) % 3 != 0


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> VectorStore:
    """Documents with a column of each type, in windows that end within row groups."""
    path = tmp_path_factory.mktemp("where") / "index"
    more = {name: pa.array([value if has else None for has in HAS], kind) for name, (kind, value, _) in COLUMNS.items()}
    more |= {"empty": pa.nulls(COUNT), "wide": pa.array([Decimal(1)] * COUNT, pa.decimal256(50, 2))}
    documents = make_documents(0, COUNT, more)
    documents = conform(documents, storage_schema(documents.schema))
    vectors = make_vectors(COUNT, 4)
    with VectorWriter.create(path, make_encoder(4), CORPUS, "float16") as writer:
        for start in range(0, COUNT, WINDOW):
            append(writer, documents.slice(start, WINDOW), vectors[start : start + WINDOW])
        writer.finish()
    return VectorStore.open(path)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_of_every_type(name: str, store: VectorStore) -> None:
    _, _, condition = COLUMNS[name]
    found = qualifying(store, condition)
    np.testing.assert_array_equal(found.mask, HAS)
    # NULL does not qualify, and neither does what is not so of NULL.
    assert not qualifying(store, f"NOT ({condition})").mask.any()
    quoted = name.replace('"', '""')
    np.testing.assert_array_equal(qualifying(store, f'"{quoted}" IS NULL').mask, ~HAS)
    np.testing.assert_array_equal(qualifying(store, pc.field(name).is_valid()).mask, HAS)


def test_the_columns_of_every_store(store: VectorStore) -> None:
    rows = np.arange(COUNT)
    cases = {
        "number % 7 = 0": rows % 7 == 0,
        "NUMBER < 100 -- not many": rows < 100,
        "id IN ('d5', 'd4096', 'd8999', 'nobody')": np.isin(rows, [5, 4096, 8999]),
        "text LIKE '%number 77%'": np.char.startswith(rows.astype(str), "77"),
        "len(list_filter(tags, lambda each: each = 'a')) = 1": HAS,
        "true": rows >= 0,
        "empty IS NOT NULL": rows < 0,
        "empty = 3": rows < 0,
    }
    for condition, expected in cases.items():
        np.testing.assert_array_equal(qualifying(store, condition).mask, expected, condition)


@given(low=st.integers(-2, COUNT + 2), high=st.integers(-2, COUNT + 2))
def test_sql_and_arrow_agree(low: int, high: int, store: VectorStore) -> None:
    rows = np.arange(COUNT)
    expected = (rows >= low) & (rows < high) & HAS
    number = pc.field("number")
    by_arrow = qualifying(store, (number >= low) & (number < high) & (pc.field("int8") < 0))
    np.testing.assert_array_equal(by_arrow.mask, expected)
    np.testing.assert_array_equal(qualifying(store, f"number >= {low} AND number < {high} AND int8 < 0").mask, expected)


@pytest.mark.parametrize(
    ("condition", "lasting"),
    [
        ("number > 3 AND nested.x.y LIKE 'z%' AND lower(Capitals) = 'v'", True),
        ("day < current_date", False),
        ("day < today()", False),
        ("seconds < now()", False),
        ("age(seconds) > INTERVAL 1 DAY", False),
    ],
)
def test_what_the_time_decides_does_not_last(condition: str, lasting: bool, store: VectorStore) -> None:
    assert qualifying(store, condition).lasting == lasting


@pytest.mark.parametrize(
    "condition",
    [
        pc.field("nothing") > 1,
        pc.field("id") > 1,
        pc.field("number"),
        pc.field("text").cast("int64") > 1,
        "wide > 1",
        "(SELECT true)",
        "error('no')",
        "random() < 0.5",
        "sleep_ms(1) IS NULL",
        "row = 0",
        "id_row = 3",
        "number_row = 3",
        "_ = 3",
        "documents.number = 3",
        "number = #1",
        "1 WINDOW w AS (PARTITION BY id)",
        "true AS it",
        "number = ?",
        "row_number() OVER () = 1",
        "unnest(tags) = 'a'",
        "getenv('HOME') IS NOT NULL",
        "NOT " * 3_000 + "true",
        "(" * 3_000 + "true" + ")" * 3_000,
        "/* true",
        "\0",
    ],
    ids=lambda condition: str(condition)[:40],
)
def test_what_is_no_condition(condition: object, store: VectorStore) -> None:
    with pytest.raises(UsageError, match=r"\A--where: .*; the columns are id, text, number, bool, .*\Z"):
        qualifying(store, condition)


def test_text_without_its_quotes_is_told(store: VectorStore) -> None:
    with pytest.raises(UsageError, match=r"""no column "stars"; text goes in single quotes, 'stars';"""):
        qualifying(store, "text = stars")


def test_a_column_of_the_corpus_that_has_another_name_here_is_told(tmp_path: Path) -> None:
    corpus = CorpusRecord({"id_column": "url", "text_columns": ["Title", "Content"]})
    with VectorWriter.create(tmp_path / "index", make_encoder(4), corpus) as writer:
        append(writer, make_documents(0, 3), make_vectors(3, 4))
        writer.finish()
    store = VectorStore.open(tmp_path / "index")
    for condition, own in (("url = 'd1'", "id"), ("URL > 'd1'", "id"), ("content LIKE 'a%'", "text")):
        name = condition.split()[0]
        with pytest.raises(UsageError, match=rf'no column "{name}"; here that of the corpus is {own}; the columns'):
            qualifying(store, condition)
    with pytest.raises(UsageError, match='no column "urls"; text goes in single quotes'):
        qualifying(store, "id = urls")


@given(text=st.text(max_size=12) | st.text("()'\"; -/*,.=<>[]?$1aSELECTFROMid\n", max_size=20))
def test_any_text_is_a_condition_or_refused(text: str, store: VectorStore) -> None:
    try:
        mask = qualifying(store, text).mask
    except UsageError as error:
        refused = str(error)
    else:
        refused = ""
        assert mask.shape == (COUNT,)
    assert "\n" not in refused


def test_a_variable_of_the_program_is_no_table(store: VectorStore) -> None:
    documents = other = pa.table({"number": [1]})
    assert len(documents) == len(other) == 1
    assert qualifying(store, "number < 2").mask.sum() == 2
    with pytest.raises(UsageError):
        qualifying(store, "number IN (SELECT number FROM other)")


def test_a_condition_that_takes_long_is_interrupted(store: VectorStore) -> None:
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(KeyboardInterrupt):
            qualifying(store, " AND ".join(["id = 'x'"] * 20_000))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_columns_that_differ_in_capitals_alone(tmp_path: Path) -> None:
    more = {"year": pa.array([1, 2, 3]), "YEAR": pa.array([3, 2, 1])}
    with VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS, "float16") as writer:
        append(writer, make_documents(0, 3, more), make_vectors(3, 4))
        writer.finish()
    store = VectorStore.open(tmp_path / "index")
    assert qualifying(store, "year = 1").mask.tolist() == [True, False, False]
    assert qualifying(store, "YEAR = 1").mask.tolist() == [False, False, True]
    for condition in ("Year = 1", "year = YEAR"):
        with pytest.raises(
            UsageError, match="SQL does not tell capitals, and it could mean more than one of year, YEAR"
        ):
            qualifying(store, condition)


def test_damage_is_not_the_condition_s_fault(tmp_path: Path) -> None:
    with VectorWriter.create(tmp_path / "index", make_encoder(4), CORPUS, "float16") as writer:
        append(writer, make_documents(0, 3), make_vectors(3, 4))
        writer.finish()
    (shard,) = (tmp_path / "index" / "vectors").iterdir()
    content = bytearray(shard.read_bytes())
    content[4:60] = b"\xff" * 56
    shard.write_bytes(content)
    store = VectorStore.open(tmp_path / "index")
    with pytest.raises(CorruptStore, match="is damaged"):
        qualifying(store, "id = 'd1'")


def test_conditions_are_told_apart() -> None:
    long = [pc.field("number").isin([*range(500), last]) for last in (500, 501)]
    assert identity_of(long[0]) != identity_of(long[1])
    assert identity_of(long[0]) == identity_of(pc.field("number").isin(range(501)))
    with pytest.raises(UsageError, match=r"a condition is SQL or a pyarrow.compute.Expression, not list"):
        identity_of(["number = 3"])
