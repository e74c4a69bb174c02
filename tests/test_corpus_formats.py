"""Each format is read exactly: types lose nothing, and what is broken is found at once and named."""

import datetime
import decimal
import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.corpus import Corpus, CorpusOptions, arrow_tables, lines, plain_text, source
from llmindex.errors import CorpusError


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def documents(name: str, options: CorpusOptions | None = None) -> list[dict[str, Any]]:
    with Corpus.open(name, options or CorpusOptions()) as corpus:
        return [row for window in corpus.windows(1000) for row in window.table.to_pylist()]


def bad_rows(name: str) -> dict[str, int]:
    return dict(list(Corpus.open(name).windows(1000))[-1].position.bad_rows)


def types(name: str) -> dict[str, str]:
    return {field.name: str(field.type) for field in list(Corpus.open(name).schema)[2:]}


def error_of(name: str) -> str:
    with pytest.raises(CorpusError) as error:
        documents(name)
    assert "\n" not in str(error.value)
    return str(error.value)


def compressed(content: bytes, ending: str) -> bytes:
    return gzip.compress(content) if ending == ".gz" else pa.compress(content, codec="zstd", asbytes=True)


class TestCompression:
    @pytest.mark.parametrize("ending", [".gz", ".zst"])
    @pytest.mark.parametrize(
        ("name", "content"),
        [("d.jsonl", b'{"text": "a"}\n'), ("D.CSV", b"text,n\na,1\n"), ("d.tsv", b"text\tn\na\t1\n")],
    )
    def test_is_seen_by_the_ending(self, ending: str, name: str, content: bytes) -> None:
        Path(name + ending).write_bytes(compressed(content, ending))
        assert [row["text"] for row in documents(name + ending)] == ["a"]
        assert Corpus.open(name + ending).name in ("d", "D")

    @pytest.mark.parametrize("ending", [".gz", ".zst"])
    def test_several_streams_in_one_file(self, ending: str) -> None:
        content = compressed(b'{"text": "a"}\n', ending) + compressed(b'{"text": "b"}\n', ending)
        Path("d.jsonl" + ending).write_bytes(content)
        assert [row["text"] for row in documents("d.jsonl" + ending)] == ["a", "b"]

    @pytest.mark.parametrize("ending", [".gz", ".zst"])
    def test_a_truncated_file_is_not_taken_for_a_short_one(self, ending: str) -> None:
        content = compressed(b"".join(b'{"text": "%d"}\n' % number for number in range(9999)), ending)
        Path("d.jsonl" + ending).write_bytes(content[:-20])
        assert error_of("d.jsonl" + ending).startswith(f"cannot read d.jsonl{ending}: Truncated compressed stream")

    def test_a_file_that_is_not_compressed(self) -> None:
        Path("d.csv.gz").write_bytes(b"text\na\n")
        assert error_of("d.csv.gz").startswith("cannot read d.csv.gz: zlib inflate failed")


