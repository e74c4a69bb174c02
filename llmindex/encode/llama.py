"""Decoders of Llama's family, computed here instead of by transformers: the same states from fewer calls.

Rows are always packed, rotation and gate work in place, of the last layer only those states are computed that the
pooling reads, and a prompt's beginning is computed once for all texts. Nothing but torch is imported, where importing a
model of transformers takes longer than loading its weights. Roundings come in the order of transformers, so that in
float32 the states are equal up to the order of sums.

Shapes: N tokens of a pack, M of which are read, P tokens of a beginning, D hidden size, H heads of queries, K of keys
and of values, C values in each.
"""

import json
import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from llmindex.encode import packing
from llmindex.encode.adapter import Adapter
from llmindex.encode.decoder import Decoder, canonical, does_not_fit
from llmindex.encode.device import Placement, one_thread, send
from llmindex.encode.family import Architecture, OtherModel
from llmindex.encode.pack import Pack
from llmindex.encode.spec import Attention

logger = logging.getLogger(__name__)

# What the files of a model may hold beside what its states are made of.
_UNUSED = ("lm_head.weight", "rotary_emb.inv_freq")

# Tokens that a norm takes at a time, so that what it has in float32 stays in a CPU's cache: a seventh of all time.
_CPU_NORM = 512

# Devices whose attention the tests hold to transformers'; on another, a beginning is tried before it is used.
_PROVEN = ("cpu",)
_SAME = 0.99

# Tokens from which a beginning is worth to be kept: its keys and values are copied for each row.
_LEAST_SHARED = 3


