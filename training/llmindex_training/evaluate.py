"""What every evaluation shares: who is measured, what a score is, and how two encoders are compared.

An evaluation embeds the texts of its sets and gives a :class:`Measure` for each set and metric. A measure can be taken
again on a sample of its units (texts, queries, pairs); so two encoders are compared by a paired bootstrap: both are
scored on the same sampled units, a thousand times, and the interval is of the difference.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np

from llmindex.metrics import Interval, bootstrap
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors
from llmindex_training.evaluation_data import MEAN

Role = Literal["document", "query"]
Resampled = Callable[[Rows, np.random.Generator], float]


class Embedder(Protocol):
    """Whatever turns texts into unit vectors: an :class:`~llmindex.encode.encoder.Encoder`, or a peer of it."""

    def encode(
        self, texts: Sequence[str], *, role: Role = "document", on_progress: ProgressCallback | None = None
    ) -> Vectors:
        """Embed texts: ``(n, dim) float32``, rows of unit length."""
        ...


@dataclass(frozen=True, slots=True)
class Score:
    """One score, beside that of the baseline if there is one.

    Attributes:
        task: name of the set; "mean" for the mean over several.
        metric: name of the score.
        score: from 0 to 1 (Spearman from -1), 1 is perfect; of a noise share, 0 is least.
        units: how many texts, queries or pairs it was measured on.
        std: standard deviation over k-means seeds; None where there are none.
        baseline: the other encoder's score.
        difference: the score less the baseline.
        interval: 95 % confidence interval of the difference; None where the metric has none.
    """

    task: str
    metric: str
    score: float
    units: int
    std: float | None = None
    baseline: float | None = None
    difference: float | None = None
    interval: Interval | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Measure:
    """A score that can be taken again on a sample.

    Attributes:
        task: name of the set.
        metric: name of the score.
        score: on all units.
        units: how many there are.
        std: standard deviation over seeds, if there are any.
        resampled: the score on the units of the given rows, which may repeat; None where that means nothing.
    """

    task: str
    metric: str
    score: float
    units: int
    std: float | None = None
    resampled: Resampled | None = None


@dataclass(slots=True)
class Encoding:
    """Embeds texts of several sets with several encoders, and counts them as one piece of work.

    Attributes:
        total: texts in all.
        on_progress: told how many are done.
    """

    total: int
    on_progress: ProgressCallback | None = None
    _done: int = field(default=0, init=False)
    _tokens: int = field(default=0, init=False)

    def __call__(self, encoder: Embedder, texts: Sequence[str], role: Role = "document") -> Vectors:
        """Embed texts."""
        done, tokens = self._done, self._tokens

        def report(record: Progress) -> None:
            self.count(done + record.done - self._done, tokens + record.tokens - self._tokens)

        vectors = encoder.encode(texts, role=role, on_progress=report)
        # An encoder need not report its progress.
        self.count(done + len(texts) - self._done, 0)
        return vectors

    def count(self, texts: int, tokens: int) -> None:
        """Add what has been embedded since the last time."""
        self._done += texts
        self._tokens += tokens
        if self.on_progress is not None:
            self.on_progress(Progress("encode", self._done, self.total, "texts", self._tokens))


def scores_of(measures: Sequence[Measure], baseline: Sequence[Measure] | None = None) -> list[Score]:
    """Scores for people: of each set, and of their mean where there are several.

    Args:
        measures: of the encoder, set by set, each set with the same metrics.
        baseline: the same of the other encoder, in the same order.
    """
    others: Sequence[Measure | None] = [None] * len(measures) if baseline is None else baseline
    pairs = list(zip(measures, others, strict=True))
    scores = [_score(measure.task, [(measure, other)]) for measure, other in pairs]
    if len({measure.task for measure in measures}) > 1:
        for metric in dict.fromkeys(measure.metric for measure in measures):
            scores.append(_score(MEAN, [pair for pair in pairs if pair[0].metric == metric]))
    return scores


def _score(task: str, pairs: Sequence[tuple[Measure, Measure | None]]) -> Score:
    """The score of one set, or the mean of the scores of several."""
    measures = [measure for measure, _ in pairs]
    others = [other for _, other in pairs if other is not None]
    score = float(np.mean([measure.score for measure in measures]))
    # Seeds of different sets have nothing to do with each other: their mean has no spread of its own.
    std = measures[0].std if len(measures) == 1 else None
    units = sum(measure.units for measure in measures)
    if not others:
        return Score(task, measures[0].metric, score, units, std)
    baseline = float(np.mean([other.score for other in others]))
    return Score(task, measures[0].metric, score, units, std, baseline, score - baseline, _interval(measures, others))


def _interval(measures: Sequence[Measure], others: Sequence[Measure]) -> Interval | None:
    """Of the mean difference: each set is sampled for itself, and both encoders on the same units."""
    sides = [
        (measure.units, measure.resampled, other.resampled)
        for measure, other in zip(measures, others, strict=True)
        if measure.resampled is not None and other.resampled is not None
    ]
    if len(sides) < len(measures):
        return None

    def difference(random: np.random.Generator) -> float:
        differences = []
        for units, ours, theirs in sides:
            rows = random.integers(units, size=units)
            differences.append(ours(rows, random) - theirs(rows, random))
        return float(np.mean(differences))

    return bootstrap(difference)
