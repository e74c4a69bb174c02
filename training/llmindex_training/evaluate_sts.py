"""How well cosines agree with what people say of the likeness of two sentences: Spearman's correlation of ranks."""

from collections.abc import Iterable

import numpy as np

from llmindex.metrics import spearman
from llmindex.progress import ProgressCallback
from llmindex.records import Rows, Vectors
from llmindex_training.evaluate import Embedder, Encoding, Measure, Score, scores_of
from llmindex_training.evaluation_data import SentencePairs, listed


def evaluate_sts(
    encoder: Embedder,
    sets: Iterable[SentencePairs],
    *,
    baseline: Embedder | None = None,
    on_progress: ProgressCallback | None = None,
) -> list[Score]:
    """Score an encoder: "spearman" of each set, and the mean; both sentences get the document prompt.

    Args:
        encoder: who is measured.
        sets: sentence pairs with scores.
        baseline: who is measured beside; differences then have a confidence interval, in which pairs are sampled.
        on_progress: told of the stage "encode".

    Raises:
        UsageError: there is no set, or two have the same name.
    """
    sets = listed(sets)
    encoders = [encoder] if baseline is None else [encoder, baseline]
    encode = Encoding(len(encoders) * sum(each.size for each in sets), on_progress)
    measured = [
        [sts_measure(encode(who, each.first), encode(who, each.second), each) for each in sets] for who in encoders
    ]
    return scores_of(*measured)


def sts_measure(first: Vectors, second: Vectors, pairs: SentencePairs) -> Measure:
    """Score the vectors ``(n, dim) float32`` of both sides."""
    cosines = np.einsum("nd,nd->n", first, second, dtype=np.float64)

    def resampled(rows: Rows, random: np.random.Generator) -> float:
        return spearman(cosines[rows], pairs.scores[rows])

    return Measure(pairs.name, "spearman", spearman(cosines, pairs.scores), len(cosines), resampled=resampled)
