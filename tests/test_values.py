"""Stored columns as Python values: every type, and values that Python has no room for."""

import datetime

import pyarrow as pa
import pytest

from llmindex.store.values import to_pylist

UTC = datetime.UTC


@pytest.mark.parametrize(
    ("array", "first"),
    [
        (pa.array([1_000_000_001], pa.timestamp("ns")), datetime.datetime(1970, 1, 1, 0, 0, 1)),
        (pa.array([1_001], pa.time64("ns")), datetime.time(0, 0, 0, 1)),
        (pa.array([1_001], pa.duration("ns")), datetime.timedelta(microseconds=1)),
        (pa.array([1], pa.timestamp("ns", "UTC")), datetime.datetime(1970, 1, 1, tzinfo=UTC)),
        (pa.array([[1]], pa.list_(pa.timestamp("ns"))), [datetime.datetime(1970, 1, 1)]),
        (pa.array([{"x": [1]}], pa.struct([("x", pa.large_list(pa.time64("ns")))])), {"x": [datetime.time(0)]}),
        (pa.array([[("a", 1)]], pa.map_(pa.string(), pa.timestamp("ns"))), [("a", datetime.datetime(1970, 1, 1))]),
        (pa.array([1], pa.timestamp("ns")).dictionary_encode(), datetime.datetime(1970, 1, 1)),
        (pa.array([None], pa.timestamp("ns")), None),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([b"\x00"]), b"\x00"),
        (pa.nulls(1), None),
    ],
)
def test_values_of_any_type(array: pa.Array, first: object) -> None:
    assert to_pylist(pa.table({"column": array})) == [{"column": first}]


@pytest.mark.parametrize("type_", [pa.timestamp("us"), pa.duration("s"), pa.timestamp("ms", "UTC")])
def test_values_out_of_pythons_range_become_text_and_harm_no_other(type_: pa.DataType) -> None:
    first, second = to_pylist(pa.table({"column": pa.array([1 << 60, 1], type_)}))
    assert isinstance(first["column"], str)
    assert isinstance(second["column"], datetime.datetime | datetime.timedelta)


def test_no_rows() -> None:
    assert to_pylist(pa.table({"a": pa.array([], pa.int64())})) == []
