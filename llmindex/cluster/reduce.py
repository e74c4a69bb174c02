"""Fewer dimensions before clustering: distances in hundreds of them hardly differ, and density needs differences.

``pca`` centres the vectors, keeps the leading principal components and makes the rows unit length again, after evening
out the components: embeddings of a language model vary most along a few directions that say little about the topic, and
those would rule the distances. Then each vector moves towards the mean of its neighbours (a step of mean shift), which
draws groups together and leaves less noise. ``umap`` needs the package umap-learn, which compiles for half a minute in
every process. What was chosen on which data: benchmarks/cluster_defaults.py.

Copies stay copies: two vectors a rounding error from each other would be the densest cluster there is.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llmindex.cluster.cells import Cells
from llmindex.cluster.lookup import Lookup
from llmindex.cluster.options import Reduce
from llmindex.cluster.sampling import every
from llmindex.cluster.spanning_tree import EXACT_LIMIT
from llmindex.errors import MissingPackage
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows, Vectors

COMPONENTS = 48
"""Principal components, where there are three times as many vectors."""

EVENED_TO = 4.0
"""No component varies more than so many times as much as the last one kept."""

NEIGHBORHOOD = 30
"""Neighbours whose mean a vector moves to, where there are twenty times as many vectors."""

KEPT = 0.225
"""How much of its way to the mean of its neighbours and itself a vector does not go: vectors that are each other's
neighbours, few or many, come nearer by that factor, and do not become one."""

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
        """Return the projected vectors, ``(n, k) float32``."""
        projected = (vectors - self.mean) @ self.components.T
        return unit(projected.astype(np.float32, copy=False))


def unit(vectors: Vectors) -> Vectors:
    """Return the vectors at unit length; one of no length stays."""
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
    scaled: Vectors = vectors / np.maximum(lengths, np.float32(1e-12))[:, None]
    return scaled


@dataclass(frozen=True, slots=True)
class Reduced:
    """The vectors to cluster.

    Attributes:
        vectors: ``(n, k) float32``; equal where the stored ones are.
        projection: the first step for further vectors, if the reduction is by principal components.
        centroids: ``(cells, k) float32``, the middles of cells of the vectors, where they are known.
    """

    vectors: Vectors
    projection: Projection | None = None
    centroids: Vectors | None = None


def reduce(blocks: Blocks, first: Rows, method: Reduce, on_progress: ProgressCallback | None = None) -> Reduced:
    """Reduce vectors for clustering.

    Args:
        blocks: gives the unit vectors, each ``(m, dim) float32``.
        first: ``(n,)``, for each row the first with the same vector; n is 1 or more.
        method: "none", "pca", or "umap".
        on_progress: told of the stage "reduce".

    Raises:
        MissingPackage: UMAP is asked for and not installed.
    """
    if method == "none":
        return Reduced(np.concatenate(list(blocks())))
    if method == "umap":
        return Reduced(_umap(np.concatenate(list(blocks())))[first])
    projection = _principal_components(blocks, len(first))
    projected = np.concatenate([projection(block) for block in blocks()])
    distinct, place = np.unique(first, return_inverse=True)
    shifted, centroids = _mean_shift(projected[distinct], on_progress)
    return Reduced(shifted[place], projection, centroids)


def neighborhood(count: int) -> int:
    """Return how many neighbours a vector moves towards, of so many different vectors; none where these are few."""
    return min(NEIGHBORHOOD, count // 20)


def shift(vectors: Vectors, rows: Rows, among: Vectors) -> Vectors:
    """Move vectors towards the mean of their neighbours, and make them unit length again.

    Args:
        vectors: ``(n, dim) float32``.
        rows: ``(n, k)``, which are the neighbours of each.
        among: ``(m, dim) float32``, what these are rows of.
    """
    from scipy.sparse import csr_array

    count, k = rows.shape
    shares = np.full(count * k, np.float32(1 / k))
    # A product, because the vectors of all neighbours at once would be a multiple of the vectors.
    means = csr_array((shares, rows.ravel(), np.arange(0, count * k + 1, k)), (count, len(among))) @ among
    own = np.float32((KEPT * k + 1) / (k + 1))  # what is kept, and its part in the mean
    return unit(own * vectors + (1 - own) * means)


def _mean_shift(vectors: Vectors, on_progress: ProgressCallback | None) -> tuple[Vectors, Vectors | None]:
    """Return where the vectors move to, and where the middles of their cells do, if they are known."""
    count = len(vectors)
    k = neighborhood(count)
    if k == 0:
        return vectors, None
    cells = Cells.of(vectors)
    shifted, done = np.empty_like(vectors), 0
    for own, found in Lookup(vectors, cells, k + 1, exact=count <= EXACT_LIMIT).own(k):
        shifted[own] = shift(vectors[own], found.rows, vectors)
        done += len(own)
        if on_progress is not None:
            on_progress(Progress("reduce", done, count, "vectors"))
    return shifted, cells.means(shifted)


def _principal_components(blocks: Blocks, count: int) -> Projection:
    sample = _spread_sample(blocks, count)
    mean = sample.mean(axis=0)
    centred = sample - mean
    # The covariance is at most dim x dim, whatever the number of vectors.
    variances, directions = np.linalg.eigh(centred.T @ centred / len(sample))
    kept = slice(None, -1 - max(1, min(COMPONENTS, len(sample) // 3, len(mean))), -1)
    deviations, directions = np.sqrt(np.maximum(variances[kept], 0)), directions[:, kept].T
    # Where the vectors have fewer dimensions than were kept, the last ones are rounding, and no measure.
    last = deviations[deviations > 1e-6 * deviations[0]][-1:].sum()
    scales = np.minimum(1, EVENED_TO * last / np.maximum(deviations, 1e-30))
    # The sign of an eigenvector is left to the library: fix it.
    signs = np.sign(directions[np.arange(len(directions)), np.abs(directions).argmax(axis=1)])
    return Projection(mean.astype(np.float32), (directions * (signs * scales)[:, None]).astype(np.float32))


def _spread_sample(blocks: Blocks, count: int) -> NDArray[np.float64]:
    """Return at most ``_SAMPLE`` vectors, evenly spread over the rows."""
    step = -(-count // _SAMPLE)
    return np.concatenate(list(every(step, blocks()))).astype(np.float64)


def _umap(vectors: Vectors) -> Vectors:
    if len(vectors) <= UMAP_NEIGHBORS:
        return vectors  # too few for neighbourhoods
    with warnings.catch_warnings():
        # It warns of TensorFlow, which is not needed, and of what it finds disconnected.
        warnings.simplefilter("ignore")
        try:
            from umap import UMAP
        except ImportError as error:
            hint = "install it with: pip install umap-learn"
            raise MissingPackage(f'reduce "umap" needs the package umap-learn; {hint}') from error
        # One job, because more would make the result depend on chance.
        model = UMAP(UMAP_NEIGHBORS, UMAP_DIM, metric="cosine", min_dist=0.0, random_state=0, n_jobs=1)
        reduced: Vectors = np.ascontiguousarray(model.fit_transform(vectors), np.float32)
    return reduced
