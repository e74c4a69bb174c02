"""The fast LoRA layer: peft's own numbers without dropout, and dropout as torch means it."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from llmindex.errors import RecipeError
from llmindex_training import adapter, lora
from tests.training_runs import tiny_recipe


def adapted(*, fast: bool, dropout: float = 0.0, rank: int = 4, width: int = 12) -> nn.Module:
    """A linear layer without bias and one with, an adapter with random weights on both."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(width, 9, bias=False), nn.Tanh(), nn.Linear(9, 5))
    config = LoraConfig(r=rank, lora_alpha=6, lora_dropout=dropout, target_modules=["0", "2"])
    if fast:
        lora.register(config)
    wrapped: nn.Module = get_peft_model(net, config)
    for name, weight in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    return wrapped


def gradients(net: nn.Module, x: Tensor) -> dict[str, Tensor]:
    net(x).square().sum().backward()
    return {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("shape", [(7, 12), (2, 3, 12)])
def test_outputs_and_gradients_are_those_of_peft(shape: tuple[int, ...]) -> None:
    mine, theirs = adapted(fast=True), adapted(fast=False)
    assert [type(module) for module in mine.modules() if isinstance(module, Linear)] == [lora.LoraLinear] * 2
    assert mine.state_dict().keys() == theirs.state_dict().keys()
    x = torch.randn(*shape)
    torch.testing.assert_close(mine(x), theirs(x))
    own, expected = gradients(mine, x), gradients(theirs, x)
    assert own.keys() == expected.keys()
    assert all("lora_" in name for name in own)
    for name, gradient in own.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-5)


def test_a_bfloat16_backbone_gets_float32_gradients_close_to_those_of_peft() -> None:
    results = []
    for fast in (True, False):
        net = adapted(fast=fast)
        for module in net.modules():
            if isinstance(module, Linear):
                module.base_layer.to(torch.bfloat16)
        torch.manual_seed(1)
        results.append(gradients(net, torch.randn(64, 12).bfloat16()))
    for name, gradient in results[0].items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient, results[1][name], rtol=0.05, atol=0.05 * float(gradient.abs().max()))


def test_without_training_or_adapter_nothing_is_dropped() -> None:
    net = adapted(fast=True, dropout=0.5).eval()
    x = torch.randn(5, 12)
    torch.testing.assert_close(net(x), adapted(fast=False)(x))
    with net.disable_adapter():  # type: ignore[operator]
        torch.testing.assert_close(net(x), net.base_model.model(x))  # type: ignore[union-attr,operator]
        bare = [module.base_layer for module in net.modules() if isinstance(module, Linear)]
        torch.testing.assert_close(net(x), bare[1](torch.tanh(bare[0](x))))


@pytest.mark.parametrize("probability", [0.05, 0.5])
def test_masks_have_the_probability_and_follow_torchs_seed(probability: float) -> None:
    x = torch.ones(301, 333)
    torch.manual_seed(3)
    first, second = lora._kept(x, probability), lora._kept(x, probability)
    torch.manual_seed(3)
    assert torch.equal(lora._kept(x, probability), first)
    assert not torch.equal(first, second)
    assert set(first.flatten().tolist()) == {0, 1}
    # Four standard deviations of a mean of so many draws.
    allowed = 4 * (probability * (1 - probability) / x.numel()) ** 0.5
    assert abs(float(first.float().mean()) - (1 - probability)) < allowed
    assert abs(float((first * second).float().mean()) - (1 - probability) ** 2) < allowed


def test_dropout_keeps_the_mean_of_what_the_adapter_adds() -> None:
    plain, dropping = adapted(fast=True), adapted(fast=True, dropout=0.3)
    layer, dropped = (next(m for m in net.modules() if isinstance(m, Linear)) for net in (plain, dropping))
    x = torch.randn(1, 12)
    torch.manual_seed(0)
    with torch.no_grad():
        mean = dropped(x.expand(40_000, 12)).mean(0)
        expected = layer(x)[0]
        spread = (expected - layer.base_layer(x)[0]).abs().max()
    torch.testing.assert_close(mean, expected, rtol=0, atol=float(0.05 * spread))
    assert not torch.equal(dropped(x), layer(x))


# Which layers


TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
# The first layer's projections are linear layers of the names that the second's experts have.
EXPERTS = {"num_hidden_layers": 2, "num_key_value_heads": 2, "moe_intermediate_size": 8}
EXPERTS |= {"n_routed_experts": 2, "num_experts_per_tok": 1, "first_k_dense_replace": 1}


@pytest.mark.filterwarnings("ignore:The following (rank|alpha)_pattern keys")  # peft's own, for the experts
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize(
    ("kind", "config", "targets", "why"),
    [
        (
            "glm4_moe",
            TINY | EXPERTS,
            ("q_proj", "up_proj", "gate_proj"),
            "model.lora_targets: gate_proj, up_proj are names of the model's experts, too, whose adapter cannot be "
            "merged; leave them out",
        ),
        # What each step computes with such a layer's weights has nothing of its adapter.
        ("mamba", TINY, ("out_proj",), "model.lora_targets: .*'out_proj'.* incompatible with Mamba"),
    ],
)
def test_what_cannot_be_merged_is_refused_before_it_is_trained(
    tiny_model: Path,
    tmp_path: Path,
    kind: str,
    config: dict[str, int],
    targets: tuple[str, ...],
    why: str,
    dropout: float,
) -> None:
    from transformers import AutoConfig, AutoModel

    shutil.copytree(tiny_model, tmp_path / "model")
    made = AutoConfig.for_model(kind, vocab_size=400, **config)
    AutoModel.from_config(made).save_pretrained(tmp_path / "model")
    recipe = tiny_recipe(tmp_path / "model", f"model.lora_targets={list(targets)}", f"model.lora_dropout={dropout}")
    with pytest.raises(RecipeError, match=why):
        adapter.attach(adapter.load_base(recipe, "cpu"), recipe)
