"""LoRA adapters: found, understood, and merged into the weights of a backbone.

transformers and peft load an adapter whose keys do not fit with a warning at most, and the result is the bare
backbone. Here every tensor of the adapter must find its weight, and nothing may be left over, or the adapter is
refused. A merged encoder is as fast as its backbone, and needs no package but torch.

The change of a weight W is ``scale * B @ A`` (Hu et al. 2021, arXiv 2106.09685, section 4.1).
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmindex.encode import prompts
from llmindex.encode.spec import EncoderSpec
from llmindex.errors import AdapterError, NoEffect, UsageError, unreadable

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
SPEC_NAME = "encoder.json"
WHITENING_NAME = "whitening.safetensors"

_KEY = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(\.default)?\.weight")
# The largest number of float32, in which adapters are merged.
_LARGEST = 3.4e38
# Ways to begin in which peft takes from the model's weights what the first factors hold, and does so at loading again.
_ALTERING = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Keys of a configuration whose adapters compute something else, or in other places.
_MORE_THAN_FACTORS = ("alora_invocation_tokens", "kasa_config", "layer_replication", "use_bdlora", "use_qalora")
_WAY_OUT = "merge it with peft (merge_and_unload), save the whole model, and name that folder"


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter's folder, read as far as needed to know what it is.

    Attributes:
        folder: holds the configuration and the weights in safetensors.
        config: peft's configuration.
        sha256: identity of the configuration that counts, of the weights, and of the whitening if there is one.
    """

    folder: Path
    config: Mapping[str, Any]
    sha256: str

    @property
    def base(self) -> str | None:
        """Name of the backbone that it was trained on, as the tool that made it noted it."""
        name = self.config.get("base_model_name_or_path")
        return str(name) if name else None

    def scale(self, module: str, rank: int) -> float:
        """What the product of a module's two factors is multiplied with."""
        alpha = float(_for_module(self.config.get("alpha_pattern"), module, self.config["lora_alpha"]))
        return alpha / (rank**0.5 if self.config.get("use_rslora") else rank)


def is_adapter(folder: Path) -> bool:
    """Whether a folder is that of a peft adapter."""
    return (folder / CONFIG_NAME).is_file()


def read(folder: Path) -> Adapter:
    """Read an adapter's configuration and take its identity.

    Raises:
        AdapterError: it is damaged, or of a kind that is more than two factors for a weight.
    """
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        raise AdapterError(
            f'adapter "{folder}" has no {WEIGHTS_NAME}'
            + (" (adapter_model.bin can run code and is not read)" if (folder / "adapter_model.bin").exists() else "")
        )
    try:
        config = json.loads((folder / CONFIG_NAME).read_text(encoding="utf-8"))
        kind = str(config["peft_type"])
        alpha = _alpha(config["lora_alpha"]) if kind == "LORA" else 0.0
        _check_pattern(config.get("alpha_pattern"))
        contents = [file.read_bytes() for file in (weights, folder / WHITENING_NAME) if file.is_file()]
    except OSError as error:  # a disk that fails while it is read does not say of which file
        raise AdapterError(unreadable(error.filename or folder, error)) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, re.error) as error:
        raise AdapterError(f'adapter "{folder}" is damaged: {CONFIG_NAME}: {error}') from error
    _check_plain(folder, kind, config)
    counted = [alpha, config.get("alpha_pattern") or {}, bool(config.get("use_rslora"))]
    counted.append(bool(config.get("fan_in_fan_out")))
    digest = hashlib.sha256(json.dumps(counted, sort_keys=True).encode())
    for content in contents:
        digest.update(content)
    return Adapter(folder, config, digest.hexdigest())


def read_spec(file: Path) -> EncoderSpec:
    """The encoder.json that training or a sweep wrote.

    Raises:
        AdapterError: it is damaged.
    """
    try:
        spec = EncoderSpec.from_json(json.loads(file.read_text(encoding="utf-8")))
        for template in (spec.prompt, spec.query_prompt):
            prompts.resolve(template)
    except OSError as error:
        raise AdapterError(unreadable(file, error)) from error
    except (ValueError, RecursionError, UsageError) as error:
        raise AdapterError(f"{file} is damaged: {error}") from error
    if spec.whitened and spec.adapter_sha256 is None:
        raise AdapterError(f"{file} is damaged: whitened is true, but it names no adapter to bring a whitening")
    return spec


