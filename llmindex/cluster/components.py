"""Points in components that grow together until one is left: what is common to all ways to a spanning tree."""

import numpy as np

from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Rows


class Components:
    """The components so far, and the edges that joined them.

    Attributes:
        of: ``(n,) int64``, the component of each point.
        count: how many there are, numbered from 0.
    """

    def __init__(self, points: int, on_progress: ProgressCallback | None) -> None:
        """Begin with each point as a component; ``on_progress`` is told of the stage "spanning tree"."""
        self.of: Rows = np.arange(points)
        self.count = points
        self._edges: list[Rows] = [np.empty((0, 2), np.int64)]
        self._on_progress = on_progress

    def join(self, starts: Rows, ends: Rows) -> None:
        """Join components along edges, lightest first; an edge that closes a circle is left out.

        Args:
            starts: ``(m,)``, points; no two edges lead from one component to the same other.
            ends: ``(m,)``, points of other components.
        """
        from scipy.sparse import csr_array
        from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

        # Ranks instead of weights: of equally light edges that close a circle, one has to go.
        ranks = np.arange(1.0, len(starts) + 1)
        # In 32 bits, since SciPy before 1.17.1 finds no tree of others.
        pairs = self.of[starts].astype(np.int32), self.of[ends].astype(np.int32)
        between = csr_array((ranks, pairs), (self.count, self.count))
        forest = minimum_spanning_tree(between)
        kept = forest.data.astype(np.int64) - 1
        self._edges.append(np.stack([starts[kept], ends[kept]], axis=1))
        self.count, label = connected_components(forest, directed=False)
        self.of = label.astype(np.int64)[self.of]
        if self._on_progress is not None:
            points = len(self.of)
            self._on_progress(Progress("spanning tree", points - self.count, points - 1, "edges"))

    def edges(self) -> Rows:
        """Return the edges along which components were joined, ``(n - count, 2)``."""
        return np.concatenate(self._edges)
