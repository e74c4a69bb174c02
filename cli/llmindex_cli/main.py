"""The root of the command line, and the one place where an exception becomes a message and an exit code.

A command parses its options, makes one library call and prints the result. Its module is imported only when the
command is run: ``llmindex --help`` loads neither torch nor faiss nor pyarrow.

Exit codes: 0 done, 1 a clear error, 2 wrong usage, 130 interrupted.
"""

import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

import click
from click.shell_completion import shell_complete

from llmindex import __version__
from llmindex.errors import LlmindexError
from llmindex_cli.console import configure, write_to_stderr
from llmindex_cli.errors import explain
from llmindex_cli.options import Command

PROG = "llmindex"

# Section of the help -> command -> what it does. The command is ``command`` in the module of the same name.
COMMANDS: dict[str, dict[str, str]] = {
    "From a corpus to answers": {
        "build": "Encode a corpus, store the vectors and index them.",
        "search": "Find the documents nearest to a query.",
        "similar": "Find the documents nearest to a stored one.",
        "warm": "Keep model and index loaded, so that searches answer at once.",
        "cluster": "Group the documents, with keywords and a map.",
    },
    "Care of an index": {
        "info": "Show what an index is made of, and its measured recall.",
        "verify": "Read everything again and check it against the hashes.",
        "reindex": "Build the FAISS index anew from the stored vectors.",
    },
    "Encoders": {
        "encode": "Write the vectors of texts to a Parquet or NumPy file.",
        "models": "List the models that are at hand.",
        "prompts": "List the named prompt templates.",
    },
    "Adaptation": {
        "pairs": "Make positive pairs of a corpus to train on.",
        "train": "Train a LoRA adapter on positive pairs.",
        "mine": "Add hard negatives from an index to pairs.",
        "export": "Write an encoder as a sentence-transformers or transformers folder.",
    },
    "Measuring": {
        "evaluate": "Measure an encoder on labelled data, or MTEB tasks.",
        "sweep": "Find the prompt, pooling and layer that suit your texts.",
        "attention": "Show what the pooled token attends to, before and after adaptation.",
    },
}


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line helps without importing them."""

    def __init__(self, *args: object, sections: Mapping[str, Mapping[str, str]], **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.sections = sections

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names of all commands, in the order of the help."""
        return [name for entries in self.sections.values() for name in entries]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command's module."""
        for entries in self.sections.values():
            if cmd_name in entries:
                command: click.Command = importlib.import_module(f"llmindex_cli.{cmd_name}").command
                command.short_help = entries[cmd_name]
                return command
        return None

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which one was perhaps meant."""
        name = args[0]
        known = self.list_commands(ctx)
        if name not in known and not ctx.resilient_parsing and not name.startswith("-"):
            from difflib import get_close_matches

            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean '{near[0]}'?" if near else f"The commands are {', '.join(known)}."
            raise click.UsageError(f"No such command '{name}'. {hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of the help from the table alone."""
        for title, entries in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(list(entries.items()))


class Root(LazyGroup, Command):
    """The root group: lazy commands, examples at the end of the help."""


@click.group(
    PROG,
    cls=Root,
    sections=COMMANDS,
    examples=(
        ("Index a file, then ask it something", "llmindex build corpus.parquet"),
        ("", 'llmindex search "how do I open a file without loading it"'),
        ("Group the documents and draw a map", "llmindex cluster --plot map.html"),
    ),
)
@click.option("-q", "--quiet", is_flag=True, help="No progress, hints or warnings; errors alone.")
@click.option("-v", "--verbose", count=True, help="More about what happens; -vv for all of it.")
@click.version_option(__version__, prog_name=PROG, message="%(prog)s %(version)s")
def root(quiet: bool, verbose: int) -> None:
    """Turn a language model into a text embedder; search and cluster your documents with it.

    Results go to standard output, everything else to standard error. The index that a command works on is the one
    named by -i, else by $LLMINDEX_INDEX, else the only *.llmindex folder in the current directory.
    """
    configure(quiet=quiet, verbose=verbose)
    try:
        Path.cwd()
    except OSError as error:  # no library bears that, and torch ends the process
        raise LlmindexError("the working directory is gone: change to one that is there") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: the arguments after the program's name; those of the process by default.

    Returns:
        The exit code.
    """
    _make_output_lenient()
    code = 0
    try:
        if instruction := os.environ.get("_LLMINDEX_COMPLETE"):
            return shell_complete(root, {}, PROG, "_LLMINDEX_COMPLETE", instruction)
        with _sigterm_as_ctrl_c():
            code = _run(sys.argv[1:] if argv is None else argv)
            _flush()
            return code
    except (Exception, KeyboardInterrupt) as error:
        if argv is None and isinstance(error, KeyboardInterrupt):
            # The process ends now; an impatient second Ctrl-C could only spoil the tidying up.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
        return max(code, _report(error))  # a command that failed has, though nobody read why
    finally:
        _give_up_unwritten(sys.stderr)
        if argv is None and "duckdb" not in sys.modules:
            # The process ends now. Its end would look for garbage among all that torch has brought: another second.
            # duckdb counts what nobody has collected then, and lists it on standard error.
            gc.freeze()


def _run(argv: Sequence[str]) -> int:
    # Not root.main(): that would print its own multi-line messages and turn Ctrl-C into Abort.
    try:
        with root.make_context(PROG, list(argv)) as ctx:
            root.invoke(ctx)
    except click.exceptions.Exit as done:
        return done.exit_code
    return 0


def _report(error: BaseException) -> int:
    answer = explain(error)
    if isinstance(error, OSError):
        _give_up_unwritten(sys.stdout)
    with suppress(OSError):
        _flush()
    if os.environ.get("LLMINDEX_DEBUG", "") not in ("", "0") and not isinstance(error, click.ClickException):
        write_to_stderr("".join(traceback.format_exception(error)).rstrip())
    if answer.message:
        write_to_stderr(answer.message)
    return answer.exit_code


def _make_output_lenient() -> None:
    # A terminal that cannot show a character gets a question mark, not a traceback.
    reconfigure = getattr(sys.stdout, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="replace")


def _flush() -> None:
    # Here rather than at interpreter exit, where a closed pipe or a full disk could no longer be answered.
    if sys.stdout is not None:
        sys.stdout.flush()


def _give_up_unwritten(stream: TextIO | None) -> None:
    # What is still buffered can go nowhere if the reader has left or the disk is full; without this the
    # interpreter would try once more while it shuts down, complain, and end with an exit code of its own.
    if stream is None:
        return
    with suppress(OSError, ValueError):
        stream.flush()
        return
    with suppress(OSError, ValueError):
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, stream.fileno())
        os.close(devnull)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    # A build that is told to stop by a scheduler commits what it has, as for Ctrl-C.
    try:
        previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread: a program that calls main() in one of its own
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
