"""Decoders of Llama's family, computed here instead of by transformers: the same states from fewer calls.

Rows are always packed, rotation and gate work in place, and of the last layer only those states are computed that the
pooling reads. Nothing but torch is imported, where importing a model of transformers takes longer than loading its
weights. Roundings come in the order of transformers, so that in float32 the states are equal up to the order of sums.

Shapes: N tokens of a pack, M of which are read, D hidden size, H heads of queries, K of keys and of values, C values in
each.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from llmindex.encode import packing
from llmindex.encode.adapter import Adapter
from llmindex.encode.decoder import Decoder, canonical, does_not_fit
from llmindex.encode.device import Placement, send
from llmindex.encode.family import Architecture, OtherModel
from llmindex.encode.packing import Pack
from llmindex.encode.spec import Attention

logger = logging.getLogger(__name__)

# What the files of a model may hold beside what its states are made of.
_UNUSED = ("lm_head.weight", "rotary_emb.inv_freq")

# Tokens that a norm takes at a time, so that what it has in float32 stays in a CPU's cache: a seventh of all time.
_CPU_NORM = 128


class Llama(Decoder):
    """A decoder of the family; see :class:`Decoder`."""

    reentrant = True

    def __init__(
        self,
        folder: Path,
        placement: Placement,
        *,
        layer: int = -1,
        attention: Attention = "causal",
        adapter: Adapter | None = None,
    ) -> None:
        """Load the decoder.

        Args:
            folder: local model folder with safetensors.
            placement: device and dtype.
            layer: -1 the last (after the final norm), 0 the embeddings, k the k-th layer's output.
            attention: "causal" or "bidirectional".
            adapter: merged into the weights.

        Raises:
            OtherModel: it is no such model, or its files are not as such a model's are.
            ModelError: it gives values that are not finite, or has no room on the device.
            AdapterError: the adapter does not fit, or does not move the output.
            UsageError: it has no such layer.
        """
        self._shape = Architecture.read(folder)
        self.folder = folder
        self.hidden_size = self._shape.hidden_size
        self.max_positions = self._shape.max_positions
        self.layer = -1
        self._causal = attention == "causal"
        try:
            self._tensors = _read(folder, self._shape, placement)
        except torch.OutOfMemoryError as error:
            raise does_not_fit(folder, placement) from error
        self._frequencies = self._shape.frequencies.to(placement.device)
        if adapter is not None:
            self._merge(adapter)
        else:
            self._probe()
        self.layer = canonical(layer, self._shape.layers)
        for above in range(self._runs, self._shape.layers):
            for name in [name for name in self._tensors if name.startswith(f"layers.{above}.")]:
                del self._tensors[name]

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def _runs(self) -> int:
        """The number of layers that are run."""
        return self._shape.layers if self.layer == -1 else self.layer

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor, read_BT: Tensor | None = None) -> Tensor:
        """As :class:`Decoder` says; of the last layer that runs, only what is read is computed."""
        device = self._frequencies.device
        read_BT = mask_BT.bool() if read_BT is None else read_BT
        places_BT = (read_BT.flatten().cumsum(0) - 1).clamp(min=0).view_as(read_BT)
        read_M = read_BT[mask_BT.bool()].nonzero()[:, 0]
        states_MD = self._states(Pack.of(ids_BT, mask_BT, device), send(read_M, device))
        return states_MD[send(places_BT, device)]

    def _weights(self) -> Mapping[str, Tensor]:
        return {name.removesuffix(".weight"): tensor for name, tensor in self._tensors.items()}

    def _states(self, pack: Pack, read_M: Tensor) -> Tensor:
        """States ``(M, D)`` of some of the tokens in the layer that was asked for."""
        states_ND = functional.embedding(pack.ids_1N[0], self._tensors["embed_tokens.weight"])
        turns_N1c = pack.positions_1N[0, :, None, None] * self._frequencies
        cos_N1c, sin_N1c = turns_N1c.cos().to(states_ND.dtype), turns_N1c.sin().to(states_ND.dtype)
        rotation = torch.cat((cos_N1c, cos_N1c), dim=-1), sin_N1c
        for number in range(self._runs):
            at = f"layers.{number}."
            mixed_NE = self._attention(at, states_ND, rotation, pack)
            if number == self._runs - 1:
                mixed_NE, states_ND = mixed_NE[read_M], states_ND[read_M]
            states_ND = self._linear(f"{at}self_attn.o_proj", mixed_NE).add_(states_ND)
            states_ND = self._gated(at, states_ND)
        if not self._runs:
            return states_ND[read_M]
        return self._norm("norm", states_ND) if self.layer == -1 else states_ND

    def _attention(self, at: str, states_ND: Tensor, rotation: tuple[Tensor, Tensor], pack: Pack) -> Tensor:
        """What the heads of a layer gather, side by side: ``(N, H * C)``."""
        normed_ND = self._norm(f"{at}input_layernorm", states_ND)
        query_NHC, key_NKC, value_NKC = (
            self._linear(f"{at}self_attn.{name}_proj", normed_ND).view(len(normed_ND), -1, self._shape.head_size)
            for name in "qkv"
        )
        if self._shape.head_norms:
            query_NHC = self._norm(f"{at}self_attn.q_norm", query_NHC)
            key_NKC = self._norm(f"{at}self_attn.k_norm", key_NKC)
        mixed_NHC = packing.mix(
            _rotated(query_NHC, *rotation).transpose(0, 1),
            _rotated(key_NKC, *rotation).transpose(0, 1),
            value_NKC.transpose(0, 1),
            pack,
            scale=self._shape.head_size**-0.5,
            causal=self._causal,
        )
        return mixed_NHC.flatten(1)

    def _gated(self, at: str, states_ND: Tensor) -> Tensor:
        """The second half of a layer."""
        normed_ND = self._norm(f"{at}post_attention_layernorm", states_ND)
        gate = functional.silu(self._linear(f"{at}mlp.gate_proj", normed_ND), inplace=True)
        gated = gate.mul_(self._linear(f"{at}mlp.up_proj", normed_ND))
        return self._linear(f"{at}mlp.down_proj", gated).add_(states_ND)

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return functional.linear(states, self._tensors[f"{name}.weight"], self._tensors.get(f"{name}.bias"))

    def _norm(self, name: str, states: Tensor) -> Tensor:
        """RMSNorm (Zhang and Sennrich 2019, arXiv 1910.07467) over the last dimension, in float32."""
        weight, normed = self._tensors[f"{name}.weight"], torch.empty_like(states)
        size = _CPU_NORM if states.device.type == "cpu" else len(states)
        for some, place in zip(torch.split(states, size), torch.split(normed, size), strict=True):
            exact = some.to(torch.float32, copy=True)
            scale = exact.square().mean(dim=-1, keepdim=True).add_(self._shape.norm_eps).rsqrt_()
            place.copy_(exact.mul_(scale)).mul_(weight)
        return normed


def _rotated(heads_NHC: Tensor, cos_N1C: Tensor, sin_N1c: Tensor) -> Tensor:
    """Each value turned with the one half a head further, by its token's angles; c is half of C."""
    half = sin_N1c.shape[-1]
    turned_NHC = heads_NHC * cos_N1C
    turned_NHC[..., :half].addcmul_(heads_NHC[..., half:], sin_N1c, value=-1)
    turned_NHC[..., half:].addcmul_(heads_NHC[..., :half], sin_N1c)
    return turned_NHC


def _read(folder: Path, shape: Architecture, placement: Placement) -> dict[str, Tensor]:
    """The tensors of a model by their names in the decoder.

    Raises:
        OtherModel: the files cannot be read, or do not hold the tensors of such a model, no less and no more.
    """
    from safetensors import SafetensorError, safe_open

    tensors: dict[str, Tensor] = {}
    try:
        for file in _files(folder):
            with safe_open(file, "pt") as opened:
                for key in opened.keys():
                    name = key.removeprefix("model.")
                    if not name.endswith(_UNUSED):
                        tensors[name] = opened.get_tensor(key)
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise OtherModel(f"its files: {error}") from error
    if shape.tensors() != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
        raise OtherModel("its files hold other tensors")
    return {name: tensor.to(placement.device, placement.dtype) for name, tensor in tensors.items()}


def _files(folder: Path) -> list[Path]:
    """The files of a model's weights, as transformers takes them."""
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return [folder / "model.safetensors"]
    places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(places.values()))]
