"""What a generator wrote, cleaned and judged: accepted as a positive, or rejected for a reason that has a name.

A small instruct model answers beside the point often enough to spoil training: it declines, talks about "the text",
repeats itself, gives the text back, writes code, drifts to another subject. Each check looks for one such fault and
leaves alone what the source itself does (a source that says "I'm sorry" may be reworded so). A rejected text is
counted and shown, never mended beyond the wrapping that models put around an answer.
"""

import difflib
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

REASONS = {
    "empty": "nothing was written",
    "unfinished": "cut off before its first sentence ended",
    "refusal": "the model declines, or speaks as an assistant",
    "instruction_copied": "repeats the instruction",
    "about_the_text": 'talks about "the text" instead of saying it',
    "code": "program code where the source has none",
    "repetitive": "goes round in circles",
    "wrong_script": "in letters that the source does not use",
    "wrong_language": "in another language than the source",
    "near_identical": "the source again, or a piece of it",
    "too_short": "a few words for a longer source",
    "too_long": "many times as long as the source",
    "no_question": "a question was asked for",
    "unrelated": "has no word of substance in common with the source",
    "no_title": "the title is missing",
    "cannot_change": "too short to be changed by noise",
}
"""Every reason for a rejection, and what it means."""

MAX_SIMILARITY = 0.85
"""Share of words that source and positive have in the same order, above which they are the same text."""
MAX_COPIED = 0.8
"""Share of a positive that may be one unbroken piece of the source."""
MIN_DISTINCT = 0.7
"""Share of a text's runs of three words that must be distinct."""
MIN_WORDS = 4

_COMPARED_WORDS = 300
# Words are compared; where a script has no spaces between them, its characters.
_WORD = re.compile(r"[\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]|[^\W\u0e00-\u0e7f\u3040-\u30ff\u3400-\u9fff]+")
_QUESTION_MARK = re.compile("[?？؟]")
_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*(?=\s|$)|[。！？]")
_THOUGHT = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
_SURE = r"(?:sure|certainly|absolutely|of course|okay)(?: thing)?[!,.:]\s+"
_LABEL = (
    r"(?:here(?:'s| is| are)\b[^:\n]{0,100}:\s*|in (?:simpler|other) \w+:\s+"
    r"|(?:rewritten|simplified|revised|paraphrased|detailed|metaphor|question|explanation|answer|output)\b[^:\n]{0,40}:\s+)"
)
_LEAD_IN = re.compile(rf"^\W*(?:{_SURE}(?:{_LABEL})?|{_LABEL})", re.IGNORECASE)
_QUOTES = {'"': '"', "'": "'", "“": "”", "‘": "’", "«": "»", "„": "“"}

_REFUSAL = re.compile(
    r"\bI(?:['’]m| am) (?:sorry|afraid|unable|not able|here to|happy to|glad|designed|ready|not sure)"
    r"|\bI(?:['’]m| am) an? (?:AI|\w+ model|assistant)\b"
    r"|\bI (?:can['’]t|cannot|can not|won['’]t) (?:help|assist|provide|fulfil|answer|generate|write|access|rewrite"
    r"|paraphrase|translate|explain|create|comply|continue|complete)"
    r"|\bas an? (?:AI|\w+[- ]based AI|(?:large )?language model|(?:AI |digital |virtual )assistant)\b"
    r"|\bhow (?:can|may) I (?:help|assist)|\blet me know if|\bwould you like (?:me )?to\b|\bfeel free to\b"
    r"|\bI['’]d be happy|\bI (?:hope|apologi[sz]e)\b|\b(?:great|awesome|good) question\b"
    r"|\b(?:can|could) you (?:please )?(?:provide|give|clarify)",
    re.IGNORECASE,
)
_ABOUT = re.compile(
    r"\b(?:the|this|your|given|original) (?:\w+ )?"
    r"(?:text|sentence|passage|statement|phrase|paragraph|article|quote|excerpt|headline|snippet|title)s?\b"
    r"|\bmetaphor\w*|\bfigure of speech\b|\brewritten\b|\bparaphras\w+|\b(?:dear|my|your) students?\b"
    r"|\bas (?:a|your) (?:high school )?teacher\b|\ba student\b|\bsimpler language\b|\bclassroom setting\b"
    r"|\b(?:revised|detailed|simpler) (?:version|answer|explanation)\b|\byour (?:request|question)\b",
    re.IGNORECASE,
)
_CODE = re.compile(r"```|^\s*(?:import|using|def|class|public|from) .*[;:{]?$|[{};]\s*$|\(\);", re.MULTILINE)

