"""The adapter in training: attached to the encoder's decoder, saved with its encoder.json, proven to load.

The adapter is trained on the bare decoder, whose layers it names; peft's wrapping for language models names them
differently, and such an adapter would silently load nothing onto a bare decoder.
"""

import json
import logging
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from llmindex.encode import adapter as adapters
from llmindex.encode import models
from llmindex.encode.encoder import Encoder
from llmindex.encode.settings import EncoderOptions
from llmindex.encode.whitening import Whitening
from llmindex.errors import AdapterError, ModelError, NoEffect, RecipeError, UsageError
from llmindex.progress import ProgressCallback
from llmindex.store.files import make_folder, replacing
from llmindex_training import quantize
from llmindex_training.recipe import Model, Recipe

logger = logging.getLogger(__name__)

# Merging rounds the weights once to the backbone's dtype; a wrong or missing adapter is far below this.
_LEAST_COSINE = 0.99

# Key of a recipe for each option that the encoder's messages may name.
_KEYS = {
    "--max-tokens": "data.max_tokens",
    "--device ": "optim.device = ",
    "--dtype ": "optim.dtype = ",
    "--attention ": "model.attention = ",
    "--revision": "model.revision",
    "unknown dtype": "optim.dtype: unknown dtype",
    "unknown device": "optim.device: unknown device",
}

_PROBES = (
    "How do I read a large file line by line?",
    "The committee postponed its decision until the regulators had answered.",
    "Cells that divide without control can spread to other parts of the body.",
)


def settled(recipe: Recipe) -> Recipe:
    """The recipe; where its base is an adapter, with that adapter's rank, alpha and targets.

    Raises:
        ModelError: the base cannot be found.
        AdapterError: it is an adapter that cannot be trained on.
    """
    start = _find(recipe.model).adapter
    if start is None:
        return recipe
    config = start.config
    targets = config.get("target_modules")
    if not isinstance(targets, list) or any(config.get(key) for key in ("rank_pattern", "alpha_pattern", "use_rslora")):
        raise AdapterError(
            f'adapter "{start.folder}" cannot be trained on: its layers are named by a pattern or scaled one by one'
        )
    ranks = {len(down_RI) for down_RI, _ in adapters.factors(start).values()}
    if len(ranks) > 1:
        raise AdapterError(f'adapter "{start.folder}" cannot be trained on: its layers have several ranks')
    model = replace(
        recipe.model,
        lora_rank=ranks.pop(),
        lora_alpha=float(config["lora_alpha"]),
        lora_targets=tuple(sorted(targets)),
    )
    return replace(recipe, model=model)


def base_sha256(model: Model) -> str:
    """Identity of what a recipe starts from: the backbone, and the adapter if its base is one.

    Raises:
        ModelError: it cannot be found.
    """
    found = _find(model)
    return f"{found.local.sha256}+{found.adapter.sha256}" if found.adapter else found.local.sha256


def load_base(recipe: Recipe, device: str) -> Encoder:
    """The encoder that a recipe starts from, without any adapter; texts are cut to the recipe's training length.

    Raises:
        ModelError: the backbone cannot be found or loaded.
        RecipeError: it is not up to the recipe's lengths, or there is no such device.
        MissingPackage: it is to be quantised, without bitsandbytes.
    """
    model = recipe.model
    found = _find(model)
    options = EncoderOptions(
        model=found.backbone,
        revision=found.revision,
        prompt=model.prompt,
        query_prompt=model.query_prompt or None,
        pooling=model.pooling,
        attention=model.attention,
        max_tokens=recipe.data.max_tokens,
        dtype=recipe.optim.dtype,
        device=device,
        engine="transformers",
    )
    try:
        if model.quantize:
            encoder = quantize.load(
                device, options.dtype, lambda place: Encoder.from_options(replace(options, device=place))
            )
        else:
            encoder = Encoder.from_options(options)
    except UsageError as error:
        raise RecipeError(in_keys(str(error))) from error
    except ModelError as error:
        raise type(error)(in_keys(str(error))) from error
    if too_long := [dim for dim in recipe.loss.matryoshka if dim > encoder.spec.dim]:
        raise RecipeError(
            f"loss.matryoshka has {too_long[0]}, more than the {encoder.spec.dim} dimensions of the vectors"
        )
    return encoder


