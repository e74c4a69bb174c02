"""Scores of clusterings, rankings and similarities, and how sure a difference between two of them is.

All scores are shares: 1 is perfect. What has a known right answer in a few lines of NumPy is written here, so that it
can be computed a thousand times for a bootstrap; the rest is scikit-learn's and SciPy's, loaded when first needed.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.int64]
"""Labels as numbers: ``(n,) int64``, 0 and up."""

Scores = NDArray[np.float64]
"""One number a query: ``(q,) float64``."""

Gains = NDArray[np.float64]
"""Grades of what was found, ``(q, depth) float64``, the best hit first; 0 where it is irrelevant or nothing."""


@dataclass(frozen=True, slots=True)
class Interval:
    """Where a value lies with a certain confidence."""

    low: float
    high: float


def v_measure(truth: Codes, found: Codes) -> float:
    """Harmonic mean of homogeneity and completeness (Rosenberg and Hirschberg 2007).

    Args:
        truth: ``(n,)``, the class of each item.
        found: ``(n,)``, the cluster of each item.
    """
    width = int(found.max()) + 1
    joint = _entropy(np.bincount(truth * width + found))
    classes, clusters = _entropy(np.bincount(truth)), _entropy(np.bincount(found))
    # One class in one cluster carries no information, and is right.
    return 2 * (classes + clusters - joint) / (classes + clusters) if classes + clusters > 0 else 1.0


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy of a distribution, in nats."""
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def ami(truth: NDArray[np.int64], found: NDArray[np.int64]) -> float:
    """Adjusted mutual information: 0 for chance (Vinh, Epps and Bailey 2010).

    Args:
        truth: ``(n,)``, the class of each item.
        found: ``(n,)``, the cluster of each item; -1, noise, counts as a cluster of its own.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(truth, found))


def noise_share(found: NDArray[np.int64]) -> float:
    """Share of the items with the label -1."""
    return float((found < 0).mean()) if len(found) else 0.0


def ndcg(gains: Gains, ideal: Gains, k: int) -> Scores:
    """Discounted cumulative gain of the first k hits over that of the best ranking (Järvelin and Kekäläinen 2002).

    Gains count as they are, not as powers of two: so do trec_eval and MTEB.

    Args:
        gains: what was found.
        ideal: ``(q, m)``, all grades of each query, the highest first, filled up with 0; one at least above 0.
        k: how many hits count.
    """
    return _discounted(gains, k) / _discounted(ideal, k)


def _discounted(gains: Gains, k: int) -> Scores:
    counted = gains[:, :k]
    total: Scores = (counted / np.log2(np.arange(2, counted.shape[1] + 2))).sum(axis=1)
    return total


def recall(gains: Gains, relevant: NDArray[np.int64], k: int) -> Scores:
    """Share of the relevant documents that are among the first k hits.

    Args:
        gains: what was found.
        relevant: ``(q,)``, how many relevant documents each query has, at least 1.
        k: how many hits count.
    """
    share: Scores = (gains[:, :k] > 0).sum(axis=1) / relevant
    return share


def reciprocal_rank(gains: Gains) -> Scores:
    """One over the rank of the first relevant hit; 0 where there is none."""
    if gains.shape[1] == 0:
        return np.zeros(len(gains))
    first = (gains > 0).argmax(axis=1)
    return np.where((gains > 0).any(axis=1), 1 / (first + 1), 0.0)


def spearman(first: NDArray[np.floating], second: NDArray[np.floating]) -> float:
    """Correlation of ranks, ties at their mean rank; 0 where one side is constant and so ranks nothing."""
    from scipy.stats import rankdata

    ranks = [rankdata(side) - (len(side) + 1) / 2 for side in (first, second)]
    norm = np.linalg.norm(ranks[0]) * np.linalg.norm(ranks[1])
    return float(ranks[0] @ ranks[1] / norm) if norm > 0 else 0.0


def bootstrap(
    resample: Callable[[np.random.Generator], float],
    *,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap (Efron and Tibshirani 1993, chapter 13).

    Args:
        resample: gives the statistic of one sample drawn with replacement by the generator. For a difference it draws
            once for both sides: what is hard for one is then hard for the other.
        resamples: how many samples.
        confidence: share of the statistics that the interval covers.
        seed: of the generator.
    """
    random = np.random.default_rng(seed)
    values = np.array([resample(random) for _ in range(resamples)])
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))
