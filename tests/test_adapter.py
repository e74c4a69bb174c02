"""LoRA adapters: merged as peft merges them, refused where they do not fit, part of an encoder's identity."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmindex.encode import adapter as adapters
from llmindex.encode import models
from llmindex.encode.encoder import Encoder
from llmindex.errors import AdapterError, SpecMismatch
from tests.conftest import make_tiny_model
from tests.test_packing import SIZES, make

TEXTS = ["The quick brown fox.", "A vector index answers which documents lie nearest.", "Ein Satz."]


def make_adapter(base: Path, folder: Path, *, causal: bool = False, seed: int = 1, **config: object) -> Path:
    """An adapter with random factors, made by peft on the decoder or, for ``causal``, on its language model."""
    from peft import LoraConfig, TaskType, get_peft_model
    from transformers import AutoModel, AutoModelForCausalLM

    torch.manual_seed(seed)
    model = (AutoModelForCausalLM if causal else AutoModel).from_pretrained(base)
    task = TaskType.CAUSAL_LM if causal else TaskType.FEATURE_EXTRACTION
    settings: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    wrapped = get_peft_model(model, LoraConfig(task_type=task, **(settings | config)))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    wrapped.save_pretrained(folder)
    return folder


def merged_by_peft(base: Path, folder: Path) -> dict[str, torch.Tensor]:
    """Weights of the decoder after peft's own merging."""
    from peft import PeftModel
    from transformers import AutoModel

    merged = PeftModel.from_pretrained(AutoModel.from_pretrained(base), str(folder)).merge_and_unload()
    state: dict[str, torch.Tensor] = merged.state_dict()
    return state


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.1.self_attn.v_proj": 32}},
    ],
    ids=["plain", "rslora", "patterns"],
)
def test_merging_equals_peft(tiny_model: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter", **config)
    encoder = Encoder.load(str(folder), dtype="float32", engine="transformers")
    wanted = merged_by_peft(tiny_model, folder)
    for name, weight in encoder.backbone.model.state_dict().items():
        torch.testing.assert_close(weight, wanted[name])


def test_an_adapter_of_a_language_model_fits_its_decoder(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter", causal=True)
    assert all(".model.model." in key for key in load_file(folder / adapters.WEIGHTS_NAME))
    adapted = Encoder.load(str(tiny_model), adapter=str(folder), dtype="float32")
    bare = Encoder.load(str(tiny_model), dtype="float32")
    assert np.abs(adapted.encode(TEXTS) - bare.encode(TEXTS)).max() > 0.01
    assert adapted.spec.fingerprint() != bare.spec.fingerprint()
    assert adapted.spec.adapter == str(folder)


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # peft's own, for the experts
def test_an_adapter_of_experts_is_refused_as_such(tiny_model: Path, tmp_path: Path) -> None:
    """Their weights lie in one tensor: its adapter was made for this very model, and still has no layer in it."""
    experts = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}
    base = make(tmp_path / "model", tiny_model, "qwen3_moe", **SIZES, num_key_value_heads=2, **experts)
    folder = make_adapter(base, tmp_path / "adapter", causal=True, target_modules="all-linear")
    with pytest.raises(AdapterError, match="such as those of experts; merge it with peft"):
        Encoder.load(str(base), adapter=str(folder), dtype="float32", max_tokens=64)


@pytest.mark.parametrize(
    ("kind", "config", "target", "called"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4}, "c_proj", "transformer"),
        ("gpt_neox", SIZES, "query_key_value", "gpt_neox"),
        ("opt", {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "ffn_dim": 48}, "fc1", "model"),
    ],
)
def test_what_the_decoder_is_called_under_the_head_does_not_count(
    tiny_model: Path, tmp_path: Path, kind: str, config: dict[str, Any], target: str, called: str
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = make(tmp_path / "model", tiny_model, kind, **config)
    folder = make_adapter(
        base, tmp_path / "adapter", causal=True, target_modules=[target], fan_in_fan_out=kind == "gpt2"
    )
    tensors = load_file(folder / adapters.WEIGHTS_NAME)
    assert all(key.startswith(f"base_model.model.{called}.") for key in tensors)
    encoder = Encoder.load(str(base), adapter=str(folder), dtype="float32", max_tokens=64)
    merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(folder)).merge_and_unload()
    wanted = getattr(merged, called).state_dict()
    for name, weight in encoder.backbone.model.state_dict().items():
        torch.testing.assert_close(weight, wanted[name])