def attach(encoder: Encoder, recipe: Recipe) -> Any:  # noqa: ANN401 - a PeftModel
    """Put a LoRA adapter into the encoder's decoder, in place; its parameters alone want gradients.

    It is that of the recipe's base, or a fresh one, which changes nothing yet.

    Args:
        encoder: without an adapter.
        recipe: settled.

    Returns:
        the decoder as peft wraps it, for saving and for the optimiser.

    Raises:
        RecipeError: a name in ``model.lora_targets`` is not that of linear layers of the decoder, and of these alone.
        AdapterError: the base's adapter does not fit the decoder.
    """
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training

    from llmindex_training import lora

    options = recipe.model
    start = _find(options).adapter
    if start is None:  # the layers of one that is trained further are named by its weights
        lora.check_targets(encoder.backbone.model, options.lora_targets)
    if options.quantize:
        prepare_model_for_kbit_training(encoder.backbone.model, use_gradient_checkpointing=False)
    if encoder.placement.device.type == "cpu":
        # The backward pass of the fused attention takes a CPU longer than the plain one's at the lengths trained on.
        encoder.backbone.model.set_attn_implementation("eager")
    if recipe.optim.gradient_checkpointing:
        encoder.backbone.model.activation_checkpointing_enable()
        encoder.backbone.model.enable_input_require_grads()
    torch.manual_seed(recipe.data.seed)
    config = LoraConfig(
        task_type=TaskType.FEATURE_EXTRACTION,
        r=options.lora_rank,
        lora_alpha=options.lora_alpha,
        lora_dropout=options.lora_dropout,
        target_modules=list(options.lora_targets),
    )
    lora.register(config)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
            wrapped = get_peft_model(encoder.backbone.model, config)
    except ValueError as error:
        lora.check_merges(config, options.lora_targets)
        # Such as layers whose weights the model computes with by itself.
        raise RecipeError(f"model.lora_targets: {models.one_line(error)}") from error
    lora.check_merges(config, options.lora_targets)
    if start is not None:
        _fill(wrapped, start.folder)
    return wrapped


def unquantized(recipe: Recipe, weights: Path) -> Encoder:
    """What a quantised run has trained, as it will be used: its adapter attached to the backbone in full.

    It is on the CPU, since quantising is for backbones that do not fit into the GPU.

    Args:
        recipe: settled.
        weights: folder with the adapter as peft saved it.

    Raises:
        RecipeError, ModelError, AdapterError: as :func:`load_base` and :func:`attach`.
    """
    in_full = replace(recipe, model=replace(recipe.model, quantize=False))
    encoder = load_base(in_full, "cpu")
    _fill(attach(encoder, in_full), weights)
    return encoder


