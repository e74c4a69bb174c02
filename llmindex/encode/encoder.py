"""Encoder: texts to unit vectors.

A vector depends on the text and the spec alone: not on the other texts of its batch, nor on their order. That holds up
to rounding; :meth:`Encoder.self_check` measures the rounding, and the manifest keeps it.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmindex.encode import adapter as adapters
from llmindex.encode import batching, device, models, prompts
from llmindex.encode.adapter import Adapter
from llmindex.encode.backbone import Backbone
from llmindex.encode.decoder import Decoder
from llmindex.encode.loading import load_decoder
from llmindex.encode.pooling import POOLERS, pooled_width, read_positions
from llmindex.encode.settings import EncoderOptions, Engine, Settings
from llmindex.encode.spec import EncoderSpec, Pooling
from llmindex.encode.tokenizer import Tokenizer
from llmindex.encode.whitening import Whitening
from llmindex.encode.wrapping import Wrapping, room_for_text
from llmindex.errors import ModelError, NotFinite, SpecMismatch, UsageError
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Tokens, Vectors, at_least_one, text_list

logger = logging.getLogger(__name__)

Role = Literal["document", "query"]

_WINDOW = 2048
# No subword vocabulary in use has longer entries; text beyond max_tokens of them cannot be kept, so is not tokenised.
_LONGEST_TOKEN = 128
# Tokens of a batch times bytes of the weights. Below it, waking other threads for each product takes longer than they
# save: a question to the default took 0.10 s with two threads, and 0.07 s with one.
_TOO_SMALL_TO_SHARE = 1.5e10


class Encoder:
    """A decoder-only LLM as a text embedder.

    Attributes:
        spec: everything that decides the vectors.
        placement: device, dtype and batch size.
        decoder: gives the token states.
        whitening: what follows the pooling, or None.
        memory_bytes: memory of the model's weights.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        tokenizer: Tokenizer,
        decoder: Decoder,
        placement: device.Placement,
        whitening: Whitening | None = None,
    ) -> None:
        self.spec = spec
        self.placement = placement
        self._tokenizer = tokenizer
        self.decoder = decoder
        self.memory_bytes = decoder.bytes
        self.whitening = whitening.to(placement.device) if whitening else None
        self._budget = placement.token_budget
        self._parts: dict[Role, Wrapping] = {
            "document": Wrapping.of(spec.prompt, spec.pooling, tokenizer),
            "query": Wrapping.of(spec.query_prompt, spec.pooling, tokenizer),
        }
        for wrapping in self._parts.values():
            decoder.share(wrapping.before)

    @classmethod
    def load(cls, model: str = models.DEFAULT, **options: object) -> "Encoder":
        """Load an encoder by model name; ``options`` are the other fields of :class:`EncoderOptions`.

        Raises:
            UsageError: an option has an impossible value.
            ModelError: the model cannot be found or loaded.
        """
        return cls.from_options(EncoderOptions(model, **options))  # type: ignore[arg-type]

    @classmethod
    def from_options(cls, options: EncoderOptions) -> "Encoder":
        """Load an encoder; raises as :meth:`load`."""
        found = models.find(
            options.model, options.revision, options.adapter, trust_remote_code=options.trust_remote_code
        )
        if found.adapter is not None and found.spec is None and None in (options.prompt, options.pooling):
            logger.warning(
                'adapter "%s" has no %s, which says how it was trained: prompt and pooling are the defaults where '
                "they are not given",
                found.adapter.folder,
                adapters.SPEC_NAME,
            )
        wanted = Settings.choose(options, found.spec)
        placement = device.resolve(options.device, options.dtype)
        tokenizer = Tokenizer(found.local.folder, trust_remote_code=options.trust_remote_code)
        decoder = load_decoder(
            found.local.folder,
            placement,
            layer=wanted.layer,
            attention=wanted.attention,
            adapter=found.adapter,
            trust_remote_code=options.trust_remote_code,
            engine=options.engine,
        )
        whitening = _whitening(found.adapter if wanted.whitened else None, wanted.pooling, decoder)
        width = whitening.dim if whitening else pooled_width(wanted.pooling, decoder.hidden_size)
        dim = min(wanted.dim or width, width) if options.dim is None else at_least_one("--dim", options.dim)
        if dim > width:
            raise UsageError(f"--dim {dim} is larger than the {width} values that this model and pooling give")
        templates = (wanted.prompt, wanted.query_prompt)
        room = room_for_text(templates, wanted.pooling, tokenizer, decoder.max_positions)
        if room < 1:
            limit = decoder.max_positions
            raise UsageError(f"the prompt leaves no room for a text in the {limit:,} tokens of the model; shorten it")
        max_tokens = min(wanted.max_tokens, room)
        if options.max_tokens is not None:
            max_tokens = at_least_one("--max-tokens", options.max_tokens)
        if max_tokens > room:
            raise UsageError(
                f"--max-tokens {max_tokens} is more than the model and the prompt leave room for: {room:,}"
            )
        spec = EncoderSpec(
            backbone=found.backbone,
            revision=found.revision,
            backbone_sha256=found.local.sha256,
            adapter=models.adapter_name(found.adapter) if found.adapter else None,
            adapter_sha256=found.adapter.sha256 if found.adapter else None,
            prompt=wanted.prompt,
            query_prompt=wanted.query_prompt,
            pooling=wanted.pooling,
            layer=decoder.layer,
            attention=wanted.attention,
            max_tokens=max_tokens,
            dim=dim,
            whitened=whitening is not None,
            normalize=wanted.normalize,
        )
        return cls(spec, tokenizer, decoder, placement, whitening)

    @classmethod
    def from_spec(
        cls,
        spec: EncoderSpec,
        *,
        device_name: str = "auto",
        dtype: str = "auto",
        trust_remote_code: bool = False,
        engine: Engine = "auto",
    ) -> "Encoder":
        """Load the very encoder that a spec describes.

        Raises:
            ModelError: its backbone or its adapter is not there any more.
            SpecMismatch: its backbone or its adapter has changed since.
        """
        local = models.locate(spec.backbone, spec.revision, trust_remote_code=trust_remote_code)
        _check_unchanged(f'model "{spec.backbone}"', local.sha256, spec.backbone_sha256)
        adapter = adapters.read(models.adapter_path(spec.adapter)) if spec.adapter is not None else None
        if adapter is not None:
            _check_unchanged(f'adapter "{spec.adapter}"', adapter.sha256, spec.adapter_sha256)
        placement = device.resolve(device_name, dtype)
        tokenizer = Tokenizer(local.folder, trust_remote_code=trust_remote_code)
        decoder = load_decoder(
            local.folder,
            placement,
            layer=spec.layer,
            attention=spec.attention,
            adapter=adapter,
            trust_remote_code=trust_remote_code,
            engine=engine,
        )
        whitening = _whitening(adapter if spec.whitened else None, spec.pooling, decoder)
        return cls(spec, tokenizer, decoder, placement, whitening)

    @property
    def backbone(self) -> Backbone:
        """The decoder as a model of transformers, which training changes.

        Raises:
            UsageError: the encoder was loaded to be computed without transformers.
        """
        if not isinstance(self.decoder, Backbone):
            raise UsageError('this needs an encoder that was loaded with engine="transformers"')
        return self.decoder

    @property
    def dtype(self) -> str:
        """Name of the dtype the model runs in."""
        return device.dtype_name(self.placement.dtype)

    def wrapping(self, role: Role) -> Wrapping:
        """What the texts of a role are put between."""
        return self._parts[role]

    def room(self, templates: Sequence[str]) -> int:
        """Tokens that the model leaves to a text under the longest of some prompts."""
        resolved = [prompts.resolve(each) for each in templates]
        return room_for_text(resolved, self.spec.pooling, self._tokenizer, self.decoder.max_positions)

    def tokenize(self, texts: Iterable[str], *, role: Role = "document") -> Tokens:
        """Wrap texts in the role's prompt and turn them into token ids; only the text is ever cut.

        Raises:
            UsageError: the texts are one string instead of several, one is no string, or there is no such role.
            ModelError: a text has a token that the model does not know.
        """
        texts = text_list(texts)
        if role not in self._parts:
            raise UsageError(f'unknown role "{role}"; one of {", ".join(self._parts)}')
        before, gap, after, begins = self._parts[role]
        limit = self.spec.max_tokens
        kept = limit * _LONGEST_TOKEN
        bodies = self._tokenizer([gap + text[:kept] for text in texts], begins=begins)
        rows: list[list[int]] = []
        spans = np.empty((len(texts), 2), np.int64)
        truncated = np.empty(len(texts), np.bool_)
        for i, body in enumerate(bodies):
            truncated[i] = len(body) > limit or len(texts[i]) > kept
            body = body[:limit]
            spans[i] = len(before), len(before) + len(body)
            rows.append(before + body + after or self._stand_in())
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        ids = np.fromiter((token for row in rows for token in row), np.int32, count=int(offsets[-1]))
        known = self.decoder.vocabulary
        if known is not None and (strange := int(ids.max(initial=0))) >= known:
            raise ModelError(
                f"the tokenizer gives token {strange:,} for a text or its prompt, and the model knows {known:,}: they "
                "do not belong together"
            )
        return Tokens(ids, offsets, spans, truncated)

    def forward(self, tokens: Tokens, on_tokens: Callable[[int, int], None] | None = None) -> Vectors:
        """Run the model over tokenised texts, over equal ones once.

        Args:
            tokens: what :meth:`tokenize` gave.
            on_tokens: called after each batch with its number of texts and of tokens.

        Returns:
            ``(n, dim) float32`` vectors, in the order of the texts.

        Raises:
            ModelError: not even one text fits into memory.
            NotFinite: the model gave values that are not finite.
        """
        first, same = batching.distinct(tokens)
        copies = np.bincount(same)
        made: list[tuple[NDArray[np.int64], Tensor]] = []
        batches = list(batching.plan(tokens.lengths[first], self._budget))
        together = self.decoder.reentrant and self.placement.device.type == "cpu"
        with device.side_by_side(len(batches) if together else 1) as start:

            def begun(batch: NDArray[np.int64]) -> tuple[NDArray[np.int64], device.Job]:
                return batch, start(partial(self._forward_batch, tokens, first[batch]))

            waiting = deque(map(begun, batches))
            while waiting:
                batch, result = waiting.popleft()
                try:
                    made.append((batch, result()))
                except (torch.OutOfMemoryError, RuntimeError) as error:
                    halves = self._halve(batch, tokens.lengths[first[batch]], error)
                    waiting.extendleft(map(begun, reversed(halves)))
                    continue
                if on_tokens is not None:
                    on_tokens(int(copies[batch].sum()), int(tokens.lengths[first[batch]] @ copies[batch]))
        found = np.empty((len(first), self.spec.dim), np.float32)
        for batch, vectors_BD in made:  # fetched at the end, so that a GPU is never waited for in between
            found[batch] = vectors_BD.cpu().numpy()
        vectors: Vectors = found[same]
        if not np.isfinite(vectors).all():
            raise NotFinite(
                f"the model gave values that are not finite in {self.dtype}; use --dtype float32"
                if self.dtype != "float32"
                else "the model gave values that are not finite: its weights are damaged"
            )
        return vectors

    def encode(
        self,
        texts: Iterable[str],
        *,
        role: Role = "document",
        on_progress: ProgressCallback | None = None,
    ) -> Vectors:
        """Embed texts: ``(n, dim) float32``, rows of unit length, in the order given; raises as the two above."""
        texts = text_list(texts)
        vectors = np.empty((len(texts), self.spec.dim), np.float32)
        done = token_count = 0

        def report(more: int, more_tokens: int) -> None:
            nonlocal done, token_count
            done, token_count = done + more, token_count + more_tokens
            if on_progress is not None:
                on_progress(Progress("encode", done, len(texts), tokens=token_count))

        report(0, 0)
        for start in range(0, len(texts), _WINDOW):
            tokens = self.tokenize(texts[start : start + _WINDOW], role=role)
            vectors[start : start + len(tokens)] = self.forward(tokens, on_tokens=report)
        return vectors

    def self_check(self, tokens: Tokens, vectors: Vectors) -> float:
        """Cosine of the shortest text, encoded alone, to the vector that it got among the others.

        The shortest, because it is the farthest from the sizes of a batch, and has the most padding where a batch is
        padded.
        """
        row = int(tokens.lengths.argmin())
        alone: Vectors = self._forward_batch(tokens, np.array([row]))[0].cpu().numpy()
        norms = float(np.linalg.norm(alone) * np.linalg.norm(vectors[row]))
        return float(alone @ vectors[row]) / norms if norms else 0.0

    def token_states(
        self, tokens: Tokens, batch: NDArray[np.int64], *, read_by: Pooling | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Token states of some rows, padded on the right, before pooling.

        Args:
            tokens: what :meth:`tokenize` gave.
            batch: ``(B,) int64`` row numbers.
            read_by: the states that this pooling does not read need not be computed; None for all.

        Returns:
            ``hidden_BTD`` in the model's dtype; ``mask_BT`` of the rows' tokens and ``span_BT`` of the texts' own.
        """
        ids_BT, mask_BT, span_BT = map(torch.from_numpy, batching.padded(tokens, batch))
        read_BT = read_positions(read_by, mask_BT, span_BT) if read_by else None
        hidden_BTD = self.decoder(ids_BT, mask_BT, read_BT)
        place = self.placement.device
        return hidden_BTD, device.send(mask_BT, place), device.send(span_BT, place)

    def embed(self, tokens: Tokens, batch: NDArray[np.int64]) -> Tensor:
        """Embeddings ``(B, dim) float32`` of some rows, with gradients unless the caller has turned them off."""
        pooling = self.spec.pooling
        pooled_BD = POOLERS[pooling](*self.token_states(tokens, batch, read_by=pooling))
        cut_BD = (self.whitening(pooled_BD) if self.whitening else pooled_BD)[:, : self.spec.dim]
        return torch.nn.functional.normalize(cut_BD, dim=1) if self.spec.normalize else cut_BD

    @torch.inference_mode()
    def _forward_batch(self, tokens: Tokens, batch: NDArray[np.int64]) -> Tensor:
        small = int(tokens.lengths[batch].sum()) * self.memory_bytes < _TOO_SMALL_TO_SHARE
        with device.one_thread() if small and self.placement.device.type == "cpu" else nullcontext():
            return self.embed(tokens, batch)

    def _halve(
        self, batch: NDArray[np.int64], lengths: NDArray[np.int64], error: RuntimeError
    ) -> list[NDArray[np.int64]]:
        """Two halves of a batch that did not fit into memory; smaller batches from then on."""
        if not isinstance(error, torch.OutOfMemoryError) and "allocate memory" not in str(error):
            raise error
        longest = int(lengths.max())
        if len(batch) == 1:
            raise ModelError(
                f"out of memory on {self.placement.device} for a single text of {longest:,} tokens; "
                "lower --max-tokens or use a smaller model"
            ) from error
        self._budget = max(longest, len(batch) * longest // 2)
        logger.warning("out of memory on %s: batches of %d tokens from now on", self.placement.device, self._budget)
        if self.placement.device.type == "cuda":
            torch.cuda.empty_cache()
        middle = len(batch) // 2
        return [batch[:middle], batch[middle:]]

    def _stand_in(self) -> list[int]:
        """What an empty text without a prompt becomes: a model needs at least one token."""
        return [self._tokenizer.eos if self._tokenizer.eos is not None else 0]


def _whitening(adapter: Adapter | None, pooling: Pooling, decoder: Decoder) -> Whitening | None:
    return Whitening.load(adapter.folder, pooled_width(pooling, decoder.hidden_size)) if adapter else None


def _check_unchanged(what: str, sha256: str, recorded: str | None) -> None:
    if sha256 != recorded:
        raise SpecMismatch(
            f"{what} is not the one the vectors were made with (fingerprint {sha256[:16]}, not "
            f"{str(recorded)[:16]}): put the old one back, or build the index afresh (build --overwrite)"
        )
