"""Which documents qualify for a search: a condition on their columns, in SQL or as an expression of Arrow's.

SQL is parsed and computed by duckdb, in an empty database in memory that reaches neither files, extensions, variables
of the program nor its own settings. It has to be one expression over a document's own columns, as after WHERE; only
the columns that it names are read. As in SQL, a document for which the condition is unknown (NULL) does not qualify.
"""

import json
import pickle
import re
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from llmindex.errors import LlmindexError, MissingPackage, UsageError
from llmindex.store.reader import VectorStore, as_array

Where: TypeAlias = str | pc.Expression
"""A condition: the SQL that could follow WHERE, or an expression of :mod:`pyarrow.compute`."""

_SETTINGS: Final = (
    "enable_external_access = false",
    "python_enable_replacements = false",
    "autoinstall_known_extensions = false",
    "autoload_known_extensions = false",
    # Handed down to Arrow, a comparison with NaN would come out as Arrow has it, not SQL.
    "disabled_optimizers = 'filter_pushdown'",
    # Else a condition could mean something else on another machine.
    "TimeZone = 'UTC'",
    "lock_configuration = true",
)

_NOT_OF_A_DOCUMENT: Final = ("SUBQUERY", "STAR", "POSITIONAL_REFERENCE")
"""Kinds of expression that mean other documents, all columns, or whichever column was read first."""

Database = Any
"""A ``duckdb.DuckDBPyConnection``."""

Node = dict[str, Any]
"""A part of duckdb's syntax tree."""


@dataclass(frozen=True, slots=True)
class Qualifying:
    """The documents that satisfy a condition.

    Attributes:
        mask: which do, ``(count,) bool``.
        lasting: whether that stays so as long as the store does: not where the condition asks for the time.
    """

    mask: NDArray[np.bool_]
    lasting: bool


def identity_of(where: Where) -> str | bytes:
    """What two conditions share only if they are the same.

    Raises:
        UsageError: it is no condition.
    """
    if isinstance(where, str):
        return where
    if isinstance(where, pc.Expression):
        return pickle.dumps(where)  # its text is cut where it is long
    raise UsageError(f"a condition is SQL or a pyarrow.compute.Expression, not {type(where).__name__}")


def qualifying(store: VectorStore, where: Where) -> Qualifying:
    """Find the documents that satisfy a condition.

    Raises:
        UsageError: it is no such expression, names a column that is not there, or does not fit a column's type.
        MissingPackage: it is SQL, and duckdb is not installed.
    """
    if not isinstance(where, str):
        try:
            return Qualifying(store.matching(where), lasting=True)
        except pa.ArrowException as error:
            raise _refused(store, str(error)) from error
    try:
        import duckdb
    except ImportError as error:
        raise MissingPackage("--where needs duckdb: pip install duckdb") from error
    faults: list[LlmindexError] = []
    with closing(duckdb.connect(":memory:", config={"threads": 1})) as database:
        try:
            for setting in _SETTINGS:
                database.execute(f"SET {setting}")
            return _by_sql(store, database, where, faults)
        except duckdb.Error as error:
            raise faults[0] if faults else _refused(store, str(error)) from error
        except RuntimeError as error:
            if "interrupted" in str(error).lower():  # all that duckdb leaves of Ctrl-C
                raise KeyboardInterrupt from error
            raise


def _by_sql(store: VectorStore, database: Database, where: str, faults: list[LlmindexError]) -> Qualifying:
    nodes = _parse(store, database, where)
    references = [set(node["column_names"]) for node in nodes if node.get("class") == "COLUMN_REF"]
    functions = [node["function_name"] for node in nodes if node.get("class") == "FUNCTION"]
    lasting = _last(store, database, functions)
    fields = _fields(store, set().union(*references))
    known = {field.name.lower() for field in fields}
    # The table and the row numbers have names that the condition cannot mean.
    own = "_"
    while own in known or any(own == name.lower() for names in references for name in names):
        own += "_"
    schema = pa.schema([*fields, pa.field(own, pa.int64())])
    database.register(own, pa.RecordBatchReader.from_batches(schema, _documents(store, schema, faults)))
    found = database.execute(f'SELECT "{own}"."{own}" FROM "{own}" WHERE ({where}\n)').fetchnumpy()
    mask = np.zeros(store.count, np.bool_)
    mask[found[own]] = True
    # What refers to no column is a lambda's parameter, or current_date and its like.
    of_columns = all(any(name.lower() in known for name in names) for names in references)
    return Qualifying(mask, lasting=of_columns and lasting)


