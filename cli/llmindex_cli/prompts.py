"""``llmindex prompts``: the named prompt templates."""

import click

from llmindex.encode.prompts import PROMPTS
from llmindex_cli.console import Column, print_json, print_table
from llmindex_cli.options import Command, json_option


@click.command(
    "prompts",
    cls=Command,
    examples=(
        ("Use one by its name", "llmindex build corpus.parquet --prompt cluster"),
        ("Or a template of your own", "llmindex build corpus.parquet --prompt 'The gist of \"{text}\" is'"),
    ),
)
@json_option("one object a prompt")
def command(as_json: bool) -> None:
    """List the named prompt templates; {text} marks the text's place."""
    if as_json:
        for name, template in PROMPTS.items():
            print_json({"name": name, "template": template})
        return
    columns = [Column("prompt"), Column("template", fit="open")]
    print_table(columns, [[name, template.replace("\n", "\\n")] for name, template in PROMPTS.items()])
