"""Positives by noise: the same text with some words or letters out of place.

Three kinds, as published (arXiv 2507.22729): each word is deleted with probability 10 %, two words change places, in
each word with probability 5 % two neighbouring letters change places. What is drawn depends on the random source
alone, so a row that brings its own seed gets the same noise in any run. Each kind changes the text or gives it up.
"""

import random
import re
from collections.abc import Callable

DELETED = 0.10
"""Share of the words that are deleted."""
SWAPPED_LETTERS = 0.05
"""Share of the words in which two letters change places."""

_WORD = re.compile(r"\S+")


def delete_words(text: str, chance: random.Random) -> str | None:
    """The text without a tenth of its words, at least one; None for a single word."""
    words = _words(text)
    if len(words) < 2:
        return None
    kept = [word for word in words if chance.random() >= DELETED]
    if len(kept) == len(words):
        del kept[chance.randrange(len(kept))]
    return "".join(kept or [chance.choice(words)]).strip()


def swap_words(text: str, chance: random.Random) -> str | None:
    """The text with two different words in each other's place; None where there are no two."""
    places = [match.span() for match in _WORD.finditer(text)]
    if len({text[start:end] for start, end in places}) < 2:
        return None
    while True:
        first, second = sorted(chance.sample(places, 2))
        one, other = text[slice(*first)], text[slice(*second)]
        if one != other:
            return text[: first[0]] + other + text[first[1] : second[0]] + one + text[second[1] :]


def swap_letters(text: str, chance: random.Random) -> str | None:
    """The text with two neighbouring letters swapped in a twentieth of its words, at least one; None if none can."""
    words = list(_WORD.finditer(text))
    places = [spots for word in words if chance.random() < SWAPPED_LETTERS and (spots := _swappable(text, word))]
    if not places:
        chance.shuffle(words)
        places = [spots for word in words if (spots := _swappable(text, word))][:1]
    if not places:
        return None
    letters = list(text)
    for spots in places:
        spot = chance.choice(spots)
        letters[spot], letters[spot + 1] = letters[spot + 1], letters[spot]
    return "".join(letters)


KINDS: dict[str, Callable[[str, random.Random], str | None]] = {
    "delete": delete_words,
    "swap": swap_words,
    "letters": swap_letters,
}
"""Each kind by the name that its pairs carry."""


def _words(text: str) -> list[str]:
    """The words, each with the white space behind it, so that what is left keeps its lines."""
    return re.findall(r"\S+\s*", text)


def _swappable(text: str, word: re.Match[str]) -> list[int]:
    """Where two neighbouring letters of a word differ."""
    spots = range(word.start(), word.end() - 1)
    return [
        spot for spot in spots if text[spot].isalnum() and text[spot + 1].isalnum() and text[spot] != text[spot + 1]
    ]
