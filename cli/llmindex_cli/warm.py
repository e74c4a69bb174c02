"""``llmindex warm``: the resident searcher, started, shown and stopped."""

from pathlib import Path
from typing import Any

import click

from llmindex_cli.console import print_facts, print_json, say
from llmindex_cli.indexes import note_unfinished
from llmindex_cli.options import Command, IndexType, Number, find_index, json_option, runtime_options
from llmindex_cli.resident import client


def _index_to_warm(ctx: click.Context, param: click.Parameter, value: Path | None) -> Path | None:
    return value if ctx.params.get("stop") else find_index(ctx, param, value)


@click.command(
    "warm",
    cls=Command,
    examples=(
        ("Have the first search answer at once, too", "llmindex warm"),
        ("Keep everything loaded over lunch", "llmindex warm --idle 90"),
        ("Give the memory back", "llmindex warm --stop"),
    ),
)
@click.option("--stop", is_flag=True, is_eager=True, help="End the resident searcher instead.")
@click.option(
    "-i",
    "--index",
    type=IndexType(),
    envvar="LLMINDEX_INDEX",
    callback=_index_to_warm,
    help="The index folder. [default: as for search]",
)
@click.option(
    "--idle",
    "idle_minutes",
    type=Number(0, min_open=True),
    metavar="MINUTES",
    help="End after so long without a search. [default: 15, or what was said before]",
)
@json_option("one object")
@runtime_options
def command(stop: bool, index: Path, idle_minutes: float | None, as_json: bool, runtime: dict[str, Any]) -> None:
    """Load an index and its model into the resident searcher, and say what is resident.

    It is a process of your own, which nobody else can reach. It is started by this or by the first search, holds one
    model at a time, and ends by itself; an index that changes is read again before the next answer.
    """
    if stop:
        _stop(as_json)
        return
    reply = client.warm(index, runtime, idle_minutes)
    note_unfinished(index, reply.unfinished)
    if reply.error is not None:
        raise reply.error
    if as_json:
        print_json(reply.status)
        return
    status = reply.status
    print_facts(
        {
            "process": f"{status['pid']}, until {status['idle_minutes']:g} minutes without a search",
            "model": f"{status['model']} ({status['device']})",
            "indexes": ", ".join(status["indexes"]),
        }
    )


def _stop(as_json: bool) -> None:
    pid = client.stop()
    if as_json:
        print_json({"stopped": pid})
    else:
        say("Nothing was resident." if pid is None else f"Stopped process {pid}.")
