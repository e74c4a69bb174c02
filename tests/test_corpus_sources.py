"""Where a corpus comes from: files, folders, globs and standard input become one, and what is none of them is named."""

import bz2
import gzip
import inspect
import io
import json
import lzma
import os
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.corpus import Corpus, CorpusOptions
from llmindex.errors import CorpusError, StorageError, UsageError
from llmindex.progress import Progress
from tests.corpus_samples import documents, write_jsonl


def give_stdin(monkeypatch: pytest.MonkeyPatch, content: bytes) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))


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
            "sound.wav",
            "c.llmindex/vectors/part.parquet",
        ):
            path = Path("notes", name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"I am {name}")
        index = Path("notes/index")
        (index / "vectors").mkdir(parents=True)
        (index / "manifest.json").write_text("{}")
        (index / "vectors" / "part-00000.parquet").touch()
        (index / "readme.txt").write_text("of an index")
        corpus = Corpus.open("notes")
        found = documents(corpus)
        assert [(row["id"], row["text"]) for row in found] == [("a/z.md", "I am a/z.md"), ("b.txt", "I am b.txt")]
        assert found[1]["path"] == str(Path("notes/b.txt").absolute())
        assert corpus.name == "notes"
        assert [record.getMessage() for record in caplog.records] == [
            "notes: ignored 2 files of another kind than is read (notes/picture.png, ...)"
        ]

    def test_a_manifest_and_vectors_of_something_else_make_no_index(self) -> None:
        (Path("app") / "vectors").mkdir(parents=True)
        Path("app/manifest.json").write_text('{"name": "My web app"}')
        Path("app/vectors/about.md").write_text("drawings")
        assert [row["id"] for row in documents(Corpus.open("."))] == ["app/vectors/about.md"]
        assert [row["id"] for row in documents(Corpus.open("app"))] == ["vectors/about.md"]

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
        assert corpus.name == Path.cwd().name
        assert Corpus.open(["*"]).rows == 3
        with pytest.raises(CorpusError, match=r"^no such file: \*\.zip \(the pattern matches nothing\)$"):
            Corpus.open(["*.zip"])

    @pytest.mark.parametrize("pattern", ["*", "*/", "**/*.txt", "*/*/*.txt", "[a-z]*/vectors/*", "./*"])
    def test_an_index_that_a_glob_comes_across_is_no_part_of_the_corpus(self, pattern: str) -> None:
        for name in ("notes/vectors/a.txt", "notes.llmindex/vectors/b.txt", "other/vectors/part-00000.parquet"):
            Path(name).parent.mkdir(parents=True)
            Path(name).write_text(name)
        Path("other/manifest.json").write_text("{}")
        Path("other/vectors/c.txt").write_text("beside a shard")
        for each in (pattern, str(Path.cwd() / pattern)):
            assert [row["text"] for row in documents(Corpus.open(each))] == ["notes/vectors/a.txt"]

    def test_a_glob_inside_an_index_is_meant(self) -> None:
        Path("notes.llmindex/mine").mkdir(parents=True)
        Path("notes.llmindex/mine/a.txt").write_text("x")
        assert Corpus.open("notes.llmindex/m*/*.txt").rows == 1

    @pytest.mark.parametrize(
        ("pattern", "ids"),
        [
            ("g/*/*.txt", ["x/1.txt", "z/2.txt"]),
            ("g/**/*.txt", ["x/1.txt", "z/2.txt"]),
            ("g/x/[y-z]/../1.txt", ["1.txt"]),
            ("g/[z]/2.txt", ["z/2.txt"]),
            ("*/z/*.txt", ["g/z/2.txt"]),
            ("g/away/../[0-9]/*", ["2/n.txt"]),
            ("g/a*/../2/*", ["../o/2/n.txt"]),
        ],
    )
    def test_globs_of_text_files(self, pattern: str, ids: list[str]) -> None:
        for name in ("g/x/1.txt", "g/z/2.txt", "g/x/y/no", "o/2/n.txt", "o/far/no"):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(name)
        Path("g/away").symlink_to(Path("o/far").absolute())
        for each in (pattern, str(Path(pattern).absolute())):
            assert [row["id"] for row in documents(Corpus.open(each))] == ids

    def test_what_is_above_a_link_is_above_where_it_leads(self) -> None:
        for name in ("g/x/1.txt", "g/z/2.txt"):
            Path(name).parent.mkdir(parents=True)
            Path(name).write_text(name)
        Path("link").symlink_to("g/x")
        Path("g/z/same.txt").symlink_to(Path("g/x/1.txt").absolute())
        for source in ("link/../z", "link/../z/*.txt"):
            found = documents(Corpus.open(source))
            assert [(row["id"], row["text"]) for row in found] == [("2.txt", "g/z/2.txt"), ("same.txt", "g/x/1.txt")]
            assert found[1]["path"] == str(Path("g/z/same.txt").absolute())
        assert Corpus.open("link/../z").name == "z"
        assert documents(Corpus.open("link/../z/2.txt"))[0]["id"] == "2.txt"
        assert documents(Corpus.open("link/1.txt"))[0]["path"] == str(Path("link/1.txt").absolute())

    def test_a_file_whose_name_looks_like_a_glob(self) -> None:
        write_jsonl(Path("[a].jsonl"), [{"text": "x"}])
        assert Corpus.open("[a].jsonl").rows == 1
        Path("[b]").mkdir()
        Path("[b]/c.txt").write_text("x")
        for source in ("[b]", "[b]/c.txt"):
            assert documents(Corpus.open(source))[0]["id"] == "c.txt"

    def test_a_file_named_twice_is_read_once(self, caplog: pytest.LogCaptureFixture) -> None:
        write_jsonl(Path("a.jsonl"), [{"text": "x"}])
        assert Corpus.open(["a.jsonl", ".", str(Path("a.jsonl").absolute())]).rows == 1
        assert "named more than once, read once: 2 files" in caplog.text

    def test_links_to_folders_are_followed_once(self, caplog: pytest.LogCaptureFixture) -> None:
        Path("real").mkdir()
        Path("real/a.txt").write_text("x")
        Path("real/loop").symlink_to(Path("real").absolute())
        Path("real/other").symlink_to(Path("real").absolute())
        for source in ("real", "real/**", "real/**/*.txt", "**/*.txt", str(Path("real/**/*.txt").absolute())):
            assert Corpus.open(source).rows == 1
            assert documents(Corpus.open(source))[0]["path"] == str(Path("real/a.txt").absolute())
        assert not caplog.records

    def test_folders_may_be_deeper_than_the_stack(self) -> None:
        Path(*"d" * 400).mkdir(parents=True)
        Path(*"d" * 400, "a.txt").write_text("x")
        before = sys.getrecursionlimit()
        sys.setrecursionlimit(len(inspect.stack()) + 250)
        try:
            for source in ("d", "d/**/*.txt"):
                assert Corpus.open(source).rows == 1
        finally:
            sys.setrecursionlimit(before)

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
        # Cut at its line ends, most of it would be no UTF-8, and some of it documents.
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("d.txt", "text")
        for packed, tool in (
            (gzip.compress(b"text"), "zcat"),
            (pa.compress(b"text", "zstd", asbytes=True), "zstdcat"),
            (lzma.compress(b"text"), "xzcat"),
            (bz2.compress(b"text"), "bzcat"),
            (zipped.getvalue(), "`unzip -p`"),
        ):
            give_stdin(monkeypatch, packed)
            with pytest.raises(CorpusError, match=rf"^stdin is compressed; unpack it on the way in, with {tool}$"):
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
            (lambda: Path("x.jsonl").touch(), "x.jsonl", "x.jsonl is empty: there are no documents in it"),
            (lambda: Path("x.csv").touch(), "x.csv", "x.csv is empty: it has no header line"),
            (lambda: Path("x.csv").write_text("text\n"), "x.csv", "x.csv is empty: there are no documents in it"),
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
