"""``llmindex reindex``: build the FAISS index anew from the stored vectors."""

from dataclasses import asdict
from pathlib import Path

import click

from llmindex_cli.console import print_facts, print_json, size
from llmindex_cli.indexes import open_index
from llmindex_cli.options import Command, index_option, json_option, recall_options
from llmindex_cli.progress import progress


@click.command(
    "reindex",
    cls=Command,
    examples=(
        ("Let the planner choose, for a higher recall", "llmindex reindex --recall 0.99"),
        ("Keep it within so much memory", "llmindex reindex --memory 1GB"),
        ("A FAISS factory string of your own", "llmindex reindex --factory HNSW32"),
    ),
)
@index_option
@recall_options
@json_option("one object")
def command(index: Path, factory: str | None, recall: float, memory: int | None, as_json: bool) -> None:
    """Build the FAISS index anew from the stored vectors, and measure its recall. No model is needed."""
    opened = open_index(index)
    with progress() as on_progress:
        record = opened.reindex(factory=factory, recall=recall, memory=memory, on_progress=on_progress)
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