def test_the_spec_brings_the_same_encoder_back(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    made = Encoder.load(str(folder), pooling="mean", dtype="float32")
    again = Encoder.from_spec(made.spec, dtype="float32")
    np.testing.assert_array_equal(made.encode(TEXTS), again.encode(TEXTS))

    make_adapter(tiny_model, folder, seed=2)
    with pytest.raises(SpecMismatch, match=r"adapter .* is not the one the vectors were made with"):
        Encoder.from_spec(made.spec)


def test_an_adapter_without_its_encoder_json(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    Encoder.load(str(folder), prompt="cluster")
    (record,) = caplog.records
    assert f'"{folder}" has no encoder.json, which says how it was trained' in record.getMessage()
    caplog.clear()
    # Nothing is guessed where all is given, or where it says.
    spec = Encoder.load(str(folder), prompt="cluster", pooling="last").spec
    (folder / adapters.SPEC_NAME).write_text(json.dumps(spec.to_json()))
    Encoder.load(str(folder))
    assert not caplog.records


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("dim", "8", 'dim must be a whole number, not "8"'),
        ("dim", float("nan"), "dim must be a whole number, not NaN"),
        ("dim", -8, "dim must be at least 1, and below 2147483648, not -8"),
        ("dim", 10**30, "dim must be at least 1, and below 2147483648, not 1"),
        ("max_tokens", 0, "max_tokens must be at least 1"),
        ("max_tokens", True, "max_tokens must be a whole number, not true"),
        ("layer", 1.0, "layer must be a whole number, not 1.0"),
        ("layer", None, "layer must be a whole number, not null"),
        ("backbone", ["default"], r'backbone must be a string, not \["default"\]'),
        ("revision", 3, "revision must be a string or null, not 3"),
        ("pooling", "lsat", 'pooling must be one of last, .*, not "lsat"'),
        ("attention", ["causal"], "attention must be one of causal, bidirectional, not "),
        ("normalize", 1, "normalize must be true or false, not 1"),
        ("prompt", "", 'prompt template "" does not contain'),
        ("query_prompt", "{text} and {text}", "has 2 places for {text}"),
        ("prompt", "\ud800{text}", "is not UTF-8"),
        ("poolling", "last", "unknown field poolling"),
        ("adapter_sha256", 5, "adapter_sha256 must be a string or null, not 5"),
    ],
)
def test_an_encoder_json_with_a_wrong_field(
    tiny_model: Path, tmp_path: Path, field: str, value: object, said: str
) -> None:
    file = tmp_path / "encoder.json"
    file.write_text(json.dumps(Encoder.load(str(tiny_model)).spec.to_json() | {field: value}))
    with pytest.raises(AdapterError, match=f"encoder.json is damaged: .*{said}") as caught:
        Encoder.load(str(file))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["[]", "3", '"backbone"', "{}", "{", "[" * 100_000])
def test_an_encoder_json_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "encoder.json").write_text(content)
    with pytest.raises(AdapterError, match=r"encoder.json is damaged: "):
        Encoder.load(str(tmp_path / "encoder.json"))


