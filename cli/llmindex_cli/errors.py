"""What each kind of exception is called on standard error, and the exit code it ends the process with.

Every answer is one line: what went wrong, where, what to do about it.
"""

import errno
from functools import singledispatch
from typing import NamedTuple

import click

from llmindex.errors import Interrupted, LlmindexError, UsageError
from llmindex_cli.console import one_line

_BEFORE_THE_COMMAND = ("-q", "--quiet", "-v", "-vv", "--verbose")


class Answer(NamedTuple):
    """The end of a run that did not go well.

    Attributes:
        message: one line for standard error; empty to say nothing.
        exit_code: 0 done, 1 a clear error, 2 wrong usage, 130 interrupted.
    """

    message: str
    exit_code: int


@singledispatch
def explain(error: BaseException) -> Answer:
    """The answer to an exception; one that nobody foresaw is a bug, and says so."""
    if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch to name it
        return _out_of_memory(error)
    about = one_line(f"unexpected {type(error).__name__}: {error}")
    return Answer(f"Error: {about} (a bug in llmindex; run with LLMINDEX_DEBUG=1 for the traceback)", 1)


@explain.register
def _known(error: LlmindexError) -> Answer:
    return Answer(f"Error: {one_line(str(error))}", 1)


@explain.register
def _wrong_value(error: UsageError) -> Answer:
    return Answer(f"Error: {one_line(str(error))}", 2)


@explain.register
def _wrong_usage(error: click.UsageError) -> Answer:
    if type(error).__name__ == "NoArgsIsHelpError":
        return Answer(error.format_message(), error.exit_code)
    message = one_line(error.format_message())
    if isinstance(error, click.NoSuchOption) and error.option_name in _BEFORE_THE_COMMAND:
        return Answer(f"Error: {error.option_name} goes before the command: llmindex {error.option_name} build ...", 2)
    stop = "" if message.endswith((".", "?", ")")) else "."
    hint = f"{stop} Try '{error.ctx.command_path} --help'." if error.ctx else ""
    return Answer(f"Error: {message}{hint}", error.exit_code)


@explain.register
def _click_error(error: click.ClickException) -> Answer:
    return Answer(f"Error: {one_line(error.format_message())}", error.exit_code)


@explain.register
def _interrupted(error: KeyboardInterrupt) -> Answer:
    return Answer(f"Interrupted: {one_line(str(error))}" if str(error) else "Interrupted.", 130)


@explain.register
def _interrupted_work(error: Interrupted) -> Answer:
    return Answer(f"Interrupted: {one_line(str(error))}; run the same command again to go on", 130)


@explain.register
def _reader_left(error: BrokenPipeError) -> Answer:
    return Answer("", 0)


@explain.register
def _system(error: OSError) -> Answer:
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Answer(one_line(f"Error: the disk is full{where}: free some space and run the same command again"), 1)
    return Answer(f"Error: {one_line(f'{error.strerror or error}{where}')}", 1)


@explain.register(MemoryError)
def _out_of_memory(error: BaseException) -> Answer:
    detail = f" ({one_line(str(error))})" if str(error) else ""
    return Answer(
        f"Error: out of memory{detail}: use a smaller model or fewer tokens a text, or a machine with more memory",
        1,
    )
