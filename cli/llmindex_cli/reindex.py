"""``llmindex reindex``: build the FAISS index anew from the stored vectors."""

from dataclasses import asdict
from pathlib import Path

import click

from llmindex_cli.console import print_facts, print_json, size
from llmindex_cli.indexes import open_index
from llmindex_cli.options import Command, Number, index_option, json_option
from llmindex_cli.progress import progress


@click.command(
    "reindex",
    cls=Command,
    examples=(
        ("Let the planner choose, for a higher recall", "llmindex reindex --recall 0.99"),
        ("A FAISS factory string of your own", "llmindex reindex --factory HNSW32"),
    ),
)
@index_option
@click.option("--factory", metavar="FAISS", help="FAISS factory string, instead of the planner's choice.")
@click.option(
    "--recall",
    type=Number(0, 1, min_open=True),
    metavar="SHARE",
    default=0.95,
    show_default=True,
    help="Recall@10 against exact search that the index is tuned to.",
)
@json_option("one object")
def command(index: Path, factory: str | None, recall: float, as_json: bool) -> None:
    """Build the FAISS index anew from the stored vectors, and measure its recall. No model is needed."""
    opened = open_index(index)
    with progress() as on_progress:
        record = opened.reindex(factory=factory, recall=recall, on_progress=on_progress)
    if as_json:
        print_json(asdict(record))
        return
    print_facts(
        {
            "index": record.factory + (f" with {record.parameters}" if record.parameters else ""),
            "recall@10": f"{record.recall_at_10:.3f} measured, {record.recall_target:g} asked for",
            "size": size(record.bytes),
        }
    )
