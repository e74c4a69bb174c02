"""What the pooled token attends to, before and after adaptation (the analysis of Roth et al., arXiv 2507.22729).

The attention of a layer is averaged over its heads. Of its rows the one of the pooled token counts; where a pooling
takes several tokens, their rows are averaged with the pooling's own weights. The row's first token is told apart and
left out of all shares: it is BOS, or takes BOS's part where a tokenizer sets none, for decoders put there what they
have to spare, whatever it says (attention sinks: Xiao et al. 2023, arXiv 2309.17453).
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmindex.corpus import Corpus
from llmindex.encode import batching, models
from llmindex.encode.encoder import Encoder, Role
from llmindex.encode.models import one_line
from llmindex.encode.pooling import POOLERS
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import EncoderSpec, Pooling
from llmindex.errors import ModelError, UsageError
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Tokens

Part = Literal["first", "prompt", "text"]
PARTS: tuple[Part, ...] = ("first", "prompt", "text")

POOLED: dict[Pooling, str] = {
    "last": "the last token",
    "eos": "the EOS token",
    "first": "the first token",
    "mean": "all tokens, averaged as the pooling does",
    "mean_text": "the text's tokens, averaged as the pooling does",
    "weighted_mean": "all tokens, averaged with the pooling's weights",
    "suffix_mean": "the prompt's tokens after the text, averaged with the pooling's weights",
    "max": "all tokens, averaged, since any of them can give the largest value",
    "last_mean": "the last token, and all tokens averaged, half each",
}
"""Whose attention is shown for each pooling."""

_WINDOW = 256
# All layers' attention of a batch is in memory at once.
_BATCH_BYTES = 256 << 20


@dataclass(frozen=True, slots=True)
class TokenAttention:
    """A token and the attention that it gets.

    Attributes:
        token: as it is written.
        part: "first" for the row's first token, "prompt" or "text".
        base: attention by the bare model, between 0 and 1.
        adapted: by the adapted one, or None where there is none.
    """

    token: str
    part: Part
    base: float
    adapted: float | None

    @property
    def shown(self) -> str:
        """The token on one line, with spaces and line ends that can be seen."""
        visible = self.token.replace("\n", "⏎").replace(" ", "·")
        return "".join(character if character.isprintable() else "�" for character in visible)


@dataclass(frozen=True, slots=True)
class Shares:
    """Attention by part of the row, means over texts; the three add up to one.

    Attributes:
        first: of the row's first token.
        prompt: of the prompt's other tokens.
        text: of the text's own.
    """

    first: float
    prompt: float
    text: float

    @property
    def prompt_share(self) -> float:
        """Of the attention that the first token leaves, the share on the prompt; NaN if it leaves none."""
        return self.prompt / left if (left := self.prompt + self.text) > 0 else float("nan")

    @property
    def text_share(self) -> float:
        """Of the attention that the first token leaves, the share on the text; NaN if it leaves none."""
        return self.text / left if (left := self.prompt + self.text) > 0 else float("nan")

    def to_json(self) -> dict[str, float]:
        """The shares as JSON values."""
        return asdict(self) | {"prompt_share": self.prompt_share, "text_share": self.text_share}


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """The attention of pooled tokens.

    Attributes:
        pooled: whose attention is shown, in words.
        layer: which layer's, counted from 1.
        layers: how many the encoder runs.
        heads: how many were averaged.
        texts: how many texts.
        truncated: those of them that were cut to the encoder's max_tokens.
        base: shares by the bare model.
        adapted: by the adapted one, or None where the encoder has no adapter.
        tokens: of the text, where there was one alone; else empty.
    """

    pooled: str
    layer: int
    layers: int
    heads: int
    texts: int
    truncated: int
    base: Shares
    adapted: Shares | None
    tokens: tuple[TokenAttention, ...] = ()

    @property
    def change(self) -> float | None:
        """How far adaptation moved attention from the prompt to the text, in shares; None without an adapter."""
        return None if self.adapted is None else self.adapted.text_share - self.base.text_share

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        values = asdict(self) | {"base": self.base.to_json(), "change": self.change}
        values["adapted"] = None if self.adapted is None else self.adapted.to_json()
        return values


@dataclass(frozen=True, slots=True)
class _Row:
    """A text's tokens, and the attention ``(T,) float64`` that its pooled token pays to each."""

    ids: NDArray[np.int32]
    parts: tuple[Part, ...]
    attention: NDArray[np.float64]
    truncated: bool


