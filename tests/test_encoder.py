"""The encoder against transformers' plain computation, and its invariants."""

import json
import logging
import re
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llmindex.encode import device, prompts
from llmindex.encode.encoder import Encoder
from llmindex.encode.llama import Llama
from llmindex.encode.spec import POOLINGS, EncoderSpec, Pooling
from llmindex.errors import ModelError, SpecMismatch, UsageError
from llmindex.records import Vectors

TEXTS = [
    "The quick brown fox",
    "jumps over the lazy dog, again and again and again, until the dog wakes up",
    "a",
    "Ein Satz auf Deutsch: äöü €",
    "emoji 🦊 and\nnew lines\tand tabs",
    "The quick brown fox",
]


def load(folder: Path, **options: Any) -> Encoder:  # noqa: ANN401
    return Encoder.load(str(folder), dtype="float32", device="cpu", **options)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def plain(folder: Path, texts: list[str], prompt: str, pooling: str, layer: int = -1, cut: int = 512) -> Vectors:
    """Vectors by transformers alone: each text by itself, all states kept, no padding, float64 pooling."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32)
    before, after = prompts.resolve(prompt).split("{text}")
    gap = before[len(before.rstrip()) :]
    head, tail = tokenizer(before.rstrip())["input_ids"], tokenizer(after)["input_ids"]
    vectors = []
    for text in texts:
        body = tokenizer(gap + text)["input_ids"][:cut]
        ids = head + body + tail + ([tokenizer.eos_token_id] if pooling == "eos" else [])
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0]
        hidden = states.double().numpy()
        weights = {
            "last": np.eye(len(ids))[-1],
            "eos": np.eye(len(ids))[-1],
            "mean": np.ones(len(ids)),
            "weighted_mean": np.arange(1, len(ids) + 1),
            "mean_text": np.r_[np.zeros(len(head)), np.ones(len(body)), np.zeros(len(tail))],
        }[pooling]
        vector = weights @ hidden
        vectors.append(vector / np.linalg.norm(vector))
    return np.array(vectors, np.float32)


def lowest_cosine(a: Vectors, b: Vectors) -> float:
    return float((a * b).sum(1).min())


@pytest.mark.parametrize("prompt", ["none", "eol", "cluster_short", "instruct"])
@pytest.mark.parametrize("pooling", ["last", "eos", "mean", "weighted_mean", "mean_text"])
def test_equals_the_plain_computation(tiny_model: Path, prompt: str, pooling: Pooling) -> None:
    ours = load(tiny_model, prompt=prompt, pooling=pooling).encode(TEXTS)
    assert lowest_cosine(ours, plain(tiny_model, TEXTS, prompt, pooling)) > 0.9999


@pytest.mark.parametrize("layer", [-1, 0, 1, 2, -2, -3])
def test_any_layer_equals_the_plain_computation(tiny_model: Path, layer: int) -> None:
    if layer == -3:
        with pytest.raises(UsageError, match="--layer -3 is out of range"):
            load(tiny_model, layer=layer)
        return
    ours = load(tiny_model, pooling="mean", prompt="eol", layer=layer).encode(TEXTS)
    assert lowest_cosine(ours, plain(tiny_model, TEXTS, "eol", "mean", layer)) > 0.9999


def test_two_names_of_a_layer_are_one_spec(tiny_model: Path) -> None:
    assert load(tiny_model, layer=2).spec == load(tiny_model).spec
    assert load(tiny_model, layer=-2).spec == load(tiny_model, layer=1).spec


def test_bidirectional_equals_a_model_with_an_open_mask(tiny_model: Path) -> None:
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModel.from_pretrained(tiny_model, dtype=torch.float32, attn_implementation="eager")
    expected = []
    for text in TEXTS:
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        length = ids.shape[1]
        with torch.no_grad():
            everything = torch.zeros(1, 1, length, length)
            states = model(input_ids=ids, attention_mask=everything).last_hidden_state[0]
        expected.append((states.mean(0) / states.mean(0).norm()).numpy())
    ours = load(tiny_model, prompt="none", pooling="mean", attention="bidirectional").encode(TEXTS)
    assert lowest_cosine(ours, np.array(expected)) > 0.9999
    causal = load(tiny_model, prompt="none", pooling="mean").encode(TEXTS)
    assert lowest_cosine(ours, causal) < 0.999


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("attention", ["causal", "bidirectional"])
def test_batch_mates_and_order_do_not_matter(tiny_model: Path, pooling: Pooling, attention: str) -> None:
    encoder = load(tiny_model, pooling=pooling, attention=attention)
    together = encoder.encode(TEXTS)
    alone = np.vstack([encoder.encode([text]) for text in TEXTS])
    np.testing.assert_allclose(together, alone, atol=2e-6)
    np.testing.assert_allclose(encoder.encode(TEXTS[::-1])[::-1], together, atol=2e-6)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(texts=st.lists(st.text(max_size=80), min_size=1, max_size=8), budget=st.integers(1, 300))
def test_any_text_gives_a_unit_vector_whatever_the_batches(tiny_model: Path, texts: list[str], budget: int) -> None:
    encoder = _cached(tiny_model)
    expected = encoder.encode(texts)
    encoder._budget = budget
    vectors = encoder.encode(texts)
    encoder._budget = encoder.placement.token_budget
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)


_encoders: dict[Path, Encoder] = {}


def _cached(folder: Path) -> Encoder:
    if folder not in _encoders:
        _encoders[folder] = load(folder)
    return _encoders[folder]


def test_only_the_text_is_cut_never_the_prompt(tiny_model: Path) -> None:
    encoder = load(tiny_model, prompt="eol", pooling="last", max_tokens=5)
    tokens = encoder.tokenize(["one two three four five six seven eight", "short"])
    assert tokens.truncated.tolist() == [True, False]
    first = tokens.ids[tokens.offsets[0] : tokens.offsets[1]].tolist()
    start, end = tokens.text_spans[0]
    assert end - start == 5
    wrapping = encoder.wrapping("document")
    assert first[:start] == wrapping.before
    assert first[end:] == wrapping.after


def test_dim_is_cut_before_normalising(tiny_model: Path) -> None:
    whole = load(tiny_model).encode(TEXTS)
    cut = load(tiny_model, dim=7).encode(TEXTS)
    expected = whole[:, :7] / np.linalg.norm(whole[:, :7], axis=1, keepdims=True)
    np.testing.assert_allclose(cut, expected, atol=1e-5)
    assert load(tiny_model, pooling="last_mean").spec.dim == 64


def test_queries_take_the_query_prompt(tiny_model: Path) -> None:
    encoder = load(tiny_model, prompt="document", query_prompt="query")
    query = encoder.encode(["fox"], role="query")
    np.testing.assert_allclose(query, load(tiny_model, prompt="query").encode(["fox"]), atol=1e-6)
    assert lowest_cosine(query, encoder.encode(["fox"])) < 0.9999
    assert load(tiny_model, prompt="cluster").spec.query_prompt == prompts.PROMPTS["cluster"]


def test_empty_list_and_empty_text(tiny_model: Path) -> None:
    encoder = load(tiny_model, prompt="none")
    with pytest.raises(UsageError, match="a list of strings"):
        encoder.encode("one text")
    assert encoder.encode([]).shape == (0, 32)
    assert np.linalg.norm(encoder.encode([""])) == pytest.approx(1, abs=1e-5)


def test_texts_in_whatever_holds_them(tiny_model: Path) -> None:
    pandas = pytest.importorskip("pandas")
    encoder = load(tiny_model)
    expected = encoder.encode(TEXTS)
    rows = pandas.Series(["left out", *TEXTS]).iloc[1:]  # numbered from 1
    np.testing.assert_array_equal(encoder.encode(rows), expected)
    np.testing.assert_array_equal(encoder.encode(text for text in TEXTS), expected)
    np.testing.assert_array_equal(encoder.tokenize(rows).ids, encoder.tokenize(TEXTS).ids)
    with pytest.raises(UsageError, match=r"^text 2 must be a string, not float$"):
        encoder.encode(pandas.Series(["one", float("nan")], dtype=object))
    with pytest.raises(UsageError, match=r"^text 2 \('two \\udcff'\) is not valid UTF-8$"):
        encoder.encode(["one", "two \udcff"])


@pytest.mark.parametrize("threads", [1, 2])
def test_out_of_memory_halves_the_batch_and_goes_on(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, threads: int
) -> None:
    room = 1
    computed = Llama.__call__

    def cramped(decoder: Llama, ids: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        if len(ids) > room:
            raise torch.OutOfMemoryError("no room")
        return computed(decoder, ids, *others)

    monkeypatch.setattr(device, "_CPU_TOKEN_BUDGET", 80)
    encoder = load(tiny_model)
    expected = encoder.encode(TEXTS)
    monkeypatch.setattr(Llama, "__call__", cramped)
    with torch_threads(threads), caplog.at_level(logging.WARNING):
        vectors = encoder.encode(TEXTS)
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    assert "out of memory" in caplog.text
    room = 0
    with torch_threads(threads), pytest.raises(ModelError, match="out of memory on cpu for a single text"):
        encoder.encode(TEXTS)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_that_is_not_about_memory_is_raised(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    def broken(*arguments: object) -> torch.Tensor:
        raise RuntimeError("a bug")

    monkeypatch.setattr(device, "_CPU_TOKEN_BUDGET", 80)
    encoder = load(tiny_model)
    monkeypatch.setattr(Llama, "__call__", broken)
    with torch_threads(threads), pytest.raises(RuntimeError, match="a bug"):
        encoder.encode(TEXTS)


def test_values_that_are_not_finite_are_refused(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def overflowing(decoder: Llama, ids: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return torch.full((*ids.shape, 32), float("nan"))

    encoder = load(tiny_model)
    monkeypatch.setattr(Llama, "__call__", overflowing)
    with pytest.raises(ModelError, match="not finite"):
        encoder.encode(TEXTS)


def test_batches_side_by_side_give_the_same_bits(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is computed in one thread, however many there are, and what is told of it comes in order."""
    monkeypatch.setattr(device, "_CPU_TOKEN_BUDGET", 80)
    encoder = load(tiny_model)
    texts = [f"{text} {number}" for number in range(20) for text in TEXTS]
    computed = Llama.__call__
    seen: set[tuple[str, int]] = set()

    def watched(decoder: Llama, *tensors: torch.Tensor) -> torch.Tensor:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return computed(decoder, *tensors)

    def run(threads: int) -> tuple[Vectors, list[tuple[int, int]]]:
        told: list[tuple[int, int]] = []
        with torch_threads(threads):
            vectors = encoder.forward(encoder.tokenize(texts), lambda *counts: told.append(counts))
            assert torch.get_num_threads() == threads
        return vectors, told

    alone, told_alone = run(1)
    monkeypatch.setattr(Llama, "__call__", watched)
    together, told_together = run(3)
    np.testing.assert_array_equal(together, alone)
    assert told_together == told_alone
    assert sum(count for count, _ in told_alone) == len(texts)
    assert seen == {(f"encoding_{worker}", 1) for worker in range(3)}


