"""Decoders of any kind, by transformers, cut down to what encoding needs.

No LM head, no cache, no states of other layers; an adapter is merged into the weights. Where a middle layer is asked
for, the layers above it are dropped and never run. What the model can do is measured, not believed. A probe changes a
text's last token and looks whether the first token's state moves: only a model that does not look ahead may be fed
padded batches without a mask. One that does has to give a text the same states beside a longer one as alone. Another
probe lays texts end to end: only a model that gives them the states that they have side by side is fed packed batches.
"""

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from llmindex.encode import packing
from llmindex.encode.adapter import Adapter
from llmindex.encode.decoder import Decoder, canonical, does_not_fit, looks_ahead
from llmindex.encode.device import Placement, send
from llmindex.encode.models import one_line
from llmindex.encode.pack import Pack
from llmindex.encode.spec import Attention
from llmindex.errors import ModelError, UsageError

logger = logging.getLogger(__name__)

# Cosine of a token's states by two ways of computing them; rounding leaves them nearer than that.
_SAME = {torch.float32: 0.9999, torch.bfloat16: 0.99, torch.float16: 0.99}
# Kinds of layers, as transformers names them, whose tokens keep to their row if attention does; a window that attention
# looks through is known when it is called.
_PACKABLE = {"full_attention", "sliding_attention"}


