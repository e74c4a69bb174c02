"""What can be chosen in a clustering, and what is chosen when it is not said."""

import operator
import re
from dataclasses import dataclass, replace
from math import inf
from typing import Literal, get_args

from llmindex.errors import UsageError

Selection = Literal["eom", "leaf"]
Reduce = Literal["none", "pca", "umap"]

SELECTIONS: tuple[Selection, ...] = get_args(Selection)
REDUCTIONS: tuple[Reduce, ...] = get_args(Reduce)

DEFAULT_MIN_SAMPLES = 5
"""Where a cluster is of more documents than that."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class ClusterOptions:
    """How to cluster; checked on construction.

    Attributes:
        min_cluster_size: documents that make a cluster, 2 or more; None for a quarter of the root of their number, at
            least 3 (8 of 1,000, 25 of 10,000, 79 of 100,000).
        min_samples: neighbours that make a document part of a dense region, itself not counted: higher means fewer
            clusters and more noise; None for 5, or one less than a smaller ``min_cluster_size``.
        selection: "eom" takes the most persistent clusters of the tree, "leaf" its finest.
        reduce: what the vectors are reduced to before: "none", "pca" (evened-out principal components) or
            "umap" (needs the package umap-learn).
        assign_noise: whether documents that HDBSCAN calls noise go to the cluster of their nearest neighbours.
        assign_distance: how far such a neighbour may be, as euclidean distance of the reduced vectors (0 to 2, but for
            UMAP); None for the distance within which nine in ten documents have their nearest neighbour.
        memory: the most bytes that the process may have; None for what the machine has free. Where not all documents
            fit, a sample is clustered, and the others are assigned to its clusters.
        name: of the clustering, and so of its files.

    Raises:
        UsageError: a value cannot work; the message names the option.
    """

    min_cluster_size: int | None = None
    min_samples: int | None = None
    selection: Selection = "eom"
    reduce: Reduce = "pca"
    assign_noise: bool = True
    assign_distance: float | None = None
    memory: int | None = None
    name: str = "default"

    def __post_init__(self) -> None:
        for option, least in (("min_cluster_size", 2), ("min_samples", 1), ("memory", 1)):
            # As Python's own number, which alone the clustering's file can hold.
            object.__setattr__(self, option, _whole_number(option, getattr(self, option), least))
        _check_choice("selection", self.selection, SELECTIONS)
        _check_choice("reduce", self.reduce, REDUCTIONS)
        if self.assign_distance is not None:
            if not 0 <= self.assign_distance < inf:
                raise UsageError(f"assign_distance must be a finite number of 0 or more, not {self.assign_distance}")
            object.__setattr__(self, "assign_distance", float(self.assign_distance))
        check_name(self.name)

    def resolve(self, count: int) -> "ClusterOptions":
        """Return the options with the defaults for so many documents filled in (``assign_distance`` apart)."""
        size = self.min_cluster_size or max(3, round(count**0.5 / 4))
        return replace(self, min_cluster_size=size, min_samples=self.min_samples or min(DEFAULT_MIN_SAMPLES, size - 1))

    def for_sample(self, step: int) -> "ClusterOptions":
        """Return resolved options for every ``step``-th document alone: a cluster has as many fewer of them."""
        size = self.min_cluster_size or 2
        return replace(self, min_cluster_size=max(2, round(size / step)))


def check_name(name: str) -> None:
    """Refuse a clustering's name that is no plain file name.

    Raises:
        UsageError: with the rule.
    """
    if not _NAME.fullmatch(name):
        rule = "up to 64 letters, digits, dots, dashes and underscores, a letter or digit first"
        raise UsageError(f'name "{name}" cannot name a clustering; use {rule}')


def _whole_number(option: str, value: int | None, least: int) -> int | None:
    if value is None:
        return None
    try:
        number = least - 1 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least:
        raise UsageError(f"{option} must be a whole number of {least} or more, not {value}")
    return number


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f'{option} "{value}" is unknown; choose from {", ".join(choices)}')
