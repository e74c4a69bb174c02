"""The files that make a model folder one of sentence-transformers: which modules, and how texts go in.

Written in the form that all its versions know, as far as that can say what the encoder computes.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llmindex.encode.encoder import Encoder, Role
from llmindex.encode.spec import EncoderSpec, Pooling
from llmindex.encode.wrapping import Wrapping
from llmindex.store.files import make_folder

_MODES = {
    "last": "lasttoken",
    "eos": "lasttoken",
    "mean": "mean",
    "weighted_mean": "weightedmean",
    "max": "max",
    "first": "cls",
}
_CLASSES = "sentence_transformers.models"

OWN_POOLING: Pooling = "suffix_mean"
"""The one whose code an export carries, since sentence-transformers has none for it."""
_OWN_MODULE = "llmindex_pooling"


def write_modules(encoder: Encoder, wrappings: Mapping[Role, Wrapping], folder: Path, *, same: bool) -> None:
    """Write the files beside the model and its tokenizer.

    Args:
        encoder: what is exported.
        wrappings: what its prompts put around texts.
        folder: the model's.
        same: whether queries and documents have the same prompt; else the tokenizer has a chat template for them.
    """
    spec = encoder.spec
    write_json(folder / "sentence_bert_config.json", _input_config(spec, wrappings, same=same))
    width = encoder.backbone.hidden_size
    pooling = {"word_embedding_dimension": width, "include_prompt": True}
    pooling |= {
        f"pooling_mode_{name}": _MODES.get(spec.pooling, "mean") == mode
        for name, mode in (
            ("cls_token", "cls"),
            ("mean_tokens", "mean"),
            ("max_tokens", "max"),
            ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
            ("weightedmean_tokens", "weightedmean"),
            ("lasttoken", "lasttoken"),
        )
    }
    modules: list[tuple[str, str]] = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if spec.pooling == OWN_POOLING:
        wrapping = wrappings["document"]
        pooling = {"width": width, "before": len(wrapping.before), "after": len(wrapping.after)}
        shutil.copyfile(Path(__file__).with_name("exported_pooling.py"), folder / f"{_OWN_MODULE}.py")
    write_json(folder / "1_Pooling" / "config.json", pooling)
    if encoder.whitening is not None:
        _add_normalize(modules, folder)
    if encoder.whitening is not None or spec.dim < width:
        modules.append(("Dense", f"{len(modules)}_Dense"))
        _write_dense(folder / modules[-1][1], encoder)
    if spec.normalize:
        _add_normalize(modules, folder)
    write_json(
        folder / "modules.json",
        [
            {"idx": number, "name": str(number), "path": path, "type": _class(spec.pooling, name)}
            for number, (name, path) in enumerate(modules)
        ],
    )
    gap = wrappings["document"].gap if same else ""
    write_json(
        folder / "config_sentence_transformers.json",
        {
            "prompts": {"query": gap, "document": gap},
            "default_prompt_name": "document" if gap else None,
            "similarity_fn_name": "cosine",
        },
    )


def _class(pooling: Pooling, module: str) -> str:
    own = module == "Pooling" and pooling == OWN_POOLING
    return f"{_OWN_MODULE}.SuffixMean" if own else f"{_CLASSES}.{module}"


def _input_config(spec: EncoderSpec, wrappings: Mapping[Role, Wrapping], *, same: bool) -> dict[str, Any]:
    """How texts go in and which layer's states come out; what is not said is the default, old versions' too."""
    most = {role: wrapping.tokens + spec.max_tokens for role, wrapping in wrappings.items()}
    if same and spec.layer == -1:
        return {"max_seq_length": most["document"], "do_lower_case": False}
    states = {
        "method": "forward",
        "method_output_name": "last_hidden_state" if spec.layer == -1 else ["hidden_states", spec.layer],
    }
    config: dict[str, Any] = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": states},
        "module_output_name": "token_embeddings",
    }
    if not same:
        config["modality_config"]["message"] = states | {"format": "flat"}
        config |= {"query_length": most["query"], "document_length": most["document"]}
    return config


def _add_normalize(modules: list[tuple[str, str]], folder: Path) -> None:
    modules.append(("Normalize", f"{len(modules)}_Normalize"))
    write_json(folder / modules[-1][1] / "config.json", {})


def _write_dense(folder: Path, encoder: Encoder) -> None:
    """A linear map: the whitening, or one that keeps the first values; that cuts before the length is made one."""
    import torch
    from safetensors.torch import save_file

    dim, width = encoder.spec.dim, encoder.backbone.hidden_size
    tensors = {"linear.weight": torch.eye(dim, width)}
    if (whitening := encoder.whitening) is not None:
        matrix = whitening.matrix[:dim].cpu()
        tensors = {"linear.weight": matrix.contiguous(), "linear.bias": -matrix @ whitening.mean.cpu()}
    make_folder(folder)
    save_file(tensors, folder / "model.safetensors")
    activation = "torch.nn.modules.linear.Identity"
    write_json(
        folder / "config.json",
        {
            "in_features": width,
            "out_features": dim,
            "bias": "linear.bias" in tensors,
            "activation_function": activation,
        },
    )


def write_json(file: Path, values: Any) -> None:  # noqa: ANN401
    """Write JSON that people can read, its folder made where it is not there."""
    make_folder(file.parent)
    file.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
