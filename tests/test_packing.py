"""Packed batches against padded ones, over models, lengths, poolings and kinds of attention."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmindex.encode import device, embedded, models, packing, ragged
from llmindex.encode.encoder import Encoder
from llmindex.encode.pack import Pack
from llmindex.encode.spec import ATTENTIONS, POOLINGS, Attention
from llmindex.records import Vectors
from tests.pretend_gpu import varlen_attn

TEXTS = ["fox", "The quick brown fox jumps over the lazy dog", "a vector index", "", "Ein Satz: äöü", "the dog, again"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
GROUPED = SIZES | {"num_key_value_heads": 2}


def load(folder: Path, **options: Any) -> Encoder:  # noqa: ANN401
    return Encoder.load(
        str(folder), device="cpu", **({"dtype": "float32", "max_tokens": 64, "engine": "transformers"} | options)
    )


def make(folder: Path, tokenizer: Path, kind: str, **config: Any) -> Path:  # noqa: ANN401
    """A tiny random model of another architecture, with the tokenizer of the tiny one."""
    from transformers import AutoConfig, AutoModel

    shutil.copytree(tokenizer, folder)
    torch.manual_seed(0)
    AutoModel.from_config(AutoConfig.for_model(kind, vocab_size=400, **config)).save_pretrained(folder)
    return folder


def padded(encoder: Encoder, texts: list[str]) -> Vectors:
    """Vectors of the same encoder with transformers' own attention."""
    model = encoder.backbone.model
    kernel = model.config._attn_implementation
    model.set_attn_implementation("sdpa")
    assert not encoder.backbone.packs
    try:
        return encoder.encode(texts)
    finally:
        model.set_attn_implementation(kernel)


