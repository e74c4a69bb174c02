"""A corpus finds its columns, and leaves out the rows that cannot be documents, counted and named."""

import datetime
import re
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.corpus import Corpus, CorpusOptions, Position
from llmindex.errors import CorpusError, StorageError, UsageError
from tests.corpus_samples import Row, documents, write_jsonl


def last_position(corpus: Corpus) -> Position:
    return list(corpus.windows(3))[-1].position


class TestColumns:
    def test_text_and_id_come_first_and_the_rest_keeps_its_types(self) -> None:
        table = pa.table({"year": pa.array([1999], pa.int16()), "text": ["a"], "id": pa.array([7], pa.int64())})
        corpus = Corpus.open(table)
        assert corpus.schema.names == ["id", "text", "year"]
        assert not corpus.schema.field("id").nullable
        assert not corpus.schema.field("text").nullable
        assert corpus.schema.field("year").type == pa.int16()
        assert documents(corpus) == [{"id": "7", "text": "a", "year": 1999}]

    def test_without_an_id_column_the_row_is_the_id(self) -> None:
        corpus = Corpus.open(pa.table({"text": ["a", "", "c"]}))
        assert [row["id"] for row in documents(corpus)] == ["0", "2"]
        assert corpus.record["id_column"] is None

    @pytest.mark.parametrize(
        ("names", "chosen"),
        [
            (["title", "Body", "abstract"], "Body"),
            (["title", "TEXT"], "TEXT"),
            (["question", "description"], "description"),
            (["anything"], "anything"),
            (["id", "anything"], "anything"),
        ],
    )
    def test_the_text_column_is_found_by_its_name(self, names: list[str], chosen: str) -> None:
        corpus = Corpus.open(pa.table({name: [name] for name in names}))
        assert corpus.record["text_columns"] == [chosen]
        assert documents(corpus)[0]["text"] == chosen

    def test_a_column_that_cannot_be_text_is_not_taken_for_it(self) -> None:
        corpus = Corpus.open(pa.table({"text": [1.5], "title": ["t"]}))
        assert documents(corpus) == [{"id": "0", "text": "t", "text_": 1.5}]

    def test_several_text_columns_are_joined_without_empty_ones(self) -> None:
        table = pa.table({"a": ["1", None, " ", None, ""], "b": ["2", "x", "y", None, " "], "c": ["3"] + [None] * 4})
        corpus = Corpus.open(table, CorpusOptions(text_columns=("b", "a", "c")))
        assert [row["text"] for row in documents(corpus)] == ["2\n1\n3", "x", "y"]
        assert last_position(corpus).bad_rows == {"null": 1, "empty": 1}
        assert corpus.schema.names == ["id", "text"]

    def test_text_and_id_may_be_the_same_column(self) -> None:
        corpus = Corpus.open(pa.table({"word": ["a", "b", "a"]}), CorpusOptions(("word",), id_column="word"))
        assert documents(corpus) == [{"id": "a", "text": "a"}, {"id": "b", "text": "b"}]

    def test_reserved_names_are_changed(self) -> None:
        table = pa.table({"body": ["b"], "id": ["i"], "key": ["k"], "row": [1], "vector": [2], "vector_": [3]})
        corpus = Corpus.open(table, CorpusOptions(id_column="key", text_columns=("body",)))
        assert documents(corpus) == [{"id": "k", "text": "b", "id_": "i", "row_": 1, "vector__": 2, "vector_": 3}]

    @pytest.mark.parametrize(
        "type_",
        [
            pa.string(),
            pa.large_string(),
            pa.string_view(),
            pa.dictionary(pa.int8(), pa.string()),
            pa.dictionary(pa.int32(), pa.large_string()),
            pa.binary(),
            pa.large_binary(),
        ],
        ids=str,
    )
    def test_text_may_have_any_layout(self, type_: pa.DataType) -> None:
        values = ["é", None, "b"]
        if pa.types.is_dictionary(type_):
            column = pa.array(values, type_.value_type).dictionary_encode().cast(type_)
        else:
            column = pa.array(values, pa.binary()).cast(type_) if "binary" in str(type_) else pa.array(values, type_)
        corpus = Corpus.open(pa.table({"text": column}))
        assert [row["text"] for row in documents(corpus)] == ["é", "b"]
        assert next(corpus.windows(9)).table.schema.field("text").type == pa.string()

    @pytest.mark.parametrize("numbers", ["int8", "int16"])
    def test_dictionaries_of_several_sources_need_not_fit_together(self, tmp_path: Path, numbers: str) -> None:
        """As pandas writes categories: numbered in as few bits as will do for the values of one file."""
        days = [datetime.date(1970, 1, 1) + datetime.timedelta(day) for day in range(200)]
        tables = []
        for part, type_ in ((days[:100], "int8"), (days[100:], numbers)):
            column = pa.array(part).dictionary_encode().cast(pa.dictionary(type_, pa.date32()))
            tables.append(pa.table({"text": map(str, part), "day": column}))
            pq.write_table(tables[-1], tmp_path / f"{len(tables)}.parquet")
        sources = [tmp_path] if numbers == "int16" else [tmp_path, pa.concat_tables(tables)]
        for source in sources:
            assert [row["day"] for row in documents(Corpus.open(source))] == days

    @pytest.mark.parametrize(
        "outer", [pa.large_list, lambda inner: pa.list_(inner, 1), lambda inner: pa.map_(pa.int16(), inner)]
    )
    @pytest.mark.parametrize("inner", [pa.dictionary(pa.int8(), pa.string()), pa.string_view()])
    def test_nor_do_those_within_other_values(
        self, tmp_path: Path, outer: Callable[[pa.DataType], pa.DataType], inner: pa.DataType
    ) -> None:
        """Any type of lists and maps may hold what Arrow can neither select rows of nor put together."""
        kinds = [[(number, str(number))] if pa.types.is_map(outer(inner)) else [str(number)] for number in range(200)]
        for start in (0, 100):
            texts = [f"d{number}" for number in range(100)]
            column = pa.array(kinds[start : start + 100], outer(inner))
            pq.write_table(pa.table({"text": texts, "kind": column}), tmp_path / f"{start}.parquet")
        assert [row["kind"] for row in documents(Corpus.open(tmp_path))] == kinds

    @pytest.mark.parametrize(
        ("values", "type_", "id_"),
        [
            ([1], pa.uint64(), "1"),
            ([True], pa.bool_(), "true"),
            ([2.5], pa.float32(), "2.5"),
            (["x"], pa.dictionary(pa.int32(), pa.string()), "x"),
            ([b"x"], pa.binary(), "x"),
            ([0], pa.date32(), "1970-01-01"),
            ([bytes(16)], pa.uuid(), "00000000-0000-0000-0000-000000000000"),
        ],
        ids=str,
    )
    def test_ids_of_any_scalar_type(self, values: list[Any], type_: pa.DataType, id_: str) -> None:
        corpus = Corpus.open(pa.table({"id": pa.array(values, type_), "text": ["t"]}))
        assert documents(corpus)[0]["id"] == id_

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                CorpusOptions(text_columns=("txt",)),
                'docs.parquet has no column "txt"; did you mean "text"? (columns: id, text, tags, n)',
            ),
            (
                CorpusOptions(text_columns=("zzz",)),
                'docs.parquet has no column "zzz" (columns: id, text, tags, n)',
            ),
            (
                CorpusOptions(text_columns=("text, tags",)),
                'docs.parquet has no column "text, tags"; several text columns take a --text-column each '
                "(columns: id, text, tags, n)",
            ),
            (
                CorpusOptions(id_column="ID_"),
                'docs.parquet has no column "ID_"; did you mean "id"? (columns: id, text, tags, n)',
            ),
            (
                CorpusOptions(text_columns=("n",)),
                'docs.parquet: column "n" holds int64, not text; name another with --text-column '
                "(columns: id, text, tags, n)",
            ),
            (
                CorpusOptions(id_column="tags"),
                'docs.parquet: column "tags" holds list<element: string>, which cannot be an id; '
                "name another with --id-column (columns: id, text, tags, n)",
            ),
        ],
    )
    def test_wrong_columns(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: CorpusOptions, message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        table = pa.table({"id": ["a"], "text": ["t"], "tags": pa.array([["x"]], pa.list_(pa.string())), "n": [1]})
        pq.write_table(table, "docs.parquet", store_schema=False)
        with pytest.raises(CorpusError) as error:
            Corpus.open(["docs.parquet"], options)
        assert str(error.value) == message

    def test_no_column_is_plainly_the_text(self) -> None:
        with pytest.raises(CorpusError, match=r"--text-column \(columns: a, b\)$"):
            Corpus.open(pa.table({"a": ["x"], "b": ["y"]}))
        wide = pa.table({f"c{number}": [number] for number in range(30)})
        with pytest.raises(CorpusError, match=r"c19 and 10 more\)$"):
            Corpus.open(wide)

    @pytest.mark.parametrize("kind", [pa.month_day_nano_interval(), pa.decimal128(10, -2)], ids=str)
    def test_columns_that_parquet_cannot_hold_are_refused_before_anything_is_built(self, kind: pa.DataType) -> None:
        table = pa.table({"text": ["t"], "odd": pa.array([None], kind)})
        with pytest.raises(CorpusError, match=f'column "odd" holds {re.escape(str(kind))}, which Parquet cannot store'):
            Corpus.open(table)

    def test_two_columns_of_one_name(self) -> None:
        table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["text", "text"])
        with pytest.raises(CorpusError, match='two columns named "text"'):
            Corpus.open(table)