def test_self_check_is_near_one(tiny_model: Path) -> None:
    encoder = load(tiny_model)
    tokens = encoder.tokenize(TEXTS)
    assert encoder.self_check(tokens, encoder.forward(tokens)) == pytest.approx(1, abs=1e-5)


def test_spec_survives_json_and_finds_its_encoder(tiny_model: Path) -> None:
    encoder = load(tiny_model, prompt="eol", dim=8, layer=1)
    spec = EncoderSpec.from_json(json.loads(json.dumps(encoder.spec.to_json())))
    assert spec == encoder.spec
    again = Encoder.from_spec(spec, device_name="cpu", dtype="float32")
    np.testing.assert_array_equal(again.encode(TEXTS), encoder.encode(TEXTS))


@pytest.mark.parametrize("prompt", ["{text} {text}", "no place at all"])
def test_a_spec_whose_prompt_is_none(tiny_model: Path, prompt: str) -> None:
    spec = replace(load(tiny_model).spec, query_prompt=prompt)
    with pytest.raises(UsageError, match=re.escape(f'"{prompt}"')):
        Encoder.from_spec(spec, device_name="cpu", dtype="float32")


def test_fingerprint_follows_what_is_computed_not_where_it_lies(tiny_model: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(tiny_model, tmp_path / "elsewhere")
    spec = load(tiny_model).spec
    assert load(moved).spec.fingerprint() == spec.fingerprint()
    assert load(moved, prompt="cluster").spec.fingerprint() != spec.fingerprint()
    config = json.loads((moved / "config.json").read_text())
    (moved / "config.json").write_text(json.dumps(config | {"transformers_version": "99"}))
    assert load(moved).spec.fingerprint() == spec.fingerprint()
    (moved / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 0.1}))
    assert load(moved).spec.fingerprint() != spec.fingerprint()


