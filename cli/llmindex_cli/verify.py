"""``llmindex verify``: read everything again and check it against the hashes."""

from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import click

from llmindex_cli.console import count, note, one_line, plain, print_json, say, write_to_stderr
from llmindex_cli.options import Command, index_option, json_option
from llmindex_cli.progress import progress


@click.command(
    "verify", cls=Command, examples=(("Check a copy that came over the network", "llmindex verify -i copy.llmindex"),)
)
@index_option
@json_option("one object")
def command(index: Path, as_json: bool) -> None:
    """Read every file of the index again and check it against the manifest.

    Each problem is one line on standard error; the exit code is 1 if there are any.
    """
    from llmindex.store.verify import verify

    with progress() as on_progress:
        report = verify(index, on_progress=on_progress)
    with suppress(BrokenPipeError):  # who does not read on still gets the exit code
        if as_json:
            print_json(asdict(report))
        elif not report.problems:
            documents = count(report.rows, "documents")
            say(f"{plain(str(index))}: {count(report.files, 'files')} and {documents} are as written")
    for line in report.outdated:
        note(line)
    for problem in report.problems:
        write_to_stderr(f"Error: {one_line(problem)}")
    if report.problems:
        raise click.exceptions.Exit(1)
