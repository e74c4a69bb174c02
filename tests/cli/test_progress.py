import os
import pty
import re
import sys
from pathlib import Path

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
    from llmindex_cli.progress import progress
    with progress() as show:
        if show is None:
            click.echo("quiet"); return
        for done in range(0, 101, 50):
            show(Progress("[red]scan", done, 100))
        logging.getLogger("llmindex").warning("lifted")
        show(Progress("encode", 5, None, unit="files"))
prompts.command.callback = work
from llmindex_cli.main import main
import sys
sys.exit(main(sys.argv[1:]))
"""


def on_a_terminal(*arguments: str) -> str:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm", COLUMNS="100")
        os.execv(sys.executable, [sys.executable, "-c", SHOW, *arguments])
    written = b""
    while True:
        try:
            chunk = os.read(terminal, 65536)
        except OSError:
            break
        if not chunk:
            break
        written += chunk
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(terminal)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", written.decode())


def test_a_terminal_gets_a_bar_and_log_lines_above_it() -> None:
    written = on_a_terminal("prompts")
    assert "[red]scan" in written
    assert "100 of 100 documents" in written
    assert "5 files" in written
    assert "Warning: lifted" in written


def test_quiet_shows_no_progress() -> None:
    assert on_a_terminal("-q", "prompts").strip() == "quiet"


def test_progress_goes_to_standard_error(tmp_path: Path) -> None:
    import subprocess

    ended = subprocess.run([sys.executable, "-c", SHOW, "prompts"], capture_output=True, text=True, check=True)
    assert ended.stdout == ""
    assert ended.stderr == "Warning: lifted\n"
