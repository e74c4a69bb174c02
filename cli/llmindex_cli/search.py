"""``llmindex search``: the documents nearest to a query."""

import sys
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import click

from llmindex.errors import UsageError
from llmindex_cli.answers import Answers
from llmindex_cli.console import note, plain, say
from llmindex_cli.hits import none_found, print_hits, print_hits_json
from llmindex_cli.options import Command, hits_options, index_option, json_option, runtime_options

# Queries that are encoded together; hits are written after each batch, so that a long stdin streams.
BATCH = 256


@click.command(
    "search",
    cls=Command,
    examples=(
        ("Ask one question, or several", 'llmindex search "how do I parse a date"'),
        ("", 'llmindex search "parse a date" "format a date" -k 3'),
        ("Only among some documents", 'llmindex search "parse a date" --where "year >= 2020 AND lang = \'en\'"'),
        ("One query a line, hits for a program", "llmindex search - --json < queries.txt > hits.jsonl"),
    ),
)
@click.argument("queries", nargs=-1, required=True, metavar="QUERY...")
@index_option
@hits_options
@json_option("one object a hit")
@click.option(
    "--no-daemon",
    is_flag=True,
    envvar="LLMINDEX_NO_DAEMON",
    help="Load the model in this process, neither asking nor starting a resident searcher. "
    "[default: $LLMINDEX_NO_DAEMON]",
)
@runtime_options
def command(
    queries: tuple[str, ...],
    index: Path,
    k: int,
    min_score: float | None,
    where: str | None,
    as_json: bool,
    no_daemon: bool,
    runtime: dict[str, Any],
) -> None:
    """Find the documents nearest to each QUERY, best first; - reads one query a line from standard input.

    Queries are encoded as the index's documents were; the model, its prompt and pooling come from the index. The first
    search leaves a resident searcher behind, which answers those after it at once: see `llmindex warm`.
    """
    wanted = _queries(queries)
    batch = list(islice(wanted, BATCH))
    if not batch:
        raise UsageError("no queries on standard input: expected one a line")
    answers = Answers(index, runtime, resident=not no_daemon)
    several = len(batch) > 1
    first = True
    while batch:
        for query, hits in zip(batch, answers.of(batch, k, min_score, where), strict=True):
            if as_json:
                print_hits_json(query, hits)
            elif hits:
                if several:
                    _title(query, first=first)
                print_hits(hits)
                first = False
            if not hits:
                note(none_found(f'"{query}"', min_score, where))
        if sys.stdout is not None:
            sys.stdout.flush()
        batch = list(islice(wanted, BATCH))


def _title(query: str, *, first: bool) -> None:
    if not first:
        say("")
    say(plain(query), heading=True)


def _queries(arguments: Sequence[str]) -> Iterator[str]:
    for number, argument in enumerate(arguments, 1):
        if argument == "-":
            yield from _lines()
            continue
        if not argument.strip():
            raise UsageError(f"query {number} is empty")
        try:
            argument.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"query {number} ({argument!r}) is not valid UTF-8") from error
        yield argument


def _lines() -> Iterator[str]:
    for number, line in enumerate(sys.stdin.buffer if sys.stdin is not None else (), 1):
        try:
            query = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError as error:
            raise UsageError(f"standard input, line {number}: not valid UTF-8") from error
        if query:
            yield query
