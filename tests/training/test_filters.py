"""Filters: outputs that a small model really gave, and what is wrong with each."""

import pytest

from llmindex_training import filters
from llmindex_training.filters import judge_generated, judge_translated

INSTRUCTION = "Say the following text in simpler language. Answer with the rewritten text alone."
NEWS = (
    "Nokia to unify smartphone software. AMSTERDAM: Nokia, the world's biggest mobile phone maker, said on Wednesday "
    "it will create a single software platform for smart mobile phones that double as TVs and MP3 players."
)
TITLE = "Can intellisense be exported or extracted from Visual Studio to a text file?"


@pytest.mark.parametrize(
    ("source", "output"),
    [
        (NEWS, "Nokia is planning to create one platform for all of its smart phones, which can play music as well."),
        (TITLE, "Is there a way to get the intellisense of Visual Studio into a file?"),
        ("I'm sorry to say that the trains do not run.", "I'm sorry, but no trains run today."),
        ("Die Bahn fährt heute nicht, weil es geschneit hat.", "Wegen Schnee gibt es heute keine Züge der Bahn."),
        ("向量索引回答哪些文件最接近问题", "哪些存储的文件最接近一个问题,由索引来回答"),
    ],
)
def test_a_rewording_is_accepted_as_it_is(source: str, output: str) -> None:
    assert judge_generated(source, output, INSTRUCTION) == filters.Verdict(output, None)


@pytest.mark.parametrize(
    ("source", "output", "reason"),
    [
        (TITLE, " \n", "empty"),
        (TITLE, "<think>What is meant", "empty"),
        (TITLE, "I'm sorry for any confusion, but as a text-based AI, I'm designed to respond to a file.", "refusal"),
        (TITLE, "As an AI language model, I cannot access a file of Visual Studio.", "refusal"),
        (TITLE, "Say the following text in simpler language: intellisense.", "instruction_copied"),
        (NEWS, "The sentence is a play on words about smartphone software.", "about_the_text"),
        (NEWS, "Nokia is a metaphor for unity in a world of software.", "about_the_text"),
        (TITLE, "You can extract it:\n```csharp\nusing System.Data;\n```", "code"),
        (NEWS, "Nokia wins, or a win, a win-loud, a win-loud, a win-loud, a win-loud, a win-loud.", "repetitive"),
        (NEWS, "Nokia 将为智能手机创建一个软件平台", "wrong_script"),
        (NEWS, "Nokia will ein System für alle und das ist nicht die erste Idee.", "wrong_language"),
        (TITLE, "Yes, can intellisense be exported or extracted from Visual Studio to a text file.", "near_identical"),
        (NEWS, "Nokia to unify smartphone software.", "near_identical"),
        (NEWS, "Software for Nokia.", "too_short"),
        (TITLE, " ".join(f"intellisense{number} {number} file{number}" for number in range(60)), "too_long"),
        (NEWS, "A bunch of different things.", "unrelated"),
    ],
)
def test_a_fault_has_a_name(source: str, output: str, reason: str) -> None:
    assert judge_generated(source, output, INSTRUCTION).reason == reason
    assert reason in filters.REASONS


@pytest.mark.parametrize(
    "wrapped",
    [
        'Sure! Here is a simpler version:\n\n"{}"',
        "Here's the rewritten text: {}",
        "Of course. {}",
        "<think>\nhm\n</think>\n\n{}",
        "Answer: {}",
        "“{}”",
    ],
)
def test_what_an_answer_is_wrapped_in_is_taken_off(wrapped: str) -> None:
    answer = "Nokia makes one platform for all of its smart phones."
    assert filters.unwrapped(wrapped.format(answer)) == answer


def test_quotation_marks_inside_stay() -> None:
    assert filters.unwrapped('"One" is not "two"') == '"One" is not "two"'


def test_what_was_cut_off_ends_with_its_last_whole_sentence() -> None:
    output = "Nokia wants to have one platform for all phones. It will pro"
    verdict = judge_generated(NEWS, output, INSTRUCTION, finished=False)
    assert verdict == filters.Verdict("Nokia wants to have one platform for all phones.", None)
    listed = judge_generated(
        NEWS, "Nokia wants to have platforms:\n\n1. One for phones.\n2.", INSTRUCTION, finished=False
    )
    assert listed.text.endswith("One for phones.")
    assert judge_generated(NEWS, "Nokia wants one", INSTRUCTION, finished=False).reason == "unfinished"


def test_a_question_ends_with_its_question_mark() -> None:
    question = "Which company wants one platform for smart phones?"
    verdict = judge_generated(NEWS, f"{question}\n\nThe text says Nok", INSTRUCTION, finished=False, question=True)
    assert verdict == filters.Verdict(question, None)
    introduced = judge_generated(NEWS, f"Nokia is big.\n\nQuestion: {question}", INSTRUCTION, question=True)
    assert introduced == verdict
    assert judge_generated(NEWS, "Nokia unites the phones.", INSTRUCTION, question=True).reason == "no_question"
    for mark in "？؟":
        assert judge_generated(NEWS, f"What is it{mark} It is that.", INSTRUCTION, question=True).text[-1] == mark


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("Nokia, the largest maker of mobile phones, wants one platform for its phones.", None),
        ("", "empty"),
        (NEWS, "near_identical"),
        ("Nokia will ein System für alle und das ist nicht die erste Idee.", "wrong_language"),
    ],
)
def test_a_back_translation(output: str, reason: str | None) -> None:
    assert judge_translated(NEWS, output).reason == reason


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Der Hund schläft und die Katze ist nicht zu Hause.", "de"),
        ("The dog sleeps, and the cat is not in the house.", "en"),
        ("Le chien dort et les chats sont dans la maison.", "fr"),
        ("El perro y los gatos que no se van por las calles.", "es"),
        ("svn externals", None),
    ],
)
def test_language(text: str, name: str | None) -> None:
    assert filters.language(text) == name