class Backbone(Decoder):
    """A decoder that transformers computes, with gradients where the caller wants them; see :class:`Decoder`.

    Attributes:
        model: the transformers model.
        layers: the decoder's layers as far as they run; None where they cannot be told from the rest of the model.
    """

    def __init__(
        self,
        folder: Path,
        placement: Placement,
        *,
        layer: int = -1,
        attention: Attention = "causal",
        adapter: Adapter | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        """Load the decoder.

        Args:
            folder: local model folder with safetensors.
            placement: device and dtype.
            layer: -1 the last (after the final norm), 0 the embeddings, k the k-th layer's output.
            attention: "causal" or "bidirectional".
            adapter: merged into the weights.
            trust_remote_code: run Python files of the model's folder.

        Raises:
            ModelError: it cannot be loaded, or does not attend as asked.
            AdapterError: the adapter does not fit, or does not move the output.
            UsageError: it has no such layer.
        """
        self.folder = folder
        self._hold(_load(folder, placement, attention, trust_remote_code), placement)
        config = self.model.config.get_text_config()
        self.max_positions = getattr(config, "max_position_embeddings", None)
        self.vocabulary = _vocabulary(self.model)
        self._short = _longest_short(config)
        layers = int(config.num_hidden_layers)
        self.layer = -1
        self._caught: dict[int, Tensor] = {}
        self._tapped: dict[int, Tensor] | None = None
        self._running = threading.Lock()  # what is caught is of one forward
        self._needs_mask = False
        if adapter is not None:
            self._merge(adapter)
        self.layer = canonical(layer, layers)
        if self.layer != -1:
            self._cut_above(self.layer)
        probed_BTD = self._probe()
        self.hidden_size = probed_BTD.shape[2]  # some decoders have a narrower end than middle
        self._needs_mask = looks_ahead(probed_BTD)
        if self._needs_mask != (attention == "bidirectional") and self.layer != 0:
            raise ModelError(
                f'model "{folder}" attends to later tokens: it is no causal decoder; use --attention bidirectional'
                if self._needs_mask
                else f'model "{folder}" cannot be made bidirectional; use --attention causal'
            )
        if self._needs_mask and not self._leaves_padding_out():
            raise ModelError(
                f'model "{folder}" does not leave out padding where it attends to later tokens: a text would get other '
                "vectors beside a longer one; use another model, or --attention causal"
            )
        self._try_packing()

    def load_again(self, placement: Placement, quantization: object) -> None:
        """Hold all of the model's layers in fewer bits from now on, without an adapter; what was held is let go first.

        Args:
            placement: where, and what is computed in.
            quantization: transformers' configuration of how.

        Raises:
            ModelError: it cannot be loaded in that way.
        """
        del self.model, self.layers
        attention: Attention = "bidirectional" if self._needs_mask else "causal"
        self._hold(_load(self.folder, placement, attention, False, quantization), placement)

    def _hold(self, model: Any, placement: Placement) -> None:  # noqa: ANN401
        self.model: Any = model
        self._device = placement.device
        stacks = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
        layers = int(model.config.get_text_config().num_hidden_layers)
        self.layers = next((module for module in stacks if len(module) == layers), None)

    @property
    def bytes(self) -> int:
        """Memory of the weights."""
        return sum(parameter.nbytes for parameter in self.model.parameters())

    @property
    def packs(self) -> bool:
        """Whether batches go through the model without padding; as the model's attention is set at the moment."""
        return bool(self.model.config._attn_implementation == packing.NAME)

    def __call__(self, ids_BT: Tensor, mask_BT: Tensor, read_BT: Tensor | None = None) -> Tensor:
        """As :class:`Decoder` says; all states are computed."""
        with self._running:
            states = self._states(ids_BT, mask_BT)
        if self._tapped is not None:
            self._tapped.update(states)
            if other := [layer for layer, each in states.items() if each.shape != states[self.layer].shape]:
                raise UsageError(
                    f"--layers {other[0]}: its states are of another shape than the last layer's; leave it out"
                )
        return states[self.layer]

    def _states(self, ids_BT: Tensor, mask_BT: Tensor) -> dict[int, Tensor]:
        """States ``hidden_BTD`` of each layer that somebody wants."""
        long_B = mask_BT.sum(dim=1) > self._short
        if long_B.any() and not long_B.all():
            return self._apart(ids_BT, mask_BT, long_B)
        pack = Pack.of(ids_BT, mask_BT, self._device) if self.packs else None
        self._caught.clear()
        if pack is not None:
            output = self.model(input_ids=pack.ids_1N, position_ids=pack.positions_1N, use_cache=False, pack=pack)
        else:
            mask = send(mask_BT, self._device) if self._needs_mask else None
            output = self.model(input_ids=send(ids_BT, self._device), attention_mask=mask, use_cache=False)
        if self.layer == -1:
            self._caught[-1] = output.last_hidden_state
        states = {layer: pack.unpack(caught) if pack else caught for layer, caught in self._caught.items()}
        self._caught.clear()
        return states

    def _apart(self, ids_BT: Tensor, mask_BT: Tensor, long_B: Tensor) -> dict[int, Tensor]:
        """The same with long rows and others in two batches, since a long one has its whole batch turned otherwise."""
        longest = int(mask_BT[~long_B].sum(dim=1).max())
        padding = (0, 0, 0, ids_BT.shape[1] - longest)
        long = self._states(ids_BT[long_B], mask_BT[long_B])
        short = self._states(ids_BT[~long_B, :longest], mask_BT[~long_B, :longest])
        back_B = send((~long_B).long().argsort(stable=True).argsort(), self._device)
        return {
            layer: torch.cat([states, nn.functional.pad(short[layer], padding)])[back_B]
            for layer, states in long.items()
        }

    @contextmanager
    def tapped(self, layers: Sequence[int]) -> Iterator[dict[int, Tensor]]:
        """Lend a dict in which each forward leaves the states ``hidden_BTD`` of other layers beside those it returns.

        Args:
            layers: 0 the embeddings, k the k-th of those that run, as they leave the layer.

        Raises:
            UsageError: the layers cannot be told from the rest of the model.
        """
        handles = [self._catch(layer) for layer in layers]
        self._tapped = {}
        try:
            yield self._tapped
        finally:
            self._tapped = None
            for handle in handles:
                handle.remove()

    def _catch(self, layer: int) -> RemovableHandle:
        """Have each forward keep what a layer puts out."""
        if self.layers is None:
            raise UsageError(f"--layer {layer}: cannot tell the layers of {type(self.model).__name__}; use -1")

        def keep(module: nn.Module, inputs: object, output: Tensor | tuple[Tensor, ...]) -> None:
            self._caught[layer] = output[0] if isinstance(output, tuple) else output

        module = self.layers[layer - 1] if layer else self.model.get_input_embeddings()
        handle: RemovableHandle = module.register_forward_hook(keep)
        return handle

    def _cut_above(self, layer: int) -> None:
        """Drop the layers above ``layer`` and catch its output before the final norm."""
        self._catch(layer)
        assert self.layers is not None
        del self.layers[max(layer, 1) :]
        self.model.config.get_text_config().num_hidden_layers = len(self.layers)

    def _weights(self) -> Mapping[str, Tensor]:
        return {
            name: module.weight
            for name, module in self.model.named_modules()
            if getattr(module, "weight", None) is not None
        }

    @torch.inference_mode()
    def _leaves_padding_out(self) -> bool:
        """Whether a text has the same states beside a longer one as alone."""
        ids_BT = torch.tensor([[300, 310, 320, 0], [330, 340, 350, 305]])
        mask_BT = (ids_BT > 0).long()
        ids_BT %= self.model.config.get_text_config().vocab_size
        beside_TD = self(ids_BT, mask_BT)[0, :3].float()
        alone_TD = self(ids_BT[:1, :3], mask_BT[:1, :3])[0]
        same_T = nn.functional.cosine_similarity(beside_TD, alone_TD.float(), dim=1)
        return bool(same_T.median() > _SAME[alone_TD.dtype])

    @torch.inference_mode()
    def _try_packing(self) -> None:
        """Pack batches from now on if that changes nothing."""
        if not getattr(self.model, "_supports_attention_backend", False):
            logger.info('model "%s": batches are padded, its attention cannot be replaced', self.folder)
            return
        # Chunks of attention, convolutions and the like: five tokens show nothing of what they would mix, or cut.
        config = self.model.config.get_text_config()
        kinds = set(getattr(config, "layer_types", None) or ())
        if unknown := sorted(kinds - _PACKABLE):
            logger.info('model "%s": batches are padded, it has layers of %s', self.folder, ", ".join(unknown))
            return
        # Common pieces of words in any subword vocabulary; among a model's special tokens, rounding alone moves states.
        ids_BT = torch.tensor([[300, 310, 320, 330, 340], [350, 305, 315, 0, 0], [325, 335, 345, 0, 0]])
        mask_BT = (ids_BT > 0).long()
        ids_BT %= config.vocab_size
        padded_BTD = self(ids_BT, mask_BT)
        kernel = self.model.config._attn_implementation
        packing.register()
        self.model.set_attn_implementation(packing.NAME)
        try:
            packed_BTD = self(ids_BT, mask_BT)
            cosine_BT = nn.functional.cosine_similarity(padded_BTD.float(), packed_BTD.float(), dim=2)
            # Of each row the median: rounding can still tip a single token over.
            rows = zip(cosine_BT.cpu(), mask_BT.bool(), strict=True)
            reason = "packed, texts would not get the same vectors"
            if all(cosine_T[real_T].median() > _SAME[padded_BTD.dtype] for cosine_T, real_T in rows):
                if kinds or not getattr(config, "sliding_window", None):
                    return
                reason = "its masks have windows that its attention is not told of"
        except Exception as error:  # whatever the model's own code, or a kernel, raises when fed in this way
            reason = one_line(error)
        self.model.set_attn_implementation(kernel)
        logger.info('model "%s": batches are padded: %s', self.folder, reason)


def _vocabulary(model: Any) -> int | None:  # noqa: ANN401 - of transformers
    try:
        return getattr(model.get_input_embeddings(), "num_embeddings", None)
    except NotImplementedError:  # a model's own code need not say
        return None


def _longest_short(config: Any) -> float:  # noqa: ANN401 - of transformers
    """Tokens up to which LongRoPE (arXiv 2402.13753) turns a batch by the one of its two sets of frequencies."""
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(each for each in rope.values() if isinstance(each, dict))]  # one for all layers, or each kind's
    return min(
        (each["original_max_position_embeddings"] for each in kinds if each.get("rope_type") == "longrope"),
        default=math.inf,
    )