def save(
    weights: Path,
    encoder: Encoder,
    model: Model,
    folder: Path,
    texts: Sequence[str] = (),
    on_progress: ProgressCallback | None = None,
) -> float:
    """Make the folder that ``--model`` takes, and prove that it gives the trained encoder back.

    Args:
        weights: folder with the adapter as peft saved it.
        encoder: the encoder with that very adapter attached.
        model: the recipe's encoder.
        folder: where it shall be; appears whole or not at all.
        texts: what a whitening is fitted on, if the recipe has one.
        on_progress: told of the stage "whiten", of those texts.

    Returns:
        the lowest cosine between the embeddings of the attached and of the loaded, merged adapter.

    Raises:
        AdapterError: they are not the same encoder; the folder is not made.
        StorageError: the disk refused.
    """
    making = folder.with_name(f".{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    make_folder(making)
    with replacing(making / adapters.WEIGHTS_NAME) as temporary:
        shutil.copyfile(weights / adapters.WEIGHTS_NAME, temporary)
    config = json.loads((weights / adapters.CONFIG_NAME).read_text(encoding="utf-8"))
    config["target_modules"].sort()  # peft keeps a set, in another order each time
    with replacing(making / adapters.CONFIG_NAME) as temporary:
        temporary.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if model.whitening:
        encoder.backbone.model.eval()
        vectors = encoder.encode(texts, on_progress=_as_whitening(on_progress))
        whitening = Whitening.fit(vectors, model.whitening)
        if whitening.dim < model.whitening:
            logger.warning(
                "model.whitening is %d, but the vectors get %d values: %d texts, whose vectors have %d, allow no more",
                *(model.whitening, whitening.dim, len(texts), encoder.spec.dim),
            )
        with replacing(making / adapters.WHITENING_NAME) as temporary:
            whitening.save(temporary)
        encoder.whitening = whitening.to(encoder.placement.device)
        encoder.spec = replace(encoder.spec, dim=whitening.dim, whitened=True)
    made = adapters.read(making)
    spec = replace(encoder.spec, adapter=str(folder.resolve()), adapter_sha256=made.sha256, max_tokens=model.max_tokens)
    with replacing(making / adapters.SPEC_NAME) as temporary:
        temporary.write_text(json.dumps(spec.to_json(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    cosine = _prove(encoder, making)
    if folder.exists():
        shutil.rmtree(folder)
    making.rename(folder)
    return cosine


def _as_whitening(on_progress: ProgressCallback | None) -> ProgressCallback | None:
    if on_progress is None:
        return None
    return lambda encoded: on_progress(replace(encoded, stage="whiten"))


def check(folder: Path) -> None:
    """Refuse a finished adapter that is not as :func:`save` left it.

    Raises:
        AdapterError: a file is gone, damaged, or not the one that its encoder.json was written for.
    """
    try:
        saved, now = adapters.read_spec(folder / adapters.SPEC_NAME).adapter_sha256, adapters.read(folder).sha256
        fault = "" if saved == now else f"{folder}: its weights have changed since it was saved"
    except AdapterError as error:
        fault = str(error)
    if fault:
        raise AdapterError(f"{fault}; remove {folder} and run the same command again, which makes it anew")


def average(checkpoints: Sequence[Path], folder: Path) -> Path:
    """Write the mean of several checkpoints' weights, in the form peft saves them; returns the folder.

    The factors of the adapter are averaged, not their products: that is the mean of the adapters as far as these lie
    close together, as those of one run do.

    Raises:
        StorageError: the disk refused.
    """
    from safetensors.torch import load_file, save

    parts = [load_file(checkpoint / adapters.WEIGHTS_NAME) for checkpoint in checkpoints]
    mean = {name: torch.stack([part[name] for part in parts]).mean(0) for name in parts[0]}
    make_folder(folder)
    with replacing(folder / adapters.WEIGHTS_NAME) as temporary:
        temporary.write_bytes(save(mean))  # save_file gives a file that its owner alone can read
    with replacing(folder / adapters.CONFIG_NAME) as temporary:
        shutil.copyfile(checkpoints[0] / adapters.CONFIG_NAME, temporary)
    return folder


def is_changed(checkpoints: Sequence[Path], model: Model) -> bool:
    """Whether any checkpoint is another adapter than the one that training began with, the base's or a fresh one.

    Their second factors tell: a fresh adapter's are zero, and no step changes the first ones alone.
    """
    from peft import load_peft_weights

    start = _find(model).adapter
    before = load_peft_weights(str(start.folder), device="cpu") if start is not None else {}
    return any(
        not torch.equal(weight, before.get(name, torch.zeros_like(weight)).to(weight.dtype))
        for checkpoint in checkpoints
        for name, weight in load_peft_weights(str(checkpoint), device="cpu").items()
        if ".lora_B." in name
    )


def _find(model: Model) -> models.Found:
    try:
        return models.find(model.base, model.revision or None)
    except ModelError as error:
        raise type(error)(in_keys(str(error))) from error


def in_keys(message: str) -> str:
    """A message of the encoder with the recipe's keys for the options of the commands that embed."""
    for option, key in _KEYS.items():
        message = message.replace(option, key)
    return message


def _fill(wrapped: Any, folder: Path) -> None:  # noqa: ANN401 - a PeftModel
    """Give the fresh adapter the weights of another; each must find its place, and none be left over."""
    from peft import load_peft_weights, set_peft_model_state_dict

    try:
        loaded = set_peft_model_state_dict(wrapped, load_peft_weights(str(folder), device="cpu"))
    except RuntimeError as error:  # of torch, at a shape
        raise AdapterError(f'adapter "{folder}" cannot be trained on: {models.one_line(error)}') from error
    if astray := [*loaded.unexpected_keys, *(key for key in loaded.missing_keys if ".lora_" in key)]:
        raise AdapterError(f'adapter "{folder}" cannot be trained on: it does not fit the model at "{astray[0]}"')


def _prove(encoder: Encoder, folder: Path) -> float:
    placement = encoder.placement
    try:
        loaded = Encoder.load(
            str(folder), device=str(placement.device), dtype=encoder.dtype, max_tokens=encoder.spec.max_tokens
        )
    except NoEffect as error:
        raise AdapterError(
            "what was learned is too little to change a vector: raise optim.learning_rate, or lower optim.warmup_steps"
        ) from error
    encoder.backbone.model.eval()
    lowest = float(np.min(np.sum(encoder.encode(_PROBES) * loaded.encode(_PROBES), axis=1)))
    if not lowest >= _LEAST_COSINE:
        raise AdapterError(
            f"the adapter that was saved is not the one that was trained: cosine {lowest:.4f} between their embeddings"
        )
    return lowest
