"""Opening an index for a command."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmindex_cli.console import note

if TYPE_CHECKING:
    from llmindex.api import Index


def open_index(path: Path, **runtime: Any) -> "Index":  # noqa: ANN401 - as llmindex.open takes them
    """Open an index; where its build is unfinished, say so: an answer from a part looks like one from the whole."""
    from llmindex import api

    opened = api.open(path, **runtime)
    if opened.store.count and not opened.store.manifest.corpus.complete:
        note(f"{path} is unfinished, {opened.store.count:,} documents so far: run its build again to go on.")
    return opened