def lowest_cosine(a: Vectors, b: Vectors) -> float:
    a64, b64 = a.astype(np.float64), b.astype(np.float64)
    return float(((a64 * b64).sum(1) / np.linalg.norm(a64, axis=1) / np.linalg.norm(b64, axis=1)).min())


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("layer", [-1, 1, 0])
def test_packed_vectors_are_the_padded_ones(tiny_model: Path, pooling: str, attention: Attention, layer: int) -> None:
    encoder = load(tiny_model, prompt="eol", pooling=pooling, attention=attention, layer=layer)
    assert encoder.backbone.packs
    assert lowest_cosine(encoder.encode(TEXTS), padded(encoder, TEXTS)) > 1 - 1e-8


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=9),
    attention=st.sampled_from(ATTENTIONS),
    dtype=st.sampled_from(["float32", "bfloat16"]),
)
def test_states_do_not_know_of_padding(tiny_model: Path, lengths: list[int], attention: Attention, dtype: str) -> None:
    backbone = load(tiny_model, attention=attention, dtype=dtype).backbone
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids_BT = torch.randint(1, 300, mask_BT.shape, generator=torch.Generator().manual_seed(len(lengths))) * mask_BT
    with torch.inference_mode():
        together_BTD = backbone(ids_BT, mask_BT)
        backbone.model.set_attn_implementation("eager")
        for row, length in enumerate(lengths):
            alone_LD = backbone(ids_BT[row : row + 1, :length], mask_BT[row : row + 1, :length])[0]
            tolerance = 1e-5 if dtype == "float32" else 0.2
            torch.testing.assert_close(together_BTD[row, :length], alone_LD, atol=tolerance, rtol=0)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("mistral", GROUPED | {"sliding_window": None}),
        ("qwen2", GROUPED),
        ("qwen3", GROUPED | {"head_dim": 16}),
        ("phi3", GROUPED | {"pad_token_id": 0}),
        ("gpt_neox", SIZES),
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}),
    ],
)
def test_any_plain_attention_is_packed(tmp_path: Path, tiny_model: Path, kind: str, config: dict[str, Any]) -> None:
    encoder = load(make(tmp_path / "model", tiny_model, kind, **config), pooling="mean")
    assert encoder.backbone.packs
    assert lowest_cosine(encoder.encode(TEXTS), padded(encoder, TEXTS)) > 1 - 1e-8


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        ("mistral", GROUPED | {"sliding_window": 8}, "its attention has sliding_window"),
        ("gemma2", GROUPED | {"head_dim": 8}, "its attention has s"),
        ("gpt_oss", GROUPED | {"head_dim": 8, "num_local_experts": 2, "num_experts_per_tok": 1}, "its attention has s"),
        ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4}, "batches are padded"),
        ("mamba", {"hidden_size": 32, "num_hidden_layers": 2}, "batches are padded"),
        (
            "llama4_text",
            GROUPED
            | {
                "head_dim": 8,
                "intermediate_size_mlp": 32,
                "num_local_experts": 2,
                "attention_chunk_size": 16,
                "layer_types": ["chunked_attention", "full_attention"],
            },
            "it has layers of chunked_attention",
        ),
        ("lfm2", GROUPED | {"layer_types": ["conv", "full_attention"]}, "it has layers of conv"),
    ],
)
def test_other_attention_is_padded(
    tmp_path: Path, tiny_model: Path, caplog: pytest.LogCaptureFixture, kind: str, config: dict[str, Any], said: str
) -> None:
    folder = make(tmp_path / "model", tiny_model, kind, **config)
    with caplog.at_level(logging.INFO):
        encoder = load(folder, pooling="mean")
    assert not encoder.backbone.packs
    assert said in caplog.text
    assert "llmindex" not in encoder.backbone.model.config._attn_implementation
    alone = np.vstack([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(encoder.encode(TEXTS), alone, atol=1e-5)


@pytest.mark.parametrize(("kind", "packs"), [("llama", True), ("phi3", False)])
def test_a_long_row_does_not_turn_the_others(tmp_path: Path, tiny_model: Path, kind: str, packs: bool) -> None:
    """LongRoPE has other frequencies for a batch with a row beyond the length that the model began with."""
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 8.0, "original_max_position_embeddings": 32}
    rope |= {"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 4.0, 8.0]}
    # Phi-3 has its own place for that length.
    own = {"pad_token_id": 0, "original_max_position_embeddings": 32, "sliding_window": 16} if kind == "phi3" else {}
    folder = make(tmp_path / "model", tiny_model, kind, **(GROUPED | own), rope_parameters=rope, initializer_range=0.2)
    texts = [*TEXTS, "a dog " * 30, "the dog, again and " * 8]
    for layer in (-1, 1):
        encoder = load(folder, pooling="mean", layer=layer, max_tokens=200)
        assert encoder.backbone.packs == packs
        assert encoder.tokenize(texts).lengths.max() > 32
        alone = np.vstack([encoder.encode([text]) for text in texts])
        assert lowest_cosine(encoder.encode(texts), alone) > 1 - 1e-8
    tokens = encoder.tokenize(texts)
    encoder.embed(tokens, np.arange(len(texts)))[:, 0].sum().backward()  # type: ignore[no-untyped-call]


def test_a_kernel_that_gives_other_states_is_not_used(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(packing, "_fused", lambda query, key, value, *rest: query)
    with caplog.at_level(logging.INFO):
        encoder = load(tiny_model)
    assert not encoder.backbone.packs
    assert "would not get the same vectors" in caplog.text


@pytest.mark.skipif(embedded.find_gguf() is None, reason=f"default model: {embedded.INSTALL}")
@pytest.mark.parametrize(("dtype", "tiles"), [("float32", False), ("bfloat16", False), ("bfloat16", True)])
def test_the_default_is_packed(monkeypatch: pytest.MonkeyPatch, dtype: str, tiles: bool) -> None:
    monkeypatch.setattr(packing, "_has_tiles", lambda dtype: tiles)
    encoder, exact = (
        Encoder.load(models.DEFAULT, device="cpu", dtype=each, engine="transformers") for each in (dtype, "float32")
    )
    assert encoder.backbone.packs
    # Two ways of rounding to 16 bits differ from each other by more than either from 32 bits. A processor without
    # products of 16 bits rounds more often; nothing is computed in them there unless it is asked for.
    native = device.resolve("cpu", "auto").dtype == torch.bfloat16
    least = 1 - 1e-8 if dtype == "float32" else 0.999 if native else 0.998
    assert lowest_cosine(encoder.encode(TEXTS), padded(exact, TEXTS)) > least


def test_rows_come_back_as_they_were() -> None:
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 0, 0], [1, 1, 0]])
    ids_BT = torch.tensor([[1, 2, 3], [4, 0, 0], [5, 0, 0], [6, 7, 0]])
    pack = Pack.of(ids_BT, mask_BT, torch.device("cpu"))
    assert pack.ids_1N.tolist() == [[1, 2, 3, 4, 5, 6, 7]]
    assert pack.positions_1N.tolist() == [[0, 1, 2, 0, 0, 0, 1]]
    assert pack.ends_B1.tolist() == [0, 3, 4, 5, 7]
    assert list(pack.runs()) == [(slice(0, 3), 1), (slice(3, 5), 2), (slice(5, 7), 1)]
    assert (pack.unpack(pack.ids_1N[..., None])[..., 0] * mask_BT).tolist() == ids_BT.tolist()


