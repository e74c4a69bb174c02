"""What an encoder asks of a decoder, whoever computes it, and the proofs that it must pass when it is loaded.

Nothing about a model is believed that can be measured: that its weights are whole, that an adapter changes what comes
out, that it looks ahead or does not.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from llmindex.encode import adapter as adapters
from llmindex.encode.adapter import Adapter
from llmindex.encode.device import Placement
from llmindex.encode.models import one_line
from llmindex.errors import ModelError, NoEffect, NotFinite, UsageError


class Decoder(ABC):
    """A decoder that gives one layer's token states.

    Attributes:
        folder: of the model.
        hidden_size: D, the length of a token state.
        layer: the one whose states come out: -1 the last (after the final norm), else counted from 0, the embeddings.
        max_positions: the most tokens the model was made for, or None where its configuration does not say.
        vocabulary: the number of tokens that it knows, or None where that cannot be told.
        reentrant: whether it computes for several threads at a time; else they wait for each other.
    """

    folder: Path
    hidden_size: int
    layer: int
    max_positions: int | None
    vocabulary: int | None
    reentrant = False

    @abstractmethod
    def __call__(self, ids_BT: Tensor, mask_BT: Tensor, read_BT: Tensor | None = None) -> Tensor:
        """Token states ``(B, T, D)`` of right-padded rows, which are on the CPU.

        Padding's states mean nothing, nor do those that ``read_BT``, if given, does not ask for.
        """

    def share(self, beginning: Sequence[int]) -> None:  # noqa: B027 - most decoders make nothing of it
        """Hear of tokens that many rows will begin with, a prompt's; they may be computed once for all of these."""

    @property
    @abstractmethod
    def bytes(self) -> int:
        """Memory of the weights."""

    @abstractmethod
    def _weights(self) -> Mapping[str, Tensor]:
        """The weight of each linear layer by the layer's name; writing to one changes the decoder."""

    def _merge(self, adapter: Adapter) -> None:
        """Merge an adapter, and see that it changes what is computed."""
        before_BTD = self._probe()
        adapters.merge(self._weights(), adapter)
        if torch.equal(before_BTD, self._probe()):
            raise NoEffect(f'adapter "{adapter.folder}" does not change what "{self.folder}" computes')

    @torch.inference_mode()
    def _probe(self) -> Tensor:
        """States ``(2, 4, D) float32`` of two rows that differ in their last token alone."""
        ids = torch.tensor([[5, 6, 7, 8], [5, 6, 7, 9]])
        try:
            states_BTD = self(ids, torch.ones_like(ids)).float()
        except Exception as error:  # whatever the model's own code raises when fed with tokens
            raise ModelError(f'model "{self.folder}" does not run as a text decoder: {one_line(error)}') from error
        if states_BTD.dim() != 3:
            raise ModelError(f'model "{self.folder}" has several states for each token of that layer; use --layer -1')
        if not torch.isfinite(states_BTD).all():
            raise NotFinite(f'model "{self.folder}" gives values that are not finite: its weights are damaged')
        return states_BTD


def looks_ahead(probed_BTD: Tensor) -> bool:
    """Whether a text's first token has another state when its last token is another."""
    first_BD = probed_BTD[:, 0]
    return not torch.allclose(first_BD[0], first_BD[1], rtol=1e-3, atol=1e-5)


def canonical(layer: int, layers: int) -> int:
    """One number for each layer: -1 for the last, else 0 to layers - 1.

    Raises:
        UsageError: there is no such layer.
    """
    if not -layers <= layer <= layers:
        raise UsageError(
            f"--layer {layer} is out of range: the model has layers 0 (embeddings) to {layers}, -1 the last"
        )
    if layer in (-1, layers):
        return -1
    return layer if layer >= 0 else layer + layers + 1


def does_not_fit(folder: Path, placement: Placement) -> ModelError:
    """What to raise when there is no room for a model's weights."""
    return ModelError(
        f'model "{folder}" does not fit into the memory of {placement.device}; use --device cpu or a smaller model'
    )
