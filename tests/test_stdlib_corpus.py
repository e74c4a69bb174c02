import inspect
import json
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scripts import stdlib_corpus
from scripts.stdlib_corpus import Entry

SOURCE = '''
"""What this made-up module is for, at some length."""
import sys
raise RuntimeError("imported")

def outer():
    """A function of the module, documented at some length."""
    def inner():
        """A function that nobody outside can call, documented."""

def outer():
    """A second definition of the same name, documented too."""

if sys.platform == "win32":
    class Window:
        """A class that is there on one platform alone.

            Indented.
        Not indented.
        """
        async def open(self):
            """A coroutine method, which is a method all the same."""
        def _close(self):
            """A private method, documented at some length."""
        def twin(self):
            """A function of the module, documented at some length."""
        def brief(self):
            """Too short."""
'''


def run(*arguments: str | Path) -> pa.Table:
    """The file that the script writes."""
    subprocess.run([sys.executable, stdlib_corpus.__file__, *arguments], check=True, capture_output=True)
    output = Path(arguments[1])
    assert [path.name for path in output.parent.iterdir()] == [output.name]
    return pq.read_table(output)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> pa.Table:
    return run("-o", tmp_path_factory.mktemp("whole") / "stdlib.parquet")


def test_it_holds_the_installed_library(corpus: pa.Table) -> None:
    rows = {row["id"]: row for row in corpus.to_pylist()}
    assert corpus.column_names == ["id", "module", "name", "kind", "text"]
    assert len(rows) == corpus.num_rows >= 2_000
    assert len(set(corpus["text"].to_pylist())) == corpus.num_rows
    assert rows["json.dumps"] == {
        "id": "json.dumps",
        "module": "json",
        "name": "dumps",
        "kind": "function",
        "text": inspect.getdoc(json.dumps),
    }
    assert rows["json"]["text"] == inspect.getdoc(json)
    assert rows["json.encoder.JSONEncoder"]["kind"] == "class"
    assert rows["json.encoder.JSONEncoder.default"]["kind"] == "method"


def test_it_leaves_out_what_nobody_would_search_for(corpus: pa.Table) -> None:
    ids = [name.split(".") for name in corpus["id"].to_pylist()]
    assert not {parts[0] for parts in ids} & {"test", "idlelib", "turtledemo"}
    assert not [parts for parts in ids if any(part.startswith("_") for part in parts)]
    assert min(map(len, corpus["text"].to_pylist())) >= stdlib_corpus.MIN_CHARACTERS


def test_a_limit_spreads_over_the_modules(corpus: pa.Table) -> None:
    rows = [Entry(**row) for row in corpus.to_pylist()]
    some = stdlib_corpus.spread(rows, 600)
    assert len(some) == 600
    assert {row.module for row in some} == {row.module for row in rows}
    assert some == [row for row in rows if row in set(some)]


def test_modules_are_read_and_not_run(tmp_path: Path) -> None:
    for name in ("made/up.py", "made/__init__.py", "test/up.py", "_private.py", "config-3/up.py"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(SOURCE if name == "made/up.py" else '"""Some words about it, that are long enough."""')
    assert [(entry.id, entry.kind) for entry in stdlib_corpus.entries(tmp_path)] == [
        ("made", "module"),
        ("made.up", "module"),
        ("made.up.outer", "function"),
        ("made.up.Window", "class"),
        ("made.up.Window.open", "method"),
    ]
    window = stdlib_corpus.entries(tmp_path)[3]
    assert (window.module, window.name) == ("made.up", "Window")
    assert window.text == "A class that is there on one platform alone.\n\n    Indented.\nNot indented."


def test_modules_come_before_what_they_hold() -> None:
    names = ["a.A.x", "a.A", "a", "b.f", "b", "c"]
    rows = [Entry(n, n[0], n[2:] or n, "module" if len(n) == 1 else "", "") for n in names]
    assert [[row.id for row in stdlib_corpus.spread(rows, limit)] for limit in (2, 4, 5, 6, 9)] == [
        ["a", "b"],
        ["a.A", "a", "b", "c"],
        ["a.A", "a", "b.f", "b", "c"],
        names,
        names,
    ]


def test_a_limit_below_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        run("-o", tmp_path / "none.parquet", "--limit", "0")
    assert error.value.returncode == 2
    assert b"--limit must be at least 1" in error.value.stderr