class TestJsonLines:
    @pytest.mark.parametrize(
        ("values", "type_", "read"),
        [
            ([None, 1], "int64", [None, 1]),
            ([1, 2.5], "double", [1.0, 2.5]),
            ([2**60 + 1, 0.5], "string", [str(2**60 + 1), "0.5"]),
            ([2**63, 1], "string", [str(2**63), "1"]),
            ([True, 1, "x"], "string", ["true", "1", "x"]),
            ([None, None], "null", [None, None]),
            ([{}, {}], "null", [None, None]),
            ([{}, [1]], "string", ["{}", "[1]"]),
            ([{}, {"a": 1}], "struct<a: int64>", [{"a": None}, {"a": 1}]),
            ([[], [1], None], "list<element: int64>", [[], [1], None]),
            ([[1], ["é"]], "list<element: string>", [["1"], ["é"]]),
            ([[{"a": 1}], [{"b": [2.5]}]], None, [[{"a": 1, "b": None}], [{"a": None, "b": [2.5]}]]),
            ([{"a": 1}, {"a": [1]}], "struct<a: string>", [{"a": "1"}, {"a": "[1]"}]),
            ([{"a": 1}, "x"], "string", ['{"a": 1}', "x"]),
            ([{"a": {}}, {"a": None}], "struct<a: null>", [{"a": None}, {"a": None}]),
            (["2020-01-01", "2020-01-02"], "string", ["2020-01-01", "2020-01-02"]),
        ],
        ids=str,
    )
    @pytest.mark.parametrize("files", [1, 2])
    def test_types_cover_all_values(self, values: list[Any], type_: str | None, read: list[Any], files: int) -> None:
        written = [json.dumps({"text": "t", "x": value}, ensure_ascii=False) + "\n" for value in values]
        for number in range(files):
            part = written if files == 1 else written[number : number + 1] if number == 0 else written[number:]
            Path(f"{number}.jsonl").write_text("".join(part), encoding="utf-8")
        assert [row["x"] for row in documents(".")] == read
        assert type_ in (None, types(".")["x"])

    def test_a_type_is_settled_by_the_last_row(self) -> None:
        rows = [{"text": "t", "x": number} for number in range(3000)] + [{"text": "t", "x": "end", "new": 1}]
        Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = documents("d.jsonl")
        assert types("d.jsonl") == {"x": "string", "new": "int64"}
        assert [found[0]["x"], found[-1]["x"], found[0]["new"]] == ["0", "end", None]

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (
                '{"text": "a"',
                "d.jsonl line 3: not valid JSON (Expecting ',' delimiter at column 13); fix or remove the line",
            ),
            ("[1]", "d.jsonl line 3: not a JSON object; JSON Lines needs one object a line"),
            ('"x"', "d.jsonl line 3: not a JSON object; JSON Lines needs one object a line"),
            (f'{{"x": {"9" * 5000}}}', "d.jsonl line 3: JSON beyond what can be read (Exceeds the limit"),
            (f'{{"x": {"[" * 99999}}}', "d.jsonl line 3: JSON beyond what can be read (maximum recursion depth"),
        ],
    )
    def test_a_broken_line_is_found_before_anything_is_read(self, line: str, message: str) -> None:
        Path("d.jsonl").write_text(f'{{"text": "a"}}\n\n{line}\n')
        with pytest.raises(CorpusError) as error:
            Corpus.open("d.jsonl")
        assert str(error.value).startswith(message)

    def test_lines_that_no_text_can_hold_are_bad_rows(self) -> None:
        Path("d.jsonl").write_bytes(
            b'{"text": "good", "x": "\\ud83d\\ude00"}\n'
            b'{"text": "\xff"}\n'
            b'{"text": "lone \\uD83D"}\n'
            b'{"text": "t", "x": ["\\udc00"]}\n'
            b'{"text": "t", "\\udc00": 1}\n'
            b'{"text": "a backslash: \\\\ud83d"}\n'
        )
        assert [row["text"] for row in documents("d.jsonl")] == ["good", "a backslash: \\ud83d"]
        assert documents("d.jsonl")[0]["x"] == "\N{GRINNING FACE}"
        assert bad_rows("d.jsonl") == {"not_utf8": 4}

    def test_deep_and_wide_values_become_text(self) -> None:
        deep = json.loads("[" * 40 + "]" * 40)
        rows = [{"text": "t", "deep": deep, "wide": {f"k{row}_{key}": key for key in range(300)}} for row in range(2)]
        Path("d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = documents("d.jsonl")
        assert types("d.jsonl")["wide"] == "string"
        assert json.loads(found[1]["wide"]) == rows[1]["wide"]
        innermost = found[0]["deep"]
        while isinstance(innermost, list):
            (innermost,) = innermost
        assert json.loads(innermost) == json.loads("[" * 24 + "]" * 24)

    def test_very_deep_values_are_read_or_refused(self) -> None:
        for depth in (500, 900, 990):
            Path("d.jsonl").write_text(f'{{"text": "t", "x": {"[" * depth}{"]" * depth}}}\n')
            try:
                assert len(documents("d.jsonl")) == 1
            except CorpusError as error:
                assert "recursion" in str(error)  # noqa: PT017

    def test_keys_without_end(self) -> None:
        Path("d.jsonl").write_text("".join(f'{{"text": "t", "k{row}": 1}}\n' for row in range(3000)))
        assert (
            error_of("d.jsonl")
            == "d.jsonl line 2,000: more than 2,000 different keys; put them in an object of their own"
        )

    def test_byte_order_mark_blank_lines_and_numbers_beyond_json(self) -> None:
        Path("d.jsonl").write_bytes(b'\xef\xbb\xbf\r\n{"text": "a", "x": NaN}\r\n  \n{"text": "b"}')
        found = documents("d.jsonl")
        assert [row["text"] for row in found] == ["a", "b"]
        assert math.isnan(found[0]["x"])

    def test_bad_rows_are_named_by_line_not_by_row(self) -> None:
        Path("d.jsonl").write_text('\n{"text": "a"}\n\n\n{"text": ""}\n')
        with pytest.raises(CorpusError, match=r"^d\.jsonl line 5: text is empty"):
            documents("d.jsonl", CorpusOptions(on_bad_row="fail"))

    def test_numbers_among_the_texts(self) -> None:
        Path("d.jsonl").write_text('{"id": 1, "text": "a"}\n{"id": "x", "text": 7}\n{"id": 2.50, "text": null}\n')
        assert documents("d.jsonl") == [{"id": "1", "text": "a"}, {"id": "x", "text": "7"}]


class TestCsv:
    @pytest.mark.parametrize(
        ("fields", "type_", "read"),
        [
            (["1", "", "-20"], "int64", [1, None, -20]),
            (["1", "2.5", "1e3"], "double", [1.0, 2.5, 1000.0]),
            (["1", "007"], "string", ["1", "007"]),
            (["007.5"], "string", ["007.5"]),
            ([str(2**63 - 1), "1"], "int64", [2**63 - 1, 1]),
            ([str(2**63)], "string", [str(2**63)]),
            ([str(2**60 + 1), "0.5"], "string", [str(2**60 + 1), "0.5"]),
            (["9" * 5000], "string", ["9" * 5000]),
            (["5", "1e99999999999999999999"], "string", ["5", "1e99999999999999999999"]),
            (["0.5", "-1.5E-99999999999999999999"], "string", ["0.5", "-1.5E-99999999999999999999"]),
            (["0e99999999999999999999"], "string", ["0e99999999999999999999"]),
            (["true", "", "False"], "bool", [True, None, False]),
            (["true", "1"], "string", ["true", "1"]),
            (["", ""], "null", [None, None]),
            (["x", "", " y"], "string", ["x", "", " y"]),
            (["nan", "1.0"], "string", ["nan", "1.0"]),
            (["１"], "string", ["１"]),
        ],
        ids=str,
    )
    def test_types_lose_nothing(self, fields: list[str], type_: str, read: list[Any]) -> None:
        Path("d.csv").write_text("text,x\n" + "".join(f"t,{field}\n" for field in fields), encoding="utf-8")
        assert types("d.csv") == {"x": type_}
        assert [row["x"] for row in documents("d.csv")] == read

    def test_ids_and_texts_stay_as_they_are_written(self) -> None:
        Path("d.csv").write_text("id,text\n1.50,a\n2,b\n")
        assert [row["id"] for row in documents("d.csv")] == ["1.50", "2"]

    def test_records_over_several_lines(self) -> None:
        Path("d.csv").write_text('text,n\n"a\n""b"", c",1\n\n"d",2\n,3\n')
        assert documents("d.csv") == [{"id": "0", "text": 'a\n"b", c', "n": 1}, {"id": "1", "text": "d", "n": 2}]
        with pytest.raises(CorpusError, match=r"^d\.csv line 6: text is empty"):
            documents("d.csv", CorpusOptions(on_bad_row="fail"))

    @pytest.mark.parametrize(
        ("records", "message"),
        [
            ('"a\nb",1\nx\n', "d.csv line 4: 1 field, but the header has 2; fix or remove the line"),
            ("a,1,2\n", "d.csv line 2: 3 fields, but the header has 2; fix or remove the line"),
            ('a,1\n"b,1\nc,1\n', "d.csv line 3: broken CSV (unexpected end of data); fix or remove the line"),
            ('"a"b,1\n', "d.csv line 2: broken CSV (',' expected after '\"'); fix or remove the line"),
            ("a\rb,1\n", "d.csv line 2: broken CSV (new-line character seen in unquoted field"),
        ],
    )
    def test_a_broken_record_is_found_before_anything_is_read(self, records: str, message: str) -> None:
        Path("d.csv").write_bytes(b"text,n\n" + records.encode())
        with pytest.raises(CorpusError) as error:
            Corpus.open("d.csv")
        assert str(error.value).startswith(message)

    @pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
    def test_the_delimiter_is_the_headers(self, delimiter: str) -> None:
        Path("d.csv").write_text(delimiter.join(["text", '"n, of; all"']) + "\n" + delimiter.join(["a", "1"]) + "\n")
        assert documents("d.csv") == [{"id": "0", "text": "a", "n, of; all": 1}]

    def test_a_quote_within_a_header(self) -> None:
        Path("d.csv").write_text('text;15" or more\na, b;1\n')
        assert documents("d.csv") == [{"id": "0", "text": "a, b", '15" or more': 1}]
        Path("d.csv").write_bytes(b'\xef\xbb\xbf"n; ""of;"" all",text\n1,a\n')
        assert documents("d.csv") == [{"id": "0", "text": "a", 'n; "of;" all': 1}]

    def test_one_column(self) -> None:
        Path("d.tsv").write_text("text\na, b; c\n")
        assert documents("d.tsv") == [{"id": "0", "text": "a, b; c"}]

    def test_rows_that_are_not_utf8(self) -> None:
        Path("d.csv").write_bytes(b"\xef\xbb\xbftext,x\r\na,1\r\n\xff,2\r\nb,\xe9\r\nc,3\r\n")
        assert documents("d.csv") == [{"id": "0", "text": "a", "x": 1}, {"id": "3", "text": "c", "x": 3}]
        assert bad_rows("d.csv") == {"not_utf8": 2}
        Path("w.csv").write_bytes("text\nGrün\nGröße\n".encode("cp1252"))
        said = r"all bad \(2 not utf8\); convert it to UTF-8, as `iconv -f cp1252 -t utf-8` does$"
        with pytest.raises(CorpusError, match=said):
            documents("w.csv")

    def test_headers(self) -> None:
        Path("a.csv").write_text(",text\n0,t\n")
        assert documents("a.csv") == [{"id": "0", "text": "t", "column_1": 0}]
        Path("b.csv").write_text("text,text\na,b\n")
        assert error_of("b.csv") == 'b.csv has two columns named "text"; rename one of them'
        Path("c.csv").write_bytes(b"text,\xff\na,b\n")
        assert error_of("c.csv") == "c.csv line 1: the header is not UTF-8; save the file as UTF-8"

    def test_a_long_field(self) -> None:
        Path("d.csv").write_text(f"text,n\n{'a' * 300_000},1\n")
        assert len(documents("d.csv")[0]["text"]) == 300_000


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv", "d.txt"])
def test_no_file_fills_the_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (lines, plain_text):
        monkeypatch.setattr(module, "MAX_DOCUMENT_BYTES", 1 << 20)
    Path(name).write_bytes(b"x" * (1 << 21))
    expected = {"d.txt": "d.txt is too large for one document (2 MB, at most 1); split it"}
    assert error_of(name) == expected.get(name, f"{name} line 1 is longer than 1 MB; split it")


@pytest.mark.parametrize("name", ["d.jsonl", "d.csv"])
def test_utf16(name: str) -> None:
    Path(name).write_text('{"text": "a"}', encoding="utf-16")
    assert error_of(name) == f"{name} is UTF-16; save it as UTF-8"


def test_text_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "CHUNK_ROWS", 2)
    for name, content in [("a.txt", b"\xef\xbb\xbfa\r\n"), ("b.md", b"\xff"), ("c.TXT", b" "), ("d.txt", b"d\n\n")]:
        Path(name).write_bytes(content)
    assert [(row["id"], row["text"]) for row in documents(".")] == [("a.txt", "a\r\n"), ("d.txt", "d\n\n")]
    assert bad_rows(".") == {"not_utf8": 1, "empty": 1}
    with pytest.raises(CorpusError, match=r"^b\.md: not UTF-8; mend it"):
        documents(".", CorpusOptions(on_bad_row="fail"))


