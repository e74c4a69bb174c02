"""``llmindex models``: what ``--model`` can be on this machine."""

from dataclasses import asdict

import click

from llmindex_cli.console import Column, print_json, print_table
from llmindex_cli.options import Command, json_option


@click.command(
    "models", cls=Command, examples=(("Use one by its name", "llmindex build corpus.parquet --model default"),)
)
@json_option("one object a model")
def command(as_json: bool) -> None:
    """List the models that are at hand: the embedded default and those in the hub's cache.

    Any hub name of a decoder-only model, and any local model folder, works as well.
    """
    from llmindex.encode import models

    found = models.available()
    if as_json:
        for model in found:
            print_json(asdict(model))
        return
    columns = [Column("model"), Column("installed"), Column("note"), Column("where", fit="open")]
    print_table(columns, [[model.name, "yes" if model.installed else "no", model.note, model.where] for model in found])