_STOPWORDS = {
    "en": "the of and to in is that for it with as was on are be this by from or an at which not have has",
    "de": "der die das und ist nicht ein eine zu den mit von auf für dem des sich auch wird im als sind",
    "fr": "le la les et est des une du que pour dans qui sur pas avec au ce sont par plus il elle",
    "es": "el y no los las es que una por con para del se su como más pero sus al lo fue ha",
    "it": "il di che è per una con non sono della del gli le anche dei alla nel come più si",
    "pt": "os as que é um uma para com não dos da do em por mais ao na no foi se",
    "nl": "het een van en is dat niet op te zijn voor met die aan er ook als bij door maar",
}
_LANGUAGE_OF = {name: frozenset(words.split()) for name, words in _STOPWORDS.items()}
# Longer words that say nothing about the subject, either.
_VAGUE = frozenset(
    "what when where which while with would could should there their they them this that these those then than have "
    "been being does doing into from about your make made more most some such only also just like very".split()
)
# Letters from which a word can carry a subject; by its first so many it is found in another form.
_SUBSTANCE = 4
# Words in a row that an answer has only if it copies its instruction.
_COPIED_RUN = 6


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of an output.

    Attributes:
        text: the positive, without what the model wrapped it in.
        reason: why it is rejected, one of ``REASONS``; None if it is accepted.
    """

    text: str
    reason: str | None


def judge_generated(
    source: str, output: str, instruction: str, *, finished: bool = True, question: bool = False
) -> Verdict:
    """Clean and judge what an instruct model made of a source.

    Args:
        source: the text that was to be reworded.
        output: as the model wrote it.
        instruction: what the model was told to do.
        finished: whether the model ended by itself; what was cut off is shortened to whole sentences.
        question: whether a question was asked for; it ends with its question mark.
    """
    text = unwrapped(output)
    if not text:
        return Verdict(text, "empty")
    if question and (mark := _QUESTION_MARK.search(text)):
        asked = text[: mark.end()]
        text = unwrapped(re.split(r"\n|(?<=[.!:])\s+", asked)[-1])
    elif not finished:
        ends = list(_SENTENCE_END.finditer(text))
        if not ends:
            return Verdict(text, "unfinished")
        # The number of a list's next point is not the end of a sentence.
        text = re.sub(r"\s*\n\s*\d+\.$", "", text[: ends[-1].end()])
    if _shares_run(words(instruction), words(text)):
        return Verdict(text, "instruction_copied")
    if question and not _QUESTION_MARK.fullmatch(text[-1:]):
        return Verdict(text, "no_question")
    return Verdict(text, _first_fault(_GENERATED, source, text))


def judge_translated(source: str, output: str) -> Verdict:
    """Judge a text that went through another language and back."""
    text = output.strip()
    return Verdict(text, _first_fault(_TRANSLATED, source, text) if text else "empty")


def unwrapped(output: str) -> str:
    """An answer without the model's thoughts, its lead-in ("Sure, here is ...:") and quotation marks around it all."""
    text = _THOUGHT.sub("", output).strip()
    text = _LEAD_IN.sub("", text, count=1).strip()
    if len(text) > 2 and _QUOTES.get(text[0]) == text[-1] and text[-1] not in text[1:-1]:
        text = text[1:-1].strip()
    return text


