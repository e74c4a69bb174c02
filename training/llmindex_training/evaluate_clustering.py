"""How well the vectors of labelled texts fall into their classes, by k-means and by HDBSCAN.

k-means is told the true number of classes, as MTEB's clustering tasks do it (Muennighoff et al. 2023, arXiv
2210.07316, section 3.3): mini-batches, one start a seed; the scores are means over seeds. HDBSCAN is told nothing: it
is what `llmindex cluster` does by default, and texts that it leaves as noise count as one cluster more.
"""

import warnings
from collections.abc import Iterable

import numpy as np

from llmindex.metrics import Codes, ami, noise_share, v_measure
from llmindex.progress import ProgressCallback
from llmindex.records import Rows, Vectors, at_least_one
from llmindex_training.evaluate import Embedder, Encoding, Measure, Score, scores_of
from llmindex_training.evaluation_data import LabelledTexts, listed

SEEDS = 5
BATCH = 512
"""Texts of a mini-batch, as in MTEB."""


def evaluate_clustering(
    encoder: Embedder,
    sets: Iterable[LabelledTexts],
    *,
    baseline: Embedder | None = None,
    seeds: int = SEEDS,
    on_progress: ProgressCallback | None = None,
) -> list[Score]:
    """Score an encoder: "v_measure", "ami", "hdbscan_ami" and "hdbscan_noise" of each set, and their means.

    Args:
        encoder: who is measured.
        sets: labelled texts.
        baseline: who is measured beside; "v_measure" then has a confidence interval of the difference, in which the
            texts are sampled, and the seeds of k-means for each encoder. Sampled copies of a text would be right by
            chance in AMI, and dense to HDBSCAN: these have none.
        seeds: k-means runs.
        on_progress: told of the stage "encode".

    Raises:
        UsageError: there is no set, two have the same name, or there are no seeds.
    """
    sets, seeds = listed(sets), at_least_one("--seeds", seeds)
    encoders = [encoder] if baseline is None else [encoder, baseline]
    encode = Encoding(len(encoders) * sum(each.size for each in sets), on_progress)
    measured = [
        [measure for each in sets for measure in clustering_measures(encode(who, each.texts), each, seeds)]
        for who in encoders
    ]
    return scores_of(*measured)


def clustering_measures(vectors: Vectors, labelled: LabelledTexts, seeds: int = SEEDS) -> list[Measure]:
    """Score vectors ``(n, dim) float32`` of a set's texts."""
    truth, task, count = labelled.truth, labelled.name, len(vectors)
    guesses = [kmeans(vectors, labelled.classes, seed) for seed in range(seeds)]

    def resampled(rows: Rows, random: np.random.Generator) -> float:
        drawn = random.integers(seeds, size=seeds)
        return float(np.mean([v_measure(truth[rows], guesses[seed][rows]) for seed in drawn]))

    v_measures = [v_measure(truth, guess) for guess in guesses]
    amis = [ami(truth, guess) for guess in guesses]
    dense = hdbscan(vectors)
    return [
        Measure(task, "v_measure", float(np.mean(v_measures)), count, float(np.std(v_measures)), resampled),
        Measure(task, "ami", float(np.mean(amis)), count, float(np.std(amis))),
        Measure(task, "hdbscan_ami", ami(truth, dense), count),
        Measure(task, "hdbscan_noise", noise_share(dense), count),
    ]


def kmeans_v_measure(vectors: Vectors, labelled: LabelledTexts, seeds: int = SEEDS) -> float:
    """The first of the scores alone, for those who need it often: the mean V-measure over seeds."""
    guesses = (kmeans(vectors, labelled.classes, seed) for seed in range(seeds))
    return float(np.mean([v_measure(labelled.truth, guess) for guess in guesses]))


def kmeans(vectors: Vectors, clusters: int, seed: int) -> Codes:
    """Cluster of each vector, ``(n,) int64``."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.exceptions import ConvergenceWarning

    model = MiniBatchKMeans(clusters, batch_size=BATCH, n_init="auto", random_state=seed)
    with warnings.catch_warnings():
        # Fewer different vectors than classes: the score says that well enough.
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels: Codes = model.fit_predict(vectors).astype(np.int64)
    return labels


def hdbscan(vectors: Vectors) -> Codes:
    """Label of each vector by the defaults of `llmindex cluster`, ``(n,) int64``; -1 is noise."""
    from llmindex.cluster.distinct import first_rows
    from llmindex.cluster.groups import group
    from llmindex.cluster.options import ClusterOptions

    options = ClusterOptions().resolve(len(vectors))
    return group(lambda: [vectors], first_rows([vectors]), options).labels.astype(np.int64)
