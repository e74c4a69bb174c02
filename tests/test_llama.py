"""Our own computation of Llama's family against transformers', and what is left to transformers."""

import contextlib
import hashlib
import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from llmindex.encode import embedded
from llmindex.encode.backbone import Backbone
from llmindex.encode.encoder import Encoder
from llmindex.encode.llama import Llama
from llmindex.encode.spec import ATTENTIONS, POOLINGS, Attention
from llmindex.encode.tokenizer import Tokenizer
from llmindex.errors import AdapterError, ModelError
from tests.test_adapter import make_adapter

needs_default = pytest.mark.skipif(embedded.find_gguf() is None, reason=f"default model: {embedded.INSTALL}")

TEXTS = ["fox", "The quick brown fox jumps over the lazy dog", "a vector index", "", "Ein Satz: äöü", "the dog, again"]
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 48, "max_position_embeddings": 512, "initializer_range": 0.2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 1000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "one head of keys": ("llama", {"num_key_value_heads": 1}),
    "biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "head size of its own": ("llama", {"head_dim": 16}),
    "llama 3 positions": ("llama", {"rope_parameters": LLAMA3 | {"original_max_position_embeddings": 64}}),
    "linear positions": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}},
    ),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "qwen3 with biases": ("qwen3", {"head_dim": 8, "attention_bias": True}),
}
OTHERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "windows": ("mistral", {"sliding_window": 16}, "it has windows of attention"),
    "windows of qwen": ("qwen2", {"use_sliding_window": True, "max_window_layers": 1}, "it has windows of attention"),
    "another activation": ("llama", {"hidden_act": "gelu"}, "its activation is no SiLU"),
    "other positions": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}},
        "its positions are of the kind dynamic",
    ),
    "another family": ("gemma", {"head_dim": 8}, "it is a gemma"),
}


