"""Column types: what JSON values are, what two types have in common, and how a column takes on a type.

Types form a ladder: null, then the type itself, then the next wider number, and text on top. Text takes everything:
strings stay as they are, other values become JSON text.
"""

import functools
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from llmindex.errors import CorpusError

NULL, BOOL, INT, FLOAT, STRING = pa.null(), pa.bool_(), pa.int64(), pa.float64(), pa.string()

# Stands for INT until all files are scanned, where a value has more digits than FLOAT keeps: the two meet in text.
# No file has a column of this type.
_LONG_INT = pa.decimal128(19, -19)
EXACT_IN_FLOAT = 1 << 53
"""A float holds every whole number up to this one, of either sign."""

# A column of such structs is a map in disguise (keys are data), or data that Arrow would need deep recursion for.
_MAX_STRUCT_FIELDS = 500
_MAX_DEPTH = 16


def is_text(type_: pa.DataType) -> bool:
    """Whether values of the type are strings, in any of Arrow's layouts."""
    if pa.types.is_dictionary(type_):
        return is_text(type_.value_type)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def is_bytes(type_: pa.DataType) -> bool:
    """Whether values of the type are byte strings of any length."""
    return bool(pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_))


def json_type(value: object, depth: int = 0) -> pa.DataType:
    """The narrowest type for a value that ``json.loads`` gave."""
    match value:
        case None:
            return NULL
        case str():
            return STRING
        case bool():
            return BOOL
        case int():
            if abs(value) <= EXACT_IN_FLOAT:
                return INT
            return _LONG_INT if -(1 << 63) <= value < 1 << 63 else STRING
        case float():
            return FLOAT
    if depth >= _MAX_DEPTH:
        return STRING
    if isinstance(value, list):
        return pa.list_(functools.reduce(common_type, (json_type(item, depth + 1) for item in value), NULL))
    assert isinstance(value, dict)
    return _struct({name: json_type(item, depth + 1) for name, item in value.items()})


def common_type(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    """The narrowest type that holds the values of both: null < T, int < float, anything else meets in text."""
    if first is second:
        return first
    first, second = _values_type(first), _values_type(second)
    if pa.types.is_null(second) or first == second:
        return first
    if pa.types.is_null(first):
        return second
    if pa.types.is_struct(first) and pa.types.is_struct(second):
        merged = {field.name: field.type for field in first}
        for field in second:
            merged[field.name] = common_type(merged.get(field.name, NULL), field.type)
        return _struct(merged)
    if pa.types.is_list(first) and pa.types.is_list(second):
        return pa.list_(common_type(first.value_type, second.value_type))
    return _common_number(first, second)


def _values_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _struct(fields: dict[str, pa.DataType]) -> pa.DataType:
    return pa.struct(list(fields.items())) if len(fields) <= _MAX_STRUCT_FIELDS else STRING


def without_marks(type_: pa.DataType) -> pa.DataType:
    """The type that a column gets whose values had this in common."""
    if type_ == _LONG_INT:
        return INT
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(without_marks(field.type)) for field in type_])
    return pa.list_(without_marks(type_.value_type)) if pa.types.is_list(type_) else type_


def _common_number(first: pa.DataType, second: pa.DataType) -> pa.DataType:
    if {first, second} == {_LONG_INT, INT}:
        return _LONG_INT
    kinds = {_number_kind(first), _number_kind(second)}
    if kinds == {"int"}:
        return INT
    return FLOAT if kinds in ({"float"}, {"int", "float"}) else STRING


def _number_kind(type_: pa.DataType) -> str:
    if pa.types.is_integer(type_) and type_ != pa.uint64():
        return "int"
    return "float" if pa.types.is_floating(type_) else "other"


