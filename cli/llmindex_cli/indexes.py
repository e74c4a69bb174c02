"""Opening an index for a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmindex_cli.console import note

if TYPE_CHECKING:
    from llmindex.api import Index
    from llmindex.store.reader import VectorStore


def open_index(path: Path, *, noted: bool = False, **runtime: Any) -> "Index":  # noqa: ANN401 - as llmindex.open has them
    """Open an index; where its build is unfinished, say so, unless that was noted before."""
    from llmindex import api

    opened = api.open(path, **runtime)
    if not noted:
        note_unfinished(path, unfinished(opened.store))
    return opened


def unfinished(store: "VectorStore") -> int | None:
    """Documents of an index whose build has not come to its end; None of one that is whole, or empty."""
    return store.count if store.count and not store.manifest.corpus.complete else None


def note_unfinished(path: Path, documents: int | None) -> None:
    """Say how many documents an unfinished index has: an answer from a part looks like one from the whole."""
    if documents is not None:
        note(f"{path} is unfinished, {documents:,} documents so far: run its build again to go on.")
