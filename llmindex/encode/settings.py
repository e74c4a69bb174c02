"""How an encoder is asked for, and what is taken where nothing was asked."""

from dataclasses import dataclass
from typing import Literal, TypeVar

from llmindex.encode import models, prompts
from llmindex.encode.spec import ATTENTIONS, POOLINGS, Attention, EncoderSpec, Pooling
from llmindex.errors import UsageError
from llmindex.records import whole_number

# Chosen for the embedded default on clustering and retrieval sets: benchmarks/RESULTS.md, "Prompt, pooling and layer".
DEFAULT_PROMPT = "cluster"
DEFAULT_QUERY_PROMPT = "none"
DEFAULT_POOLING: Pooling = "weighted_mean"
DEFAULT_MAX_TOKENS = 512

Engine = Literal["auto", "transformers"]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class EncoderOptions:
    """What a caller asks for; None takes what the model was adapted with, else the default.

    Attributes:
        model: "default", a hub name, a local model folder, an adapter's folder, or an encoder.json.
        revision: branch, tag or commit of a hub model.
        adapter: folder of a LoRA adapter for that model.
        prompt: name or template for documents.
        query_prompt: the same for queries; None takes the prompt where that was given, else the default.
        pooling: one of ``POOLINGS``.
        layer: whose states are pooled, -1 for the last.
        attention: "causal" or "bidirectional".
        max_tokens: tokens of each text that are kept.
        dim: cut the vectors to their first ``dim`` values (Matryoshka).
        dtype: "auto", "float32", "bfloat16" or "float16".
        device: "auto", "cpu", "cuda", "cuda:1" or "mps"; for a build also several, "cuda:0,cuda:1".
        trust_remote_code: run the Python files that come with the model.
        engine: "transformers" has transformers compute every model, which training and analyses need; "auto" leaves it
            those that we do not compute ourselves.
    """

    model: str = models.DEFAULT
    revision: str | None = None
    adapter: str | None = None
    prompt: str | None = None
    query_prompt: str | None = None
    pooling: Pooling | None = None
    layer: int | None = None
    attention: Attention | None = None
    max_tokens: int | None = None
    dim: int | None = None
    dtype: str = "auto"
    device: str = "auto"
    trust_remote_code: bool = False
    engine: Engine = "auto"


@dataclass(frozen=True, slots=True)
class Settings:
    """What an encoder computes beside its weights, each setting decided.

    Attributes:
        dim: how long the adapted encoder's vectors are, or None.
        whitened: whether its whitening follows the pooling.
        normalize: whether vectors have unit length.
    """

    prompt: str
    query_prompt: str
    pooling: Pooling
    layer: int
    attention: Attention
    max_tokens: int
    dim: int | None
    whitened: bool
    normalize: bool

    @classmethod
    def choose(cls, options: EncoderOptions, trained: EncoderSpec | None) -> "Settings":
        """The options; what they leave open as the model was adapted, else as suits an unadapted model."""
        pooling = _given(options.pooling, trained.pooling if trained else DEFAULT_POOLING)
        attention = _given(options.attention, trained.attention if trained else "causal")
        _check_choice("pooling", pooling, POOLINGS)
        _check_choice("attention", attention, ATTENTIONS)
        prompt, query_prompt = (
            (trained.prompt, trained.query_prompt) if trained else (DEFAULT_PROMPT, DEFAULT_QUERY_PROMPT)
        )
        layer = whole_number("--layer", _given(options.layer, trained.layer if trained else -1))
        # A cut or a whitening of the adapted encoder's vectors says nothing about those of another pooling or layer.
        same = trained if trained and (pooling, layer) == (trained.pooling, trained.layer) else None
        return cls(
            prompt=prompts.resolve(_given(options.prompt, prompt)),
            query_prompt=prompts.resolve(_given(options.query_prompt, _given(options.prompt, query_prompt))),
            pooling=pooling,
            layer=layer,
            attention=attention,
            max_tokens=trained.max_tokens if trained else DEFAULT_MAX_TOKENS,
            dim=same.dim if same else None,
            whitened=same is not None and same.whitened,
            normalize=trained.normalize if trained else True,
        )


def _given(value: T | None, otherwise: T) -> T:
    return otherwise if value is None else value


def _check_choice(option: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise UsageError(f'unknown {option} "{value}"; one of {", ".join(choices)}')
