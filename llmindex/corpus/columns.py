"""How the columns of each source become the columns of the corpus."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from llmindex.corpus.column_types import NULL, STRING, common_type, is_bytes, is_text, stored_type, without_marks
from llmindex.corpus.source import Source, one_line, readable
from llmindex.errors import CorpusError

TEXT_NAMES = (
    "text",
    "content",
    "body",
    "document",
    "passage",
    "sentence",
    "abstract",
    "description",
    "question",
    "title",
)
"""Column names that are taken for the text, best first, in any case."""

RESERVED = ("id", "text", "vector", "row")
"""Names that a stored document's own columns have."""

_LISTED_COLUMNS = 20


@dataclass(frozen=True, slots=True)
class ColumnPlan:
    """Where the corpus's columns come from in one source.

    Attributes:
        text: joined to the text.
        id: becomes the id; None for the row number.
        metadata: the source column of each column of the corpus after id and text; None where it has none.
        wanted: the columns to read, in the types to read them as.
    """

    text: tuple[str, ...]
    id: str | None
    metadata: tuple[str | None, ...]
    wanted: pa.Schema


@dataclass(frozen=True, slots=True)
class Columns:
    """How a corpus is put together.

    Attributes:
        text: source columns that make the text; empty if no source has columns.
        id: source column that makes the id, if any.
        schema: id, text, then the other columns.
        plans: one a source.
    """

    text: tuple[str, ...]
    id: str | None
    schema: pa.Schema
    plans: tuple[ColumnPlan, ...]


def plan_columns(sources: Sequence[Source], text_columns: Sequence[str], id_column: str | None) -> Columns:
    """Choose text and id, which every table must have, and unify the rest.

    Raises:
        CorpusError: a column is missing, or of a type that does not fit.
    """
    tables = [source for source in sources if source.tabular and len(source.schema)]
    text: tuple[str, ...] = ()
    if tables:
        id_column = id_column or _id_by_name(tables[0].schema)
        text = tuple(text_columns) or (_text_by_name(tables[0], id_column),)
    elif text_columns or id_column:
        name = readable((*text_columns, id_column or "")[0])
        raise CorpusError(f'{sources[0].label} has no column "{name}": plain text has no columns')
    for table in tables:
        _check_columns(table, text, id_column)

    roles = [_roles(source, text, id_column) for source in sources]
    rest = [_others(source, used) for source, used in zip(sources, roles, strict=True)]
    renamed = _renamed([name for others in rest for name in others])
    types: dict[str, pa.DataType] = {}
    for source, others in zip(sources, rest, strict=True):
        for name in others:
            known = types.get(renamed[name], NULL)
            types[renamed[name]] = common_type(known, _checked_type(source, name))
    types = {name: stored_type(without_marks(type_)) for name, type_ in types.items()}
    plans = [
        _plan(source, used, {renamed[name]: name for name in others}, types)
        for source, used, others in zip(sources, roles, rest, strict=True)
    ]
    fixed = [pa.field("id", STRING, nullable=False), pa.field("text", STRING, nullable=False)]
    schema = pa.schema([*fixed, *(pa.field(name, type_) for name, type_ in types.items())])
    return Columns(text, id_column if tables else None, schema, tuple(plans))


@dataclass(frozen=True, slots=True)
class _Roles:
    text: tuple[str, ...]
    id: str | None


def _roles(source: Source, text: tuple[str, ...], id_column: str | None) -> _Roles:
    if not len(source.schema):
        return _Roles((), None)
    if source.tabular:
        return _Roles(text, id_column)
    return _Roles(("text",), "id" if "id" in source.schema.names else None)


def _others(source: Source, used: _Roles) -> list[str]:
    return [name for name in source.schema.names if name not in used.text and name != used.id]


def _renamed(names: Sequence[str]) -> dict[str, str]:
    """Each name as the corpus has it: a reserved one gets a trailing underscore, or as many as it takes."""
    renamed = {}
    for name in names:
        new = name
        while new in RESERVED or (new != name and new in names):
            new += "_"
        renamed[name] = new
    return renamed


def _plan(source: Source, used: _Roles, origins: dict[str, str], types: dict[str, pa.DataType]) -> ColumnPlan:
    wanted = dict.fromkeys(used.text, STRING)
    if used.id is not None:
        wanted[used.id] = STRING
    wanted |= {origin: types[name] for name, origin in origins.items()}
    metadata = tuple(origins.get(name) for name in types)
    return ColumnPlan(used.text, used.id, metadata, pa.schema(list(wanted.items())))


def _checked_type(source: Source, name: str) -> pa.DataType:
    type_ = source.schema.field(name).type
    try:
        stored_type(without_marks(type_))
    except pa.ArrowNotImplementedError:
        shown = one_line(str(type_))
        raise CorpusError(
            f'{source.label}: column "{readable(name)}" holds {shown}, which Parquet cannot store; cast or drop it'
        ) from None
    return type_


def _id_by_name(schema: pa.Schema) -> str | None:
    return next((name for name in ("id", "ID", "Id") if name in schema.names), None)


def _text_by_name(source: Source, id_column: str | None) -> str:
    fields = [field for field in source.schema if field.name != id_column]
    named: dict[str, str] = {
        field.name.casefold(): field.name for field in reversed(fields) if _can_be_text(field.type)
    }
    for name in TEXT_NAMES:
        if name in named:
            return named[name]
    strings = [field.name for field in fields if is_text(field.type)]
    if len(strings) == 1:
        return str(strings[0])
    if unfit := next((field for field in fields if field.name.casefold() in TEXT_NAMES), None):
        raise _not_text(source, unfit.name, unfit.type)
    raise CorpusError(f"{source.label}: no column is plainly the text; name it with --text-column {_listed(source)}")


def _check_columns(source: Source, text: Sequence[str], id_column: str | None) -> None:
    for name in text:
        type_ = _type_of(source, name)
        if not _can_be_text(type_):
            raise _not_text(source, name, type_)
    if id_column is not None and pa.types.is_nested(_type_of(source, id_column)):
        shown = one_line(str(_type_of(source, id_column)))
        raise CorpusError(
            f'{source.label}: column "{readable(id_column)}" holds {shown}, which cannot be an id; '
            f"name another with --id-column {_listed(source)}"
        )


def _not_text(source: Source, name: str, type_: pa.DataType) -> CorpusError:
    return CorpusError(
        f'{source.label}: column "{readable(name)}" holds {one_line(str(without_marks(type_)))}, not text; '
        f"name another with --text-column {_listed(source)}"
    )


def _can_be_text(type_: pa.DataType) -> bool:
    return is_text(type_) or is_bytes(type_) or bool(pa.types.is_null(type_))


def _type_of(source: Source, name: str) -> pa.DataType:
    if name in source.schema.names:
        return source.schema.field(name).type
    names = {known.casefold(): known for known in source.schema.names}
    near = difflib.get_close_matches(name.casefold(), names, 1)
    hint = f'; did you mean "{readable(names[near[0]])}"?' if near else ""
    if all(part.strip() in source.schema.names for part in name.split(",")):
        hint = "; several text columns take a --text-column each"
    raise CorpusError(f'{source.label} has no column "{readable(name)}"{hint} {_listed(source)}')


def _listed(source: Source) -> str:
    names = [readable(name) for name in source.schema.names[:_LISTED_COLUMNS]]
    more = len(source.schema) - len(names)
    return f"(columns: {', '.join(names)}{f' and {more:,} more' if more else ''})"