def _load(
    folder: Path, placement: Placement, attention: Attention, trust_remote_code: bool, quantization: object = None
) -> Any:  # noqa: ANN401
    from transformers import AutoConfig, AutoModel

    # Quantised weights are made where they stay.
    quantized = {"quantization_config": quantization, "device_map": {"": placement.device}} if quantization else {}
    try:
        config = AutoConfig.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelError(f'model "{folder}" is an encoder-decoder; llmindex embeds with decoder-only models')
        if attention == "bidirectional":
            config.get_text_config().is_causal = False
        with no_progress_bar():
            model, loaded = AutoModel.from_pretrained(
                str(folder),
                config=config,
                dtype=placement.dtype,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
                output_loading_info=True,
                **quantized,
            )
        _check_whole(folder, [*loaded["missing_keys"], *loaded["mismatched_keys"]])
        if attention == "bidirectional":
            for module in model.modules():
                if hasattr(module, "is_causal"):
                    module.is_causal = False
        (model if quantized else model.to(placement.device)).eval()
    except torch.OutOfMemoryError as error:
        raise does_not_fit(folder, placement) from error
    except ModelError:
        raise
    except Exception as error:  # a damaged or foreign model can break transformers anywhere
        if "trust_remote_code" in str(error):
            raise ModelError(
                f'model "{folder}" needs its own Python code to run; if you trust it, add --trust-remote-code'
            ) from error
        raise ModelError(f'cannot load model "{folder}": {one_line(error)}') from error
    return model


def _check_whole(folder: Path, lacking: list[object]) -> None:
    """Refuse a model with weights that its files do not hold: transformers would fill them with random numbers."""
    if lacking:
        first = lacking[0][0] if isinstance(lacking[0], tuple) else lacking[0]
        raise ModelError(
            f'the files of model "{folder}" do not hold {len(lacking):,} of the weights that its config.json asks for '
            f"({first}, ...): they do not belong together, or are damaged"
        )


@contextmanager
def no_progress_bar() -> Iterator[None]:
    """Keep transformers from drawing bars while it reads or writes a model."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
