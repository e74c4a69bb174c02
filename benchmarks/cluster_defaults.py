"""Are the defaults of `llmindex cluster` good? Against UMAP to 5 dimensions + hdbscan, and hdbscan alone.

All of them cluster the same vectors: the default encoder's, of seeded samples of five labelled sets. All documents
count in every score, and noise counts as one cluster of its own; so leaving a document out is a guess like any other.
UMAP runs as BERTopic runs it (15 neighbours, 5 dimensions, min_dist 0, cosine), once with our cluster size, once with
BERTopic's 10, and once with the best of a grid, chosen on these very labels: what it could reach at most.

    python benchmarks/cluster_defaults.py [--vectors FOLDER]     # writes benchmarks/results/cluster_defaults.json

The vectors of a set are kept as FOLDER/<set>.npy, and taken from there if they are as many as its texts.
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import numpy as np
from hdbscan import HDBSCAN
from numpy.typing import NDArray
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

from llmindex import Encoder
from llmindex.cluster.distinct import first_rows
from llmindex.cluster.groups import group
from llmindex.cluster.options import ClusterOptions
from llmindex.records import Vectors
from shared_data import CLUSTERING_SETS, clustering_set, kept_vectors

RESULTS = Path(__file__).parent / "results" / "cluster_defaults.json"
TEXTS = 2000

GRID = tuple(product((5, 10, 15, 20), (1, 5, 10)))
"""min_cluster_size and min_samples of UMAP's best."""

BEST_OF_GRID = "UMAP + hdbscan, best of grid"

Labels = NDArray[np.int32]
Method = Callable[[Vectors], Labels]


@dataclass(frozen=True, slots=True)
class Score:
    """One method on one set; shares and scores in percent, noise as one cluster."""

    documents: int
    clusters: int
    noise: float
    ami: float
    v_measure: float
    ari: float
    cpu_seconds: float


def ours(vectors: Vectors, options: ClusterOptions) -> Labels:
    """`llmindex cluster` without the store."""
    first = first_rows([vectors])
    return group(lambda: [vectors], first, options.resolve(len(vectors))).labels


def reduce_by_umap(vectors: Vectors) -> Vectors:
    """UMAP as BERTopic uses it, with a seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from umap import UMAP

        model = UMAP(n_neighbors=15, n_components=5, min_dist=0.0, metric="cosine", random_state=0, n_jobs=1)
        reduced: Vectors = model.fit_transform(vectors)
    return reduced


def by_hdbscan(vectors: Vectors, min_cluster_size: int, min_samples: int) -> Labels:
    """The hdbscan package's labels."""
    labels: Labels = HDBSCAN(min_cluster_size=min_cluster_size, min_samples=min_samples).fit(vectors).labels_
    return labels


def default_sizes(vectors: Vectors) -> tuple[int, int]:
    """Our default min_cluster_size and min_samples for so many vectors."""
    options = ClusterOptions().resolve(len(vectors))
    return options.min_cluster_size or 0, options.min_samples or 0


METHODS: dict[str, Method] = {
    "llmindex, default": lambda vectors: ours(vectors, ClusterOptions()),
    "llmindex, --no-assign-noise": lambda vectors: ours(vectors, ClusterOptions(assign_noise=False)),
    "llmindex, --selection leaf": lambda vectors: ours(vectors, ClusterOptions(selection="leaf")),
    "llmindex, --reduce none": lambda vectors: ours(vectors, ClusterOptions(reduce="none")),
    "llmindex, --reduce umap": lambda vectors: ours(vectors, ClusterOptions(reduce="umap")),
    "hdbscan, our sizes": lambda vectors: by_hdbscan(vectors, *default_sizes(vectors)),
}


def umap_methods(reduced: Vectors) -> Iterator[tuple[str, Method]]:
    """UMAP's vectors are made once for all of its rows."""
    yield "UMAP + hdbscan, our sizes", lambda vectors: by_hdbscan(reduced, *default_sizes(vectors))
    yield "UMAP + hdbscan, BERTopic's size", lambda _: by_hdbscan(reduced, 10, 10)
    for size, samples in GRID:
        yield f"UMAP + hdbscan, {size}, {samples}", lambda _, s=size, m=samples: by_hdbscan(reduced, s, m)  # type: ignore[misc]


def score(method: Method, vectors: Vectors, truth: list[str], seconds_before: float = 0.0) -> Score:
    """Run a method on one set."""
    started = time.process_time()
    labels = method(vectors)
    seconds = time.process_time() - started + seconds_before
    return Score(
        documents=len(labels),
        clusters=len(set(labels.tolist()) - {-1}),
        noise=round(100 * float((labels < 0).mean()), 1),
        ami=round(100 * float(adjusted_mutual_info_score(truth, labels)), 1),
        v_measure=round(100 * float(v_measure_score(truth, labels)), 1),
        ari=round(100 * float(adjusted_rand_score(truth, labels)), 1),
        cpu_seconds=round(seconds, 2),
    )


def mean_ami(scores: dict[str, Score]) -> float:
    """Over the sets."""
    return float(np.mean([each.ami for each in scores.values()]))


def measure(folder: Path) -> dict[str, dict[str, Score]]:
    """All methods on all sets: scores by method and set."""
    table: dict[str, dict[str, Score]] = {}
    # What compiles on first use is no part of the times.
    encoder = Encoder.load()
    reduce_by_umap(np.random.default_rng(0).normal(size=(100, 8)).astype(np.float32))
    for name in CLUSTERING_SETS:
        data = clustering_set(name, TEXTS)
        vectors = kept_vectors(folder / f"{name}.npy", data.texts, encoder.encode)
        for method_name, method in METHODS.items():
            table.setdefault(method_name, {})[name] = score(method, vectors, data.labels)
        started = time.process_time()
        reduced = reduce_by_umap(vectors)
        seconds = time.process_time() - started
        for method_name, method in umap_methods(reduced):
            table.setdefault(method_name, {})[name] = score(method, vectors, data.labels, seconds)
    grid = [f"UMAP + hdbscan, {size}, {samples}" for size, samples in GRID]
    best = max(grid, key=lambda each: mean_ami(table[each]))
    table[f"{BEST_OF_GRID} ({best.removeprefix('UMAP + hdbscan, ')})"] = table[best]
    return {method: scores for method, scores in table.items() if method not in grid}


def print_table(table: dict[str, dict[str, Score]]) -> None:
    """AMI / noise share / clusters by method and set, as Markdown."""
    print(f"| method | {' | '.join(CLUSTERING_SETS)} | mean AMI | most noise | CPU s a set |")
    print(f"| --- | {'--- | ' * len(CLUSTERING_SETS)}--- | --- | --- |")
    for method, scores in table.items():
        cells = [f"{each.ami:.1f} / {each.noise:.0f} % / {each.clusters}" for each in scores.values()]
        seconds = np.mean([each.cpu_seconds for each in scores.values()])
        noise = max(each.noise for each in scores.values())
        print(f"| {method} | {' | '.join(cells)} | {mean_ami(scores):.1f} | {noise:.0f} % | {seconds:.1f} |")


def main() -> None:
    """Measure, print the table and save all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--vectors", type=Path, default=Path(".cache/vectors"), help="where vectors are kept")
    table = measure(parser.parse_args().vectors)
    values = {method: {name: asdict(each) for name, each in scores.items()} for method, scores in table.items()}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    print_table(table)


if __name__ == "__main__":
    main()