def make(folder: Path, tokenizer: Path, kind: str, *, head: bool = False, **config: Any) -> Path:  # noqa: ANN401
    """A tiny random model whose norms and biases are random too, with the tokenizer of the tiny one."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    shutil.copytree(tokenizer, folder)
    (folder / "model.safetensors").unlink()
    torch.manual_seed(0)
    made = AutoConfig.for_model(kind, vocab_size=400, **(SIZES | config))
    model = (AutoModelForCausalLM if head else AutoModel).from_config(made)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 1:
                weight.copy_(torch.rand_like(weight) + (0.5 if name.endswith("norm.weight") else -0.5))
    model.save_pretrained(folder, max_shard_size="60KB" if head else "5GB")
    return folder


def load(folder: Path, engine: str = "auto", **options: Any) -> Encoder:  # noqa: ANN401
    return Encoder.load(str(folder), device="cpu", engine=engine, **({"dtype": "float32", "max_tokens": 64} | options))


def states(encoder: Encoder) -> list[torch.Tensor]:
    """Token states of each text, its own tokens alone."""
    tokens = encoder.tokenize(TEXTS)
    with torch.inference_mode():
        hidden_BTD, mask_BT, _ = encoder.token_states(tokens, np.arange(len(tokens)))
    return [hidden_TD[mask_T.bool()].float() for hidden_TD, mask_T in zip(hidden_BTD, mask_BT, strict=True)]


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_states_are_those_of_transformers(tiny_model: Path, tmp_path: Path, name: str, attention: Attention) -> None:
    kind, config = MODELS[name]
    folder = make(tmp_path / "model", tiny_model, kind, **config)
    for layer in (-1, 1, 0):
        ours, theirs = (load(folder, engine, layer=layer, attention=attention) for engine in ("auto", "transformers"))
        assert isinstance(ours.decoder, Llama)
        assert isinstance(theirs.decoder, Backbone)
        assert ours.spec == theirs.spec
        assert ours.memory_bytes == theirs.memory_bytes or layer == 0
        for own, wanted in zip(states(ours), states(theirs), strict=True):
            torch.testing.assert_close(own, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_vectors_are_those_of_transformers(tiny_model: Path, pooling: str) -> None:
    ours, theirs = (load(tiny_model, engine, pooling=pooling) for engine in ("auto", "transformers"))
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=9),
    attention=st.sampled_from(ATTENTIONS),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_a_row_does_not_know_of_the_others(
    tiny_model: Path, lengths: list[int], attention: Attention, dtype: str
) -> None:
    decoder = load(tiny_model, attention=attention, dtype=dtype).decoder
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids_BT = torch.randint(1, 300, mask_BT.shape, generator=torch.Generator().manual_seed(len(lengths))) * mask_BT
    with torch.inference_mode():
        together_BTD = decoder(ids_BT, mask_BT)
        for row, length in enumerate(lengths):
            alone_LD = decoder(ids_BT[row : row + 1, :length], mask_BT[row : row + 1, :length])[0]
            tolerance = 1e-5 if dtype == "float32" else 0.2
            torch.testing.assert_close(together_BTD[row, :length], alone_LD, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_rounds_as_transformers_does(tiny_model: Path, dtype: str) -> None:
    exact = load(tiny_model).encode(TEXTS)
    lost = [
        1 - (load(tiny_model, engine, dtype=dtype).encode(TEXTS) * exact).sum(1).min()
        for engine in ("auto", "transformers")
    ]
    assert lost[0] < max(2 * lost[1], 1e-3)


def test_a_language_model_in_pieces(tiny_model: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", tiny_model, "qwen3", head=True, head_dim=16)
    assert len(list(folder.glob("*.safetensors"))) > 1
    ours, theirs = load(folder), load(folder, "transformers")
    assert isinstance(ours.decoder, Llama)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_a_model_in_one_file_beside_another_in_pieces(tiny_model: Path, tmp_path: Path) -> None:
    folder = make(tmp_path / "model", tiny_model, "llama")
    other = load_file(folder / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in other.items()}, folder / "model-00001-of-00001.safetensors")
    places = dict.fromkeys(other, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    ours, theirs = load(folder), load(folder, "transformers")
    assert isinstance(ours.decoder, Llama)
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)


def test_adapters_are_merged_alike_and_files_stay_as_they_are(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter", causal=True)
    weights = tiny_model / "model.safetensors"
    before = hashlib.sha256(weights.read_bytes()).digest()
    for layer in (-1, 1):
        ours, theirs = (load(folder, engine, layer=layer) for engine in ("auto", "transformers"))
        assert isinstance(ours.decoder, Llama)
        np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=1e-5)
    assert hashlib.sha256(weights.read_bytes()).digest() == before


def test_an_adapter_that_vanishes_in_rounding_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    file = folder / "adapter_model.safetensors"
    save_file({name: 1e-8 * factor for name, factor in load_file(file).items()}, file)
    with pytest.raises(AdapterError, match="does not change what"):
        load(folder, dtype="bfloat16")


@pytest.mark.parametrize("name", OTHERS)
def test_others_are_left_to_transformers(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    kind, config, reason = OTHERS[name]
    folder = make(tmp_path / "model", tiny_model, kind, **config)
    with caplog.at_level(logging.INFO, "llmindex"):
        assert isinstance(load(folder).decoder, Backbone)
    assert f"transformers computes it: {reason}" in caplog.text


@pytest.mark.parametrize("key", ["rms_norm_eps", "num_key_value_heads", "rope_parameters", "vocab_size"])
def test_what_a_configuration_leaves_open_is_left_to_transformers(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, key: str
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    del config[key]
    (folder / "config.json").write_text(json.dumps(config))
    with caplog.at_level(logging.INFO, "llmindex"), contextlib.suppress(ModelError):
        load(folder)
    assert "transformers computes it: config.json does not say" in caplog.text


def test_positions_that_are_said_twice_are_left_to_transformers(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rope_scaling": {"type": "linear", "factor": 4.0}}))
    with caplog.at_level(logging.INFO, "llmindex"):
        assert isinstance(load(folder).decoder, Backbone)
    assert "its positions are said twice" in caplog.text


def test_further_tensors_are_left_to_transformers(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"layers.0.extra.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    with caplog.at_level(logging.INFO, "llmindex"):
        load(folder)
    assert "transformers computes it: its files hold other tensors" in caplog.text


def test_weights_that_are_not_finite_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors["norm.weight"][3] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="values that are not finite: its weights are damaged"):
        load(folder)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=40), max_size=4))
def test_ids_are_those_of_transformers(tiny_model: Path, texts: list[str]) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(tiny_model)
    assert Tokenizer(tiny_model)(texts) == (theirs(texts, add_special_tokens=False)["input_ids"] if texts else [])


@needs_default
def test_the_default_needs_no_transformers() -> None:
    program = (
        "import sys; from llmindex import Encoder\n"
        "print(Encoder.load().encode(['a question']).shape, 'transformers' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert ended.stdout == "(1, 384) False\n"


@needs_default
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_default_is_that_of_transformers(dtype: str) -> None:
    ours, theirs = (Encoder.load(device="cpu", dtype=dtype, engine=engine) for engine in ("auto", "transformers"))
    assert isinstance(ours.decoder, Llama)
    lowest = (ours.encode(TEXTS).astype(np.float64) * theirs.encode(TEXTS)).sum(1).min()
    assert lowest > (1 - 1e-6 if dtype == "float32" else 0.998)
    assert (ours.spec, ours._tokenizer.bos, ours._tokenizer.eos) == (
        theirs.spec,
        theirs._tokenizer.bos,
        theirs._tokenizer.eos,
    )
