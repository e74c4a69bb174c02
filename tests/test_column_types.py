"""Column types: any JSON fits the type found for it, and two types have one that holds both."""

import datetime
import json
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llmindex.corpus.column_types import array_of, as_text, common_type, conform, json_type, stored_type, without_marks

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)


def carries(read: Any, written: Any) -> bool:  # noqa: ANN401
    """Whether what was read says all that was written: the value, its JSON text, or a float for an int."""
    if isinstance(written, dict) and isinstance(read, dict):
        return all(carries(read[key], value) for key, value in written.items())
    if isinstance(written, list) and isinstance(read, list):
        return len(read) == len(written) and all(map(carries, read, written))
    if written == {} and read is None:
        return True
    if isinstance(read, str):
        return read == (written if isinstance(written, str) else json.dumps(written, ensure_ascii=False))
    if isinstance(written, int) and isinstance(read, float):
        return read == float(written)
    return type(read) is type(written) and bool(read == written)


@example([2**53 + 1])
@given(st.lists(JSON, min_size=1, max_size=6))
def test_any_json_fits_the_type_found_for_it(values: list[Any]) -> None:
    type_ = pa.null()
    for value in values:
        type_ = common_type(type_, json_type(value))
    array = array_of(values, stored_type(without_marks(type_)))
    array.validate(full=True)
    assert all(map(carries, array.to_pylist(), values))
    # The order in which values come does not matter, fields of structs aside.
    backwards = pa.null()
    for value in reversed(values):
        backwards = common_type(json_type(value), backwards)
    assert array_of(values, stored_type(without_marks(backwards))).to_pylist() == array.to_pylist()


@pytest.mark.parametrize(
    ("first", "second", "common"),
    [
        (pa.int8(), pa.uint32(), pa.int64()),
        (pa.uint64(), pa.uint64(), pa.uint64()),
        (pa.uint64(), pa.int8(), pa.string()),
        (pa.float32(), pa.int64(), pa.float64()),
        (pa.string(), pa.large_string(), pa.string()),
        (pa.date32(), pa.timestamp("s"), pa.string()),
        (pa.bool_(), pa.int64(), pa.string()),
        (pa.list_(pa.int8()), pa.list_(pa.float64()), pa.list_(pa.float64())),
        (pa.null(), pa.decimal128(5, 2), pa.decimal128(5, 2)),
    ],
    ids=str,
)
def test_common_types(first: pa.DataType, second: pa.DataType, common: pa.DataType) -> None:
    assert common_type(first, second) == common_type(second, first) == common
    for type_ in (first, second):
        assert conform(pa.nulls(2, type_), common).type == common


def test_values_as_text() -> None:
    make: Callable[[int], datetime.date] = datetime.date.fromordinal
    assert [as_text(value) for value in ("x", 1, True, 2.5, [1, "é"], {"d": make(1)}, make(1))] == [
        *("x", "1", "true", "2.5", '[1, "é"]', '{"d": "0001-01-01"}', "0001-01-01")
    ]
