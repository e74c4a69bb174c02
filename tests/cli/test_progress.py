import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmindex.progress import Progress
from llmindex_cli.progress import LineMeter

ENCODE = "encode: 300 of 1,000 documents, 15 documents/s, 600 tokens/s, 46.7 s left"


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def meter() -> tuple[LineMeter, Clock, list[str]]:
    clock, lines = Clock(), list[str]()
    return LineMeter(lines.append, clock), clock, lines


def test_a_line_every_ten_seconds() -> None:
    show, clock, lines = meter()
    for second in range(21):
        clock.now = 100.0 + second
        show(Progress("encode", second * 15, 1000, tokens=second * 600))
    assert len(lines) == 2
    assert lines[1] == ENCODE


def test_rates_leave_out_what_an_earlier_run_did() -> None:
    show, clock, lines = meter()
    show(Progress("encode", 900, 1000, fresh=0))
    clock.now += 10
    show(Progress("encode", 950, 1000, fresh=50))
    assert lines == ["encode: 950 of 1,000 documents, 5.0 documents/s, 10.0 s left"]


def test_slow_work_has_a_rate_too() -> None:
    show, clock, lines = meter()
    show(Progress("train", 0, 30, "steps"))
    clock.now += 25
    show(Progress("train", 1, 30, "steps"))
    assert lines == ["train: 1 of 30 steps, 0.04 steps/s, 12 min 5 s left"]


def test_a_stage_that_took_a_second_gets_a_closing_line() -> None:
    show, clock, lines = meter()
    show(Progress("scan", 0, None, unit="files"))
    show(Progress("scan", 3, None, unit="files"))
    show(Progress("encode", 0, 100))
    clock.now += 4
    show(Progress("encode", 100, 100))
    show(Progress("index", 0, 100, unit="vectors"))
    show.finish()
    assert lines == ["encode: 100 of 100 documents, 25 documents/s, took 4.0 s"]


def test_a_quick_stage_after_a_slow_start_gets_no_line() -> None:
    show, clock, lines = meter()
    clock.now += 15  # a model was loaded
    show(Progress("encode", 2, 2))
    show.finish()
    assert lines == []


def test_nothing_to_report_is_nothing_written() -> None:
    show, _, lines = meter()
    show.finish()
    assert lines == []


SHOW = """
import click
from llmindex.progress import Progress
from llmindex_cli.main import root
from llmindex_cli import prompts
def work(as_json):
    import logging, time
    from llmindex_cli.console import print_json
    from llmindex_cli.progress import progress
    with progress() as show:
        if show is None:
            click.echo("quiet"); return
        time.sleep(1)
        if as_json:
            return
        for done in range(0, 101, 50):
            show(Progress("[red]scan", done, 100))
        logging.getLogger("llmindex").warning("lifted")
        print_json({"result": 1})
        show(Progress("encode", 5, None, unit="files"))
        for done in range(3):
            time.sleep(0.1)
            show(Progress("train", done, 60, "steps", tokens=done * 900, detail="score 0.5551, loss 3.108, lr 2.0e-04"))
prompts.command.callback = work
from llmindex_cli.main import main
import sys
sys.exit(main(sys.argv[1:]))
"""


def on_a_terminal(*arguments: str, columns: int = 100, stdout: IO[bytes] | None = None) -> str:
    ours, theirs = pty.openpty()
    running = subprocess.Popen(
        [sys.executable, "-c", SHOW, *arguments],
        env=os.environ | {"TERM": "xterm", "COLUMNS": str(columns)},
        stdin=theirs,
        stdout=stdout or theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # what Linux says when the other side has closed
            break
        if not chunk:
            break
        written += chunk
    os.close(ours)
    assert running.wait(timeout=60) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


def test_a_terminal_gets_a_bar_and_log_lines_above_it() -> None:
    written = on_a_terminal("prompts")
    assert "[red]scan" in written
    assert re.search(r"100( of |/)100", written)
    assert "5 files" in written
    assert "Warning: lifted" in written
    assert '{"result": 1}' in written


def test_results_go_to_standard_output_while_a_bar_is_shown(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out:
        written = on_a_terminal("prompts", stdout=out)
    assert (tmp_path / "out").read_text() == '{"result": 1}\n'
    assert "result" not in written
    assert "5 files" in written


def test_a_terminal_sees_a_sign_of_life_before_there_is_anything_to_report() -> None:
    for arguments in (("prompts",), ("prompts", "--json")):
        assert "starting" in on_a_terminal(*arguments)


def test_a_long_line_leaves_the_stages_their_names_and_bars() -> None:
    lines = re.split(r"[\r\n]+", on_a_terminal("prompts", columns=80))
    long = [line.rstrip() for line in lines if "loss" in line]
    assert long
    assert all(re.match(r"train +[━╸╺]{5,} 2/60, .* left, score 0.5551, loss 3.108, ", line) for line in long)
    assert all(len(line) <= 80 for line in lines)
    assert not any(re.match(r"encode +5 files", line) for line in lines)


WHEN_SHOWN = """
import sys
import llmindex_cli.progress
def progress():
    print("torch is loaded" if "torch" in sys.modules else "first of all")
    sys.exit()
llmindex_cli.progress.progress = progress
from llmindex_cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["attention", "a text", "--plot", "a.png"],
        ["evaluate", "clustering", "labelled.parquet"],
        ["evaluate", "clustering", "labelled.parquet", "--baseline", "default-base"],
        ["evaluate", "mteb", "Banking77Classification"],
        ["export", "default", "-o", "exported"],
        ["mine", "pairs.parquet", "-i", "a.llmindex", "-o", "mined.parquet"],
        ["sweep", "labelled.parquet"],
    ],
)
def test_progress_begins_before_torch_is_loaded(arguments: list[str], tmp_path: Path) -> None:
    for name, columns in (("labelled", ("text", "label")), ("pairs", ("text", "text_pair"))):
        pq.write_table(pa.table({column: ["a b", "c d"] for column in columns}), tmp_path / f"{name}.parquet")
    called = [sys.executable, "-c", WHEN_SHOWN, *arguments]
    ended = subprocess.run(called, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.stderr) == ("first of all\n", "")


def test_quiet_shows_no_progress() -> None:
    assert on_a_terminal("-q", "prompts").strip() == "quiet"


def test_progress_goes_to_standard_error() -> None:
    ended = subprocess.run([sys.executable, "-c", SHOW, "prompts"], capture_output=True, text=True, check=True)
    assert ended.stdout == '{"result": 1}\n'
    assert ended.stderr == "Warning: lifted\n"
