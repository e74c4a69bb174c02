"""The words that tell a cluster from the others: class-based TF-IDF over one pass of the texts.

All texts of a cluster count as one long document (c-TF-IDF, Grootendorst 2022, arXiv:2203.05794)::

    weight(term, cluster) = f(term, cluster) * log(1 + A / f(term))

with f the frequency in the cluster and in the whole corpus, noise included, and A the mean number of words a class.
Two things are added, because a list of eight words is read by people: a keyword is at least twice as frequent in its
cluster as elsewhere, which removes the function words of languages without a stop list, and of "server" and
"servers" only the weightier is kept. Memory is bounded by the vocabulary, never by the corpus.
"""

import functools
import html
import math
import re
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

TEXT_CHARACTERS = 2_000
"""Only so much of each text is looked at: enough to name a topic, and one giant text cannot outweigh a cluster."""

MAX_TERMS = 1_000_000
"""Above so many different terms the rarest are forgotten, so that a corpus of random ids does not fill the memory."""

RARE_BELOW_DOCUMENTS = 100
"""In a corpus larger than this, a term of one document alone is no keyword."""

TERM_LENGTHS = range(2, 41)
"""Shorter says nothing, longer is a hash or encoded data."""

CONTRAST = 2.0
"""How much more frequent than elsewhere a keyword is in its cluster."""

_NO_WORDS = re.compile(r"https?://\S+|\bwww\.\S+|\b\w+n['’]t\b|['’](?:s|re|ve|ll|d|m)\b", re.IGNORECASE)
_MARKUP = re.compile(r"</[a-z]|<br\b", re.IGNORECASE)
"""What a text in HTML or XML has, and one that only mentions a tag has not."""

_TAGS = re.compile(
    r"<(script|style)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)|<[/!?a-z][^<>]*(?:>|\Z)", re.IGNORECASE | re.DOTALL
)

_FRAGMENTS = frozenset({"e.g", "e.g.", "i.e", "i.e.", "a.m.", "p.m."})
_HAN = "\u3400-\u9fff\uf900-\ufaff"
_EAST_ASIAN = re.compile(f"[\u3041-\u30ff{_HAN}]")
_EAST_ASIAN_RUN = re.compile(f"[\u30a1-\u30ff]+|[{_HAN}]+|[^\u3041-\u30ff{_HAN}]+")


def keywords(texts: Iterable[str], labels: NDArray[np.int32], per_cluster: int = 8) -> dict[int, tuple[str, ...]]:
    """Return each cluster's keywords, weightiest first; the noise (-1) gets none.

    Args:
        texts: the documents in row order, read once.
        labels: ``(n,) int32``, the cluster of each text.
        per_cluster: at most so many words; a cluster with few words of its own gets fewer.

    Raises:
        ValueError: if there are not as many texts as labels.
    """
    documents, classes = _count(texts, labels)
    rare = 1 if len(labels) > RARE_BELOW_DOCUMENTS else 0
    spelling = _spelling(classes)
    folded = {label: _fold(counts, documents, rare) for label, counts in classes.items()}
    frequency: Counter[str] = Counter()
    for counts in folded.values():
        frequency.update(counts)
    mean_words = frequency.total() / max(len(folded), 1)
    return {
        label: tuple(spelling[term] for term in _thin(_rank(folded[label], frequency, mean_words), per_cluster))
        for label in sorted(folded)
        if label >= 0
    }


def words(text: str) -> list[str]:
    """Split a text into words as they are written: ``os.path``, ``HTTPServer``, ``C++``, ``naïve``, ``हिन्दी``.

    Addresses, tags of HTML, English contractions and words outside ``TERM_LENGTHS`` are left out. Runs of Han
    characters, which no space divides, become overlapping pairs.
    """
    found = _pattern().findall(_NO_WORDS.sub(" ", _prepare(text)))
    if _EAST_ASIAN.search(text):
        found = [part for word in found for part in _east_asian_parts(word)]
    return [word for word in (word.rstrip("_") for word in found) if len(word) in TERM_LENGTHS]


def _prepare(text: str) -> str:
    start = text[:TEXT_CHARACTERS]
    if len(start) < len(text):  # the last word may be half a word
        start = start[: max(start.rfind(" "), TEXT_CHARACTERS - TERM_LENGTHS.stop)]
    if _MARKUP.search(start):  # before entities, by which a text shows tags
        start = _TAGS.sub(" ", start)
    if "&" in start:
        start = html.unescape(start)
    return start if start.isascii() else unicodedata.normalize("NFC", start)


