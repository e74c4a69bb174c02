import errno
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest

from llmindex import errors
from llmindex_cli import prompts as prompts_command
from llmindex_cli.errors import explain
from llmindex_cli.main import COMMANDS, main, root
from llmindex_cli.options import Command

from .conftest import Llmindex, environment, start

HEAVY = {"torch", "transformers", "faiss", "hdbscan", "sklearn", "pyarrow", "numpy", "rich"}
NAMES = [name for entries in COMMANDS.values() for name in entries]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from llmindex_cli.main import main; main(['--help']); main(['prompts', '--help']);"
        f"print('heavy:', sorted({HEAVY!r} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in ended.stdout


@pytest.mark.parametrize("name", NAMES)
def test_every_command_explains_itself_without_loading_anything(name: str, llmindex: Llmindex) -> None:
    code = (
        f"import sys; from llmindex_cli.main import main; main([{name!r}, '--help']);"
        f"print('heavy:', sorted({HEAVY - {'numpy'}!r} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in ended.stdout
    assert "Examples:" in ended.stdout
    context = click.Context(root)
    command = root.get_command(context, name)
    assert isinstance(command, Command)
    assert command.name == name
    assert all("llmindex " in line for _, line in command.examples)


def test_help_lists_the_commands_by_section(llmindex: Llmindex) -> None:
    ended = llmindex("--help")
    assert ended.code == 0
    assert [line for line in ended.out.splitlines() if line.rstrip(":") in COMMANDS] == [f"{s}:" for s in COMMANDS]
    assert all(f"\n  {name} " in ended.out for name in NAMES)
    assert ended.out.count("Care of an index:") == 1


def test_no_arguments_show_the_help_and_are_wrong_usage(llmindex: Llmindex) -> None:
    ended = llmindex()
    assert ended.code == 2
    assert "Usage: llmindex" in ended.err


def test_version(llmindex: Llmindex) -> None:
    ended = llmindex("--version")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("llmindex 0.")


def test_module_runs_like_the_script(process: Llmindex) -> None:
    ended = process("--version")
    assert (ended.code, ended.err) == (0, "")
    assert ended.out.startswith("llmindex 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serch", "x"], "No such command 'serch'. Did you mean 'search'?"),
        (["zzz"], "No such command 'zzz'. The commands are build, search,"),
        (["search"], "Missing argument 'QUERY...'"),
        (["search", "x", "--jsn"], "No such option '--jsn'. Did you mean '--json'?"),
        (["search", "x", "-k", "0"], "'-k': 0 is not in the range x>=1"),
        (["search", "x", "-k", "ten"], "'-k': 'ten' is not a valid integer"),
        (["search", "x", "--min-score", "nan"], "'--min-score': nan is not a finite number"),
        (["search", "x", "--min-score", "80"], "'--min-score': 80.0 is not in the range -1<=x<=1"),
        (["build", "x", "--recall", "0"], "'--recall': 0.0 is not in the range 0<x<=1"),
        (["build", "x", "--prompt", "clustr"], 'unknown prompt "clustr"; did you mean "cluster"?'),
        (["build", "x", "--query-prompt", "no place in this"], "does not contain {text}"),
        (["build", "x", "--pooling", "men"], "'--pooling': 'men' is not one of 'last', 'eos', 'mean'"),
        (["build", "x", "--device", "tpu"], "'--device': 'tpu' is none of auto, cpu, cuda, cuda:1, mps"),
        (["build", "x", "--dtype", "int8"], "'--dtype': 'int8' is not one of"),
        (["build", "x", "--max-tokens", "0"], "'--max-tokens': 0 is not in the range x>=1"),
        (["build", "x", "--on-bad-row", "cry"], "'--on-bad-row': 'cry' is not one of 'skip', 'fail'"),
        (["encode", "x", "-o", "vectors.txt"], "'vectors.txt' does not end in .parquet or .npy"),
        (["encode", "x"], "Missing option '-o' / '--output'"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(arguments: list[str], said: str, llmindex: Llmindex) -> None:
    ended = llmindex(*arguments)
    assert (ended.code, ended.out) == (2, "")
    assert ended.err.startswith("Error: ")
    assert said in ended.err
    assert re.search(r"[.?] Try 'llmindex[a-z ]* --help'\.\n$", ended.err)
    assert ended.err.count("\n") == 1


@pytest.mark.parametrize("option", ["-q", "--quiet", "-v", "--verbose"])
def test_a_global_option_after_the_command(option: str, llmindex: Llmindex) -> None:
    ended = llmindex("info", option)
    assert (ended.code, ended.err) == (2, f"Error: {option} goes before the command: llmindex {option} build ...\n")


def raising(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(as_json: bool) -> None:
        raise error

    monkeypatch.setattr(prompts_command.command, "callback", fail)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (errors.CorpusError("x.jsonl: line 3:\n not JSON"), 1, "Error: x.jsonl: line 3: not JSON\n"),
        (errors.UsageError("--dim 999 is too large"), 2, "Error: --dim 999 is too large\n"),
        (errors.ModelError("a\x1b[31mb"), 1, "Error: a\\x1b[31mb\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\n"),
        (KeyboardInterrupt("before the first checkpoint"), 130, "Interrupted: before the first checkpoint\n"),
        (
            errors.BuildInterrupted(12288),
            130,
            "Interrupted: 12,288 documents are stored; run the same command again to go on\n",
        ),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 0, ""),
        (
            MemoryError(),
            1,
            "Error: out of memory: use a smaller model or fewer tokens a text, or a machine with more memory\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left on device", "x.parquet"),
            1,
            "Error: the disk is full (x.parquet): free some space and run the same command again\n",
        ),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Error: Permission denied (x)\n"),
        (
            ZeroDivisionError("division\nby zero"),
            1,
            "Error: unexpected ZeroDivisionError: division by zero "
            "(a bug in llmindex; run with LLMINDEX_DEBUG=1 for the traceback)\n",
        ),
    ],
)
def test_each_exception_has_its_line_and_exit_code(
    error: BaseException, code: int, said: str, llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    raising(monkeypatch, error)
    ended = llmindex("prompts")
    assert (ended.code, ended.out, ended.err) == (code, "", said)


def test_debug_shows_the_traceback_and_keeps_the_exit_code(llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch) -> None:
    raising(monkeypatch, ZeroDivisionError("oops"))
    monkeypatch.setenv("LLMINDEX_DEBUG", "1")
    ended = llmindex("prompts")
    assert ended.code == 1
    assert "Traceback (most recent call last)" in ended.err
    assert ended.err.splitlines()[-1].startswith("Error: unexpected ZeroDivisionError: oops")


def test_every_library_error_has_an_answer_of_its_own() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 10
    for kind in kinds:
        answer = explain(kind("what, where, what to do"))
        assert answer.message == "Error: what, where, what to do"
        assert answer.exit_code == (2 if kind is errors.UsageError else 1)


def test_torch_out_of_memory_is_known_by_its_name() -> None:
    kind = type("OutOfMemoryError", (RuntimeError,), {})
    assert explain(kind("CUDA out of memory. Tried ...")).message.startswith("Error: out of memory (CUDA")


def test_sigterm_is_answered_like_ctrl_c(llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def fail(as_json: bool) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(prompts_command.command, "callback", fail)
    ended = llmindex("prompts")
    assert (ended.code, ended.err) == (130, "Interrupted.\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    running = start("prompts", "--json", cwd=tmp_path)
    assert running.stdout is not None
    assert running.stderr is not None
    running.stdout.close()
    with running.stderr as stderr:
        assert stderr.read() == b""
    assert running.wait(timeout=60) == 0


def test_full_standard_output_is_one_line(tmp_path: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "llmindex_cli", "prompts"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert ended.returncode == 1
    assert ended.stderr == b"Error: the disk is full: free some space and run the same command again\n"


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("debug", ["", "1"])
def test_full_standard_error_leaves_the_exit_code(unbuffered: str, debug: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "llmindex_cli", "search", " ", "-i", "x"]
    env = environment({"PYTHONUNBUFFERED": unbuffered, "LLMINDEX_DEBUG": debug})
    with Path("/dev/full").open("wb") as full:
        ended = subprocess.run(command, stderr=full, cwd=tmp_path, env=env, check=False)
    assert ended.returncode == 2


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], ["Warning: careful"]),
        (["-q"], []),
        (["-v"], ["Info: by the way", "Warning: careful", "Warning: httpx: hm"]),
        (["-vv"], ["Debug: detail", "Info: by the way", "Warning: careful", "Warning: httpx: hm"]),
    ],
)
@pytest.mark.parametrize("name", ["llmindex.encode.encoder", "llmindex_training.trainer"])
def test_log_records_are_lines_on_standard_error(
    flags: list[str], shown: list[str], name: str, llmindex: Llmindex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def talk(as_json: bool) -> None:
        ours, other = logging.getLogger(name), logging.getLogger("httpx")
        ours.debug("detail")
        ours.info("by\nthe way")
        ours.warning("careful")
        other.warning("hm")
        other.debug("noise")

    monkeypatch.setattr(prompts_command.command, "callback", talk)
    ended = llmindex(*flags, "prompts")
    assert ended.err.splitlines() == shown


def test_a_working_directory_that_is_gone(llmindex: Llmindex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    for arguments in (("info",), ("search", "x", "-i", tmp_path), ("build", tmp_path / "corpus.txt")):
        ended = llmindex(*arguments)
        said = "Error: the working directory is gone: change to one that is there\n"
        assert (ended.code, ended.out, ended.err) == (1, "", said)


def test_ctrl_c_while_the_command_line_is_imported() -> None:
    code = (
        "import os, signal, sys; from llmindex_cli.__main__ import main; from llmindex_cli.resident import ahead\n"
        "def press(_): os.kill(os.getpid(), signal.SIGINT)\n"
        "ahead.send = press; sys.argv = ['llmindex', 'search', 'x']; sys.exit(main())"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "Interrupted.\n")


def test_a_second_ctrl_c_does_not_spoil_the_end(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from llmindex_cli import prompts; from llmindex_cli.main import main\n"
        "def press(as_json): os.kill(os.getpid(), signal.SIGINT)\n"
        "prompts.command.callback = press; sys.argv = ['llmindex', 'prompts']; code = main()\n"
        "os.kill(os.getpid(), signal.SIGINT); sys.exit(code)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (130, "Interrupted.\n")


def test_main_takes_the_arguments_of_the_process(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["llmindex", "--version"])
    assert main() == 0
    assert capfd.readouterr().out.startswith("llmindex ")