def test_the_kernel_of_a_gpu_gets_all_rows_at_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments, that is; what computes them here is a loop."""
    from torch.nn.attention import varlen

    monkeypatch.setattr(ragged, "has_varlen", lambda device: True)
    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    for attention in ATTENTIONS:
        encoder = load(tiny_model, attention=attention, dtype="bfloat16")
        assert encoder.backbone.packs
        assert lowest_cosine(encoder.encode(TEXTS), padded(encoder, TEXTS)) > 0.999


def test_a_device_without_grouped_attention_gets_a_head_of_keys_for_each_of_queries(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    mask_BT = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    pack = Pack.of(mask_BT, mask_BT, torch.device("cpu"))
    query, key, value = (torch.randn(heads, 6, 8) for heads in (6, 2, 2))
    expected = packing.mix(query, key, value, pack, scale=0.3, causal=True)
    fused: Callable[..., torch.Tensor] = torch.nn.functional.scaled_dot_product_attention
    grouped: list[bool] = []

    def watched(*states: torch.Tensor, enable_gqa: bool, **options: Any) -> torch.Tensor:  # noqa: ANN401
        grouped.append(enable_gqa)
        return fused(*states, enable_gqa=enable_gqa, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(packing, "_GROUPED", ())
    torch.testing.assert_close(packing.mix(query, key, value, pack, scale=0.3, causal=True), expected)
    assert grouped
    assert not any(grouped)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_gpu_without_that_kernel_gets_one_compiled_for_the_rows(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its mask, that is; here it is applied to all scores."""
    taken = []

    def flex(*args: Any) -> torch.Tensor:  # noqa: ANN401
        taken.append(args[3])
        return ragged.by_flex(*args)

    monkeypatch.setattr(ragged, "kernel", lambda query, key, pack: flex)
    for attention in ATTENTIONS:
        encoder = load(tiny_model, attention=attention)
        assert encoder.backbone.packs
        assert lowest_cosine(encoder.encode(TEXTS), padded(encoder, TEXTS)) > 1 - 1e-8
    assert [list(pack.masks) for pack in taken] == [[True]] * (len(taken) // 2) + [[False]] * (len(taken) // 2)


@settings(max_examples=30)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=9), before=st.integers(0, 140), causal=st.booleans())
def test_blocks_that_are_left_out_hold_nothing(lengths: list[int], before: int, causal: bool) -> None:
    from torch.nn.attention.flex_attention import create_block_mask

    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    pack = Pack.of(mask_BT, mask_BT, torch.device("cpu"), before)
    mask = ragged._block_mask(pack, causal)
    sees, sizes = mask.mask_mod, mask.seq_lengths
    exact = create_block_mask(sees, None, None, *sizes, device="cpu").to_dense()
    assert bool((mask.to_dense() >= exact).all())
    row_N = np.repeat(np.arange(len(lengths)), lengths)
    row_M = np.repeat(np.arange(len(lengths)), np.array(lengths) + before)
    seen = torch.from_numpy(row_N[:, None] == row_M)
    if causal:
        place_M = np.concatenate([np.arange(length + before) for length in lengths])
        seen &= torch.from_numpy(place_M <= pack.positions_1N[0].numpy()[:, None])
    queries, keys = torch.meshgrid(torch.arange(sizes[0]), torch.arange(sizes[1]), indexing="ij")
    assert sees(torch.tensor(0), torch.tensor(0), queries, keys).equal(seen)


