"""A search that is sent before its command line has been read in full.

Importing click takes a third as long as a search does. So the queries of what is plainly a search go to the resident
searcher first, if there is one, which then computes while the command line is imported and parsed. What is plain may be
decided in haste: the reply is taken only for the very request that comes of parsing.
"""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from llmindex_cli.resident import client
from llmindex_cli.resident.errors import ResidentError

_USUAL = {"dtype": "auto", "device": "auto", "trust_remote_code": False}


def send(arguments: Sequence[str]) -> None:
    """Send the search that a command line asks for, if that is plain and a resident searcher listens."""
    if os.environ.get("LLMINDEX_NO_DAEMON", "") not in ("", "0") or os.environ.get("_LLMINDEX_COMPLETE"):
        return
    with suppress(OSError, ValueError, ResidentError):
        asked = _plain(arguments)
        if asked is not None:
            client.search_ahead(asked["index"], _USUAL, asked["queries"], asked["k"])


def _plain(arguments: Sequence[str]) -> dict[str, Any] | None:
    """Queries, index and number of hits; None where there are other options, or something may be wrong."""
    queries: list[str] = []
    index, k = os.environ.get("LLMINDEX_INDEX") or _only_index(), "10"
    rest = iter(arguments[1:])
    for each in rest:
        if each in ("-i", "--index"):
            index = next(rest, "")
        elif each == "-k":
            k = next(rest, "")
        elif each.startswith("-") and each != "--json":
            return None
        elif not each.startswith("-"):
            each.encode()
            queries.append(each)
    if arguments[:1] != ["search"] or not index or not k.isdecimal() or not all(map(str.strip, queries)):
        return None
    return {"index": Path(index), "queries": queries, "k": int(k)} if queries else None


def _only_index() -> str:
    found = [entry.name for entry in os.scandir() if entry.name.endswith(".llmindex") and entry.is_dir()]
    return found[0] if len(found) == 1 else ""
