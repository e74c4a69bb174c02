"""Gradient caching: the gradients of one large batch, dropout's masks included, whatever the mini-batches are."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

from llmindex.encode.encoder import Encoder
from llmindex_training import adapter, gradcache, pairs, step
from llmindex_training.recipe import Recipe
from tests.training_runs import tiny_recipe, write_pairs

Gradients = dict[str, Tensor]


def spread(embeddings: list[Tensor]) -> Tensor:
    """A loss that ties all embeddings to each other."""
    together = torch.cat(embeddings)
    return torch.logsumexp(together @ together.T, 1).mean() - together.square().sum()


def run(backward: Callable[[nn.Module, Tensor], Tensor], dropout: float) -> tuple[Tensor, Gradients, Tensor]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 7), nn.Dropout(dropout), nn.Tanh(), nn.Linear(7, 3))
    loss = backward(net, torch.randn(12, 5))
    return (
        loss,
        {name: weight.grad for name, weight in net.named_parameters() if weight.grad is not None},
        torch.rand(3),
    )


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("size", [1, 5, 12])
def test_cached_gradients_equal_the_plain_ones(dropout: float, size: int) -> None:
    def cached(net: nn.Module, inputs: Tensor) -> Tensor:
        parts = torch.split(inputs, size)
        return gradcache.backward(lambda number: net(parts[number]), len(parts), lambda made: spread(list(made)))

    def plain(net: nn.Module, inputs: Tensor) -> Tensor:
        loss = spread([net(part) for part in torch.split(inputs, size)])
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    mine, others = run(cached, dropout), run(plain, dropout)
    assert torch.equal(mine[0], others[0])
    assert not mine[0].requires_grad
    assert mine[1].keys() == others[1].keys()
    for name, gradient in mine[1].items():
        torch.testing.assert_close(gradient, others[1][name], rtol=1e-5, atol=1e-6)
    # What is drawn afterwards does not depend on the way either: a run's dropout is the same with caching and without.
    assert torch.equal(mine[2], others[2])


def test_gradients_add_up() -> None:
    net = nn.Linear(2, 2, bias=False)
    for _ in range(2):
        gradcache.backward(lambda number: net(torch.ones(1, 2)), 2, lambda made: torch.cat(list(made)).sum())
    assert net.weight.grad is not None
    assert torch.equal(net.weight.grad, torch.full((2, 2), 4.0))


def test_a_device_of_apple_draws_the_same_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its random numbers are neither the CPU's nor CUDA's."""
    apple = torch.Generator().manual_seed(3)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "get_rng_state", apple.get_state)
    monkeypatch.setattr(torch.mps, "set_rng_state", apple.set_state)
    drawn: list[float] = []
    weight = torch.ones(1, requires_grad=True)

    def embed(number: int) -> Tensor:
        drawn.append(float(torch.rand(1, generator=apple)))
        return weight * drawn[-1]

    gradcache.backward(embed, 3, lambda parts: torch.stack(list(parts)).sum())
    assert drawn[:3] == drawn[3:]
    assert len(set(drawn)) == 3
    assert float(torch.rand(1, generator=apple)) not in drawn


def test_memory_holds_one_minibatch() -> None:
    alive = 0
    most = 0

    class Counted(torch.autograd.Function):
        @staticmethod
        def forward(context: object, value: Tensor) -> Tensor:
            return value.clone()

        @staticmethod
        def backward(context: object, *gradients: Tensor) -> Tensor:
            nonlocal alive
            alive -= 1
            return gradients[0]

    weight = torch.ones(1, requires_grad=True)

    def embed(number: int) -> Tensor:
        nonlocal alive, most
        alive += torch.is_grad_enabled()
        most = max(most, alive)
        return Counted.apply(weight * torch.full((1, 1), float(number)))  # type: ignore[no-untyped-call,no-any-return]

    gradcache.backward(embed, 9, lambda made: torch.cat(list(made)).square().sum())
    assert most == 1


# A step of training


def gradients(recipe: Recipe, rows: pa.Table) -> tuple[float, Gradients]:
    encoder: Encoder = adapter.load_base(recipe, "cpu")
    adapter.attach(encoder, recipe)
    for name, weight in encoder.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)  # zeros would hide the gradient of the other factor
    encoder.backbone.model.train()
    torch.manual_seed(1)
    result = step.backward(encoder, recipe, rows)
    weights = encoder.backbone.model.named_parameters()
    assert result.tokens > 0
    return result.loss.item(), {name: weight.grad for name, weight in weights if weight.grad is not None}


@pytest.mark.parametrize("extra", [(), ("loss.symmetric=true", "loss.matryoshka=[8]", "model.pooling=mean")], ids=str)
def test_a_step_does_not_depend_on_its_minibatches(tiny_model: Path, tmp_path: Path, extra: tuple[str, ...]) -> None:
    file = write_pairs(tmp_path / "pairs.parquet", 12, negative=["Something else", *[None] * 10, "Another"])
    rows = pairs.read([file]).table
    found = [
        gradients(tiny_recipe(tiny_model, "model.lora_dropout=0", f"optim.token_budget={budget}", *extra), rows)
        for budget in (100_000, 400, 1)
    ]
    names = found[0][1].keys()
    assert names
    assert all("lora_" in name for name in names)
    for loss, others in found[1:]:
        assert loss == pytest.approx(found[0][0], rel=1e-5)
        for name in names:
            assert found[0][1][name].abs().max() > 0
            torch.testing.assert_close(others[name], found[0][1][name], rtol=1e-3, atol=1e-5)


def test_a_step_with_dropout_draws_the_same_masks_twice(tiny_model: Path, tmp_path: Path) -> None:
    """The loss, and so its gradient at the embeddings, is that of the very embeddings of the second pass."""
    rows = pairs.read([write_pairs(tmp_path / "pairs.parquet", 12)]).table
    recipe = tiny_recipe(tiny_model, "model.lora_dropout=0.3", "optim.token_budget=400")
    encoder = adapter.load_base(recipe, "cpu")
    adapter.attach(encoder, recipe)
    for name, weight in encoder.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.5)
    seen: list[Tensor] = []
    embed = Encoder.embed

    def watched(self: Encoder, *arguments: object) -> Tensor:
        made = embed(self, *arguments)  # type: ignore[arg-type]
        seen.append(made.detach())
        return made

    encoder.backbone.model.train()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Encoder, "embed", watched)
        step.backward(encoder, recipe, rows)
        step.backward(encoder, recipe, rows)
    parts = len(seen) // 4
    first, second, later = seen[:parts], seen[parts : 2 * parts], seen[2 * parts : 3 * parts]
    assert parts > 2
    assert not torch.equal(first[0], later[0])
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
