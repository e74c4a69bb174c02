"""Every n-th vector, evenly spread over the rows."""

from collections.abc import Iterable, Iterator

from llmindex.records import Vectors


def every(step: int, blocks: Iterable[Vectors]) -> Iterator[Vectors]:
    """Return the vectors 0, step, 2 step ..., block by block; a block may give none."""
    start = 0
    for block in blocks:
        yield block if step == 1 else block[-start % step :: step]
        start += len(block)
