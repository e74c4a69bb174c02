"""Places for vectors on a flat map: near in the plane where near in the vector space.

t-SNE (van der Maaten and Hinton 2008, scikit-learn's Barnes-Hut version) over the first principal components. It
alone would take minutes on a large corpus, so at most ``SAMPLE`` points are laid out by it, and each of the others is
put among its nearest neighbours of the sample. The same vectors and seed give the same map on any number of cores:
t-SNE amplifies the rounding of a sum, so sums are kept in one thread's order.
"""

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Vectors

SAMPLE = 5_000
"""Points that t-SNE itself places: about 20 seconds on one core."""

COMPONENTS = 50
"""Principal components that t-SNE sees; more cost time and change little."""

PERPLEXITY = 30
"""How many neighbours a point holds on to."""

ITERATIONS = 600
"""Steps of t-SNE; another 400 cost as much again and keep no more neighbours (measured)."""

NEIGHBORS = 5
"""Sampled neighbours between which a point outside the sample is placed."""

TOO_FEW = 8
"""Below this t-SNE has no neighbourhoods to preserve, and two principal components show everything."""

BLOCK = 2_048


def layout(vectors: Vectors, seed: int = 0, on_progress: ProgressCallback | None = None) -> NDArray[np.float32]:
    """Return a place in the plane for each vector.

    Args:
        vectors: ``(n, dim) float32``, unit rows.
        seed: chooses the sample and the jitter.
        on_progress: told of the points placed, as stage "layout".

    Returns:
        ``(n, 2) float32``, centred, the farther axis reaching from -1 to 1.

    Raises:
        ValueError: if vectors is not two-dimensional.
    """
    if vectors.ndim != 2:
        raise ValueError(f"vectors must be (n, dim), not {vectors.shape}")
    if len(vectors) == 0:
        return np.zeros((0, 2), np.float32)
    from threadpoolctl import threadpool_limits

    report = functools.partial(_report, on_progress, len(vectors))
    report(0)
    random = np.random.default_rng(seed)
    chosen = _sample(len(vectors), random)
    with threadpool_limits(limits=1):
        components = _principal(vectors, chosen, seed)
        places = np.empty((len(vectors), 2), np.float64)
        places[chosen] = _embed(components[chosen], random)
        report(len(chosen))
        if len(chosen) < len(vectors):
            _place_others(places, components, chosen, random, report)
    return _fit(places)


def _report(listener: ProgressCallback | None, total: int, done: int) -> None:
    if listener is not None:
        listener(Progress(stage="layout", done=done, total=total, unit="points"))


def _sample(count: int, random: np.random.Generator) -> NDArray[np.int64]:
    if count <= SAMPLE:
        return np.arange(count)
    return np.sort(random.choice(count, SAMPLE, replace=False))


def _principal(vectors: Vectors, chosen: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Project all vectors on the sample's principal components: ``(n, components) float32``."""
    from sklearn.decomposition import PCA

    width = min(COMPONENTS, len(chosen), vectors.shape[1])
    if width < 2 or np.ptp(vectors[chosen], axis=0).max() < 1e-6:  # one point, or copies of one: nothing varies
        return np.zeros((len(vectors), 2), np.float32)
    solver = "randomized" if width == COMPONENTS else "full"
    pca = PCA(width, svd_solver=solver, random_state=seed).fit(vectors[chosen])
    components: NDArray[np.float32] = pca.transform(vectors).astype(np.float32)
    return components


def _embed(components: NDArray[np.float32], random: np.random.Generator) -> NDArray[np.float64]:
    """Lay out the sample: ``(n, 2) float64``, spread to a standard deviation of about 1."""
    from sklearn.manifold import TSNE

    count = len(components)
    spread = float(components[:, 0].std())
    start = components[:, :2].astype(np.float64) / (spread or 1.0)
    start += random.normal(scale=1e-3, size=start.shape)  # copies of one document get places of their own
    if count < TOO_FEW or spread == 0.0:
        return start
    tsne = TSNE(
        perplexity=min(PERPLEXITY, (count - 1) / 3),
        init=(start * 1e-4).astype(np.float32),
        learning_rate="auto",
        max_iter=ITERATIONS,
        angle=0.6,
        random_state=0,
        n_jobs=1,
    )
    places: NDArray[np.float64] = tsne.fit_transform(components).astype(np.float64)
    return places / (places.std() or 1.0)


def _place_others(
    places: NDArray[np.float64],
    components: NDArray[np.float32],
    chosen: NDArray[np.int64],
    random: np.random.Generator,
    report: Callable[[int], None],
) -> None:
    """Fill in the places of the points outside the sample, each among its nearest sampled neighbours."""
    others = np.setdiff1d(np.arange(len(places)), chosen, assume_unique=True)
    sampled = components[chosen]
    sampled_norms = np.einsum("ij,ij->i", sampled, sampled)
    for start in range(0, len(others), BLOCK):
        block = others[start : start + BLOCK]
        distances = sampled_norms - 2.0 * (components[block] @ sampled.T)  # squared, less a constant of each row
        nearest = np.argpartition(distances, NEIGHBORS, axis=1)[:, :NEIGHBORS]
        near = np.take_along_axis(distances, nearest, axis=1)
        near += np.einsum("ij,ij->i", components[block], components[block])[:, None]
        places[block] = _between(places[chosen][nearest], near)
        report(len(chosen) + start + len(block))
    # Points with the same neighbours would otherwise lie on each other.
    places[others] += random.normal(scale=0.01, size=(len(others), 2))


def _between(corners: NDArray[np.float64], squared: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of ``(m, k, 2)`` corners, weighted by inverse squared distance so that the nearest has most to say."""
    weights = 1.0 / (np.maximum(squared, 0.0) + 1e-6)
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray(np.einsum("mk,mkd->md", weights, corners))


def _fit(places: NDArray[np.float64]) -> NDArray[np.float32]:
    low, high = places.min(axis=0), places.max(axis=0)
    reach = float((high - low).max()) / 2 or 1.0
    fitted: NDArray[np.float32] = ((places - (low + high) / 2) / reach).astype(np.float32)
    return fitted
