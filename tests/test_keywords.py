"""Keywords: the weights against a naive computation, words of many scripts, and the order."""

import collections
import itertools
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from llmindex.cluster import keywords as module
from llmindex.cluster.keywords import keywords, words

SHIPS = "harbour vessel cargo anchor captain"
BREAD = "flour yeast oven crust dough"
BOTH = "people morning street market"


def labels_of(*labels: int) -> NDArray[np.int32]:
    return np.array(labels, np.int32)


def corpus(count: int, seed: int = 0) -> tuple[list[str], NDArray[np.int32]]:
    """Texts of plain unrelated words: two topics, noise, and words common to all."""
    chance = random.Random(seed)
    topics = [SHIPS.split(), BREAD.split(), []]
    texts = []
    labels = labels_of(*(chance.choice([0, 1, -1]) for _ in range(count)))
    for label in labels.tolist():
        own = [word for word in topics[label] for _ in range(chance.randrange(4))]
        texts.append(" ".join(own + chance.choices(BOTH.split(), k=4)))
    return texts, labels


def naive(texts: list[str], labels: NDArray[np.int32], label: int) -> list[str]:
    """c-TF-IDF by its definition, one term at a time, and the words at least twice as frequent as elsewhere."""
    split = [text.split() for text in texts]
    classes = sorted(set(labels.tolist()))
    own = [word for text, of in zip(split, labels.tolist(), strict=True) if of == label for word in text]
    everything = [word for text in split for word in text]
    average = len(everything) / len(classes)
    weights = {}
    for term in set(own):
        inside = own.count(term)
        elsewhere = everything.count(term) - inside
        if inside / len(own) >= 2 * elsewhere / (len(everything) - len(own)):
            weights[term] = inside * math.log(1 + average / everything.count(term))
    return sorted(weights, key=lambda term: (-weights[term], term))


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_naive_computation(seed: int) -> None:
    texts, labels = corpus(60, seed)
    found = keywords(texts, labels, per_cluster=20)
    assert set(found) == {0, 1}
    for label in found:
        assert list(found[label]) == naive(texts, labels, label)


def test_common_words_of_any_language_are_no_keywords() -> None:
    texts = [f"und der Hafen die Schiffe und der Anker {i}" for i in range(40)]
    texts += [f"und der Ofen die Hefe und der Teig {i}" for i in range(40)]
    found = keywords(texts, np.repeat(np.array([0, 1], np.int32), 40))
    assert found == {0: ("Anker", "Hafen", "Schiffe"), 1: ("Hefe", "Ofen", "Teig")}


def test_a_cluster_without_words_of_its_own_still_gets_some() -> None:
    assert keywords(["market street"] * 4, labels_of(0, 0, 1, 1)) == {
        0: ("market", "street"),
        1: ("market", "street"),
    }


def test_noise_gets_none_and_counts_as_background() -> None:
    texts = ["cargo harbour"] * 3 + ["cargo market"] * 9
    assert keywords(texts, labels_of(*[4] * 3, *[-1] * 9)) == {4: ("harbour",)}


@pytest.mark.parametrize(
    ("texts", "labels", "expected"),
    [
        ([], [], {}),
        (["cargo"], [-1], {}),
        (["cargo"], [0], {0: ("cargo",)}),
        (["", "the of and"], [0, 1], {0: (), 1: ()}),
    ],
)
def test_hardly_anything(texts: list[str], labels: list[int], expected: dict[int, tuple[str, ...]]) -> None:
    assert keywords(texts, labels_of(*labels)) == expected


def test_as_many_texts_as_labels() -> None:
    with pytest.raises(ValueError, match="argument 2 is longer"):
        keywords(["one"], labels_of(0, 0))


def test_reads_the_texts_once_and_only_their_start() -> None:
    long = ("cargo " * module.TEXT_CHARACTERS)[: module.TEXT_CHARACTERS] + " treasure" * 10_000
    found = keywords((text for text in [long, "oven"]), labels_of(0, 1))
    assert found == {0: ("cargo",), 1: ("oven",)}


def test_a_term_of_one_document_is_no_keyword_in_a_large_corpus() -> None:
    texts = ["cargo harbour"] * 60 + ["oven dough"] * 60
    texts[0] += " zanzibar" * 50
    labels = np.repeat(np.array([0, 1], np.int32), 60)
    assert keywords(texts, labels)[0] == ("cargo", "harbour")
    assert "zanzibar" in keywords(texts[:1] + texts[60:70], labels_of(0, *[1] * 10))[0]


def test_usual_spelling_is_shown() -> None:
    texts = ["HTTPServer serves", "HTTPServer", "httpserver NASA", "Cargo", "cargo"]
    found = keywords(texts, labels_of(0, 0, 0, 0, 0))[0]
    assert found[:3] == ("HTTPServer", "cargo", "NASA")


