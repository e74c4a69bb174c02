"""How long-running calls report how far they are; the library itself never prints."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """One report of a stage that is under way.

    Attributes:
        stage: what is being done: "scan", "encode", "train", "whiten", "add", "tune", "tree", "verify", ...
        done: units finished, those of an earlier, resumed run included.
        total: units in all, or None while unknown.
        unit: what is counted: "documents", "vectors", "files".
        tokens: model tokens processed in this run so far; 0 where the stage has none.
        fresh: units finished by this run alone (``done`` less what was resumed), for rates.
        detail: what else is to be said of the moment, such as a training's loss; "" for nothing.
    """

    stage: str
    done: int
    total: int | None = None
    unit: str = "documents"
    tokens: int = 0
    fresh: int | None = None
    detail: str = ""


ProgressCallback = Callable[[Progress], None]
