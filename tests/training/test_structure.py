"""Pairs out of a document's own structure: both sides stand in the text, and never overlap."""

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex_training import structure

sentences = st.lists(st.text("abc ", min_size=1, max_size=80).map(lambda text: f"x{text}y."), min_size=1, max_size=20)


@given(sentences, st.integers(0, 100))
def test_spans_are_neighbours_in_the_text(parts: list[str], seed: int) -> None:
    text = " ".join(parts)
    spans = structure.two_spans(text, random.Random(seed))
    whole = " ".join(text.split())
    if spans is None:
        return
    assert f"{spans[0]} {spans[1]}" in whole
    for span in spans:
        assert len(span) <= structure.MAX_CHARACTERS + len(parts)


@given(st.lists(st.integers(1, 40), max_size=40), st.integers(0, 10**6))
def test_a_cut_leaves_enough_on_both_sides(lengths: list[int], seed: int) -> None:
    """The same as by adding up both sides of each cut anew."""
    parts = [f"{'x' * length}." for length in lengths]
    least = structure.MIN_CHARACTERS
    cuts = [cut for cut in range(len(parts)) if min(len("".join(parts[:cut])), len("".join(parts[cut:]))) >= least]
    spans = structure.two_spans(" ".join(parts), random.Random(seed))
    if not cuts:
        assert spans is None
        return
    assert spans is not None
    cut = random.Random(seed).choice(cuts)
    before, after = " ".join(parts[:cut]), " ".join(parts[cut:])
    assert before.endswith(spans[0])
    assert after.startswith(spans[1])
    for side, span in ((before, spans[0]), (after, spans[1])):
        assert span == side or len(span.replace(" ", "")) > structure.MAX_CHARACTERS - 41


def test_a_document_of_very_many_sentences() -> None:
    started = time.process_time()
    assert structure.two_spans("x. " * 200_000, random.Random(0)) is not None
    assert time.process_time() - started < 10  # by adding up for each cut anew, more than ten minutes


def test_spans_are_long_enough_and_need_two_sentences() -> None:
    assert structure.two_spans("One long sentence that goes on and on without an end to it", random.Random(0)) is None
    assert structure.two_spans("Short. Shorter. " * 2, random.Random(0)) is None
    spans = structure.two_spans("This sentence is long enough. And so is the one after it.", random.Random(0))
    assert spans == ("This sentence is long enough.", "And so is the one after it.")


def test_a_short_sentence_between_long_ones_is_no_span_by_itself() -> None:
    long = f"{'word ' * 95}end."
    for seed in range(10):
        spans = structure.two_spans(f"{long} Yes. {long}", random.Random(seed))
        assert spans is not None
        assert min(map(len, spans)) >= structure.MIN_CHARACTERS


def test_a_cut_is_drawn_from_all_that_are_possible() -> None:
    text = " ".join(f"This is the sentence with the number {number}." for number in range(5))
    firsts = {spans[0] for seed in range(50) if (spans := structure.two_spans(text, random.Random(seed)))}
    assert len(firsts) == 4


def test_scripts_with_full_stops_of_their_own_and_lists_have_sentences() -> None:
    assert structure.two_spans("向量索引" * 8 + "。" + "最近的文件" * 8 + "。", random.Random(0)) is not None
    assert structure.two_spans(f"{'word ' * 8}\n\n{'other ' * 8}", random.Random(0)) is not None
    assert structure.two_spans(f"{'word ' * 8}\n- {'other ' * 8}", random.Random(0)) is not None


@pytest.mark.parametrize(
    ("title", "text", "body"),
    [
        ("Water found", "Water found: on a planet.", "on a planet."),
        ("water FOUND", "  Water found\n\nOn a planet.", "On a planet."),
        ("Water found", "On a planet.", "On a planet."),
        ("Water found", "Water found", ""),
        ("东京", "东京是日本的首都", "是日本的首都"),
        ("print", "Prints the values to a stream.", "Prints the values to a stream."),
        ("Straßenbau", "Strassenbau in Deutschland", "Strassenbau in Deutschland"),
        ("C++ (2017)", "C++ (2017) - what is new", "what is new"),
    ],
)
def test_the_body_does_not_begin_with_the_title(title: str, text: str, body: str) -> None:
    assert structure.body_without(title, text) == body


def test_many_titles_take_no_time() -> None:
    before = time.process_time()
    for number in range(1000):
        structure.body_without(f"title {number}", f"Title {number}. A body.")
    assert time.process_time() - before < 1.5
