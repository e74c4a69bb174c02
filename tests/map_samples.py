"""Maps for tests: a small one with a hostile text, large ones, and ones of noise alone."""

from dataclasses import replace
from typing import Any

import numpy as np

from llmindex.cluster.clustering import ClusterSummary
from llmindex.cluster.map import MapData

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "<!--<script> ]]> ${alert(1)} {{7*7}} \u2028\u2029 \x00 &lt;b&gt; \"'"
)


def make_map(**changes: Any) -> MapData:  # noqa: ANN401
    """Five points of two clusters and one of noise, which lies in the middle."""
    data = MapData(
        title="ships and bread",
        documents=6,
        noise=1,
        positions=np.array([[-1, -1], [-1, -0.9], [-0.9, -1], [1, 1], [1, 0.9], [0, 0]], np.float32),
        labels=np.array([7, 7, 7, 2, 2, -1], np.int32),
        probabilities=np.array([1, 0.5, 0.25, 1, 0.75, 0], np.float32),
        ids=["d0", "d1", "d2", "d3", "d4", "d5"],
        snippets=["harbour of ships", "a ship", "the Anchor", "warm bread", "yeast and bread", HOSTILE],
        clusters=[summary(7, 3, "harbour", "ship", "anchor"), summary(2, 2, "bread", "oven")],
    )
    return replace(data, **changes)


def summary(label: int, size: int, *keywords: str) -> ClusterSummary:
    return ClusterSummary(label, size, keywords, central_rows=(0,), central_ids=("d0",), persistence=0.5)


def random_map(count: int, clusters: int, seed: int = 0) -> MapData:
    """Clusters of Gaussian shape, a fifth of the points noise."""
    random = np.random.default_rng(seed)
    labels = random.integers(-clusters // 4, clusters, count).clip(-1).astype(np.int32)
    centers = random.uniform(-0.8, 0.8, (clusters + 1, 2))
    positions = (centers[labels] + random.normal(scale=0.05, size=(count, 2))).clip(-1, 1).astype(np.float32)
    sizes = np.bincount(labels + 1, minlength=clusters + 1)
    return MapData(
        title="random",
        documents=count,
        noise=int(sizes[0]),
        positions=positions,
        labels=labels,
        probabilities=random.random(count, np.float32),
        ids=[f"d{i}" for i in range(count)],
        snippets=[f"document number {i}" for i in range(count)],
        clusters=sorted(
            [summary(i, int(sizes[i + 1]), f"keyword{i}", f"another{i}") for i in range(clusters)],
            key=lambda cluster: -cluster.size,
        ),
    )


def few(count: int) -> MapData:
    """So many points of noise, and nothing else."""
    zeros = np.zeros((count, 2), np.float32)
    noise = np.full(count, -1, np.int32)
    return MapData("few", count, count, zeros, noise, zeros[:, 0], ["d"] * count, ["text"] * count, [])