def of_text(
    options: EncoderOptions,
    text: str,
    *,
    layer: int = -1,
    role: Role = "document",
    on_progress: ProgressCallback | None = None,
) -> AttentionReport:
    """The attention of one text's pooled token to each token, by the bare and by the adapted model.

    Args:
        options: the encoder; what has an adapter is shown beside the same encoder without it.
        text: what is encoded.
        layer: whose attention, counted from 1; negative from the end, -1 for the last that the encoder runs.
        role: whose prompt is put around the text.
        on_progress: called with the stages "base" and "adapted".

    Raises:
        UsageError: the text is empty or not UTF-8, or there is no such layer.
        ModelError: the encoder cannot be loaded, or does not tell its attention.
    """
    if not text.strip():
        raise UsageError("the text is empty: there is nothing to attend to")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the text ({text!r}) is not valid UTF-8") from error
    report, rows = _measure(options, [text], layer, role, on_progress)
    base, adapted = rows[0], rows[-1] if report.adapted is not None else None
    tokens = tuple(
        TokenAttention(token, part, float(base.attention[place]), float(adapted.attention[place]) if adapted else None)
        for place, (token, part) in enumerate(zip(_written(options, base.ids), base.parts, strict=True))
    )
    return replace(report, tokens=tokens)


def of_corpus(
    options: EncoderOptions,
    corpus: Corpus,
    *,
    limit: int | None = None,
    layer: int = -1,
    role: Role = "document",
    on_progress: ProgressCallback | None = None,
) -> AttentionReport:
    """The same over a corpus's texts: how much goes to prompts, how much to texts, and what adaptation changes.

    Args:
        options: as for :func:`of_text`.
        corpus: where the texts are.
        limit: take the first so many.
        layer: as for :func:`of_text`.
        role: as for :func:`of_text`.
        on_progress: as for :func:`of_text`.

    Raises:
        UsageError: there is no such layer.
        CorpusError: no row has usable text.
        ModelError: as for :func:`of_text`.
    """
    texts: list[str] = []
    for window in corpus.windows(_WINDOW):
        texts += window.table["text"].to_pylist()
        if limit is not None and len(texts) >= limit:
            break
    return _measure(options, texts[:limit], layer, role, on_progress)[0]


def _measure(
    options: EncoderOptions, texts: Sequence[str], layer: int, role: Role, on_progress: ProgressCallback | None
) -> tuple[AttentionReport, list[_Row]]:
    """The report, and the rows of the first text by each model."""
    encoder = Encoder.from_options(replace(options, engine="transformers"))
    spec = encoder.spec
    number = _layer(encoder, layer)
    config = encoder.backbone.model.config.get_text_config()
    stage = "base" if spec.adapter is None else "adapted"
    measured = [_mean(_reported(_rows(encoder, texts, number, role), stage, len(texts), on_progress))]
    if spec.adapter is not None:
        del encoder  # two large models at once may not fit
        bare = Encoder.from_spec(
            replace(spec, adapter=None, adapter_sha256=None),
            device_name=options.device,
            dtype=options.dtype,
            trust_remote_code=options.trust_remote_code,
            engine="transformers",
        )
        measured.insert(0, _mean(_reported(_rows(bare, texts, number, role), "base", len(texts), on_progress)))
    shares = [each[0] for each in measured]
    report = AttentionReport(
        pooled=POOLED[spec.pooling],
        layer=number,
        layers=int(config.num_hidden_layers),
        heads=int(config.num_attention_heads),
        texts=len(texts),
        truncated=measured[0][2],
        base=shares[0],
        adapted=shares[1] if len(shares) > 1 else None,
    )
    return report, [row for _, row, _ in measured]


def _reported(rows: Iterator[_Row], stage: str, total: int, on_progress: ProgressCallback | None) -> Iterator[_Row]:
    for done, row in enumerate(rows, start=1):
        yield row
        if on_progress is not None:
            on_progress(Progress(stage, done, total, "texts"))


def _mean(rows: Iterator[_Row]) -> tuple[Shares, _Row, int]:
    """Mean shares, the first row, and how many texts were cut."""
    sums = dict.fromkeys(PARTS, 0.0)
    first: _Row | None = None
    truncated = count = 0
    for row in rows:
        first = first or row
        truncated += row.truncated
        count += 1
        parts = np.array(row.parts)
        for part in PARTS:
            sums[part] += float(row.attention[parts == part].sum())
    assert first is not None
    return Shares(**{part: sums[part] / count for part in PARTS}), first, truncated


def _layer(encoder: Encoder, layer: int) -> int:
    """A layer's number, counted from 1."""
    layer = operator.index(layer)  # NumPy's are no JSON
    count = int(encoder.backbone.model.config.get_text_config().num_hidden_layers)
    if encoder.spec.layer == 0:
        raise UsageError("this encoder pools the embeddings, layer 0: no token attends to another; choose --layer")
    if layer == 0 or not -count <= layer <= count:
        raise UsageError(
            f"--attention-layer {layer} is out of range: the encoder runs layers 1 to {count}; -1 is the last"
        )
    return layer if layer > 0 else count + 1 + layer


