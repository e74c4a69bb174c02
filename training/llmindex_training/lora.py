"""The linear layer of LoRA (Hu et al., arXiv 2106.09685), computed at the speed of its backbone.

peft computes an adapter in the dtype of its weights, float32, and with it casts of all that goes in and comes out; and
torch draws the masks of a CPU's dropout one value after the other. The two take a CPU longer than the layer itself.
Here the product is computed in the backbone's dtype, added in place of a further pass, while the weights and
their gradients stay float32; the masks come from NumPy's SFC64. What cannot have such a layer, or could not be merged
with it when training is done, is refused beforehand.
"""

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from llmindex.errors import RecipeError

_LEVELS = 1 << 16


class LoraLinear(Linear):  # type: ignore[misc]  # peft's classes are untyped to mypy
    """As peft's layer of the same adapter: same weights, same output up to the rounding of the backbone's dtype."""

    def forward(self, x: Tensor, *args: object, **kwargs: object) -> Tensor:
        """``(..., out)`` from ``(..., in)``: the frozen layer's output plus the active adapter's."""
        if args or kwargs or self.disable_adapters or self.merged:
            output: Tensor = super().forward(x, *args, **kwargs)
            return output
        base: Tensor = self.base_layer(x)
        (name,) = self.active_adapters
        scale = self.scaling[name]
        probability = float(getattr(self.lora_dropout[name], "p", 0))
        if self.training and probability:
            x = x * _kept(x, probability)
            scale /= 1 - probability
        down = self.lora_A[name].weight.to(x.dtype)
        up = self.lora_B[name].weight.to(x.dtype)
        low = nn.functional.linear(x, down) * scale
        return torch.addmm(base.flatten(0, -2), low.flatten(0, -2), up.T).view_as(base)


def register(config: LoraConfig) -> None:
    """Have peft put :class:`LoraLinear` into the place of a decoder's linear layers."""
    config._register_custom_module({nn.Linear: LoraLinear})


def check_targets(model: Any, targets: Sequence[str]) -> None:  # noqa: ANN401 - a transformers model
    """Refuse what peft would leave out without a word, and layers that cannot be merged when training is done.

    Raises:
        RecipeError: a name is not that of linear layers.
    """
    from transformers.pytorch_utils import Conv1D

    modules = dict(model.named_modules())
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear | Conv1D)}
    known = sorted({name.rpartition(".")[2] for name in linear})
    for target in targets:
        meant = {name for name in modules if f".{name}".endswith(f".{target}")}
        if not meant or meant - linear:
            near = difflib.get_close_matches(target, known, n=1)
            hint = f'did you mean "{near[0]}"? ' if near else ""
            raise RecipeError(
                f'model.lora_targets: {type(model).__name__} has no linear layers "{target}"; {hint}it has '
                f"{', '.join(known)}"
            )


def check_merges(config: LoraConfig, targets: Sequence[str]) -> None:
    """Refuse what peft has taken for the names of experts, whose weights lie in one tensor and are no linear layers.

    Args:
        config: as it is once peft has had it.
        targets: what it was made for.

    Raises:
        RecipeError: there are such names among the targets.
    """
    if config.target_parameters:
        experts = sorted(set(targets) - set(config.target_modules))
        raise RecipeError(
            f"model.lora_targets: {', '.join(experts)} are names of the model's experts, too, whose adapter cannot be "
            "merged; leave them out"
        )


def _kept(x: Tensor, probability: float) -> Tensor:
    """1 where dropout keeps a value, else 0, ``uint8``; on a CPU, to 1/65,536 of the probability.

    NumPy's generator is seeded by torch's, so that whoever restores torch's state, as gradient caching and a resumed
    run do, gets the same mask.
    """
    if x.device.type != "cpu":
        return (torch.rand_like(x, dtype=torch.float32) >= probability).view(torch.uint8)
    seed = int(torch.randint(torch.iinfo(torch.int64).max, ()))
    drawn = np.random.SFC64(seed).random_raw(-(-x.numel() // 4)).view(np.uint16)[: x.numel()]
    kept = drawn >= round(probability * _LEVELS)
    return torch.from_numpy(kept.view(np.uint8)).view(x.shape)  # torch multiplies by bool three times as slowly
