"""By what a run's checkpoints are compared.

A score has an identity: two runs whose scores have the same one keep the same checkpoint, and a run goes on only with
the score that it was started with.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa

from llmindex.encode.encoder import Encoder
from llmindex.errors import UsageError
from llmindex_training.evaluate_clustering import kmeans_v_measure
from llmindex_training.evaluation_data import LabelledTexts
from llmindex_training.pairs import PAIR, TEXT


class CheckpointScore(Protocol):
    """How good an encoder is; higher is better."""

    @property
    def identity(self) -> str:
        """What is scored, by name, and by hash where there are data of its own; equal for equal scores."""

    def __call__(self, encoder: Encoder) -> float:
        """The score of the encoder as it is now."""


def measured(score: CheckpointScore, encoder: Encoder) -> float:
    """The score of the encoder as it is now, a number of Python's.

    Raises:
        UsageError: it is not finite: no checkpoint is better or worse than that.
    """
    value = float(score(encoder))
    if not math.isfinite(value):
        raise UsageError(f"the score ({score.identity}) is {value}: checkpoints are compared by finite numbers alone")
    return value


@dataclass(frozen=True, slots=True)
class HeldOutPairs:
    """Mean reciprocal rank of each held-out text's own positive among the positives of all.

    Attributes:
        rows: columns text and text_pair.
        query_prompt: whether the texts are asked as queries.
    """

    rows: pa.Table
    query_prompt: bool

    @property
    def identity(self) -> str:
        """The same for all: which pairs are held out follows from the run's pairs and recipe."""
        return "the held-out pairs"

    def __call__(self, encoder: Encoder) -> float:
        """The mean reciprocal rank; of equal scores, the own positive is the last."""
        asked = encoder.encode(self.rows[TEXT].to_pylist(), role="query" if self.query_prompt else "document")
        scores = asked @ encoder.encode(self.rows[PAIR].to_pylist()).T
        ranks = (scores >= scores.diagonal()[:, None]).sum(axis=1)
        return float((1 / ranks).mean())


@dataclass(frozen=True, slots=True)
class ClusteringScore:
    """Mean V-measure of k-means over labelled texts.

    Attributes:
        sets: at least one.
    """

    sets: Sequence[LabelledTexts]

    @property
    def identity(self) -> str:
        """The sets' names, and a hash of their texts and classes."""
        digest = hashlib.sha256()
        for each in self.sets:
            for text in each.texts:
                digest.update(text.encode() + b"\0")
            digest.update(each.truth.tobytes())
        names = ", ".join(each.name for each in self.sets)
        return f"the V-measure of {names} ({digest.hexdigest()[:16]})"

    def __call__(self, encoder: Encoder) -> float:
        """The mean over the sets, each the mean over k-means' seeds."""
        return float(np.mean([kmeans_v_measure(encoder.encode(each.texts), each) for each in self.sets]))