@pytest.mark.parametrize(
    ("weightier", "form"),
    [
        ("server", "servers"),
        ("queries", "query"),
        ("install", "installing"),
        ("db", "dbs"),
        ("compute", "computing"),
        ("boxes", "box"),
    ],
)
def test_forms_of_one_word_appear_once(weightier: str, form: str) -> None:
    texts = [f"{weightier} {weightier} {form}", "market"]
    assert keywords(texts, labels_of(0, 1))[0] == (weightier,)


def test_different_words_stay() -> None:
    texts = ["java java javascript os os.path", "market"]
    assert set(keywords(texts, labels_of(0, 1))[0]) == {"java", "javascript", "os", "os.path"}


def test_limit() -> None:
    texts, labels = corpus(60)
    all_of_them, three = keywords(texts, labels, 20), keywords(texts, labels, 3)
    assert {label: found[:3] for label, found in all_of_them.items()} == three
    assert keywords(texts, labels, 0) == {0: (), 1: ()}


def test_rarest_terms_are_forgotten_before_the_memory_fills(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TERMS", 500)
    ids = (f"x{number:x}q" for number in itertools.count())
    texts, labels = corpus(300)
    flooded = [f"{text} {' '.join(itertools.islice(ids, 20))}" for text in texts]
    documents, classes = module._count(flooded, labels)
    assert len(documents) <= 500
    assert len(set().union(*classes.values())) <= 500
    assert {label: set(found) for label, found in keywords(flooded, labels).items()} == {
        0: set(SHIPS.split()),
        1: set(BREAD.split()),
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Uses os.path and HTTPServer.", ["Uses", "os.path", "and", "HTTPServer"]),
        ("__init__ of read_csv, self._x", ["init", "of", "read_csv", "self"]),
        ("C++, C# and ASP.NET 4.5 in U.S. x86", ["C++", "C#", "and", "ASP.NET", "in", "U.S.", "x86"]),
        ("don't, it's, we'll; l'homme", ["it", "we", "homme"]),
        ("see https://example.com/a?b or www.example.org", ["see", "or"]),
        ("a 3D 42 b2b built-in", ["3D", "b2b", "built-in"]),
        ("naïve naïve Ελληνικά русский", ["naïve", "naïve", "Ελληνικά", "русский"]),
        ("हिन्दी भाषा עברית العربية 한국어", ["हिन्दी", "भाषा", "עברית", "العربية", "한국어"]),
        ("机器学习。データを保存する", ["机器", "器学", "学习", "データ", "保存"]),
        ("x" * 41 + " " + "y" * 40, ["y" * 40]),
        ("&lt;b&gt;bold&lt;/b&gt; R&amp;D", ["bold"]),
        ("", []),
    ],
)
def test_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('<div class="post"><p>Plain <b>text</b></p>&nbsp;<a href=x>more</a></div>', ["Plain", "text", "more"]),
        ("one<br/>two <!-- three --> four", ["one", "two", "four"]),
        ("<style>p { color: red }</style><SCRIPT>let x</SCRIPT >end</p", ["end"]),
        ("code: &lt;span&gt; in <i>markup</i>", ["code", "span", "in", "markup"]),
        ("how to center a <div> in vector<int>, if a < b", ["how", "to", "center", "div", "in", "vector", "int", "if"]),
        ("a cut <b>tag</b> <a href=", ["cut", "tag"]),
    ],
)
def test_tags_are_no_words(text: str, expected: list[str]) -> None:
    assert words(text) == expected


def test_overlapping_pairs_of_one_run_appear_once() -> None:
    texts = ["机器学习很好", "机器", "学习", "market"]
    assert keywords(texts, labels_of(0, 0, 0, 1))[0] == ("学习", "机器", "很好")


def test_hostile_text_takes_no_long_time() -> None:
    # Each would take minutes in a pattern that backtracks.
    for text in ("n" * 2_000, "1" * 2_000, "a." * 1_000, "a-" * 1_000, "&" * 2_000, "_" * 2_000, "'" * 2_000):
        words(text)
    for text in ("<a" * 1_000, "<script " * 250, "<!--" * 500, "<a b" * 500):
        words("</p>" + text)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(max_size=60), st.integers(-1, 3)), max_size=30), st.randoms())
def test_order_of_the_documents_does_not_matter(documents: list[tuple[str, int]], chance: random.Random) -> None:
    def found(pairs: list[tuple[str, int]]) -> dict[int, tuple[str, ...]]:
        return keywords([text for text, _ in pairs], labels_of(*(label for _, label in pairs)))

    first = found(documents)
    assert set(first) == {label for _, label in documents if label >= 0}
    for chosen in first.values():
        assert len(chosen) <= 8
        assert max(collections.Counter(chosen).values(), default=1) == 1
    assert found(chance.sample(documents, len(documents))) == first