def words(text: str) -> list[str]:
    """The words of a text in lower case; characters, in scripts without spaces."""
    return _WORD.findall(text.casefold())


def language(text: str) -> str | None:
    """The language of a text in one of seven that are told apart by their commonest words; None if unsure."""
    counts = Counter(words(text))
    hits = sorted(
        ((sum(counts[word] for word in common), name) for name, common in _LANGUAGE_OF.items()),
        reverse=True,
    )
    (most, name), (next_most, _) = hits[:2]
    return name if most >= 3 and most >= 2 * next_most else None


def scripts(text: str) -> Counter[str]:
    """Letters of a text by script, as the first word of their Unicode names: LATIN, CYRILLIC, CJK, ..."""
    return Counter(unicodedata.name(char, "?").split()[0] for char in text if char.isalpha())


def _first_fault(checks: Sequence[tuple[str, Callable[[str, str], bool]]], source: str, text: str) -> str | None:
    return next((reason for reason, is_faulty in checks if is_faulty(source, text)), None)


def _new_match(pattern: re.Pattern[str]) -> Callable[[str, str], bool]:
    """A check for a pattern that the text has and its source has not."""
    return lambda source, text: bool(pattern.search(text)) and not pattern.search(source)


def _repetitive(source: str, text: str) -> bool:
    found = words(text)
    runs = list(zip(found, found[1:], found[2:], strict=False))
    return len(runs) >= 6 and len(set(runs)) < MIN_DISTINCT * len(runs)


def _wrong_script(source: str, text: str) -> bool:
    known, used = scripts(source), scripts(text)
    return any(name not in known and count > used.total() / 10 for name, count in used.items()) and bool(known)


def _wrong_language(source: str, text: str) -> bool:
    before, after = language(source), language(text)
    return before is not None and after is not None and before != after


def _near_identical(source: str, text: str) -> bool:
    before, after = words(source)[:_COMPARED_WORDS], words(text)[:_COMPARED_WORDS]
    matcher = difflib.SequenceMatcher(None, before, after, autojunk=False)
    if matcher.ratio() > MAX_SIMILARITY:
        return True
    run = matcher.find_longest_match().size
    return run > MAX_COPIED * len(after) or (run > MAX_COPIED * len(before) and run >= MIN_WORDS)


def _too_short(source: str, text: str) -> bool:
    return len(words(text)) < min(MIN_WORDS, len(words(source)))


def _too_long(source: str, text: str) -> bool:
    return len(words(text)) > 3 * len(words(source)) + 60


def _unrelated(source: str, text: str) -> bool:
    """Whether no word of four letters or more, by its beginning, is in both; scripts without spaces pass."""
    before, after = _substance(source), _substance(text)
    return bool(before) and bool(after) and not before & after


def _substance(text: str) -> set[str]:
    """The first letters of the words that can carry a subject: enough to find them in another form."""
    common = frozenset().union(*_LANGUAGE_OF.values()) | _VAGUE
    return {word[:_SUBSTANCE] for word in words(text) if len(word) >= _SUBSTANCE and word not in common}


def _shares_run(before: list[str], after: list[str]) -> bool:
    runs = {tuple(before[at : at + _COPIED_RUN]) for at in range(len(before) - _COPIED_RUN + 1)}
    return any(tuple(after[at : at + _COPIED_RUN]) in runs for at in range(len(after) - _COPIED_RUN + 1))


_SHAPE: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    ("repetitive", _repetitive),
    ("wrong_script", _wrong_script),
    ("wrong_language", _wrong_language),
    ("near_identical", _near_identical),
    ("too_short", _too_short),
    ("too_long", _too_long),
)
_TRANSLATED = _SHAPE
_GENERATED: tuple[tuple[str, Callable[[str, str], bool]], ...] = (
    ("refusal", _new_match(_REFUSAL)),
    ("about_the_text", _new_match(_ABOUT)),
    ("code", _new_match(_CODE)),
    *_SHAPE,
    ("unrelated", _unrelated),
)
