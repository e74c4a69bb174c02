"""Named prompt templates, and how a template is taken apart.

The templates are those of Roth et al. (arXiv 2507.22729, section 3) and of PromptEOL (arXiv 2307.16645), plus
plain ones for retrieval. A template is tokenised in three parts, so that only the text is ever cut and the prompt's
end, which the last-token pooling reads, is never lost.
"""

import difflib
from dataclasses import dataclass

from llmindex.errors import UsageError

PLACE = "{text}"

PROMPTS: dict[str, str] = {
    "none": "{text}",
    "eol": 'This sentence: "{text}" means in one word:',
    "cluster": 'This sentence: "{text}" belongs to the following cluster:',
    "cluster_short": "Cluster the text: {text}",
    "summary": 'This sentence: "{text}" can be summarized as',
    "pcot": 'After thinking step by step, this sentence: "{text}" means in one word:',
    "knowledge": (
        "The essence of a sentence is often captured by its main subjects and actions, while descriptive terms "
        "provide additional but less central details. With this in mind, this sentence: "
        '"{text}" means in one word:'
    ),
    "classify": 'This sentence: "{text}" can be classified as:',
    "question": 'Which cluster would you assign the sentence: "{text}" to?',
    "something": 'This sentence: "{text}" means something',
    "emotion": (
        "Classify the emotion expressed in the given Twitter message into one of the six emotions: anger, fear, "
        "joy, love, sadness, and surprise: {text}"
    ),
    "topic": 'The topic of the text "{text}" is',
    "topic_word": '"{text}"\nThe topic of this text, in one word: "',
    "query": "Query: {text}",
    "document": "Document: {text}",
    "instruct": ("Instruct: Given a search query, retrieve relevant passages that answer the query\nQuery: {text}"),
}
"""Template of each prompt by its name."""


@dataclass(frozen=True, slots=True)
class PromptParts:
    """A template taken apart around its place.

    Attributes:
        prefix: what stands before the text, without its trailing white space.
        gap: that white space; it is tokenised with the text, since subword vocabularies join a space to the
            word after it.
        suffix: what stands after the text.
    """

    prefix: str
    gap: str
    suffix: str


def resolve(name_or_template: str) -> str:
    """The template that a prompt's name or a template of the user's own stands for.

    Raises:
        UsageError: neither a known name nor a text with exactly one ``{text}``.
    """
    if name_or_template in PROMPTS:
        return PROMPTS[name_or_template]
    try:
        name_or_template.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"prompt {name_or_template!a} is not UTF-8") from error
    places = name_or_template.count(PLACE)
    if places == 1:
        return name_or_template
    if places > 1:
        raise UsageError(f'prompt "{name_or_template}" has {places} places for {PLACE}; it must have one')
    if len(name_or_template.split()) == 1:
        near = difflib.get_close_matches(name_or_template, PROMPTS, n=1)
        hint = f'did you mean "{near[0]}"? ' if near else ""
        raise UsageError(
            f'unknown prompt "{name_or_template}"; {hint}names: {", ".join(PROMPTS)}; '
            f"or give a template of your own that contains {PLACE}"
        )
    raise UsageError(f'prompt template "{name_or_template}" does not contain {PLACE}')


def name(template: str) -> str:
    """The name of a template that has one, else the template: what :func:`resolve` takes."""
    return next((name for name, known in PROMPTS.items() if known == template), template)


def split(template: str) -> PromptParts:
    """Take a template apart around its one ``{text}``."""
    before, after = template.split(PLACE)
    prefix = before.rstrip()
    return PromptParts(prefix=prefix, gap=before[len(prefix) :], suffix=after)