@pytest.mark.parametrize(
    ("varlen", "flex", "dtype", "lengths", "expected"),
    [
        (True, True, torch.bfloat16, [3, 2, 1], ragged.by_varlen),
        (True, True, torch.float32, [*range(1, 10)], ragged.by_flex),
        (False, True, torch.bfloat16, [*range(1, 10)], ragged.by_flex),
        (False, True, torch.bfloat16, [*range(1, 9), 8], None),
        (False, False, torch.bfloat16, [*range(1, 10)], None),
    ],
)
def test_the_kernel_is_the_best_that_there_is(
    monkeypatch: pytest.MonkeyPatch,
    varlen: bool,
    flex: bool,
    dtype: torch.dtype,
    lengths: list[int],
    expected: ragged.Kernel | None,
) -> None:
    monkeypatch.setattr(ragged, "has_varlen", lambda device: varlen)
    monkeypatch.setattr(ragged, "has_flex", lambda *heads: flex)
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    pack = Pack.of(mask_BT, mask_BT, torch.device("cpu"))
    states = torch.zeros(2, sum(lengths), 4, dtype=dtype)
    assert ragged.kernel(states, states, pack) is expected


def test_a_cpu_has_none_of_these_kernels() -> None:
    cpu = torch.device("cpu")
    assert not ragged.has_varlen(cpu)
    assert not ragged.has_flex(cpu, torch.float32, 2, 2, 4)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
def test_a_compiled_kernel_is_held_to_a_known_result(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert ragged.compiles(cpu, torch.bfloat16, 4, 2, 8)
    monkeypatch.setattr(ragged, "by_flex", lambda query, key, value, *rest: value.transpose(0, 1))
    assert not ragged.compiles(cpu, torch.bfloat16, 4, 2, 8)


def test_a_kernel_that_cannot_be_compiled_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: object) -> torch.Tensor:
        raise RuntimeError("no Triton")

    monkeypatch.setattr(ragged, "by_flex", broken)
    with caplog.at_level(logging.INFO):
        assert not ragged.compiles(torch.device("cpu"), torch.float32, 2, 2, 4)
    assert "no Triton" in caplog.text


def test_gradients_are_those_of_padded_batches(tiny_model: Path) -> None:
    encoder = load(tiny_model, pooling="suffix_mean", prompt="topic_word")
    tokens = encoder.tokenize(TEXTS)
    gradients = []
    for kernel in (packing.NAME, "sdpa"):
        encoder.backbone.model.set_attn_implementation(kernel)
        encoder.backbone.model.zero_grad()
        encoder.embed(tokens, np.arange(len(TEXTS)))[:, 0].sum().backward()  # type: ignore[no-untyped-call]
        gradients.append([weight.grad.clone() for weight in encoder.backbone.model.parameters()])
    for packed, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(packed, plain, atol=1e-6, rtol=1e-4)