def test_an_encoder_json_decides_what_is_not_asked_for(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    trained = Encoder.load(str(folder), prompt="eol", pooling="last", max_tokens=40, dim=16).spec
    (folder / adapters.SPEC_NAME).write_text(json.dumps(trained.to_json()))

    assert Encoder.load(str(folder)).spec == trained
    other = Encoder.load(str(folder), prompt="cluster", pooling="mean").spec
    assert (other.pooling, other.prompt, other.query_prompt) == (
        "mean",
        'This sentence: "{text}" belongs to the following cluster:',
        'This sentence: "{text}" belongs to the following cluster:',
    )
    assert (other.max_tokens, other.dim) == (40, 32)

    moved = shutil.copytree(folder, tmp_path / "elsewhere")
    assert Encoder.load(str(moved)).spec.fingerprint() == trained.fingerprint()

    as_they_are = trained.to_json() | {"normalize": False}
    (folder / adapters.SPEC_NAME).write_text(json.dumps(as_they_are))
    encoder = Encoder.load(str(folder))
    assert encoder.spec.to_json() == as_they_are
    assert abs(np.linalg.norm(encoder.encode(["a text"])[0]) - 1) > 0.1

    alone = tmp_path / "winner.json"
    alone.write_text(json.dumps(trained.to_json()))
    assert Encoder.load(str(alone)).spec == trained


def test_an_encoder_of_another_backbone_or_adapter_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    (folder / adapters.SPEC_NAME).write_text(json.dumps(Encoder.load(str(folder)).spec.to_json()))
    other = make_tiny_model(tmp_path / "other", seed=5)
    with pytest.raises(AdapterError, match="made for another backbone"):
        Encoder.load(str(other), adapter=str(folder))
    make_adapter(tiny_model, folder, seed=3)
    with pytest.raises(AdapterError, match="written for other adapter weights"):
        Encoder.load(str(folder))


def test_an_adapter_for_another_shape_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    wide = make_tiny_model(tmp_path / "wide", hidden_size=64)
    with pytest.raises(AdapterError, match=r'has the shape .*, the adapter .*; it was made for "'):
        Encoder.load(str(wide), adapter=str(folder))
    shallow = make_tiny_model(tmp_path / "shallow", num_hidden_layers=1)
    with pytest.raises(AdapterError, match=r'the model has no "layers\.1'):
        Encoder.load(str(shallow), adapter=str(folder))


def renamed(tensors: dict[str, torch.Tensor], old: str, new: str) -> dict[str, torch.Tensor]:
    return {new.join(key.rsplit(old, 1)): value.clone() for key, value in tensors.items()}


def rewrite(folder: Path, change: Any) -> None:  # noqa: ANN401 - a function of the tensors
    tensors = load_file(folder / adapters.WEIGHTS_NAME)
    save_file(change(tensors), folder / adapters.WEIGHTS_NAME)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda tensors: {k: torch.zeros_like(v) for k, v in tensors.items()}, "changes nothing"),
        (lambda tensors: dict(list(tensors.items())[1:]), "two factors of .* do not fit"),
        (lambda tensors: tensors | {"base_model.model.lm_head.weight": torch.ones(2)}, "no LoRA factor"),
        (lambda tensors: {}, "is empty"),
        (lambda tensors: tensors | renamed(tensors, ".weight", ".default.weight"), 'it holds ".*" in two forms$'),
        (lambda tensors: tensors | renamed(tensors, "model.", "model.model."), 'it holds the factors of ".*" twice$'),
        (lambda tensors: {k: v.bool() for k, v in tensors.items()}, r"do not fit \(it holds A .* torch.bool, "),
        (lambda tensors: {k: v.long() for k, v in tensors.items()}, "do not fit"),
        (lambda tensors: {k: v.sum() if "_A" in k else v for k, v in tensors.items()}, "do not fit"),
        (lambda tensors: {k: v[..., None] for k, v in tensors.items()}, "do not fit"),
        (lambda tensors: {k: v[:0] if "_A" in k else v[:, :0] for k, v in tensors.items()}, "do not fit"),
    ],
    ids=["zeros", "half", "foreign", "empty", "two forms", "twice", "bool", "int", "scalar", "3-d", "rank 0"],
)
def test_weights_that_do_nothing_or_too_much_are_refused(
    tiny_model: Path,
    tmp_path: Path,
    change: Any,  # noqa: ANN401
    reason: str,
) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    rewrite(folder, change)
    with pytest.raises(AdapterError, match=reason):
        Encoder.load(str(folder))


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("peft_type", "IA3", "of the kind IA3"),
        ("use_dora", True, "DoRA"),
        (
            "init_lora_weights",
            "pissa_niter_4",
            "changing the model's own weights [(]init_lora_weights is pissa_niter_4",
        ),
        ("init_lora_weights", "olora", "changing the model's own weights"),
        ("alora_invocation_tokens", [5], "does more than add two factors [(]alora_invocation_tokens[)]"),
        ("use_bdlora", True, "does more than add two factors [(]use_bdlora[)]"),
        ("bias", "all", "biases"),
        ("modules_to_save", ["embed_tokens"], "modules_to_save"),
        ("lora_alpha", "many", "adapter_config.json"),
        ("lora_alpha", float("nan"), "adapter_config.json: alpha is nan, not a finite number"),
        ("lora_alpha", 1e308, "adapter_config.json: alpha is 1e[+]308"),
        ("lora_alpha", 10**400, "adapter_config.json: int too large"),
        ("lora_alpha", 0, "changes nothing"),
        ("alpha_pattern", "q_proj", "adapter_config.json: alpha_pattern is a str, not a table"),
        ("alpha_pattern", ["q_proj"], "adapter_config.json: alpha_pattern is a list"),
        ("alpha_pattern", {"q_proj": None}, "adapter_config.json: "),
        ("alpha_pattern", {"q_proj": float("inf")}, "adapter_config.json: alpha is inf"),
        ("alpha_pattern", {"q_proj(": 4}, "adapter_config.json: .*unterminated subpattern"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    tiny_model: Path, tmp_path: Path, field: str, value: object, reason: str
) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    config = json.loads((folder / adapters.CONFIG_NAME).read_text())
    (folder / adapters.CONFIG_NAME).write_text(json.dumps(config | {field: value}))
    with pytest.raises(AdapterError, match=reason):
        Encoder.load(str(folder))


