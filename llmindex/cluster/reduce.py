"""Fewer dimensions before clustering: distances in hundreds of them hardly differ, and density needs differences.

``pca`` centres the vectors, keeps the leading principal components, evens out their sizes and makes the rows unit
length again. Embeddings of a language model share one large direction and vary most along a few that say little about
the topic; distances are ruled by those until they are evened out. ``umap`` needs the package umap-learn, which compiles
for half a minute in every process.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.options import Reduce
from llmindex.errors import MissingPackage
from llmindex.records import Vectors

COMPONENTS = 64
BALANCE = 0.5
"""Power of a component's standard deviation that it is divided by: 0 leaves it, 1 makes all alike."""

UMAP_DIM = 5
UMAP_NEIGHBORS = 15

_SAMPLE = 16_384
"""Vectors that the components are computed from."""

Blocks = Callable[[], Iterable[Vectors]]
"""Gives the vectors in row order, block by block, as often as it is called."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Centre, project, make unit length.

    Attributes:
        mean: ``(dim,) float32``.
        components: ``(k, dim) float32``, already scaled.
    """

    mean: NDArray[np.float32]
    components: NDArray[np.float32]

    def __call__(self, vectors: Vectors) -> Vectors:
        """Return the reduced vectors, ``(n, k) float32``."""
        projected = (vectors - self.mean) @ self.components.T
        lengths = np.sqrt(np.einsum("ij,ij->i", projected, projected))
        # A vector that is the mean itself has no direction.
        unit: Vectors = projected / np.maximum(lengths, np.float32(1e-12))[:, None]
        return unit


@dataclass(frozen=True, slots=True)
class Reduced:
    """The vectors to cluster.

    Attributes:
        vectors: ``(n, k) float32``.
        projection: what reduces further vectors the same way; None where nothing was reduced, and for UMAP.
    """

    vectors: Vectors
    projection: Projection | None = None


def reduce(blocks: Blocks, count: int, method: Reduce) -> Reduced:
    """Reduce vectors for clustering.

    Args:
        blocks: gives the unit vectors, each ``(m, dim) float32``.
        count: vectors in all, 1 or more.
        method: "none", "pca", or "umap".

    Raises:
        MissingPackage: UMAP is asked for and not installed.
    """
    if method == "none":
        return Reduced(np.concatenate(list(blocks())))
    if method == "umap":
        return Reduced(_umap(np.concatenate(list(blocks()))))
    projection = _principal_components(blocks, count)
    return Reduced(np.concatenate([projection(block) for block in blocks()]), projection)


def _principal_components(blocks: Blocks, count: int) -> Projection:
    sample = _spread_sample(blocks, count)
    mean = sample.mean(axis=0, dtype=np.float64)
    centred = sample - mean
    # The covariance is at most dim x dim, whatever the number of vectors.
    variances, directions = np.linalg.eigh(centred.T @ centred / len(sample))
    kept = slice(None, -1 - min(COMPONENTS, len(sample) - 1 or 1, len(mean)), -1)
    variances, directions = variances[kept], directions[:, kept].T
    # Below rounding there is nothing to even out.
    deviations = np.sqrt(np.maximum(variances, 1e-12 * max(float(variances[0]), 1e-12)))
    # The sign of an eigenvector is left to the library: fix it.
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    scaled = directions * (signs / deviations**BALANCE)[:, None]
    return Projection(mean.astype(np.float32), scaled.astype(np.float32))


def _spread_sample(blocks: Blocks, count: int) -> NDArray[np.float64]:
    """Return at most ``_SAMPLE`` vectors, evenly spread over the rows."""
    step = -(-count // _SAMPLE)
    start, taken = 0, []
    for block in blocks():
        taken.append(block[-start % step :: step])
        start += len(block)
    return np.concatenate(taken).astype(np.float64)


def _umap(vectors: Vectors) -> Vectors:
    if len(vectors) <= UMAP_NEIGHBORS:
        return vectors  # too few for neighbourhoods
    with warnings.catch_warnings():
        # It warns of TensorFlow, which is not needed, and of what it finds disconnected.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError as error:
            hint = "install it with: pip install 'llmindex[umap]'"
            raise MissingPackage(f'reduce "umap" needs the package umap-learn; {hint}') from error
        # One job, because more would make the result depend on chance.
        model = UMAP(UMAP_NEIGHBORS, UMAP_DIM, metric="cosine", min_dist=0.0, random_state=0, n_jobs=1)
        reduced: Vectors = np.ascontiguousarray(model.fit_transform(vectors), np.float32)
    return reduced