def _parse(store: VectorStore, database: Database, where: str) -> list[Node]:
    """The parts of the one expression that a condition has to be."""
    try:
        where.encode()
        tree, nodes = _tree(database, where)
    except UnicodeEncodeError as error:
        raise _refused(store, "it is not valid UTF-8") from error
    except RecursionError as error:
        raise _refused(store, "it is nested too deeply") from error
    if tree.get("error_type") == "parser":
        raise _refused(store, tree["error_message"] if where.strip() else "it is empty")
    if not _is_single(tree, _tree(database, "1")[0]) or any(node.get("class") in _NOT_OF_A_DOCUMENT for node in nodes):
        raise _refused(store, "it is not a single expression over a document's own columns")
    return nodes


def _is_single(tree: Node, plain: Node) -> bool:
    """Whether a tree is that of one expression: without it, what is left must be what is left of ``SELECT 1``."""
    if tree["error"]:  # it has something that no query has
        return False
    expressions, _ = (each["statements"][0]["node"].pop("select_list", ()) for each in (tree, plain))
    return tree == plain and len(expressions) == 1


def _tree(database: Database, expression: str) -> tuple[Node, list[Node]]:
    """How duckdb reads ``SELECT expression``: its syntax tree, and all nodes of that."""
    nodes: list[Node] = []

    def keep(node: Node) -> Node:
        nodes.append({key: value for key, value in node.items() if not key.startswith("query_location")})
        return nodes[-1]

    query = "SELECT json_serialize_sql(?::VARCHAR)"
    ((said,),) = database.execute(query, [f"SELECT {expression}"]).fetchall()
    return json.loads(said, object_hook=keep), nodes


def _fields(store: VectorStore, names: set[str]) -> list[pa.Field]:
    """The columns that a condition names; SQL does not tell capitals, unless a column is written just so."""
    exact = names & set(store.schema.names)
    others = {name.lower() for name in names - exact}
    fields = [field for field in store.schema if field.name in exact or field.name.lower() in others]
    if len({field.name.lower() for field in fields}) < len(fields):
        alike = ", ".join(field.name for field in fields)
        raise _refused(store, f"SQL does not tell capitals, and it could mean more than one of {alike}")
    return [_readable(field) for field in fields] or [store.schema.field("id")]


def _readable(field: pa.Field) -> pa.Field:
    """The field as duckdb can compute with it: it reads no float16, and has hardly a function for zoned nanoseconds."""
    if pa.types.is_float16(field.type):
        return field.with_type(pa.float32())
    if pa.types.is_timestamp(field.type) and field.type.unit == "ns" and field.type.tz is not None:
        return field.with_type(pa.timestamp("us", field.type.tz))
    return field


def _documents(store: VectorStore, schema: pa.Schema, faults: list[LlmindexError]) -> Iterator[pa.RecordBatch]:
    """The columns of a schema, the last of which is the row number; faults are kept, as duckdb reports its own."""
    start = 0
    try:
        for batch in store.iter_columns(schema.names[:-1]):
            read = zip(batch.columns, schema, strict=False)
            columns = [column.cast(field.type, safe=False) for column, field in read]  # nanoseconds are cut
            rows = as_array(np.arange(start, start + len(batch)))
            yield pa.RecordBatch.from_arrays([*columns, rows], schema=schema)
            start += len(batch)
    except LlmindexError as error:
        faults.append(error)
        raise


def _last(store: VectorStore, database: Database, functions: list[str]) -> bool:
    """Whether functions give the same for the same arguments at any time; what never does is refused."""
    query = "SELECT DISTINCT function_name, stability FROM duckdb_functions() WHERE list_contains(?, function_name)"
    known = sorted(database.execute(query, [functions]).fetchall(), key=str)
    if changing := [name for name, stability in known if stability == "VOLATILE"]:
        raise _refused(store, f"{changing[0]}() depends on more than the document")
    # Of a single date, age() counts from today.
    return all(name != "age" and stability == "CONSISTENT" for name, stability in known)


def _refused(store: VectorStore, said: str) -> UsageError:
    reason = re.sub(r"^[A-Za-z ]+ Error: ", "", said).partition("\n")[0].strip().rstrip(".!")
    if unknown := re.fullmatch(r'Referenced column "(.*)" not found in FROM clause', reason):
        own = _own_name(store, unknown[1])
        remedy = f"here that of the corpus is {own}" if own else f"text goes in single quotes, '{unknown[1]}'"
        reason = f'there is no column "{unknown[1]}"; {remedy}'
    return UsageError(f"--where: {reason}; the columns are {', '.join(store.schema.names)}")


def _own_name(store: VectorStore, name: str) -> str | None:
    """What a column of the corpus is called in the index that became the ids, or part of the texts."""
    corpus = store.manifest.corpus.identity
    names = {"id": [corpus.get("id_column") or ""], "text": corpus.get("text_columns") or ()}
    return next((own for own, theirs in names.items() if name.lower() in map(str.lower, theirs)), None)
