"""The small frozen records that travel between the parts, and what callers give, as these take it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmindex.errors import UsageError

Vectors = NDArray[np.float32]
"""Embeddings or stored vectors: ``(n, dim) float32``, rows of unit length."""

Rows = NDArray[np.int64]
"""Row numbers of stored documents: ``(n,) int64``."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One search result.

    Attributes:
        rank: 1 for the best.
        row: the document's row number in the store.
        id: the document's id.
        score: inner product of the unit vectors; higher is nearer.
        text: the document's text.
        metadata: the corpus's other columns, as Python values.
    """

    rank: int
    row: int
    id: str
    score: float
    text: str
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tokens:
    """Texts as token ids, each already wrapped in its prompt; rows lie end to end.

    Attributes:
        ids: ``(total,) int32``, all rows' tokens.
        offsets: ``(n + 1,) int64``; row i is ``ids[offsets[i]:offsets[i + 1]]`` and never empty.
        text_spans: ``(n, 2) int64``, start and end of the text's own tokens inside its row; the rest is prompt.
        truncated: ``(n,) bool``, whether the text was cut to the encoder's max_tokens.
    """

    ids: NDArray[np.int32]
    offsets: NDArray[np.int64]
    text_spans: NDArray[np.int64]
    truncated: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, ``(n,) int64``."""
        return np.diff(self.offsets)


def text_list(texts: Iterable[str], noun: str = "text") -> list[str]:
    """The texts that a caller gives in a list, a column of pandas, an array of NumPy, a generator or the like.

    Raises:
        UsageError: they are one string instead of several, or one of them is no string, or not UTF-8.
    """
    if isinstance(texts, str):
        raise UsageError("texts must be a list of strings, not one string")
    listed = list(texts)
    for number, text in enumerate(listed, 1):
        if not isinstance(text, str):
            raise UsageError(f"{noun} {number} must be a string, not {type(text).__name__}")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise UsageError(f"{noun} {number} ({text!r:.80}) is not valid UTF-8") from error
    return listed


def whole_number(option: str, value: int) -> int:
    """The value of an option as Python's own number, which JSON and FAISS take alone.

    Raises:
        UsageError: it is no whole number.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise UsageError(f"{option} {value!r} must be a whole number")
    return int(value)


def at_least_one(option: str, value: int) -> int:
    """The same of an option that counts something.

    Raises:
        UsageError: it is below 1, or no whole number.
    """
    number = whole_number(option, value)
    if number < 1:
        raise UsageError(f"{option} {number} must be at least 1")
    return number