class TestParquet:
    def test_types_come_back(self) -> None:
        columns = {
            "list": pa.array([[1], None, []], pa.list_(pa.int16())),
            "struct": pa.array([{"a": 1, "b": ["x"]}, None, {"a": None, "b": None}]),
            "time": pa.array([datetime.datetime(2020, 1, 1), None, None], pa.timestamp("us", "Europe/Berlin")),
            "decimal": pa.array([decimal.Decimal("1.20"), None, None], pa.decimal128(9, 2)),
            "large": pa.array(["l", None, ""], pa.large_string()),
            "bytes": pa.array([b"\xff", None, b""]),
            "map": pa.array([[("k", 1)], None, []], pa.map_(pa.string(), pa.int32())),
            "uuid": pa.array([bytes(16), None, None], pa.uuid()),
            "half": pa.array([np.float16(1.5), None, np.float16(0)], pa.float16()),
            "nothing": pa.nulls(3),
        }
        table = pa.table({"text": ["a", "b", "c"]} | columns)
        pq.write_table(table, "d.parquet")
        for corpus in (Corpus.open("d.parquet"), Corpus.open(table)):
            (window,) = corpus.windows(10)
            for name, column in columns.items():
                assert corpus.schema.field(name).type == column.type, name
                assert window.table.column(name).to_pylist() == column.to_pylist(), name
            pq.write_table(window.table, "out.parquet")
            assert pq.read_table("out.parquet").equals(window.table)

    def test_layouts_that_cannot_be_stored_are_replaced(self) -> None:
        table = pa.table(
            {
                "text": ["a", ""],
                "view": pa.array(["v", "w"], pa.string_view()),
                "views": pa.array([["v"], ["w"]], pa.list_(pa.string_view())),
                "codes": pa.array([7, 8]).dictionary_encode(),
            }
        )
        corpus = Corpus.open(table)
        assert [str(type_) for type_ in corpus.schema.types[2:]] == ["string", "list<element: string>", "int64"]
        (window,) = corpus.windows(10)
        assert window.table.to_pylist() == [{"id": "0", "text": "a", "view": "v", "views": ["v"], "codes": 7}]

    def test_truncated(self) -> None:
        pq.write_table(pa.table({"text": ["a"] * 100}), "d.parquet")
        content = Path("d.parquet").read_bytes()
        for size in (3, 100, len(content) - 1):
            Path("d.parquet").write_bytes(content[:size])
            assert error_of("d.parquet").startswith("cannot read d.parquet: Parquet ")

    def test_damaged_in_the_middle(self) -> None:
        texts = [f"{number * 7919 % 100_003} words" for number in range(20_000)]
        pq.write_table(pa.table({"text": texts}), "d.parquet", compression="zstd", use_dictionary=False)
        content = bytearray(Path("d.parquet").read_bytes())
        content[len(content) // 2 : len(content) // 2 + 200] = bytes(200)
        Path("d.parquet").write_bytes(content)
        assert error_of("d.parquet").startswith("cannot read d.parquet: ")

    def test_a_long_value_of_many_rows_is_in_memory_for_few(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(arrow_tables, "MAX_DOCUMENT_BYTES", 32 << 20)
        long = "a" * (4 << 20)
        texts = pa.DictionaryArray.from_arrays(pa.array([0, 1] * 20), [long, "b"])
        pq.write_table(pa.table({"text": texts}), "a.parquet")
        opened = arrow_tables.ParquetSource(source.SourceFile.found(Path("a.parquet"), "a.parquet"))
        chunks = [chunk.columns["text"].to_pylist() for chunk in opened.chunks(0, pa.schema([("text", pa.string())]))]
        assert max(map(len, chunks)) == 7
        assert [text for chunk in chunks for text in chunk] == [long, "b"] * 20

    def test_a_name_that_is_not_utf8(self) -> None:
        name = b"caf\xe9.parquet".decode(errors="surrogateescape")
        pq.write_table(pa.table({"text": ["a"]}), "d.parquet")
        Path("d.parquet").rename(name)
        Path(name.replace("parquet", "txt")).write_text("b")
        found = documents(".")
        assert [row["text"] for row in found] == ["a", "b"]
        assert found[1]["id"] == "caf\\udce9.txt"
        json.dumps(Corpus.open(".").record).encode()


def test_whole_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    long = (1 << 53) + 1
    rows = [{"text": "a", "mixed": long, "long": long, "deep": [{"n": long}]}, {"text": "b", "mixed": 0.5, "long": 3}]
    (tmp_path / "x.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    first = documents(str(tmp_path / "x.jsonl"))[0]
    assert (first["mixed"], first["long"], first["deep"]) == (str(long), long, [{"n": long}])
    pq.write_table(pa.table({"text": ["a"], "n": [0.5]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["b"], "n": [long]}), tmp_path / "b.parquet")
    with pytest.raises(CorpusError, match=f"whole number {long}"):
        documents(str(tmp_path / "*.parquet"))


def test_csv_numbers_that_a_float_cannot_keep_stay_text(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,price,digits,huge,minus\na,1.10,0.12345678901234567890,1e999,-0\nb,2,1,1,1\n")
    first = documents(str(tmp_path / "x.csv"))[0]
    assert first["price"] == 1.1
    assert (first["digits"], first["huge"], first["minus"]) == ("0.12345678901234567890", "1e999", "-0")


@pytest.mark.parametrize(("content", "said"), [('{"text": 1}', 'column "text" holds int64'), ("\ufeff", "is empty")])
def test_why_a_json_file_has_no_text(content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(content, encoding="utf-8")
    assert said in error_of(str(tmp_path / "x.jsonl"))
