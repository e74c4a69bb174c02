"""Which prompt, pooling and layer suit some texts: all combinations, from one forward for each prompt.

A prompt changes what the model reads, so each prompt is a forward over the texts; poolings and layers are read off
that forward. A candidate's score is that of the encoder of its spec, as the evaluation commands would measure it.

The encoder that the model is by itself, with the settings and the whitening that it was adapted with, is measured too:
a sweep that does not beat it is no reason to change anything.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from llmindex.encode import adapter as adapters
from llmindex.encode import prompts
from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import POOLINGS, EncoderSpec, Pooling
from llmindex.errors import AdapterError, UsageError
from llmindex.progress import ProgressCallback
from llmindex.records import Vectors, at_least_one
from llmindex.store.files import replacing
from llmindex_training.evaluate import Encoding
from llmindex_training.evaluate_clustering import SEEDS, kmeans_v_measure
from llmindex_training.evaluate_retrieval import retrieval_measures
from llmindex_training.evaluate_sts import sts_measure
from llmindex_training.evaluation_data import EvaluationSet, LabelledTexts, RetrievalSet, listed
from llmindex_training.readings import Read, Reader


@dataclass(frozen=True, slots=True)
class Grid:
    """What is tried; checked on construction, what is named twice is tried once.

    Attributes:
        prompts: names or templates.
        poolings: names.
        layers: -1 the last, 0 the embeddings, k the k-th.
        query_prompts: names or templates for the queries of retrieval sets, each beside each prompt; empty for the
            prompt of the documents.

    Raises:
        UsageError: one of them is unknown, or there is none.
    """

    prompts: tuple[str, ...]
    poolings: tuple[Pooling, ...]
    layers: tuple[int, ...] = (-1,)
    query_prompts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for option, values in (("prompts", self.prompts), ("poolings", self.poolings), ("layers", self.layers)):
            if not values:
                raise UsageError(f"--{option} names none: there is nothing to try")
        for prompt in (*self.prompts, *self.query_prompts):
            prompts.resolve(prompt)
        for pooling in self.poolings:
            if pooling not in POOLINGS:
                raise UsageError(f'unknown pooling "{pooling}"; one of {", ".join(POOLINGS)}')
        for name in ("prompts", "poolings", "layers", "query_prompts"):
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))


@dataclass(frozen=True, slots=True)
class Candidate:
    """One combination and its scores.

    Attributes:
        prompt: as it was named.
        query_prompt: the same; None where no set has queries.
        pooling: name.
        layer: -1 the last, else counted from 0, the embeddings.
        score: mean over the tasks.
        scores: by task: V-measure, nDCG@10 or Spearman's correlation, 1 is perfect.
        spec: the encoder that it is.
        unchanged: whether that is what the model is by itself, without any of the options of a grid.
    """

    prompt: str
    query_prompt: str | None
    pooling: Pooling
    layer: int
    score: float
    scores: Mapping[str, float]
    spec: EncoderSpec
    unchanged: bool = False


def sweep(
    options: EncoderOptions,
    sets: Iterable[EvaluationSet],
    grid: Grid,
    *,
    seeds: int = SEEDS,
    on_progress: ProgressCallback | None = None,
) -> list[Candidate]:
    """Score all combinations, and the model unchanged, on all sets, the best first.

    Args:
        options: the model, and all that is not in the grid; its prompts, pooling and layer are not looked at.
        sets: clustering, retrieval and sentence-pair sets.
        grid: what is tried.
        seeds: k-means runs of a clustering set.
        on_progress: told of the stage "encode", whose total counts each text once for each forward.

    Raises:
        UsageError: the model has no such layer, the prompt leaves no room for a text, there is no set, two have the
            same name, or there are no seeds.
        ModelError: the model cannot be loaded.
    """
    return _Sweep(options, listed(sets), grid, at_least_one("--seeds", seeds), on_progress).run()


def check_replaceable(file: str | Path) -> None:
    """Refuse to write over anything but an encoder.json that a sweep may have written.

    Raises:
        UsageError: the file is there and something else, or the one that belongs to an adapter.
    """
    file = Path(file)
    if not file.exists():
        return
    if file.name == adapters.SPEC_NAME and adapters.is_adapter(file.parent):
        raise UsageError(f"{file} says how the adapter beside it was trained; write to another file with -o")
    try:
        adapters.read_spec(file)
    except AdapterError as error:
        raise UsageError(f"{file} is there and is no encoder.json; write to another file with -o") from error


def save_spec(spec: EncoderSpec, file: str | Path) -> None:
    """Write an encoder.json, which ``--model`` takes.

    Raises:
        StorageError: the disk refused; the file is as it was.
    """
    with replacing(Path(file)) as temporary:
        temporary.write_text(json.dumps(spec.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


class _Sweep:
    """One run: what is known of the queries, and what has been scored."""

    def __init__(
        self,
        options: EncoderOptions,
        sets: Sequence[EvaluationSet],
        grid: Grid,
        seeds: int,
        on_progress: ProgressCallback | None,
    ) -> None:
        self.options, self.sets, self.grid, self.seeds = options, sets, grid, seeds
        self.retrieval = [each for each in sets if isinstance(each, RetrievalSet)]
        self.queries: dict[str, dict[str, dict[Read, Vectors]]] = {}
        """By prompt, set and reading."""
        self.scores: dict[tuple[str, str | None, Read], dict[str, float]] = {}
        self.specs: dict[tuple[str, Read], EncoderSpec] = {}
        self.unchanged = _unchanged(options)
        self.encode = Encoding(self._texts(), on_progress)

    def run(self) -> list[Candidate]:
        unchanged = self._score_unchanged()
        for prompt in self.grid.query_prompts if self.retrieval else ():
            for reader in self._readers(prompt):
                self._forward_queries(prompt, reader)
        for prompt in self.grid.prompts:
            for reader in self._readers(prompt):
                if not self.grid.query_prompts:
                    self._forward_queries(prompt, reader)
                for each in self.sets:
                    self._score(prompt, each, reader)
        # Whoever named its settings in the grid sees it once.
        found = [self._candidate(*key) for key in self.scores]
        tried = [each for each in found if not self._same(each.spec, unchanged.spec)]
        return sorted([unchanged, *tried], key=lambda candidate: -candidate.score)

    def _texts(self) -> int:
        """Texts that go through the model."""
        documents = sum(each.size for each in self.sets) - sum(len(each.queries) for each in self.retrieval)
        queries = sum(len(each.queries) for each in self.retrieval)
        asked = self.grid.query_prompts or self.grid.prompts
        forwards = len(_forwards(self.grid.poolings))
        return forwards * (len(self.grid.prompts) * documents + len(asked) * queries) + documents + queries

    def _score_unchanged(self) -> Candidate:
        encoder, spec, scores = self.unchanged, self.unchanged.spec, {}
        for each in self.sets:
            if isinstance(each, RetrievalSet):
                queries = self.encode(encoder, each.queries, "query")
                scores[each.name] = retrieval_measures(queries, self.encode(encoder, each.documents), each)[0].score
            elif isinstance(each, LabelledTexts):
                scores[each.name] = kmeans_v_measure(self.encode(encoder, each.texts), each, self.seeds)
            else:
                first, second = (self.encode(encoder, side) for side in (each.first, each.second))
                scores[each.name] = sts_measure(first, second, each).score
        del self.unchanged, encoder  # one model at a time is enough to hold
        return Candidate(
            prompt=prompts.name(spec.prompt),
            query_prompt=prompts.name(spec.query_prompt) if self.retrieval else None,
            pooling=spec.pooling,
            layer=spec.layer,
            score=float(np.mean(list(scores.values()))),
            scores=scores,
            spec=spec,
            unchanged=True,
        )

    def _same(self, spec: EncoderSpec, other: EncoderSpec) -> bool:
        """Whether two encoders give the same scores: without queries, their prompt makes no difference."""
        return spec == other or (not self.retrieval and replace(spec, query_prompt=other.query_prompt) == other)

    def _readers(self, prompt: str) -> Iterator[Reader]:
        """A model for each way that the prompt is tokenised; one at a time."""
        # One encoder has both prompts, and cuts all texts alike.
        beside = (*self.grid.prompts, *self.grid.query_prompts) if self.retrieval and self.grid.query_prompts else ()
        for poolings in _forwards(self.grid.poolings):
            reader = Reader(self.options, prompt, poolings, self.grid.layers, beside)
            self.specs |= {(prompt, read): reader.spec(read) for read in reader.reads}
            yield reader

    def _forward_queries(self, prompt: str, reader: Reader) -> None:
        found = self.queries.setdefault(prompt, {})
        for each in self.retrieval:
            found.setdefault(each.name, {}).update(reader.vectors(each.queries, self.encode))

    def _score(self, prompt: str, each: EvaluationSet, reader: Reader) -> None:
        asked = self.grid.query_prompts or (prompt,)
        if isinstance(each, RetrievalSet):
            documents = reader.vectors(each.documents, self.encode)
            for query_prompt in asked:
                queries = self.queries[query_prompt][each.name]
                for read in reader.reads:
                    value = retrieval_measures(queries[read], documents[read], each)[0].score
                    self._enter((prompt, query_prompt, read), each.name, value)
            return
        if isinstance(each, LabelledTexts):
            texts = reader.vectors(each.texts, self.encode)
            values = {read: kmeans_v_measure(texts[read], each, self.seeds) for read in reader.reads}
        else:
            first, second = (reader.vectors(side, self.encode) for side in (each.first, each.second))
            values = {read: sts_measure(first[read], second[read], each).score for read in reader.reads}
        # Queries' prompts mean nothing to these sets.
        for read, value in values.items():
            for each_prompt in asked if self.retrieval else (None,):
                self._enter((prompt, each_prompt, read), each.name, value)

    def _enter(self, key: tuple[str, str | None, Read], task: str, value: float) -> None:
        self.scores.setdefault(key, {})[task] = value

    def _candidate(self, prompt: str, query_prompt: str | None, read: Read) -> Candidate:
        scores = self.scores[prompt, query_prompt, read]
        asked = self.specs[query_prompt or prompt, read]
        spec = self.specs[prompt, read]
        spec = replace(spec, query_prompt=asked.prompt)
        return Candidate(prompt, query_prompt, *read, float(np.mean(list(scores.values()))), scores, spec)


def _unchanged(options: EncoderOptions) -> Encoder:
    """The model by itself; vectors of its own that are shorter than what is asked of the others stay as they are."""
    itself = replace(options, prompt=None, query_prompt=None, pooling=None, layer=None, dim=None)
    encoder = Encoder.from_options(itself)
    if options.dim is None or options.dim >= encoder.spec.dim:
        return encoder
    return Encoder.from_options(replace(itself, dim=options.dim))


def _forwards(poolings: Sequence[Pooling]) -> list[tuple[Pooling, ...]]:
    """Poolings that can share a forward: "eos" needs a token more."""
    plain = tuple(pooling for pooling in poolings if pooling != "eos")
    return [group for group in (plain, ("eos",) if "eos" in poolings else ()) if group]
