"""Who answers a search: the resident searcher, or this process."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmindex_cli.hits import AnyHit
from llmindex_cli.indexes import note_unfinished, open_index
from llmindex_cli.loading import loading
from llmindex_cli.resident import client
from llmindex_cli.resident.errors import ResidentError

if TYPE_CHECKING:
    from llmindex.api import Index


class Answers:
    """Answers queries from an index, by the resident searcher as long as there is one; the hits are the same.

    Args:
        index: the index folder.
        runtime: where and how its encoder runs, as ``llmindex.open`` takes it.
        resident: whether the resident searcher may be asked, and started.
    """

    def __init__(self, index: Path, runtime: dict[str, Any], *, resident: bool) -> None:
        self._index = index
        self._runtime = runtime
        self._resident = resident
        self._opened: Index | None = None
        self._noted = False

    def of(
        self, queries: Sequence[str], k: int, min_score: float | None, where: str | None
    ) -> Sequence[Sequence[AnyHit]]:
        """Hits for each query, best first; raises as ``llmindex.open`` and ``Index.search``."""
        if self._resident:
            try:
                return self._from_resident(queries, k, min_score, where)
            except ResidentError:
                self._resident = False
        with loading():  # the model comes with the first query
            if self._opened is None:
                self._opened = open_index(self._index, noted=self._noted, **self._runtime)
            return self._opened.search(queries, k=k, min_score=min_score, where=where)

    def _from_resident(
        self, queries: Sequence[str], k: int, min_score: float | None, where: str | None
    ) -> Sequence[Sequence[AnyHit]]:
        reply = client.search(self._index, self._runtime, queries, k, min_score, where)
        if not self._noted:
            note_unfinished(self._index, reply.unfinished)
            self._noted = True
        if reply.error is not None:
            raise reply.error
        return reply.hits
