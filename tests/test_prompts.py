"""Prompt templates: names, templates of the user's own, and how they are taken apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmindex.encode.prompts import PROMPTS, resolve, split
from llmindex.errors import UsageError


def test_a_name_stands_for_its_template() -> None:
    assert resolve("eol") == 'This sentence: "{text}" means in one word:'


@pytest.mark.parametrize("name", PROMPTS)
def test_every_named_template_has_one_place(name: str) -> None:
    assert PROMPTS[name].count("{text}") == 1


def test_a_template_of_ones_own_is_taken_as_it_is() -> None:
    assert resolve("Abstract: {text} Topic:") == "Abstract: {text} Topic:"


@pytest.mark.parametrize(
    ("given_prompt", "said"),
    [
        ("clutser", 'did you mean "cluster"'),
        ("What is this about?", "does not contain {text}"),
        ("{text} and {text}", "2 places"),
        ("", "does not contain {text}"),
    ],
)
def test_a_wrong_prompt_is_refused_with_the_reason(given_prompt: str, said: str) -> None:
    with pytest.raises(UsageError, match=said.replace("{", r"\{")):
        resolve(given_prompt)


@given(before=st.text(), after=st.text())
def test_the_parts_make_up_the_template(before: str, after: str) -> None:
    template = before.replace("{text}", "") + "{text}" + after.replace("{text}", "")
    if template.count("{text}") != 1:
        return
    parts = split(template)
    assert parts.prefix + parts.gap + "{text}" + parts.suffix == template
    assert parts.prefix == parts.prefix.rstrip()
    assert parts.gap.strip() == ""
