"""Vectors on ten topics, for the tests of clustering."""

import numpy as np

from llmindex.records import Vectors

DIM = 24


def topics(count: int, seed: int = 0) -> Vectors:
    """Unit vectors around ten centres, in order of centre, and one in ten anywhere."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(10, DIM))
    vectors = centres[np.arange(count) * 10 // count] + 0.35 * random.normal(size=(count, DIM))
    lost = random.random(count) < 0.1
    vectors[lost] = random.normal(size=(lost.sum(), DIM))
    unit: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return unit
