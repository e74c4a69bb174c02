import json
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from llmindex_cli.console import Column, count, cut, duration, json_safe, one_line, plain, print_table, size


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("two\n\n  lines\tand more", "two lines and more"),
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]0;title\x07after", "after"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("a\x9b2Jb", "ab"),
        ("bell\x07 back\x08 nul\x00", "bell back nul"),
        ("[bold]no markup[/bold]", "[bold]no markup[/bold]"),
        ("right\u202eto left", "rightto left"),
        ("emoji 👩\u200d💻 stays", "emoji 👩\u200d💻 stays"),
        ("line\u2028separator", "line separator"),
    ],
)
def test_plain(text: str, shown: str) -> None:
    assert plain(text) == shown


@given(st.text(alphabet=st.characters()))
def test_plain_text_is_one_line_without_controls(text: str) -> None:
    shown = plain(text)
    assert not any(unicodedata.category(character) in ("Cc", "Zl", "Zp", "Cs") for character in shown)
    assert len(shown.splitlines()) <= 1


@given(st.text(), st.integers(4, 40))
def test_cut_text_fits(text: str, width: int) -> None:
    assert cell_len(cut(plain(text), width)) <= width


def test_cut_keeps_what_fits_and_counts_wide_characters() -> None:
    assert cut("short", 5) == "short"
    assert cut("日本語テキスト", 14) == "日本語テキスト"
    assert cell_len(cut("日本語テキスト", 13)) <= 13


def test_one_line_shows_controls_as_escapes() -> None:
    assert one_line("a\n  b\x1b[1m\u202e") == "a b\\x1b[1m\\u202e"


COLUMNS = [
    Column("rank", align="right"),
    Column("score", align="right"),
    Column("id", fit="quarter"),
    Column("text", fit="rest"),
]


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("fit", ["quarter", "most"])
@pytest.mark.parametrize("text", ["x" * 1000, "長い" * 500, "short", "a\nb\x1b[2J" * 99])
def test_table_fits_the_width(
    width: int,
    fit: Literal["quarter", "most"],
    text: str,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    columns = [column._replace(fit=fit) if column.title == "id" else column for column in COLUMNS]
    print_table(columns, [["1", "0.9000", "an-id-that-is-quite-long-" * 3, text], ["10", "-0.1", "b", "t"]])
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 3
    assert all(cell_len(line) <= width for line in lines)
    assert lines[2].startswith("  10    -0.1  b")


def test_a_column_takes_most_of_the_line_where_it_has_to_be_read_whole(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    uuid = "123e4567-e89b-12d3-a456-426614174000"
    print_table(
        [column._replace(fit="most") if column.title == "id" else column for column in COLUMNS],
        [["1", "0.9", uuid, "x " * 99]],
    )
    line = capfd.readouterr().out.splitlines()[1]
    assert uuid in line
    assert line.endswith("x…")
    assert cell_len(line) <= 80


def test_table_is_120_wide_and_plain_where_there_is_no_terminal(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    print_table([Column("text", fit="rest")], [["word " * 100]])
    out = capfd.readouterr().out
    assert len(out.splitlines()[1]) in range(110, 121)
    assert "\x1b" not in out


def test_open_columns_are_never_cut(capfd: pytest.CaptureFixture[str]) -> None:
    print_table([Column("a"), Column("b", fit="open")], [["1", "x" * 5000]])
    assert "x" * 5000 in capfd.readouterr().out


@pytest.mark.parametrize(("first", "indent"), [("short", 7), ("x" * 50, 4)])
def test_on_a_terminal_open_columns_go_on_below(
    first: str, indent: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    path = "/a" * 60
    print_table([Column("a"), Column("b", fit="open")], [[first, "word " * 50], ["1", path], ["2", "b"]])
    _, *lines = capfd.readouterr().out.splitlines()
    whole = [line for line in lines if path not in line]
    assert all(cell_len(line) <= 80 for line in whole)
    assert sum(line.count("word") for line in lines) == 50
    assert {len(line) - len(line.lstrip()) for line in lines if line.startswith(" ")} == {indent}
    assert [line.split()[-1] for line in lines if path in line] == [path]
    assert lines[-1] == f"2{' ' * (len(first) + 1)}b"


@pytest.mark.parametrize(
    ("value", "safe"),
    [
        (float("nan"), None),
        (float("-inf"), None),
        (np.float32(0.5), 0.5),
        (np.int64(7), 7),
        (True, True),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 12, tzinfo=UTC), "2024-02-29T12:00:00+00:00"),
        (time(1, 2, 3), "01:02:03"),
        (timedelta(minutes=1), 60.0),
        (Decimal("1.10"), "1.10"),
        (b"\x00\xff", "AP8="),
        ([("key", 1)], [["key", 1]]),
        ({"a": {1: [float("nan")]}}, {"a": {"1": [None]}}),
        (np.array([[1, 2]]), [[1, 2]]),
    ],
)
def test_json_safe(value: object, safe: object) -> None:
    assert json_safe(value) == safe


ARROW = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary() | st.dates() | st.decimals(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(ARROW)
def test_json_safe_values_are_json(value: object) -> None:
    json.dumps(json_safe(value), allow_nan=False)


def _printed(value: object, encoding: str) -> bytes:
    code = f"from llmindex_cli.console import print_json; print_json({value!r})"
    return subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONIOENCODING": encoding}, capture_output=True, check=True
    ).stdout


def test_json_is_utf8_on_any_terminal_and_has_no_raw_controls() -> None:
    raw = _printed({"text": "né\x9b2J \x1b[0m"}, "ascii")
    assert raw == b'{"text": "n\xc3\xa9\\u009b2J \\u001b[0m"}\n'
    assert json.loads(raw) == {"text": "né\x9b2J \x1b[0m"}


def test_a_terminal_that_lacks_a_character_gets_a_question_mark() -> None:
    code = (
        "from llmindex_cli import main, console; main._make_output_lenient();"
        "console.print_table([console.Column('text', fit='rest')], [['n\\u00e9 ' * 100]])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONIOENCODING": "ascii"}, capture_output=True, check=True
    )
    assert ended.stdout.startswith(b"text\nn? n?")
    assert ended.stdout.endswith(b"...\n")


@pytest.mark.parametrize(
    ("function", "value", "said"),
    [
        (duration, 4.21, "4.2 s"),
        (duration, 59.96, "60.0 s"),
        (duration, 185, "3 min 5 s"),
        (duration, 7800, "2 h 10 min"),
        (size, 512, "512 B"),
        (size, 1_500_000, "1.5 MB"),
        (size, 3e13, "30.0 TB"),
    ],
)
def test_numbers_as_people_say_them(function: Callable[[float], str], value: float, said: str) -> None:
    assert function(value) == said


def test_count() -> None:
    assert [count(n, "documents") for n in (0, 1, 12288)] == ["0 documents", "1 document", "12,288 documents"]
