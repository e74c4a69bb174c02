"""A corpus gives the same documents in the same windows, whatever the format and however often it is interrupted."""

import io
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.corpus import Corpus, CorpusOptions, Position, Window, arrow_tables, source, window
from llmindex.errors import CorpusError, StorageError, UsageError
from llmindex.progress import Progress

Row = Mapping[str, Any]


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def documents(corpus: Corpus, max_rows: int = 1000) -> list[dict[str, Any]]:
    return [row for window in corpus.windows(max_rows) for row in window.table.to_pylist()]


def last_position(corpus: Corpus) -> Position:
    return list(corpus.windows(3))[-1].position


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


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

    def test_columns_that_parquet_cannot_hold_are_refused_before_anything_is_built(self) -> None:
        table = pa.table({"text": ["t"], "odd": pa.array([None], pa.month_day_nano_interval())})
        with pytest.raises(
            CorpusError, match=r'column "odd" holds month_day_nano_interval, which Parquet cannot store'
        ):
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


def same(first: Sequence[Window], second: Sequence[Window]) -> bool:
    return len(first) == len(second) and all(
        one.position == other.position
        and one.table.equals(other.table)
        and [column.num_chunks for column in one.table.columns] == [column.num_chunks for column in other.table.columns]
        for one, other in zip(first, second, strict=True)
    )


def expected_windows(rows: Sequence[Row], max_rows: int, text_bytes: int) -> list[tuple[list[str], Position]]:
    """The same by the simplest means: one row at a time."""
    windows: list[tuple[list[str], Position]] = []
    texts: list[str] = []
    bad: Counter[str] = Counter()
    seen: set[str] = set()
    for number, row in enumerate(rows):
        id_, text = row["id"], row["text"]
        if text is None or not text.strip():
            bad["null" if text is None else "empty"] += 1
        elif not id_ or id_ in seen:
            bad["duplicate_id" if id_ else "null_id"] += 1
        else:
            if len(texts) == max_rows or sum(len(text.encode()) for text in texts) >= text_bytes:
                windows.append((texts, Position(number, dict(bad))))
                texts = []
            seen.add(id_)
            texts.append(text)
    return [*windows, (texts, Position(len(rows), dict(bad)))]


ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "id": st.one_of(st.none(), st.sampled_from(["", *"abcdefghijklmnop"])),
            "text": st.one_of(st.none(), st.sampled_from(["", " ", "x", "é" * 9, "three words here"])),
            "kind": st.sampled_from(["u", "v", "w", None]),
        }
    ),
    max_size=30,
).map(lambda rows: [*rows, {"id": "last", "text": "never bad", "kind": "z"}])


