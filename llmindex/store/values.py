"""Stored columns as Python values, for whatever types a corpus brought along.

Python's dates and times are narrower than Arrow's: they have no nanoseconds and end with the year 9999. The store keeps
every digit; here times are cut to microseconds, and what is out of Python's range becomes text.
"""

from typing import Any

import pyarrow as pa


def to_pylist(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a table as dictionaries; unlike Arrow's own method it takes every value."""
    columns = [_values(column.combine_chunks()) for column in table.columns]
    return [dict(zip(table.column_names, row, strict=True)) for row in zip(*columns, strict=True)]


def _values(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    type_ = _without_nanoseconds(column.type)
    if _holds_nanoseconds(type_):
        return [_value(scalar) for scalar in column]
    try:
        values: list[Any] = column.cast(type_, safe=False).to_pylist()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):
        return [_value(scalar) for scalar in column]
    return values


def _value(scalar: pa.Scalar) -> Any:  # noqa: ANN401
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.StructScalar):
        return {name: _value(item) for name, item in scalar.items()}
    if isinstance(scalar, pa.MapScalar):
        return [(_value(item["key"]), _value(item["value"])) for item in scalar.values]
    if isinstance(scalar, pa.ListScalar | pa.LargeListScalar | pa.FixedSizeListScalar):
        return [_value(item) for item in scalar.values]
    if isinstance(scalar, pa.DictionaryScalar):
        return _value(scalar.value)
    try:
        return scalar.cast(_without_nanoseconds(scalar.type), safe=False).as_py()
    except (ValueError, OverflowError, KeyError, pa.ArrowException):
        return _text(scalar)


def _text(scalar: pa.Scalar) -> str:
    try:
        return str(scalar.cast(pa.string()).as_py())
    except (ValueError, pa.ArrowException):
        return str(scalar.value)  # a count of the type's unit


def _holds_nanoseconds(type_: pa.DataType) -> bool:
    """Whether nanoseconds are left somewhere inside; Arrow's own values of them are pandas' if that is installed."""
    if pa.types.is_map(type_):
        inner = [type_.key_type, type_.item_type]
    elif pa.types.is_dictionary(type_):
        inner = [type_.value_type]
    elif pa.types.is_nested(type_):
        inner = [type_.field(place).type for place in range(type_.num_fields)]
    else:
        return bool(getattr(type_, "unit", None) == "ns")
    return any(_holds_nanoseconds(each) for each in inner)


def _without_nanoseconds(type_: pa.DataType) -> pa.DataType:
    if pa.types.is_timestamp(type_):
        return pa.timestamp("us", type_.tz) if type_.unit == "ns" else type_
    if pa.types.is_time64(type_):
        return pa.time64("us")
    if pa.types.is_duration(type_):
        return pa.duration("us") if type_.unit == "ns" else type_
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_without_nanoseconds(field.type)) for field in type_])
    if pa.types.is_list(type_):
        return pa.list_(type_.value_field.with_type(_without_nanoseconds(type_.value_type)))
    return type_
