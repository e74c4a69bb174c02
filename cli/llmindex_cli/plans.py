"""How a plan says what its FAISS index will take: in the same words before a build and before a reindex."""

from typing import TYPE_CHECKING

from llmindex_cli.console import duration, note, size

if TYPE_CHECKING:
    from llmindex.builder import BuildPlan
    from llmindex.index.forecast import ReindexPlan


def index_time(plan: "BuildPlan | ReindexPlan") -> str:
    """How long the index takes: ``4.2 s for the index``."""
    return f"{duration(plan.index_seconds)} for the index"


def index_kind(plan: "BuildPlan | ReindexPlan") -> str:
    """What is built, and in how much memory."""
    return (
        f"{plan.factory}: {size(plan.index_memory_bytes)} to build, "
        f"{size(plan.search_memory_bytes)} to search, besides the model"
    )


def note_plan_only() -> None:
    """Say that planning was all."""
    note("Nothing was written.")