def test_fingerprint_follows_how_the_tokenizer_is_set_up(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    file = folder / "tokenizer_config.json"
    settings = json.loads(file.read_text()) | {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    file.write_text(json.dumps(settings))
    before = load(folder)
    file.write_text(json.dumps(settings | {"chat_template": "{{ messages }}"}))
    assert load(folder).spec.fingerprint() == before.spec.fingerprint()
    file.write_text(json.dumps(settings | {"add_prefix_space": True}))
    after = load(folder)
    assert not np.allclose(after.encode(["a"]), before.encode(["a"]))
    assert after.spec.fingerprint() != before.spec.fingerprint()


def test_changed_weights_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model, tmp_path / "model")
    spec = load(folder).spec
    weights = load_file(folder / "model.safetensors")
    weights["layers.1.mlp.up_proj.weight"][0, 0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(SpecMismatch, match=spec.backbone_sha256[:16]):
        Encoder.from_spec(spec)
    shutil.rmtree(folder)
    with pytest.raises(ModelError, match="no model"):
        Encoder.from_spec(spec)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"pooling": "median"}, 'unknown pooling "median"; one of last, eos'),
        ({"attention": "sideways"}, 'unknown attention "sideways"'),
        ({"dim": 33}, "--dim 33 is larger than the 32 values"),
        ({"dim": 0}, "--dim 0 must be at least 1"),
        ({"max_tokens": 0}, "--max-tokens 0 must be at least 1"),
        ({"max_tokens": 513, "prompt": "none"}, "leave room for: 512"),
        ({"prompt": "no place here"}, "does not contain"),
        ({"layer": 7}, "--layer 7 is out of range"),
        ({"prompt": "word " * 600 + "{text}"}, "leaves no room for a text"),
        ({"prompt": "\udcff{text}"}, "is not UTF-8"),
        ({"prompt": ""}, 'prompt template "" does not contain'),
        ({"pooling": ""}, 'unknown pooling ""'),
        ({"layer": 1.5}, "--layer 1.5 must be a whole number"),
        ({"dim": "8"}, "--dim '8' must be a whole number"),
    ],
)
def test_impossible_options_are_refused(tiny_model: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(tiny_model, **{"max_tokens": 64} | options)


def test_impossible_device_and_dtype_are_refused(tiny_model: Path) -> None:
    with pytest.raises(UsageError, match='unknown device "gpu"'):
        Encoder.load(str(tiny_model), device="gpu")
    with pytest.raises(UsageError, match='device "cuda:99" is not available'):
        Encoder.load(str(tiny_model), device="cuda:99")
    with pytest.raises(UsageError, match='unknown dtype "int3"'):
        Encoder.load(str(tiny_model), dtype="int3")


def test_an_unknown_role_is_refused(tiny_model: Path) -> None:
    encoder = Encoder.load(str(tiny_model))
    with pytest.raises(UsageError, match='unknown role "passage"; one of document, query'):
        encoder.tokenize(["a text"], role="passage")  # type: ignore[arg-type]


def test_equal_texts_are_encoded_once(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = load(tiny_model)
    tokens = encoder.tokenize([TEXTS[0], TEXTS[1], TEXTS[0], TEXTS[0]])
    rows: list[int] = []
    forward = Encoder.token_states

    def counted(self: Encoder, tokens: Any, batch: Any, **options: Any) -> Any:  # noqa: ANN401
        rows.extend(batch.tolist())
        return forward(self, tokens, batch, **options)

    monkeypatch.setattr(Encoder, "token_states", counted)
    reported: list[tuple[int, int]] = []
    vectors = encoder.forward(tokens, on_tokens=lambda texts, count: reported.append((texts, count)))
    assert sorted(rows) == [0, 1]
    assert vectors[0].tobytes() == vectors[2].tobytes() == vectors[3].tobytes()
    assert [sum(column) for column in zip(*reported, strict=True)] == [4, int(tokens.offsets[-1])]
