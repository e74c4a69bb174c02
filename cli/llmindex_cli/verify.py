"""``llmindex verify``: read everything again and check it against the hashes."""

import sys
from dataclasses import asdict
from pathlib import Path

import click

from llmindex_cli.console import count, note, one_line, plain, print_json, say
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
    if as_json:
        print_json(asdict(report))
    elif not report.problems:
        say(f"{plain(str(index))}: {count(report.files, 'files')} and {count(report.rows, 'documents')} are as written")
    for line in report.outdated:
        note(line)
    for problem in report.problems:
        if sys.stderr is not None:
            sys.stderr.write(f"Error: {one_line(problem)}\n")
    if report.problems:
        raise click.exceptions.Exit(1)
