"""Which rows hold equal vectors.

Copies of one text are common, and each stage needs to know of them: their ties would be split at random in the tree,
and three central documents that are the same text say no more than one.
"""

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from llmindex.records import Rows, Vectors


def first_rows(blocks: Iterable[Vectors]) -> Rows:
    """Return for each row the first row with the same vector, ``(n,) int64``.

    Args:
        blocks: the vectors in row order, each ``(m, dim)``.
    """
    seen: dict[bytes, int] = {}
    # Adding zero turns -0.0 into 0.0: equal numbers must be equal bytes.
    digests = (blake2b(row + np.float32(0), digest_size=16).digest() for block in blocks for row in block)
    return np.fromiter((seen.setdefault(key, row) for row, key in enumerate(digests)), np.int64)