@dataclass(frozen=True, slots=True)
class _Beginning:
    """Tokens that rows begin with, and what later tokens see of them; with causal attention it is always the same.

    Attributes:
        ids_P: the tokens.
        seen: of each layer, keys and values ``(K, P, C)``.
        states_PD: their states in the layer that was asked for.
    """

    ids_P: Tensor
    seen: list[tuple[Tensor, Tensor]]
    states_PD: Tensor


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
        self.vocabulary = self._shape.vocabulary
        self.layer = -1
        self._causal = attention == "causal"
        self._shared: dict[tuple[int, ...], _Beginning | None] = {}
        self._sharing = threading.Lock()
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

    def share(self, beginning: Sequence[int]) -> None:
        """As :class:`Decoder` says; computed when the first rows come that begin so."""
        if self._causal and len(beginning) >= _LEAST_SHARED:
            self._shared[tuple(beginning)] = None

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor, read_BT: Tensor | None = None) -> Tensor:
        """As :class:`Decoder` says; of the last layer that runs, only what is read is computed."""
        read_BT = mask_BT.bool() if read_BT is None else read_BT
        beginning = self._beginning_of(ids_BT, mask_BT, read_BT)
        if beginning is None:
            return self._rows(ids_BT, mask_BT, read_BT)
        rest = slice(len(beginning.ids_P), None)
        rest_BTD = self._rows(ids_BT[:, rest], mask_BT[:, rest], read_BT[:, rest], beginning)
        return torch.cat([beginning.states_PD.expand(len(rest_BTD), -1, -1), rest_BTD], dim=1)

    def _rows(self, ids_BT: Tensor, mask_BT: Tensor, read_BT: Tensor, beginning: _Beginning | None = None) -> Tensor:
        device = self._frequencies.device
        places_BT = (read_BT.flatten().cumsum(0) - 1).clamp(min=0).view_as(read_BT)
        read_M = read_BT[mask_BT.bool()].nonzero()[:, 0]
        pack = Pack.of(ids_BT, mask_BT, device, len(beginning.ids_P) if beginning else 0)
        states_MD = self._states(pack, send(read_M, device), beginning.seen if beginning else None)
        return states_MD[send(places_BT, device)]

    def _beginning_of(self, ids_BT: Tensor, mask_BT: Tensor, read_BT: Tensor) -> _Beginning | None:
        """The longest beginning that all rows share, and that is not all of one, nor all that is read."""
        shortest = int(mask_BT.sum(dim=1).min())
        for ids in sorted(self._shared, key=len, reverse=True):
            size = len(ids)
            if size < shortest and (ids_BT[:, :size] == torch.tensor(ids)).all() and read_BT[:, size:].any():
                return self._computed(ids)
        return None

    def _computed(self, ids: tuple[int, ...]) -> _Beginning | None:
        """A beginning, computed if it is the first time; None, for good, where it would change what comes after it."""
        with self._sharing:
            found = self._shared.get(ids)
            if found is None and ids in self._shared:
                found = self._begin(ids)
                if self._frequencies.device.type not in _PROVEN and not self._is_sound(found):
                    logger.info('model "%s": the prompt is computed anew for each text', self.folder)
                    del self._shared[ids]
                    return None
                self._shared[ids] = found
            return found

    @torch.inference_mode()
    def _begin(self, ids: tuple[int, ...]) -> _Beginning:
        ids_1P = torch.tensor([ids])
        pack = Pack.of(ids_1P, torch.ones_like(ids_1P), self._frequencies.device)
        seen: list[tuple[Tensor, Tensor]] = []
        with one_thread():  # so that it has the same bits whoever computes it
            states_PD = self._states(pack, pack.positions_1N[0], keep=seen)
        return _Beginning(ids_1P[0], seen, states_PD)

    @torch.inference_mode()
    def _is_sound(self, beginning: _Beginning) -> bool:
        """Whether two rows of different lengths have the same states with it as without."""
        whole_BT = beginning.ids_P.repeat(2, 2)
        mask_BT = torch.ones_like(whole_BT)
        mask_BT[1, -1] = 0
        rest = slice(len(beginning.ids_P), None)
        plain_BTD = self._rows(whole_BT, mask_BT, mask_BT.bool())[:, rest]
        shared_BTD = self._rows(whole_BT[:, rest], mask_BT[:, rest], mask_BT[:, rest].bool(), beginning)
        cosine_BT = torch.cosine_similarity(plain_BTD.float(), shared_BTD.float(), dim=-1)
        return bool((cosine_BT[mask_BT[:, rest].bool().to(cosine_BT.device)] > _SAME).all())

    def _weights(self) -> Mapping[str, Tensor]:
        return {name.removesuffix(".weight"): tensor for name, tensor in self._tensors.items()}

    def _states(
        self,
        pack: Pack,
        read_M: Tensor,
        before: list[tuple[Tensor, Tensor]] | None = None,
        keep: list[tuple[Tensor, Tensor]] | None = None,
    ) -> Tensor:
        """States ``(M, D)`` of some of the tokens in the layer that was asked for.

        Args:
            pack: the tokens.
            read_M: which of them.
            before: of each layer, keys and values ``(K, P, C)`` of what stands before every row.
            keep: where those of the pack are put.
        """
        states_ND = functional.embedding(pack.ids_1N[0], self._tensors["embed_tokens.weight"])
        turns_N1c = pack.positions_1N[0, :, None, None] * self._frequencies
        cos_N1c, sin_N1c = turns_N1c.cos().to(states_ND.dtype), turns_N1c.sin().to(states_ND.dtype)
        rotation = torch.cat((cos_N1c, cos_N1c), dim=-1), sin_N1c
        for number in range(self._runs):
            at = f"layers.{number}."
            heads = self._heads(at, states_ND, rotation)
            if keep is not None:
                keep.append(heads[1:])
            mixed_NHC = packing.mix(
                *heads,
                pack,
                scale=self._shape.head_size**-0.5,
                causal=self._causal,
                before=before[number] if before else None,
            )
            mixed_NE = mixed_NHC.flatten(1)
            if number == self._runs - 1:
                mixed_NE, states_ND = mixed_NE[read_M], states_ND[read_M]
            states_ND = self._linear(f"{at}self_attn.o_proj", mixed_NE).add_(states_ND)
            states_ND = self._gated(at, states_ND)
        if not self._runs:
            return states_ND[read_M]
        return self._norm("norm", states_ND) if self.layer == -1 else states_ND

    def _heads(self, at: str, states_ND: Tensor, rotation: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(H, N, C)``, keys and values ``(K, N, C)`` of a layer."""
        normed_ND = self._norm(f"{at}input_layernorm", states_ND)
        query_NHC, key_NKC, value_NKC = (
            self._linear(f"{at}self_attn.{name}_proj", normed_ND).view(len(normed_ND), -1, self._shape.head_size)
            for name in "qkv"
        )
        if self._shape.head_norms:
            query_NHC = self._norm(f"{at}self_attn.q_norm", query_NHC)
            key_NKC = self._norm(f"{at}self_attn.k_norm", key_NKC)
        query_NHC, key_NKC = _rotated(query_NHC, *rotation), _rotated(key_NKC, *rotation)
        return query_NHC.transpose(0, 1), key_NKC.transpose(0, 1), value_NKC.transpose(0, 1)

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
            length = torch.linalg.vector_norm(exact, dim=-1, keepdim=True)
            scale = length.square_().div_(exact.shape[-1]).add_(self._shape.norm_eps).rsqrt_()
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
    if (whole := folder / "model.safetensors").is_file():
        return [whole]
    index = folder / "model.safetensors.index.json"
    places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    return [folder / name for name in sorted(set(places.values()))]
