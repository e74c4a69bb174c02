"""How a plan says what its FAISS index will take: in the same words before a build and before a reindex."""

from typing import Protocol

from llmindex_cli.console import duration, note, size


class PlansIndex(Protocol):
    """A plan that an index is part of."""

    @property
    def factory(self) -> str:
        """FAISS factory string."""

    @property
    def index_seconds(self) -> float:
        """Time to build it."""

    @property
    def index_memory_bytes(self) -> int:
        """Peak of building it."""

    @property
    def search_memory_bytes(self) -> int:
        """What a search has in memory."""


def index_time(plan: PlansIndex) -> str:
    """How long the index takes: ``4.2 s for the index``."""
    return f"{duration(plan.index_seconds)} for the index"


def index_kind(plan: PlansIndex) -> str:
    """What is built, and in how much memory."""
    return (
        f"{plan.factory}: {size(plan.index_memory_bytes)} to build, "
        f"{size(plan.search_memory_bytes)} to search, besides the model"
    )


def note_plan_only() -> None:
    """Say that planning was all."""
    note("Nothing was written.")
