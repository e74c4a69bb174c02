"""``llmindex similar``: the documents nearest to a stored one."""

from pathlib import Path

import click

from llmindex_cli.console import note
from llmindex_cli.hits import none_found, print_hits, print_hits_json
from llmindex_cli.indexes import open_index
from llmindex_cli.options import Command, hits_options, index_option, json_option


@click.command(
    "similar",
    cls=Command,
    examples=(
        ("The five nearest to a document", "llmindex similar doc-17 -k 5"),
        ("Near copies of it", "llmindex similar doc-17 --min-score 0.98"),
    ),
)
@click.argument("document_id", metavar="ID")
@index_option
@hits_options
@json_option("one object a hit")
def command(document_id: str, index: Path, k: int, min_score: float | None, where: str | None, as_json: bool) -> None:
    """Find the stored documents nearest to the one with this ID, which is itself left out."""
    hits = open_index(index).similar(document_id, k=k, min_score=min_score, where=where)
    if as_json:
        print_hits_json(document_id, hits)
    elif hits:
        print_hits(hits)
    if not hits:
        note(none_found(f'document "{document_id}"', min_score, where))