class TestBadRows:
    table = pa.table(
        {
            "id": ["a", "b", "c", "a", None, "", "g", "h"],
            "text": ["1", None, " \n\u2003", "4", "5", "6", None, "8"],
        }
    )

    def test_are_left_out_and_counted(self) -> None:
        corpus = Corpus.open(self.table)
        assert [row["id"] for row in documents(corpus)] == ["a", "h"]
        positions = [window.position for window in corpus.windows(1)]
        left_out = {"null": 2, "empty": 1, "duplicate_id": 1, "null_id": 2}
        assert positions == [Position(7, left_out), Position(8, left_out)]

    def test_the_first_usable_of_equal_ids_wins(self) -> None:
        corpus = Corpus.open(pa.table({"id": ["a", "a", "a"], "text": ["", "second", "third"]}))
        assert documents(corpus) == [{"id": "a", "text": "second"}]

    def test_the_last_position_covers_trailing_bad_rows(self) -> None:
        corpus = Corpus.open(pa.table({"text": ["a", "b", "", None]}))
        for max_rows in (1, 2, 3):
            assert list(corpus.windows(max_rows))[-1].position == Position(4, {"empty": 1, "null": 1})

    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            ([{"text": "a"}, {"text": None}], "docs.jsonl line 2: no text"),
            ([{"text": "a"}, {"text": "\t"}], "docs.jsonl line 2: text is empty"),
            ([{"text": "a", "id": 1}, {"text": "b"}], "docs.jsonl line 2: no id"),
            (
                [{"text": "a", "id": 1}, {"text": "b", "id": 1}],
                'docs.jsonl line 2 (id "1"): an earlier row has the same id',
            ),
        ],
    )
    def test_are_errors_on_demand(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Row], message: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        write_jsonl(Path("docs.jsonl"), rows)
        corpus = Corpus.open(["docs.jsonl"], CorpusOptions(on_bad_row="fail"))
        with pytest.raises(CorpusError) as error:
            list(corpus.windows(10))
        assert str(error.value) == f"{message}; mend it, or leave such rows out with --on-bad-row skip"

    def test_what_to_do_about_them_is_not_guessed(self) -> None:
        with pytest.raises(UsageError, match=r'^unknown on_bad_row "error"; one of skip, fail$'):
            CorpusOptions(on_bad_row="error")  # type: ignore[arg-type]

    def test_nothing_but_bad_rows(self) -> None:
        corpus = Corpus.open(pa.table({"text": ["", None, None]}))
        with pytest.raises(CorpusError, match=r"^table has no usable text: 3 rows, all bad \(1 empty, 2 null\)$"):
            list(corpus.windows(10))

    def test_bytes_that_are_not_utf8_anywhere_in_a_row(self) -> None:
        def strings(*values: bytes) -> pa.Array:
            return pa.array(values, pa.binary()).view(pa.string())

        good, bad = strings(b"x", b"y", b"z"), strings(b"x", b"\xff", b"z")
        nested = pa.StructArray.from_arrays([pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), bad)], ["l"])
        indices = pa.array([0, 1, 2], pa.int8())
        for column in (bad, nested, pa.DictionaryArray.from_arrays(indices, bad)):
            corpus = Corpus.open(pa.table({"text": good, "other": column}), CorpusOptions(text_columns=("text",)))
            (only,) = corpus.windows(10)
            assert only.table.column("id").to_pylist() == ["0", "2"]
            assert only.position.bad_rows == {"not_utf8": 1}
            only.table.validate(full=True)
        for text in (bad, bad.cast(pa.binary()), pa.DictionaryArray.from_arrays(indices, bad)):
            assert last_position(Corpus.open(pa.table({"text": text}))).bad_rows == {"not_utf8": 1}

    def test_no_room_to_remember_ids(self, monkeypatch: pytest.MonkeyPatch) -> None:
        connect = sqlite3.connect

        def cramped(*args: Any, **options: Any) -> sqlite3.Connection:  # noqa: ANN401
            database: sqlite3.Connection = connect(*args, **options)
            database.execute("PRAGMA max_page_count = 4")
            return database

        monkeypatch.setattr(sqlite3, "connect", cramped)
        table = pa.table({"id": [f"{number:0100}" for number in range(1000)], "text": ["t"] * 1000})
        with pytest.raises(StorageError, match=r"full.*set TMPDIR"):
            list(Corpus.open(table).windows(10))
