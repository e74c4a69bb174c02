"""``llmindex reindex``: build the FAISS index anew from the stored vectors."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from llmindex_cli.console import print_facts, print_json, size
from llmindex_cli.indexes import open_index
from llmindex_cli.options import Command, index_option, json_option, recall_options
from llmindex_cli.plans import index_kind, index_time, note_plan_only
from llmindex_cli.progress import progress

if TYPE_CHECKING:
    from llmindex.index.forecast import ReindexPlan
    from llmindex.store.manifest import IndexRecord


@click.command(
    "reindex",
    cls=Command,
    examples=(
        ("Let the planner choose, for a higher recall", "llmindex reindex --recall 0.99"),
        ("Keep it within so much memory", "llmindex reindex --memory 1GB"),
        ("See first what it will take", "llmindex reindex --memory 1GB --plan"),
        ("A FAISS factory string of your own", "llmindex reindex --factory HNSW32"),
    ),
)
@index_option
@click.option("--plan", "plan_only", is_flag=True, help="Say what it will take in memory, disk, time; stop.")
@recall_options
@json_option("one object")
def command(index: Path, plan_only: bool, as_json: bool, **options: Any) -> None:  # noqa: ANN401
    """Build the FAISS index anew from the stored vectors, and measure its recall. No model is needed."""
    opened = open_index(index)
    if plan_only:
        plan = opened.plan_reindex(**options)
        print_json(plan.to_json()) if as_json else _print_plan(plan)
        return
    with progress() as on_progress:
        record = opened.reindex(on_progress=on_progress, **options)
    print_json(asdict(record)) if as_json else _print_record(record)


def _print_plan(plan: "ReindexPlan") -> None:
    print_facts(
        {
            "documents": f"{plan.documents:,}",
            "recall@10": f"{plan.recall:g} asked for",
            "time": f"about {index_time(plan)}",
            "disk": size(plan.disk_bytes),
            "index": index_kind(plan),
        }
    )
    note_plan_only()


def _print_record(record: "IndexRecord") -> None:
    print_facts(
        {
            "index": record.factory + (f" with {record.parameters}" if record.parameters else ""),
            "recall@10": f"{record.recall_at_10:.3f} measured, {record.recall_target:g} asked for",
            "size": size(record.bytes),
        }
    )
