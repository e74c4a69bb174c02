"""What a clustering is: labels, and what is known of each cluster."""

from dataclasses import dataclass, field

from llmindex.cluster.groups import Placement
from llmindex.cluster.hdbscan_tree import Labels, Probabilities
from llmindex.cluster.options import ClusterOptions


@dataclass(frozen=True, slots=True)
class ClusterSummary:
    """One cluster.

    Attributes:
        label: its number; 0 is the largest cluster.
        size: documents in it.
        keywords: the words that tell it from the others, weightiest first.
        central_rows: the documents nearest to its mean direction, nearest first; copies of one count once if they can.
        central_ids: their ids.
        persistence: how long it outlasts changes of density, 0 to 1.
    """

    label: int
    size: int
    keywords: tuple[str, ...]
    central_rows: tuple[int, ...]
    central_ids: tuple[str, ...]
    persistence: float


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """The documents of an index in groups.

    Attributes:
        labels: ``(n,) int32``, each row's cluster; -1 for noise.
        probabilities: ``(n,) float32``, how deep in its cluster each row lies; 0 for noise.
        options: as used, defaults filled in.
        clusters: largest first.
        noise_share: share of the documents in no cluster.
        assigned_share: share that HDBSCAN called noise and that followed their neighbours into a cluster.
        built_from: identity of the stored vectors.
        seconds: wall time that it took.
        placement: what it takes to place new documents.
    """

    labels: Labels = field(repr=False)  # a notebook shows what is left: it is read, not scrolled through
    probabilities: Probabilities = field(repr=False)
    options: ClusterOptions
    clusters: tuple[ClusterSummary, ...]
    noise_share: float
    assigned_share: float
    built_from: str
    seconds: float
    placement: Placement = field(repr=False)
