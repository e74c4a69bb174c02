"""How the tests here run the command line: in this process where that is enough, else as a real process."""

import logging
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import pytest

from llmindex_cli import console, progress
from llmindex_cli.main import main


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    code: int
    out: str
    err: str


Llmindex = Callable[..., Ended]


@pytest.fixture(autouse=True)
def _logging_stays_here() -> Iterator[None]:
    """Runs in this process set up logging; the tests after these want none of it."""
    yield
    root = logging.getLogger()
    for handler in root.handlers:
        if type(handler).__module__.startswith("llmindex_cli"):
            root.removeHandler(handler)
    root.setLevel(logging.WARNING)
    for library in console.LIBRARIES:
        logging.getLogger(library).setLevel(logging.NOTSET)


@pytest.fixture
def llmindex(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Llmindex:
    """Run a command line in this process; a stage that takes long, as on a busy machine, leaves no line about it."""
    monkeypatch.setattr(progress, "WORTH_A_LINE_S", math.inf)
    monkeypatch.setattr(progress, "LINE_EVERY_S", math.inf)
    monkeypatch.delenv("LLMINDEX_INDEX", raising=False)
    monkeypatch.delenv("LLMINDEX_DEBUG", raising=False)

    def run(*arguments: str | Path) -> Ended:
        capfd.readouterr()
        code = main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return Ended(code, out, err)

    return run


def environment(env: Mapping[str, str]) -> dict[str, str]:
    """The variables of a command line that runs as a process of its own."""
    here = Path(__file__).parents[2]
    settings = {key: value for key, value in os.environ.items() if not key.startswith("LLMINDEX_")}
    folders = ":".join(str(here / folder) for folder in ("", "cli", "training"))
    settings |= {"PYTHONPATH": folders, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return settings | {"LLMINDEX_NO_DAEMON": "1", **env}


def start(
    *arguments: str | Path, cwd: Path, env: Mapping[str, str] | None = None, stdin: int = subprocess.DEVNULL
) -> "subprocess.Popen[bytes]":
    """Start a command line as a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "llmindex_cli", *map(str, arguments)],
        cwd=cwd,
        env=environment(env or {}),
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.fixture
def process(tmp_path: Path) -> Llmindex:
    """Run a command line as a process of its own, in an empty directory unless told another."""

    def run(
        *arguments: str | Path, cwd: Path = tmp_path, env: Mapping[str, str] | None = None, stdin: bytes | None = None
    ) -> Ended:
        running = start(*arguments, cwd=cwd, env=env, stdin=subprocess.DEVNULL if stdin is None else subprocess.PIPE)
        out, err = running.communicate(stdin, timeout=180)
        return Ended(running.returncode, out.decode(), err.decode())

    return run


TEMPLATES = [
    "The striker scored goal number {} in the last minute of the match.",
    "Parliament voted {} times on the budget before the summer recess.",
    "A telescope of {} metres found water on a distant planet.",
]


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Parquet corpus of 120 documents on three topics, with a column of every kind that JSON lacks."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    count = 120
    numbers = range(count)
    table = pa.table(
        {
            "id": [f"doc-{number}" for number in numbers],
            "text": [TEMPLATES[number % 3].format(number) for number in numbers],
            "year": pa.array(numbers, pa.int16()),
            "ratio": [float("nan")] * count,
            "price": [Decimal("1.50")] * count,
            "when": pa.array([datetime(2024, 2, 29, 12, tzinfo=UTC)] * count, pa.timestamp("us", "UTC")),
            "blob": [b"\x00\xff"] * count,
            "tags": [["a", None]] * count,
        }
    )
    path = tmp_path_factory.mktemp("documents") / "documents.parquet"
    pq.write_table(table, path)
    return path


@pytest.fixture(scope="session")
def built(documents: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index of the documents; tests only read it."""
    path = tmp_path_factory.mktemp("built") / "documents.llmindex"
    code = main(["-q", "build", str(documents), "-o", str(path), "--model", str(tiny_model)])
    assert code == 0
    return path


@pytest.fixture
def index(built: Path, tmp_path: Path) -> Path:
    """A copy of that index, to be changed and damaged."""
    return Path(shutil.copytree(built, tmp_path / "copy.llmindex"))
