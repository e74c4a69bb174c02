"""Training an adapter further: it begins where the adapter ended, or says why it cannot."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llmindex.encode.encoder import Encoder
from llmindex.errors import AdapterError
from llmindex_training import adapter as training_adapter
from llmindex_training import recipe as recipes
from llmindex_training import trainer
from llmindex_training.reporting import TrainReport
from tests.training_runs import tiny_recipe, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


@pytest.fixture(scope="module")
def start(pairs: Path, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainReport:
    """A finished run, whose adapter is what these begin with."""
    recipe = tiny_recipe(tiny_model, "model.max_tokens=200")
    return trainer.train([pairs], tmp_path_factory.mktemp("runs") / "run", recipe)


def test_an_adapter_is_trained_further(start: TrainReport, pairs: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(start.adapter, "optim.steps=4", "model.lora_rank=2", "model.max_tokens=200")
    report = trainer.train([pairs], tmp_path / "run", recipe)
    # It begins where the other run ended, of another size than the recipe's, and ends elsewhere.
    assert report.scores[0] == pytest.approx(start.scores[start.kept_steps[0]])
    before, after = (load_file(each / "adapter_model.safetensors") for each in (start.adapter, report.adapter))
    assert {name: value.shape for name, value in before.items()} == {name: value.shape for name, value in after.items()}
    assert any(not np.array_equal(before[name], after[name]) for name in before)
    ranks = [recipes.load(str(each.run / "recipe.toml")).model.lora_rank for each in (report, start)]
    assert ranks[0] == ranks[1] != 2
    first, further = (Encoder.load(str(each)).spec for each in (start.adapter, report.adapter))
    assert (further.backbone, further.prompt, further.pooling) == (first.backbone, first.prompt, first.pooling)
    assert further.adapter_sha256 != first.adapter_sha256
    assert trainer.train([pairs], report.run, recipe).complete_before


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"target_modules": ".*_proj"}, "cannot be trained on: its layers are named by a pattern"),
        ({"alpha_pattern": {"q_proj": 2}}, "cannot be trained on: its layers are named by a pattern or scaled one by"),
        ({"target_modules": ["q_proj"]}, 'cannot be trained on: it does not fit the model at ".*v_proj'),
        ({"target_modules": ["q_proj", "lm_head"]}, "cannot be trained on: it does not fit the model at"),
    ],
)
def test_an_adapter_that_cannot_be_trained_further(
    start: TrainReport, pairs: Path, tmp_path: Path, changes: dict[str, object], why: str
) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(start.adapter, copy)
    (copy / "encoder.json").unlink()
    config = json.loads((copy / "adapter_config.json").read_text("utf-8")) | changes
    (copy / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    with pytest.raises(AdapterError, match=why) as caught:
        trainer.train([pairs], tmp_path / "run", tiny_recipe(copy))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda weight: weight.index_fill(1, torch.tensor([0]), float("nan")), "is damaged: .* are not finite$"),
        (lambda weight: weight.to(torch.int8), "is damaged: the two factors of .* do not fit"),
        (
            lambda weight: weight[:-1].contiguous(),
            "cannot be trained on: .*size mismatch",
        ),
        (None, "is damaged: adapter_model.safetensors: "),
    ],
)
def test_a_damaged_adapter_is_not_trained_further(
    start: TrainReport, pairs: Path, tmp_path: Path, damage: Callable[[torch.Tensor], torch.Tensor] | None, why: str
) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(start.adapter, copy)
    (copy / "encoder.json").unlink()
    file = copy / "adapter_model.safetensors"
    if damage:
        tensors = load_file(file)
        name = next(name for name in tensors if ".lora_B." in name)
        save_file(tensors | {name: damage(tensors[name])}, file)
    else:
        file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(AdapterError, match=why) as caught:
        trainer.train([pairs], tmp_path / "run", tiny_recipe(copy))
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rank", [5, 0, "8", None])
def test_the_rank_of_an_adapter_is_that_of_its_factors(start: TrainReport, tmp_path: Path, rank: object) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(start.adapter, copy)
    (copy / "encoder.json").unlink()
    expected = training_adapter.settled(tiny_recipe(copy)).model.lora_rank
    config = json.loads((copy / "adapter_config.json").read_text("utf-8")) | {"r": rank}
    (copy / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    assert training_adapter.settled(tiny_recipe(copy)).model.lora_rank == expected
