"""Noise: it changes what it says it changes, and nothing else, from its seed alone."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex_training import noise

TEXT = "A vector index answers which of the stored documents\nlie nearest to a question."
texts = st.lists(st.text("abcdeäß?", min_size=1, max_size=6), min_size=1, max_size=30).map(" ".join)


@given(texts, st.integers(0, 1000))
def test_deletion_leaves_the_other_words_in_order(text: str, seed: int) -> None:
    left = noise.delete_words(text, random.Random(seed))
    words = text.split()
    if len(words) < 2:
        assert left is None
        return
    assert left is not None
    assert 0 < len(left.split()) < len(words)
    remaining = iter(words)
    assert all(word in remaining for word in left.split())


@given(texts, st.integers(0, 1000))
def test_a_swap_exchanges_two_words(text: str, seed: int) -> None:
    swapped = noise.swap_words(text, random.Random(seed))
    words = text.split()
    if swapped is None:
        assert len(set(words)) < 2
        return
    changed = [pair for pair in zip(words, swapped.split(), strict=True) if pair[0] != pair[1]]
    assert len(changed) == 2
    assert changed[0] == changed[1][::-1]


@given(texts, st.integers(0, 1000))
def test_swapped_letters_stay_in_their_words(text: str, seed: int) -> None:
    swapped = noise.swap_letters(text, random.Random(seed))
    if swapped is None:
        return
    assert swapped != text
    assert [Counter(word) for word in swapped.split()] == [Counter(word) for word in text.split()]


def test_the_share_of_deleted_words_is_the_published_one() -> None:
    text = " ".join(str(number) for number in range(20_000))
    left = noise.delete_words(text, random.Random(1))
    assert left is not None
    assert 1 - len(left.split()) / 20_000 == pytest.approx(noise.DELETED, abs=0.01)


def test_the_share_of_words_with_swapped_letters_is_the_published_one() -> None:
    words = ["ab"] * 20_000
    noisy = noise.swap_letters(" ".join(words), random.Random(1))
    assert noisy is not None
    assert noisy.split().count("ba") / 20_000 == pytest.approx(noise.SWAPPED_LETTERS, abs=0.005)


@pytest.mark.parametrize("kind", noise.KINDS)
def test_the_seed_alone_decides_and_lines_stay(kind: str) -> None:
    once, again, other = (noise.KINDS[kind](TEXT, random.Random(seed)) for seed in (3, 3, 4))
    assert once == again != other
    assert once is not None
    assert once.count("\n") == 1


@pytest.mark.parametrize("text", ["", "a", "aa", "- -"])
def test_what_cannot_change_is_given_up(text: str) -> None:
    for kind in ("swap", "letters"):
        assert noise.KINDS[kind](text, random.Random(0)) is None