def _rows(encoder: Encoder, texts: Sequence[str], layer: int, role: Role) -> Iterator[_Row]:
    """Each text's row, in the order of the texts."""
    model = encoder.backbone.model
    kernel = model.config._attn_implementation
    config = model.config.get_text_config()
    model.set_attn_implementation("eager")  # the other kernels never hold the attention that they apply
    try:
        if model.config._attn_implementation != "eager":  # as Falcon, which then tells another than it applies
            raise ModelError(f"{_name(encoder.spec)} does not tell its attention: its kernel cannot be changed")
        for start in range(0, len(texts), _WINDOW):
            tokens = encoder.tokenize(texts[start : start + _WINDOW], role=role)
            longest = int(tokens.lengths.max())
            row_bytes = 4 * config.num_hidden_layers * config.num_attention_heads * longest**2
            budget = longest * max(1, _BATCH_BYTES // row_bytes)
            rows: list[_Row | None] = [None] * len(tokens)
            for batch in batching.plan(tokens.lengths, budget):
                for row, attention in zip(batch, _attention(encoder, tokens, batch, layer), strict=True):
                    rows[row] = _row(tokens, int(row), attention)
            yield from (row for row in rows if row is not None)
    finally:
        model.set_attn_implementation(kernel)


def _row(tokens: Tokens, row: int, attention: NDArray[np.float64]) -> _Row:
    start, end = tokens.text_spans[row].tolist()
    ids = tokens.ids[tokens.offsets[row] : tokens.offsets[row + 1]]
    parts: list[Part] = ["text" if start <= place < end else "prompt" for place in range(len(ids))]
    parts[0] = "first"
    return _Row(ids, tuple(parts), attention[: len(ids)], bool(tokens.truncated[row]))


@torch.inference_mode()
def _attention(encoder: Encoder, tokens: Tokens, batch: NDArray[np.int64], layer: int) -> NDArray[np.float64]:
    """What the pooled tokens of some rows attend to, ``(B, T)``; beyond a row's end it is zero."""
    place = encoder.placement.device
    ids_BT, mask_BT, span_BT = (torch.from_numpy(array).to(place) for array in batching.padded(tokens, batch))
    try:
        output = encoder.backbone.model(
            input_ids=ids_BT, attention_mask=mask_BT, use_cache=False, output_attentions=True
        )
        told = len(output.attentions)
        layers = int(encoder.backbone.model.config.get_text_config().num_hidden_layers)
        if told != layers:  # which ones these are is nowhere said
            raise ModelError(f"{_name(encoder.spec)} has attention in {told} of its {layers} layers alone")
        attention_BTT = output.attentions[layer - 1].float().mean(dim=1)
    except (TypeError, AttributeError) as error:
        raise ModelError(f"{_name(encoder.spec)} does not tell its attention: {one_line(error)}") from error
    weights_BT = _row_weights(encoder.spec.pooling, mask_BT, span_BT)
    paid_BT = torch.einsum("bq,bqk->bk", weights_BT, attention_BTT) * mask_BT
    paid: NDArray[np.float64] = paid_BT.cpu().double().numpy()
    return paid


def _row_weights(pooling: Pooling, mask_BT: Tensor, span_BT: Tensor) -> Tensor:
    """How much each token counts in the pooled vector, ``(B, T)``; rows add up to one."""
    if pooling == "last_mean":
        return (_row_weights("last", mask_BT, span_BT) + _row_weights("mean", mask_BT, span_BT)) / 2
    # Token states that are unit vectors: pooled, they tell the weights that the pooling gave them.
    eye_BTT = torch.eye(mask_BT.shape[1], device=mask_BT.device).expand(len(mask_BT), -1, -1)
    weights_BT = POOLERS[pooling](eye_BTT, mask_BT, span_BT)
    return weights_BT / weights_BT.sum(dim=1, keepdim=True)


def _written(options: EncoderOptions, ids: NDArray[np.int32]) -> list[str]:
    """Each token as text."""
    from transformers import AutoTokenizer

    found = models.find(options.model, options.revision, options.adapter, trust_remote_code=options.trust_remote_code)
    tokenizer = AutoTokenizer.from_pretrained(str(found.local.folder), trust_remote_code=options.trust_remote_code)
    return [str(tokenizer.decode([int(id_)])) for id_ in ids]


def _name(spec: EncoderSpec) -> str:
    return f'model "{spec.backbone}"'