@functools.cache
def _pattern() -> re.Pattern[str]:
    """Match a word in any script; Python's own class lacks the vowel signs and joiners inside Indic words."""
    marks = [code for code in range(0x300, 0xFE30) if unicodedata.category(chr(code)) in ("Mn", "Mc")]
    inner = r"[\w\u200c\u200d" + "".join(chr(code) for code in marks) + "]"
    return re.compile(
        r"(?<![^\W_])(?:"  # only where a word begins, which also keeps the scan linear
        r"(?:[^\W\d_]\.){2,}(?![^\W_])"  # U.S.
        rf"|\d*[^\W\d_]{inner}*"
        rf"(?:[.\-](?=[^\W_]){inner}+)*"  # os.path, built-in
        r"(?:\+\+|\#)?"  # C++, C#
        r")"
    )


def _east_asian_parts(word: str) -> list[str]:
    """Katakana words whole, Han runs as pairs, hiragana (mostly grammar) left out."""
    parts: list[str] = []
    for run in _EAST_ASIAN_RUN.findall(word):
        if re.match(f"[{_HAN}]", run):
            parts.extend(run[i : i + 2] for i in range(len(run) - 1))
        else:
            parts.append(run)
    return parts


@functools.cache
def _stop_words() -> frozenset[str]:
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS

    return frozenset(ENGLISH_STOP_WORDS) | _FRAGMENTS


def _count(texts: Iterable[str], labels: NDArray[np.int32]) -> tuple[Counter[str], dict[int, Counter[str]]]:
    """Count, in one pass, the documents of each case-folded term and the spellings in each class."""
    documents: Counter[str] = Counter()
    classes: defaultdict[int, Counter[str]] = defaultdict(Counter)
    for text, label in zip(texts, labels.tolist(), strict=True):
        found = [sys.intern(word) for word in words(text)]  # one string for all the classes that use the word
        classes[label].update(found)
        documents.update({word.casefold() for word in found})
        if len(documents) > MAX_TERMS:
            documents = _forget_rarest(documents, classes)
    return documents, dict(classes)


def _forget_rarest(documents: Counter[str], classes: Mapping[int, Counter[str]]) -> Counter[str]:
    """Keep the half of the terms that most documents contain."""
    floor = 1
    while len(documents) > MAX_TERMS // 2:
        documents = Counter({term: count for term, count in documents.items() if count > floor})
        floor += 1
    for counts in classes.values():
        for word in [word for word in counts if word.casefold() not in documents]:
            del counts[word]
    return documents


def _spelling(classes: Mapping[int, Counter[str]]) -> dict[str, str]:
    """The usual spelling of each case-folded term; of equally usual ones the one in small letters."""
    total: Counter[str] = Counter()
    for counts in classes.values():
        total.update(counts)
    return {word.casefold(): word for word, _ in sorted(total.items(), key=lambda item: (item[1], item[0]))}


def _fold(counts: Counter[str], documents: Counter[str], rare: int) -> Counter[str]:
    stop_words = _stop_words()
    folded: Counter[str] = Counter()
    for word, count in counts.items():
        term = word.casefold()
        if term not in stop_words and documents[term] > rare:
            folded[term] += count
    return folded


def _rank(counts: Counter[str], frequency: Counter[str], mean_words: float) -> list[str]:
    """Terms of one class by falling weight, the alphabet deciding between equals."""
    inside = counts.total()
    outside = frequency.total() - inside

    def stands_out(term: str) -> bool:
        elsewhere = frequency[term] - counts[term]
        return counts[term] * outside >= CONTRAST * elsewhere * inside

    def order(term: str) -> tuple[float, str]:
        return -counts[term] * math.log1p(mean_words / frequency[term]), term

    # A cluster whose every word is everywhere still deserves a name.
    return sorted([term for term in counts if stands_out(term)] or counts, key=order)


def _thin(ranked: Iterable[str], limit: int) -> list[str]:
    chosen: list[str] = []
    for term in ranked:
        if len(chosen) >= limit:
            break
        if not any(_same_word(term, other) for other in chosen):
            chosen.append(term)
    return chosen


def _same_word(a: str, b: str) -> bool:
    """Whether two terms are forms of one word: plural, inflection, or overlapping pairs of one Han run.

    >>> _same_word("query", "queries"), _same_word("install", "installing"), _same_word("java", "javascript")
    (True, True, False)
    """
    short, long = sorted((a, b), key=len)
    if len(long) == 2 and _EAST_ASIAN.match(long):
        return short[0] == long[1] or short[1] == long[0]
    if long in (short + "s", short + "es"):
        return True
    stem = short.rstrip("ey") if len(short) > 4 else short
    return len(stem) >= 4 and long.startswith(stem) and len(long) - len(stem) <= 3
