"""``llmindex info``: what an index is made of."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from llmindex_cli.console import print_facts, print_json, size
from llmindex_cli.options import Command, index_option, json_option


@click.command(
    "info",
    cls=Command,
    examples=(
        ("As a table", "llmindex info"),
        ("One value for a script", "llmindex info --json | jq .documents"),
    ),
)
@index_option
@json_option("one object")
def command(index: Path, as_json: bool) -> None:
    """Show documents, columns, encoder, FAISS index with its measured recall, clusterings and sizes."""
    from llmindex import api

    info = api.open(index).info()
    if as_json:
        print_json(info)
    else:
        print_facts(dict(_flat(info)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested values as ``encoder.pooling`` and its value."""
    facts: list[tuple[str, str]] = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            facts.extend(_flat(value, f"{prefix}{name}."))
        else:
            facts.append((prefix + name, size(value) if name == "bytes" else _show(value)))
    return facts


def _show(value: Any) -> str:  # noqa: ANN401
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):  # of a list, such as the sources: a line has room for their names
        return _show(value.get("path") or " ".join(f"{key} {item}" for key, item in value.items()))
    if isinstance(value, list | tuple):
        return ", ".join(_show(item) for item in value) or "-"
    return "-" if value is None or value == "" else str(value).replace("\n", "\\n")  # a prompt may have lines
