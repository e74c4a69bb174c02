"""Vectors of several layers and poolings from one forward.

The states of one batch are held at a time, those of the chosen layers alone, and pooled at once. What comes out for a
layer and a pooling is what an :class:`~llmindex.encode.encoder.Encoder` of that spec gives: middle layers as they
leave the layer, the last one after the final norm.

Shapes: B texts, T tokens, D hidden size.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from llmindex.encode import batching
from llmindex.encode.encoder import Encoder
from llmindex.encode.pooling import POOLERS, pooled_width
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.spec import EncoderSpec, Pooling
from llmindex.errors import ModelError, UsageError
from llmindex.records import Vectors
from llmindex_training.evaluate import Encoding

Read = tuple[Pooling, int]
"""How vectors are read off a forward: pooling and layer."""

_WINDOW = 2048


class Reader:
    """A model under one prompt, read at several layers and by several poolings.

    Attributes:
        reads: the combinations of pooling and layer, layers numbered as in a spec.
    """

    def __init__(
        self,
        options: EncoderOptions,
        prompt: str,
        poolings: Sequence[Pooling],
        layers: Sequence[int],
        beside: Sequence[str] = (),
    ) -> None:
        """Load the model.

        Args:
            options: the model and what else decides its vectors; prompts, pooling and layer are not looked at.
            prompt: name or template, around every text.
            poolings: all of them "eos", or none: that one needs a token more.
            layers: -1 the last, 0 the embeddings, k the k-th.
            beside: prompts of other texts that these are compared with; the longest decides how much is kept of a text.

        Raises:
            UsageError: the model has no such layer, or the prompt leaves no room for a text.
            ModelError: the model cannot be loaded.
        """
        # The layers above the highest that is asked for never run.
        highest = -1 if min(layers) < 0 else max(layers)
        try:
            self._encoder = Encoder.from_options(
                replace(
                    options,
                    prompt=prompt,
                    query_prompt=None,
                    pooling=poolings[0],
                    layer=highest,
                    dim=None,
                    engine="transformers",
                )
            )
        except UsageError as error:  # which knows the option of the commands that take one layer
            raise UsageError(str(error).replace("--layer ", "--layers ")) from error
        spec = self._encoder.spec
        room = self._encoder.room([prompt, *beside])
        if room < 1:
            raise UsageError(
                "the longest of the prompts leaves no room for a text in the tokens of the model; shorten it"
            )
        self._encoder.spec = replace(spec, max_tokens=min(spec.max_tokens, room))
        backbone = self._encoder.backbone
        if backbone.layers is None:
            raise ModelError(f"cannot tell the layers of {type(backbone.model).__name__}: a sweep needs them")
        self._count = len(backbone.layers)
        wanted = tuple(dict.fromkeys(self._canonical(layer) for layer in layers))
        self.reads: list[Read] = [(pooling, layer) for pooling in poolings for layer in wanted]
        self._dim = options.dim
        self._inner = [layer for layer in wanted if layer != self._encoder.spec.layer]

    def spec(self, read: Read) -> EncoderSpec:
        """The encoder that a reading is; an adapter's whitening, which suits one reading alone, is left out."""
        pooling, layer = read
        width = pooled_width(pooling, self._encoder.backbone.hidden_size)
        if self._dim is not None and self._dim > width:
            raise UsageError(f"--dim {self._dim} is larger than the {width} values that pooling {pooling} gives")
        return replace(self._encoder.spec, pooling=pooling, layer=layer, dim=self._dim or width, whitened=False)

    def vectors(self, texts: Sequence[str], encode: Encoding) -> dict[Read, Vectors]:
        """Vectors ``(n, dim) float32`` of each reading, from one forward over the texts."""
        dims = {read: self.spec(read).dim for read in self.reads}
        found = {read: np.empty((len(texts), dim), np.float32) for read, dim in dims.items()}
        for start in range(0, len(texts), _WINDOW):
            tokens = self._encoder.tokenize(texts[start : start + _WINDOW])
            for batch in batching.plan(tokens.lengths, self._encoder.placement.token_budget):
                with torch.inference_mode(), self._encoder.backbone.tapped(self._inner) as states:
                    _, mask_BT, span_BT = self._encoder.token_states(tokens, batch)
                    for (pooling, layer), dim in dims.items():
                        pooled_BD = POOLERS[pooling](states[layer], mask_BT, span_BT)[:, :dim]
                        unit_BD = torch.nn.functional.normalize(pooled_BD, dim=1)
                        found[pooling, layer][start + batch] = unit_BD.cpu().numpy()
                encode.count(len(batch), int(tokens.lengths[batch].sum()))
        for (pooling, layer), vectors in found.items():
            if not np.isfinite(vectors).all():
                raise ModelError(
                    f"layer {layer} with pooling {pooling} gives values that are not finite in {self._encoder.dtype}"
                )
        return found

    def _canonical(self, layer: int) -> int:
        """A layer's number as a spec has it: -1 the last, else from 0."""
        count = self._count
        if not -count - 1 <= layer <= count:
            raise UsageError(
                f"--layers {layer} is out of range: the model has layers 0 (embeddings) to {count}, -1 the last"
            )
        counted = layer if layer >= 0 else layer + count + 1
        return self._encoder.spec.layer if counted == count else counted
