"""The ways to make positives of documents, behind one door: documents in, candidates out.

A candidate depends on its document, the settings and the seed alone (with a generator also on the other documents of
its part), never on what was made before it. Heavy things load when a method that needs them is prepared.
"""

import operator
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import pyarrow as pa

from llmindex.corpus.column_types import is_text
from llmindex.corpus.columns import RESERVED
from llmindex.errors import CorpusError, UsageError
from llmindex.records import at_least_one
from llmindex_training import filters, noise, structure
from llmindex_training.instructions import INSTRUCTIONS, choose_instructions

if TYPE_CHECKING:
    from llmindex_training.instruct import Generator
    from llmindex_training.translate import BackTranslator

Method = Literal["title", "spans", "noise", "instruct", "translate"]
METHODS: tuple[Method, ...] = get_args(Method)
NEED_NO_MODEL: tuple[Method, ...] = ("title", "spans", "noise")
"""What is done where nothing was asked for: it takes seconds on any machine."""

TITLE_NAMES = ("title", "headline", "heading", "subject", "summary", "question", "qualname", "name")
"""Column names that are taken for the title, best first, in any case."""

# Field of the options -> its option, and the one method that it is for.
_OF_ONE_METHOD: dict[str, tuple[str, Method]] = {
    "title_column": ("--title-column", "title"),
    "instructions": ("--instruction", "instruct"),
    "generator": ("--generator", "instruct"),
    "language": ("--language", "translate"),
    "pivot": ("--pivot", "translate"),
}

# Documents of a part, which is what an interruption costs: about half a minute of work.
_PART_ROWS = 4096
_TRANSLATED_PART_ROWS = 64
_GENERATED_ON_CPU, _GENERATED_ON_GPU = 32, 1024

OnDone = Callable[[int, int], None]
"""Told how many candidates were made and how many tokens that took."""


@dataclass(frozen=True, slots=True)
class PairsOptions:
    """How pairs are made.

    Attributes:
        methods: any of ``METHODS``; empty for those that need no model.
        title_column: column with the titles; None to find it by its name.
        instructions: names of ``instructions.INSTRUCTIONS`` that the generator may be given; empty for all five.
        variants: rewordings of each document by the generator (of the five instructions), and kinds of noise.
        limit: documents to take, spread evenly over the corpus; None for all.
        seed: of all that is drawn.
        generator: instruct model: "default", a hub name, or a local folder.
        device: where it runs.
        dtype: what it computes in.
        trust_remote_code: run Python code that comes with it.
        language: code of the corpus's language, for back-translation.
        pivot: code of the language that back-translation goes through.
    """

    methods: tuple[Method, ...] = ()
    title_column: str | None = None
    instructions: tuple[str, ...] = ()
    variants: int = 1
    limit: int | None = None
    seed: int = 0
    generator: str = "default"
    device: str = "auto"
    dtype: str = "auto"
    trust_remote_code: bool = False
    language: str = "en"
    pivot: str = "de"