def test_a_configuration_without_end(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    (folder / adapters.CONFIG_NAME).write_text("[" * 100_000)
    with pytest.raises(AdapterError, match=r"is damaged: adapter_config\.json: "):
        Encoder.load(str(folder))


@pytest.mark.parametrize("name", [adapters.CONFIG_NAME, adapters.WEIGHTS_NAME, adapters.WHITENING_NAME])
def test_a_disk_that_fails(tiny_model: Path, tmp_path: Path, name: str) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/proc/self/mem")  # opens, and cannot be read
    with pytest.raises(AdapterError, match=f"^cannot read {folder}: Input/output error$"):
        adapters.read(folder)


def test_a_pattern_that_is_left_out_may_be_null(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    plain = Encoder.load(str(folder)).encode(TEXTS)
    config = json.loads((folder / adapters.CONFIG_NAME).read_text())
    (folder / adapters.CONFIG_NAME).write_text(json.dumps(config | {"alpha_pattern": None}))
    np.testing.assert_array_equal(Encoder.load(str(folder)).encode(TEXTS), plain)


def test_files_that_are_missing_or_cut(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    with pytest.raises(AdapterError, match="no adapter"):
        models.find(str(tiny_model), None, str(tiny_model))
    weights = folder / adapters.WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(AdapterError, match="is damaged"):
        Encoder.load(str(folder))
    weights.unlink()
    (folder / "adapter_model.bin").write_bytes(b"pickle")
    with pytest.raises(AdapterError, match=r"adapter_model\.bin can run code"):
        Encoder.load(str(folder))


def test_an_adapter_that_names_no_base_needs_one(tiny_model: Path, tmp_path: Path) -> None:
    folder = make_adapter(tiny_model, tmp_path / "adapter")
    config = json.loads((folder / adapters.CONFIG_NAME).read_text())
    (folder / adapters.CONFIG_NAME).write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(AdapterError, match=r"write that into its adapter_config.json, as base_model"):
        Encoder.load(str(folder))
