"""Positives out of a document itself: its title and its body, or two neighbouring spans of its text.

Nothing is written anew, so these pairs cost nothing and cannot be wrong about the text; the two sides never overlap,
so that a model cannot match them by words that both took from the same place.
"""

import itertools
import random
import re

MIN_CHARACTERS = 24
"""A side that is shorter says too little to be a positive."""
MAX_CHARACTERS = 480
"""A span ends before the sentence that would take it beyond this length: about the hundred tokens that training looks
at. Short of ``MIN_CHARACTERS`` it takes that sentence, too."""

# Behind the end of a sentence, a paragraph or an item of a list; scripts without spaces have full stops of their own.
_BREAK = re.compile(r"(?<=[.!?…])\s+|(?<=[.!?…][\"'”’)\]])\s+|(?<=[。！？])|\n\s*\n|\n(?=\s*[-*•] )")
# Apart from the title's pattern, which is compiled for each: for these ranges alone that takes milliseconds.
_END_OF_WORD = re.compile(r"(?!\w)|(?<=[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff])")


def body_without(title: str, text: str) -> str:
    """The text without the title, where it begins with that: what is left says nothing that the title says verbatim."""
    head = text.lstrip()
    found = re.match(re.escape(title.strip()), head, re.IGNORECASE)
    # A title of one word may be how the first word of the text begins, in scripts that part words by spaces.
    if found and _END_OF_WORD.match(head, found.end()):
        return head[found.end() :].lstrip(" \t\n\r.:–—-")
    return text


def two_spans(text: str, chance: random.Random) -> tuple[str, str] | None:
    """Two neighbouring spans of whole sentences, each of 24 to about 480 characters; None for a text too short.

    They are neighbours because a long document wanders from subject to subject, and its ends need not share one.
    """
    sentences = _sentences(text)
    # Characters before each cut, and all of them: added up once, for a document may have very many sentences.
    *before_cuts, whole = itertools.accumulate(map(len, sentences), initial=0)
    cuts = [
        cut for cut, before in enumerate(before_cuts) if before >= MIN_CHARACTERS and whole - before >= MIN_CHARACTERS
    ]
    if not cuts:
        return None
    cut = chance.choice(cuts)
    before = _span(sentences[:cut][::-1])[::-1]
    return " ".join(before), " ".join(_span(sentences[cut:]))


def _sentences(text: str) -> list[str]:
    parts = (" ".join(part.split()) for part in _BREAK.split(text))
    return [part[:MAX_CHARACTERS] for part in parts if part]


def _span(sentences: list[str]) -> list[str]:
    """The first sentences, as many as make a span."""
    taken: list[str] = []
    length = 0
    for sentence in sentences:
        if length >= MIN_CHARACTERS and length + len(sentence) > MAX_CHARACTERS:
            break
        taken.append(sentence)
        length += len(sentence)
    return taken