class TestWindows:
    @settings(deadline=None, max_examples=60)
    @given(rows=ROWS, max_rows=st.integers(1, 6), group_rows=st.integers(1, 9), format_=st.sampled_from("tpjc"))
    def test_are_the_same_however_often_reading_is_interrupted(
        self, tmp_path_factory: pytest.TempPathFactory, rows: list[Row], max_rows: int, group_rows: int, format_: str
    ) -> None:
        folder = tmp_path_factory.mktemp("corpus")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(source, "CHUNK_ROWS", 4)
            patch.setattr(arrow_tables, "CHUNK_ROWS", 4)
            patch.setattr(window, "WINDOW_TEXT_BYTES", 25)
            corpus = Corpus.open(self._written(rows, folder, group_rows, format_))
            windows = list(corpus.windows(max_rows))
            if format_ != "c":  # where null and empty are one
                found = [(window.table.column("text").to_pylist(), window.position) for window in windows]
                assert found == expected_windows(rows, max_rows, 25)
            ids: list[str] = []
            for number, window_ in enumerate(windows):
                ids += window_.table.column("id").to_pylist()
                assert same(list(corpus.windows(max_rows, window_.position, ids)), windows[number + 1 :])

    @staticmethod
    def _written(rows: list[Row], folder: Path, group_rows: int, format_: str) -> list[Path] | pa.Table:
        kinds = pa.array([row["kind"] for row in rows]).dictionary_encode()
        types = pa.schema([("id", pa.string()), ("text", pa.string()), ("kind", pa.string())])
        table = pa.Table.from_pylist(rows, types).set_column(2, "kind", kinds)
        if format_ == "t":
            return table
        if format_ == "p":
            pq.write_table(table, folder / "a.parquet", row_group_size=group_rows)
            return [folder / "a.parquet"]
        if format_ == "j":
            middle = len(rows) // 2
            return [write_jsonl(folder / "a.jsonl", rows[:middle]), write_jsonl(folder / "b.jsonl", rows[middle:])]
        lines = [f"{row['id'] or ''},{row['text'] or ''},{row['kind'] or ''}\n" for row in rows]
        (folder / "a.csv").write_text("id,text,kind\n" + "".join(lines), encoding="utf-8")
        return [folder / "a.csv"]

    def test_large_texts_make_small_windows(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(window, "WINDOW_TEXT_BYTES", 10)
        corpus = Corpus.open(pa.table({"text": ["a" * 9, "b", "c" * 99, "d", "e"]}))
        assert [len(window.table) for window in corpus.windows(100)] == [2, 1, 2]

    def test_need_a_row(self) -> None:
        with pytest.raises(UsageError, match="not 0"):
            next(Corpus.open(pa.table({"text": ["a"]})).windows(0))

    def test_skipped_row_groups_are_not_decoded(self, tmp_path: Path) -> None:
        path = tmp_path / "docs.parquet"
        pq.write_table(pa.table({"text": ["a" * 50] * 10 + ["b"]}), path, row_group_size=10, use_dictionary=False)
        content = bytearray(path.read_bytes())
        start = content.index(b"PAR1") + 4
        content[start : start + 20] = bytes([0xFF]) * 20
        path.write_bytes(content)
        corpus = Corpus.open([path])
        assert [len(window.table) for window in corpus.windows(100, Position(10))] == [1]
        with pytest.raises(CorpusError, match=r"cannot read .*docs\.parquet"):
            list(corpus.windows(100))

    def test_can_be_read_again_and_side_by_side(self, tmp_path: Path) -> None:
        corpus = Corpus.open([write_jsonl(tmp_path / "a.jsonl", [{"id": n, "text": "t"} for n in range(5)])])
        pairs = list(zip(corpus.windows(2), corpus.windows(2), strict=True))
        assert same([one for one, _ in pairs], [other for _, other in pairs])

    def test_a_file_that_changes_under_the_reader(self, tmp_path: Path) -> None:
        path = write_jsonl(tmp_path / "docs.jsonl", [{"text": "a"}])
        corpus = Corpus.open([path])
        write_jsonl(path, [{"text": "a"}, {"text": "b"}])
        with pytest.raises(CorpusError, match=r"docs\.jsonl changed while it was being read"):
            list(corpus.windows(10))

    def test_memory_does_not_grow_with_the_corpus(self, tmp_path: Path) -> None:
        def peak_kib(path: Path, rows: int) -> int:
            texts = [f"{number} " * (1000 // len(f"{number} ")) for number in range(rows)]
            if path.suffix == ".parquet":
                pq.write_table(pa.table({"id": range(rows), "text": texts}), path, row_group_size=rows)
            else:
                write_jsonl(path, [{"id": number, "text": text} for number, text in enumerate(texts)])
            program = (
                "import sys; from llmindex.corpus import Corpus\n"
                "for window in Corpus.open([sys.argv[1]]).windows(512): window.table.column('text').to_pylist()\n"
                # ru_maxrss would count the parent's memory too.
                "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
            )
            done = subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True)
            return int(done.stdout)

        if not Path("/proc/self/status").exists():
            pytest.skip("needs Linux's /proc")
        for ending in ("parquet", "jsonl"):
            small, large = (peak_kib(tmp_path / f"{rows}.{ending}", rows) for rows in (2000, 40_000))
            assert large < 1.15 * small, f"{ending}: {small:,} KiB for 2k rows, {large:,} KiB for 40k"


class TestSources:
    @pytest.fixture(autouse=True)
    def _in_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def test_folders_are_read_in_order_and_hidden_or_foreign_files_are_not(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in (
            "b.txt",
            "a/z.md",
            "a/.hidden.txt",
            ".git/x.txt",
            "picture.png",
            "c.llmindex/vectors/part.parquet",
        ):
            path = Path("notes", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"I am {name}")
        index = Path("notes/index")
        (index / "vectors").mkdir(parents=True)
        (index / "manifest.json").write_text("{}")
        (index / "readme.txt").write_text("of an index")
        corpus = Corpus.open("notes")
        found = documents(corpus)
        assert [(row["id"], row["text"]) for row in found] == [("a/z.md", "I am a/z.md"), ("b.txt", "I am b.txt")]
        assert found[1]["path"] == str(Path("notes/b.txt").absolute())
        assert corpus.name == "notes"
        assert [record.getMessage() for record in caplog.records] == [
            "notes: ignored 1 file of another kind than is read"
        ]

    def test_ids_of_text_files_do_not_depend_on_where_the_command_runs(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for folder in ("one", "two"):
            Path(folder).mkdir()
            Path(folder, "same.txt").write_text(folder)
        here = Corpus.open(["one", "two/same.txt"])
        assert [row["id"] for row in documents(here)] == ["one/same.txt", "two/same.txt"]
        monkeypatch.chdir("one")
        there = Corpus.open(["../one/same.txt", "../two"])
        assert there.record == here.record
        assert documents(there) == documents(here)

    def test_globs(self) -> None:
        for name in ("b.jsonl", "a.jsonl", "c.csv"):
            Path(name).write_text('{"text": "x"}\n' if "json" in name else "text\nx\n")
        corpus = Corpus.open(["*.jsonl"])
        assert [Path(source["path"]).name for source in corpus.record["sources"]] == ["a.jsonl", "b.jsonl"]
        assert corpus.name == "a"
        assert Corpus.open(["*"]).rows == 3
        with pytest.raises(CorpusError, match=r"^no such file: \*\.zip \(the pattern matches nothing\)$"):
            Corpus.open(["*.zip"])

    def test_a_file_whose_name_looks_like_a_glob(self) -> None:
        write_jsonl(Path("[a].jsonl"), [{"text": "x"}])
        assert Corpus.open("[a].jsonl").rows == 1

    def test_a_file_named_twice_is_read_once(self, caplog: pytest.LogCaptureFixture) -> None:
        write_jsonl(Path("a.jsonl"), [{"text": "x"}])
        assert Corpus.open(["a.jsonl", ".", str(Path("a.jsonl").absolute())]).rows == 1
        assert "named more than once, read once: 2 files" in caplog.text

    def test_links_to_folders_are_followed_once(self) -> None:
        Path("real").mkdir()
        Path("real/a.txt").write_text("x")
        Path("real/loop").symlink_to(Path("real").absolute())
        Path("real/other").symlink_to(Path("real").absolute())
        assert Corpus.open("real").rows == 1

    def test_many_files_have_a_short_record(self) -> None:
        folder = Path("many")
        folder.mkdir()
        for number in range(101):
            (folder / f"{number}.txt").write_text("x")
        record = Corpus.open(folder).record
        assert record["sources"][0]["files"] == 101
        assert len(json.dumps(record)) < 300
        (folder / "7.txt").write_text("xy")
        assert Corpus.open(folder).record != record

    def test_record(self) -> None:
        path = write_jsonl(Path("docs.jsonl"), [{"body": "x", "key": 1}])
        corpus = Corpus.open([path], CorpusOptions(id_column="key", on_bad_row="fail"))
        stat = path.stat()
        assert corpus.record == {
            "sources": [{"path": str(path.absolute()), "bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}],
            "text_columns": ["body"],
            "id_column": "key",
            "on_bad_row": "fail",
        }
        assert json.loads(json.dumps(corpus.record)) == corpus.record

    def test_a_table_is_known_by_its_values(self) -> None:
        values = [f"t{number}" for number in range(3000)]
        whole = pa.table({"text": values})
        pieces = pa.concat_tables([whole.slice(0, 7), whole.slice(7, 1500), whole.slice(1507)])
        record = Corpus.open(whole).record
        assert Corpus.open(pieces).record == record
        assert Corpus.open(whole.slice(1)).record != record
        assert Corpus.open(whole).name == "table"

    def test_progress_of_the_scan_covers_all_files(self) -> None:
        rows = [{"text": "x"}] * 1500
        write_jsonl(Path("a.jsonl"), rows)
        write_jsonl(Path("b.jsonl"), rows)
        reports: list[Progress] = []
        Corpus.open(["a.jsonl", "b.jsonl"], on_progress=reports.append)
        assert [(report.stage, report.unit, report.done) for report in reports] == [
            ("scan", "rows", done) for done in (1000, 1500, 2500, 3000)
        ]

    @pytest.mark.parametrize(
        ("content", "texts"),
        [
            (b'\n {"text": "a"}\n{"text": "b"}\n', ["a", "b"]),
            (b"first\r\n\n  second\n[3]", ["first", "  second", "[3]"]),
        ],
    )
    def test_standard_input(self, monkeypatch: pytest.MonkeyPatch, content: bytes, texts: list[str]) -> None:
        give_stdin(monkeypatch, content)
        with Corpus.open(["-"]) as corpus:
            assert [row["text"] for row in documents(corpus)] == texts
            assert corpus.name == "stdin"
            assert corpus.record["sources"][0].keys() == {"path", "bytes", "sha256"}
            spool = next(iter(Path(tempfile.gettempdir()).glob("llmindex-stdin-*")))
            assert spool.read_bytes() == content
        assert not spool.exists()

    def test_parquet_on_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sink = io.BytesIO()
        pq.write_table(pa.table({"text": ["a"], "n": [1]}), sink)
        give_stdin(monkeypatch, sink.getvalue())
        with Corpus.open(["-"]) as corpus:
            assert documents(corpus) == [{"id": "0", "text": "a", "n": 1}]

    def test_standard_input_that_is_refused_leaves_nothing_behind(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(tempfile, "tempdir", str(Path.cwd()))
        give_stdin(monkeypatch, b'{"text": ')
        with pytest.raises(CorpusError, match=r"^stdin line 1: not valid JSON"):
            Corpus.open(["-"])
        give_stdin(monkeypatch, b"")
        with pytest.raises(CorpusError, match=r"^stdin is empty"):
            Corpus.open(["-"])
        assert not list(Path.cwd().iterdir())

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_no_room_for_standard_input(self, monkeypatch: pytest.MonkeyPatch) -> None:
        give_stdin(monkeypatch, b"text")
        with Path("/dev/full").open("wb", buffering=0) as full:
            monkeypatch.setattr(tempfile, "NamedTemporaryFile", lambda **_: full)
            with pytest.raises(StorageError, match=r"^cannot keep stdin in .*: No space left on device; set TMPDIR"):
                Corpus.open(["-"])

    def test_files_of_different_formats_become_one_corpus(self) -> None:
        table = pa.table(
            {"text": ["p"], "n": pa.array([1], pa.int32()), "tags": [["x"]], "at": pa.array([0], pa.date32())}
        )
        pq.write_table(table, "a.parquet")
        write_jsonl(Path("b.jsonl"), [{"text": "j", "n": 2.5, "tags": ["y", 1], "extra": {"k": 1}}])
        Path("c.csv").write_text("text,n,tags,at\nc,3,007,soon\n")
        Path("d.md").write_text("d")
        corpus = Corpus.open(".")
        assert {field.name: str(field.type) for field in corpus.schema} == {
            "id": "string",
            "text": "string",
            "n": "double",
            "tags": "string",
            "at": "string",
            "extra": "struct<k: int64>",
            "path": "string",
        }
        nothing = dict.fromkeys(["n", "tags", "at", "extra", "path"])
        assert documents(corpus) == [
            nothing | {"id": "0", "text": "p", "n": 1.0, "tags": '["x"]', "at": "1970-01-01"},
            nothing | {"id": "1", "text": "j", "n": 2.5, "tags": '["y", 1]', "extra": {"k": 1}},
            nothing | {"id": "2", "text": "c", "n": 3.0, "tags": "007", "at": "soon"},
            nothing | {"id": "d.md", "text": "d", "path": str(Path("d.md").absolute())},
        ]

    def test_a_file_name_that_equals_a_row_number(self) -> None:
        write_jsonl(Path("a.jsonl"), [{"text": "x"}])
        give = Path("0.txt")
        give.write_text("t")
        assert [row["id"] for row in documents(Corpus.open("."))] == ["0.txt", "1"]

    def test_every_table_needs_the_columns(self) -> None:
        write_jsonl(Path("a.jsonl"), [{"text": "x"}])
        write_jsonl(Path("b.jsonl"), [{"txt": "x"}])
        with pytest.raises(CorpusError, match=r'^b\.jsonl has no column "text"; did you mean "txt"\?'):
            Corpus.open(["a.jsonl", "b.jsonl"])
        Path("b.jsonl").write_text("")
        assert Corpus.open(["a.jsonl", "b.jsonl"]).rows == 1

    @pytest.mark.parametrize(
        ("make", "named", "message"),
        [
            (lambda: None, "x.parquet", "no such file: x.parquet"),
            (lambda: None, "", 'no such file: "" (the name is empty)'),
            (
                lambda: Path("empty").mkdir(),
                "empty",
                "empty: no file there can be read as a corpus; read are .parquet, .pq, ",
            ),
            (lambda: Path("d.parquet").mkdir(), "d.parquet", "d.parquet: no file there can be read as a corpus; read"),
            (lambda: Path("x.docx").touch(), "x.docx", "x.docx: the ending .docx is not one of a corpus; read are "),
            (lambda: Path("x").touch(), "x", "x: a name without an ending is not one of a corpus; read are "),
            (lambda: Path("l.txt").symlink_to("gone"), "l.txt", "l.txt is a broken link (to gone)"),
            (lambda: Path("l.txt").symlink_to("gone"), ".", "l.txt is a broken link (to gone)"),
            (lambda: Path("l.txt").symlink_to("l.txt"), "l.txt", "l.txt is a broken link (to l.txt)"),
            (lambda: Path("x.llmindex").mkdir(), "x.llmindex", "x.llmindex is an index, not a corpus"),
            (lambda: Path("x.parquet").touch(), "x.parquet", "cannot read x.parquet: it is empty (0 bytes)"),
            (lambda: Path("x.jsonl").touch(), "x.jsonl", "x.jsonl is empty: no documents to index"),
            (lambda: Path("x.csv").touch(), "x.csv", "x.csv is empty: it has no header line"),
            (lambda: Path("x.csv").write_text("text\n"), "x.csv", "x.csv is empty: no documents to index"),
            (lambda: Path("a\nb.csv").touch(), "a\nb.csv", "a\\nb.csv is empty: it has no header line"),
            (lambda: Path("x.parquet").write_text("no"), "x.parquet", "cannot read x.parquet: "),
        ],
    )
    def test_sources_that_are_none(self, make: Any, named: str, message: str) -> None:  # noqa: ANN401
        make()
        with pytest.raises(CorpusError) as error:
            Corpus.open([named])
        assert str(error.value).startswith(message)
        assert "\n" not in str(error.value)

    def test_an_empty_text_file_is_a_bad_row(self) -> None:
        Path("x.txt").touch()
        with pytest.raises(CorpusError, match=r"^x\.txt has no usable text: 1 row, all bad \(1 empty\)$"):
            list(Corpus.open("x.txt").windows(10))

    def test_no_permission(self, monkeypatch: pytest.MonkeyPatch) -> None:
        write_jsonl(Path("x.jsonl"), [{"text": "x"}])

        def refuse(*_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(Path, "open", refuse)
        with pytest.raises(CorpusError, match=r"^cannot read x\.jsonl: Permission denied$"):
            Corpus.open("x.jsonl")

    def test_not_a_regular_file(self) -> None:
        with pytest.raises(CorpusError, match=r"^/dev/null is not a regular file; pipe it in"):
            Corpus.open("/dev/null")

    def test_no_source(self) -> None:
        with pytest.raises(UsageError, match="no corpus named"):
            Corpus.open([])

    def test_columns_of_plain_text(self) -> None:
        Path("a.txt").write_text("x")
        with pytest.raises(CorpusError, match=r'^a\.txt has no column "body": plain text has no columns$'):
            Corpus.open("a.txt", CorpusOptions(text_columns=("body",)))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_devices_in_a_folder_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("hello")
    os.mkfifo(tmp_path / "b.txt")
    (tmp_path / "c.txt").symlink_to("/dev/zero")
    with Corpus.open(tmp_path) as corpus:
        assert [window.table.column("text").to_pylist() for window in corpus.windows(9)] == [["hello"]]
    assert "ignored 2 files" in caplog.text


def test_closed_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(CorpusError, match="stdin is closed"):
        Corpus.open("-")
