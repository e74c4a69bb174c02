"""A corpus gives the same documents in the same windows, whatever the format and however often it is interrupted."""

import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmindex.corpus import Corpus, Position, Window, arrow_tables, source, window
from llmindex.errors import CorpusError, UsageError
from tests.corpus_samples import Row, write_jsonl


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
    @settings(max_examples=60)
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
