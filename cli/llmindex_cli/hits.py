"""Hits as a table for people or as JSON lines for programs."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeAlias

from llmindex_cli.console import Column, print_json, print_table

if TYPE_CHECKING:
    from llmindex.records import Hit
    from llmindex_cli.resident.protocol import ResidentHit

AnyHit: TypeAlias = "Hit | ResidentHit"
"""A hit, found in this process or by the resident searcher."""

_COLUMNS = (
    Column("rank", align="right"),
    Column("score", align="right"),
    Column("id", fit="most"),  # to be given to `similar`: on 80 columns even a UUID is whole
    Column("text", fit="rest"),
)


def print_hits(hits: Sequence[AnyHit]) -> None:
    """Write a table, the texts cut to the terminal's width."""
    print_table(_COLUMNS, [[str(hit.rank), f"{hit.score:.4f}", hit.id, hit.text] for hit in hits])


def print_hits_json(query: str, hits: Sequence[AnyHit]) -> None:
    """Write one JSON object a hit."""
    for hit in hits:
        print_json(
            {
                "query": query,
                "rank": hit.rank,
                "id": hit.id,
                "score": hit.score,
                "text": hit.text,
                "metadata": hit.metadata,
            }
        )


def none_found(about: str, min_score: float | None, where: str | None) -> str:
    """The note for a query without hits."""
    among = "" if where is None else f" where {where}"
    limit = "" if min_score is None else f" with a score of {min_score:g} or more"
    return f"No hits for {about}{among}{limit}."