def merge(weights: Mapping[str, Any], adapter: Adapter) -> None:
    """Add an adapter to the weights of a decoder, in place.

    Keys of adapters that were trained on the decoder under a language-model head begin with the decoder's name there
    (``model``, ``transformer``, ``gpt_neox``); they are matched without it.

    Args:
        weights: the weight of each linear layer by the layer's name.
        adapter: the adapter.

    Raises:
        AdapterError: a tensor has no place in the decoder or another shape than its weight, a factor is missing, or
            all changes are zero.
    """
    import torch

    from llmindex.encode.device import one_thread

    moved = False
    merged: set[str] = set()
    with torch.no_grad():
        for name, (down_RI, up_OR) in factors(adapter).items():
            place = name if name in weights else name.partition(".")[2]
            if place not in weights:
                raise AdapterError(
                    f'adapter "{adapter.folder}" does not fit: the model has no "{name}"; {_made_for(adapter)}'
                )
            if place in merged:
                raise AdapterError(f'adapter "{adapter.folder}" is damaged: it holds the factors of "{place}" twice')
            merged.add(place)
            weight = weights[place]
            scale = adapter.scale(name, len(down_RI))
            moved = moved or bool(scale and up_OR.any() and down_RI.any())
            product = (down_RI.T, up_OR.T) if adapter.config.get("fan_in_fan_out") else (up_OR, down_RI)
            shape = product[0].shape[0], product[1].shape[1]
            if shape != weight.shape:
                raise AdapterError(
                    f'adapter "{adapter.folder}" does not fit: "{name}" has the shape {tuple(weight.shape)}, the '
                    f"adapter {shape}; {_made_for(adapter)}"
                )
            # In float32, rounded once: a small change would vanish beside a bfloat16 weight step by step.
            exact = weight.float().addmm_(
                *(factor.to(weight.device, torch.float32) for factor in product),
                alpha=scale,
            )
            with one_thread():  # weights that are mapped from a file get their own pages here
                weight.copy_(exact)
    if not moved:
        raise NoEffect(f'adapter "{adapter.folder}" changes nothing: all its weights are zero (never trained?)')


def factors(adapter: Adapter) -> dict[str, tuple[Any, Any]]:
    """Both factors of each module: A ``(rank, in)`` and B ``(out, rank)``.

    Raises:
        AdapterError: they cannot be read, do not belong together, or are not finite.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = load_file(adapter.folder / WEIGHTS_NAME)
    except (SafetensorError, OSError) as error:
        raise AdapterError(f'adapter "{adapter.folder}" is damaged: {WEIGHTS_NAME}: {error}') from error
    sides: dict[str, dict[str, Any]] = {}
    for key, tensor in tensors.items():
        if (match := _KEY.fullmatch(key)) is None:
            raise AdapterError(f'adapter "{adapter.folder}" holds "{key}", which is no LoRA factor of a linear layer')
        found = sides.setdefault(match["module"], {})
        if match["side"] in found:
            raise AdapterError(f'adapter "{adapter.folder}" is damaged: it holds "{key}" in two forms')
        found[match["side"]] = tensor
    for name, found in sides.items():
        if not _is_product(found):
            held = ", ".join(f"{side} {tuple(each.shape)} {each.dtype}" for side, each in sorted(found.items()))
            raise AdapterError(
                f'adapter "{adapter.folder}" is damaged: the two factors of "{name}" do not fit (it holds {held})'
            )
        if not all(each.isfinite().all() for each in found.values()):
            raise AdapterError(f'adapter "{adapter.folder}" is damaged: the factors of "{name}" are not finite')
    if not sides:
        raise AdapterError(f'adapter "{adapter.folder}" is empty: {WEIGHTS_NAME} holds no tensors')
    return {name: (found["A"], found["B"]) for name, found in sides.items()}


def _is_product(found: Mapping[str, Any]) -> bool:
    """Whether these are two matrices of floating-point numbers with a rank in common."""
    if set(found) != {"A", "B"} or any(each.dim() != 2 or not each.is_floating_point() for each in found.values()):
        return False
    return bool(found["A"].shape[0] == found["B"].shape[1] > 0)


def _alpha(value: Any) -> float:  # noqa: ANN401 - whatever JSON holds
    alpha = float(value)
    if not abs(alpha) <= _LARGEST:
        raise ValueError(f"alpha is {alpha}, not a finite number of float32")
    return alpha


def _check_pattern(pattern: Any) -> None:  # noqa: ANN401 - whatever JSON holds
    if not isinstance(pattern, dict | None):
        raise TypeError(f"alpha_pattern is a {type(pattern).__name__}, not a table")
    for key, value in (pattern or {}).items():
        re.compile(_ending(key))
        _alpha(value)


def _check_plain(folder: Path, kind: str, config: Mapping[str, Any]) -> None:
    began = str(config.get("init_lora_weights")).lower()
    more = next((key for key in _MORE_THAN_FACTORS if config.get(key)), None)
    reasons = {
        f"it is of the kind {kind}": kind != "LORA",
        "it uses DoRA": config.get("use_dora"),
        f"it began by changing the model's own weights (init_lora_weights is {began})": began.startswith(_ALTERING),
        f"it does more than add two factors ({more})": more,
        'it trains biases (bias is not "none")': config.get("bias", "none") != "none",
        "it replaces whole modules (modules_to_save)": config.get("modules_to_save"),
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise AdapterError(f'adapter "{folder}" is no plain LoRA: {found[0]}; {_WAY_OUT}')


def _for_module(pattern: Mapping[str, Any] | None, module: str, default: Any) -> Any:  # noqa: ANN401
    """As peft does: the first pattern that ends the module's name counts, else the default."""
    for key, value in (pattern or {}).items():
        if re.match(_ending(key), module):
            return value
    return default


def _ending(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


def _made_for(adapter: Adapter) -> str:
    if adapter.config.get("target_parameters"):
        return (
            f"it adapts tensors other than a layer's weight (target_parameters), such as those of experts; {_WAY_OUT}"
        )
    return f'it was made for "{adapter.base}"' if adapter.base else "its configuration does not name its model"
