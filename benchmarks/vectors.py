"""Vectors as text embeddings are, in any number: seeded, clustered, anisotropic, of unit length, block by block.

Topics of very different sizes lie around a common direction; within a topic few directions carry most of the variance,
and none of them is a coordinate axis. A block depends on the seed and its own number alone, so any part of millions
of vectors can be made at any time, in the memory of one block.
"""

from collections.abc import Iterator
from functools import cached_property
from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 16_384
"""Vectors that are made together."""

_TOPICS: Final = 2_000
# How far a topic lies from the middle of all, and a vector from the middle of its topic.
_COMMON, _TOPIC, _OWN = 0.5, 0.7, 0.6


class Embeddings:
    """An endless sequence of unit vectors.

    Args:
        dim: length of a vector.
        seed: another seed, other topics and other vectors.
    """

    def __init__(self, dim: int = 384, seed: int = 0) -> None:
        self.dim = dim
        self.seed = seed

    def block(self, number: int, rows: int = BLOCK, *, queries: bool = False) -> NDArray[np.float32]:
        """The first ``rows`` vectors of a block, ``(rows, dim) float32``; as queries, others of the same topics."""
        random = np.random.default_rng([self.seed, 1 + queries, number])
        topics = random.choice(_TOPICS, BLOCK, p=self._shares)[:rows]
        own = random.standard_normal((BLOCK, self.dim), dtype=np.float32)[:rows]
        vectors = self._middles[topics] + own @ self._spread
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def topics(self, number: int) -> NDArray[np.int64]:
        """The topic of each vector of a block, ``(BLOCK,)``."""
        chosen: NDArray[np.int64] = np.random.default_rng([self.seed, 1, number]).choice(_TOPICS, BLOCK, p=self._shares)
        return chosen

    def blocks(self, count: int) -> Iterator[NDArray[np.float32]]:
        """The first ``count`` vectors, a block at a time."""
        for start in range(0, count, BLOCK):
            yield self.block(start // BLOCK, min(BLOCK, count - start))

    @cached_property
    def _shares(self) -> NDArray[np.float64]:
        """How large the topics are: the n-th as 1 / (n + 10)."""
        sizes = 1 / np.arange(10, 10 + _TOPICS)
        shares: NDArray[np.float64] = sizes / sizes.sum()
        return shares

    @cached_property
    def _spread(self) -> NDArray[np.float32]:
        """What turns noise into a vector's own part, ``(dim, dim)``: the n-th direction is 1 / sqrt(n) as strong."""
        random = np.random.default_rng([self.seed, 0])
        axes = np.linalg.qr(random.standard_normal((self.dim, self.dim)))[0]
        strengths = 1 / np.sqrt(np.arange(1, self.dim + 1))
        spread = strengths[:, None] * axes * (_OWN / np.linalg.norm(strengths))
        return np.ascontiguousarray(spread, np.float32)

    @cached_property
    def _middles(self) -> NDArray[np.float32]:
        """The middles of the topics, ``(topics, dim)``."""
        random = np.random.default_rng([self.seed, 3])
        common = random.standard_normal(self.dim, dtype=np.float32)
        topics = random.standard_normal((_TOPICS, self.dim), dtype=np.float32) @ self._spread
        topics *= _TOPIC / np.linalg.norm(topics, axis=1, keepdims=True)
        middles: NDArray[np.float32] = topics + common * (_COMMON / np.linalg.norm(common))
        return middles