@dataclass(frozen=True, slots=True)
class Document:
    """What pairs are made of.

    Attributes:
        row: its number among the corpus's documents.
        text: its text.
        title: its title, or None.
    """

    row: int
    text: str
    title: str | None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair, or what might have been one.

    Attributes:
        text: one side.
        text_pair: the other.
        source: how it was made: "instruct:simpler".
        reason: why it is rejected, one of ``filters.REASONS``; None for a pair.
    """

    text: str
    text_pair: str
    source: str
    reason: str | None = None


class Plan:
    """The methods of a run, decided.

    Attributes:
        methods: in the order of ``METHODS``.
        title_column: in the corpus's own naming; None if no method needs it.
        per_document: the most candidates of one document.
        limit: documents to take; None for all.
    """

    def __init__(self, options: PairsOptions, methods: tuple[Method, ...], title_column: str | None) -> None:
        self.methods = methods
        self.title_column = title_column
        self.limit = options.limit
        self._options = options
        self._instructions = options.instructions or tuple(INSTRUCTIONS)
        kinds = {"noise": len(noise.KINDS), "instruct": len(self._instructions)}
        self.per_document = sum(min(options.variants, kinds.get(method, 1)) for method in methods)
        self._generator: Generator | None = None
        self._translator: BackTranslator | None = None

    @classmethod
    def of(cls, options: PairsOptions, schema: pa.Schema) -> Self:
        """Decide what the options leave open.

        Args:
            options: what the caller asks for.
            schema: the corpus's.

        Raises:
            UsageError: an option cannot work.
            CorpusError: there is no such title column, or it holds no text.
        """
        options = replace(
            options,
            variants=at_least_one("--variants", options.variants),
            limit=None if options.limit is None else at_least_one("--limit", options.limit),
            seed=operator.index(options.seed),
        )
        if unknown := [method for method in options.methods if method not in METHODS]:
            raise UsageError(f'unknown method "{unknown[0]}"; one of {", ".join(METHODS)}')
        if strange := [name for name in options.instructions if name not in INSTRUCTIONS]:
            raise UsageError(f'unknown instruction "{strange[0]}"; one of {", ".join(INSTRUCTIONS)}')
        asked = options.methods or NEED_NO_MODEL
        for field, (option, method) in _OF_ONE_METHOD.items():
            if method not in asked and getattr(options, field) != getattr(PairsOptions(), field):
                raise UsageError(f"{option} is for --method {method}; add that, or leave {option} out")
        title = _title_column(options, schema) if "title" in asked else None
        methods = tuple(method for method in METHODS if method in asked and (method != "title" or title))
        return cls(options, methods, title)

    def record(self) -> dict[str, Any]:
        """What decides which pairs come out, as JSON values; of the options only those that count."""
        options = self._options
        record: dict[str, Any] = {"methods": list(self.methods), "limit": options.limit, "seed": options.seed}
        if "title" in self.methods:
            record["title_column"] = self.title_column
        if {"noise", "instruct"} & set(self.methods):
            record["variants"] = options.variants
        if "instruct" in self.methods:
            from llmindex.encode.models import locate

            record["instructions"] = list(self._instructions)
            record["generator"] = locate(options.generator, trust_remote_code=options.trust_remote_code).sha256
        if "translate" in self.methods:
            record |= {"language": options.language, "pivot": options.pivot}
        return record

    def prepare(self) -> int:
        """Load what the methods need, and return how many documents make a part.

        Raises:
            ModelError: a model is missing or does not fit the purpose.
            MissingPackage: an optional package is missing.
        """
        options = self._options
        if "translate" in self.methods:
            from llmindex_training.translate import BackTranslator

            self._translator = BackTranslator(options.language, options.pivot)
        if "instruct" in self.methods:
            from llmindex_training.instruct import Generator

            self._generator = Generator(
                options.generator,
                device=options.device,
                dtype=options.dtype,
                trust_remote_code=options.trust_remote_code,
            )
            on_cpu = self._generator.placement.device.type == "cpu"
            return _GENERATED_ON_CPU if on_cpu else _GENERATED_ON_GPU
        return _TRANSLATED_PART_ROWS if self._translator else _PART_ROWS

    def candidates(self, documents: Sequence[Document], on_done: OnDone) -> list[Candidate]:
        """All candidates of a part's documents, method by method.

        Raises:
            ModelError: a model failed.
        """
        makers: Mapping[Method, Callable[[Document], Iterator[Candidate]]] = {
            "title": _of_title,
            "spans": self._of_spans,
            "noise": self._of_noise,
            "translate": self._of_translation,
        }
        made: list[Candidate] = []
        for method in self.methods:
            if method == "instruct":
                made += self._of_instructions(documents, on_done)
                continue
            for document in documents:
                own = list(makers[method](document))
                made += own
                on_done(len(own), 0)
        return made

    def _chance(self, document: Document, method: Method) -> random.Random:
        return random.Random(f"{self._options.seed}/{method}/{document.row}")

    def _of_spans(self, document: Document) -> Iterator[Candidate]:
        spans = structure.two_spans(document.text, self._chance(document, "spans"))
        yield Candidate(*spans, "spans") if spans else Candidate(document.text, "", "spans", "too_short")

    def _of_noise(self, document: Document) -> Iterator[Candidate]:
        chance = self._chance(document, "noise")
        for kind in chance.sample(list(noise.KINDS), min(self._options.variants, len(noise.KINDS))):
            noisy = noise.KINDS[kind](document.text, chance)
            yield Candidate(document.text, noisy or "", f"noise:{kind}", None if noisy else "cannot_change")

    def _of_translation(self, document: Document) -> Iterator[Candidate]:
        assert self._translator is not None
        verdict = filters.judge_translated(document.text, self._translator(document.text))
        yield Candidate(document.text, verdict.text, f"translate:{self._options.pivot}", verdict.reason)

    def _of_instructions(self, documents: Sequence[Document], on_done: OnDone) -> list[Candidate]:
        from llmindex_training.instruct import Request

        assert self._generator is not None
        requests = [
            Request(document.row, document.text, name)
            for document in documents
            for name in choose_instructions(
                self._instructions, self._options.variants, self._chance(document, "instruct")
            )
        ]
        verdicts = self._generator.reword(requests, self._options.seed, on_done)
        return [
            Candidate(request.text, verdict.text, f"instruct:{request.instruction}", verdict.reason)
            for request, verdict in zip(requests, verdicts, strict=True)
        ]


def _of_title(document: Document) -> Iterator[Candidate]:
    title = (document.title or "").strip()
    body = structure.body_without(title, document.text) if title else document.text
    reason = None
    if not title:
        reason = "no_title"
    elif len(body) < structure.MIN_CHARACTERS:
        reason = "too_short" if body else "near_identical"
    yield Candidate(title, body, "title", reason)


def _title_column(options: PairsOptions, schema: pa.Schema) -> str | None:
    """The column as the corpus names it; None if none was named and none looks like one."""
    names = [field.name for field in schema if field.name not in RESERVED and is_text(field.type)]
    wanted = options.title_column
    if wanted is None:
        found = {name.casefold(): name for name in reversed(names)}
        title = next((found[name] for name in TITLE_NAMES if name in found), None)
        if title is None and "title" in options.methods:
            raise CorpusError(
                f"no column is plainly the title; name it with --title-column (columns: {_listed(names)})"
            )
        return title
    # A column whose name the corpus keeps for itself has got an underscore.
    for name in (wanted, f"{wanted}_"):
        if name in names:
            return name
    raise CorpusError(
        f'no column "{wanted}" with text to take titles from, beside the text itself (columns: {_listed(names)})'
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
