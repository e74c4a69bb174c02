"""Options that are whole numbers, whoever's numbers they are."""

from numbers import Integral

from llmindex.errors import UsageError


def at_least_one(option: str, value: int) -> int:
    """The number as Python's own, which JSON and FAISS take alone.

    Raises:
        UsageError: it is below 1, or no whole number.
    """
    if not isinstance(value, Integral) or value < 1:
        raise UsageError(f"{option} {value} must be {'at least 1' if value < 1 else 'a whole number'}")
    return int(value)