@functools.cache
def stored_type(type_: pa.DataType) -> pa.DataType:
    """The type that a column of this type has when it comes back from Parquet, and that its rows can be selected in.

    Raises:
        pyarrow.ArrowNotImplementedError: there is none.
    """
    sink = pa.BufferOutputStream()
    empty = pa.schema([("column", _plain(type_))]).empty_table()
    try:
        pq.write_table(empty, sink)
    except OSError as error:  # so it says that decimals have a negative scale
        raise pa.ArrowNotImplementedError(str(error)) from error
    empty.filter(pa.array([], BOOL))
    return pq.read_schema(pa.BufferReader(sink.getvalue())).field("column").type


def _plain(type_: pa.DataType) -> pa.DataType:
    """The type without what Parquet cannot hold (structs without fields) or Arrow cannot select rows of (views).

    Nor with dictionaries: those of several files need not fit together into one with the numbers that a single one has.
    """
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if pa.types.is_string_view(type_):
        return STRING
    if pa.types.is_binary_view(type_):
        return pa.binary()
    if pa.types.is_struct(type_):
        return pa.struct([field.with_type(_plain(field.type)) for field in type_]) if type_.num_fields else NULL
    if pa.types.is_map(type_):
        key, item = (field.with_type(_plain(field.type)) for field in (type_.key_field, type_.item_field))
        return pa.map_(key, item, type_.keys_sorted)
    if pa.types.is_fixed_size_list(type_):
        return pa.list_(type_.value_field.with_type(_plain(type_.value_type)), type_.list_size)
    if pa.types.is_list(type_) or pa.types.is_large_list(type_):
        make = pa.list_ if pa.types.is_list(type_) else pa.large_list
        return make(type_.value_field.with_type(_plain(type_.value_type)))
    return type_


def array_of(values: list[Any], type_: pa.DataType) -> pa.Array:
    """Python values as an array of a type that :func:`common_type` found for them."""
    try:
        return pa.array(values, type_)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        return pa.array([_fitted(value, type_) for value in values], type_)


def _fitted(value: Any, type_: pa.DataType) -> Any:  # noqa: ANN401
    if value is None or pa.types.is_null(type_):
        return None
    if pa.types.is_struct(type_):
        return {field.name: _fitted(value.get(field.name), field.type) for field in type_}
    if pa.types.is_list(type_):
        return [_fitted(item, type_.value_type) for item in value]
    if pa.types.is_floating(type_):
        if float(value) != value:
            raise CorpusError(
                f"the whole number {value} has more digits than a column of floating-point numbers keeps; "
                "give the column one type in all files"
            )
        return float(value)
    return as_text(value) if pa.types.is_string(type_) else value


def as_text(value: object) -> str:
    """A value as text: strings as they are, JSON values as JSON, anything else as Python prints it."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict | list | bool | int | float):
        return json.dumps(value, ensure_ascii=False, default=str)
    return str(value)


def conform(column: pa.Array, type_: pa.DataType) -> pa.Array:
    """The column in a type that :func:`common_type` or :func:`stored_type` found for it."""
    if column.type == type_:
        return column
    # An extension's storage must not be mistaken for its value: a UUID is not the 16 bytes it is kept in.
    if not isinstance(column.type, pa.BaseExtensionType):
        try:
            return column.cast(type_)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            pass
    return array_of(column.to_pylist(), type_)


def invalid_utf8(column: pa.Array) -> NDArray[np.bool_]:
    """``(n,) bool``: rows with a string, at any depth, that is not UTF-8; readers take Parquet's word for it."""
    if _is_valid(column):
        return np.zeros(len(column), np.bool_)
    # A slice shares its children with the whole column; a taken row has its own.
    rows = (column.take(pa.array([row])) for row in range(len(column)))
    return np.fromiter((not _is_valid(row) for row in rows), np.bool_, len(column))


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def as_strings(column: pa.Array) -> pa.Array:
    """A column of strings or bytes as strings, unchecked: :func:`invalid_utf8` says which are none."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return column.cast(pa.binary()).view(STRING)
