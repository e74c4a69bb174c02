"""Two processes with half a batch each do what one process does with all of it: real processes, real gloo."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llmindex.errors import RecipeError, UsageError
from llmindex_training import adapter, distributed, pairs, step, trainer
from llmindex_training.recipe import Recipe
from tests.training_runs import tiny_recipe, write_pairs

HERE = Path(__file__).parents[2]
SETTINGS = ("model.lora_dropout=0", "loss.symmetric=true", "loss.false_negative_margin=0.1", "optim.batch_size=9")

# Both processes run this; the first writes what it found.
PROGRAM = """
import sys, torch
from pathlib import Path
from llmindex.errors import CorpusError
from llmindex_training import distributed, trainer
from tests.training.test_distributed import gradients, recipe_of

folder, model = Path(sys.argv[1]), Path(sys.argv[2])
distributed.start("cpu")
assert distributed.world() == 2
torch.save(gradients(recipe_of(model), folder / "pairs.parquet"), folder / f"gradients-{distributed.rank()}.pt")

own = torch.full((distributed.rank() + 1, 2), float(distributed.rank()), requires_grad=True)
gathered = distributed.gather(own)
assert gathered.tolist() == [[0, 0], [1, 1], [1, 1]]
gathered.sum().backward()
assert own.grad.tolist() == [[1, 1]] * len(own)
assert distributed.gather(own[:0]).shape == (0, 2)
assert distributed.total(distributed.rank() + 3) == 7
assert distributed.from_first(lambda: f"made by {distributed.rank()}") == "made by 0"

def fail():
    raise CorpusError(f"found by {distributed.rank()}")

try:
    distributed.from_first(fail)
except CorpusError as error:
    assert str(error) == "found by 0"
else:
    raise AssertionError

calls = []
first = trainer.train([folder / "pairs.parquet"], folder / "two", recipe_of(model), on_progress=calls.append)
assert bool(calls) == (distributed.rank() == 0)
again = trainer.train([folder / "pairs.parquet"], folder / "two", recipe_of(model))
assert again.complete_before and again.kept_steps == first.kept_steps
assert first.adapter.is_dir()
(folder / f"tokens-{distributed.rank()}.txt").write_text(str(first.tokens))
distributed.wait()
"""


def recipe_of(model: Path) -> Recipe:
    return tiny_recipe(model, *SETTINGS)


def gradients(recipe: Recipe, file: Path) -> dict[str, torch.Tensor]:
    """Of the first eleven pairs: this process's share of them, an uneven one."""
    encoder = adapter.load_base(recipe, "cpu")
    adapter.attach(encoder, recipe)
    for name, weight in encoder.backbone.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    rows = pairs.read([file]).table.slice(0, 11)
    if distributed.world() == 2:
        rows = rows.slice(0, 7) if distributed.rank() == 0 else rows.slice(7)
    loss = step.backward(encoder, recipe, rows).loss
    weights = encoder.backbone.model.named_parameters()
    return {"loss": loss} | {name: weight.grad for name, weight in weights if weight.grad is not None}


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two processes left."""
    folder = tmp_path_factory.mktemp("distributed")
    # All hard negatives in one process's share.
    write_pairs(folder / "pairs.parquet", negative=[None] * 8 + ["Another thing", None, "A third"] + [None] * 69)
    program = folder / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    paths = ":".join(str(HERE / name) for name in ("", "cli", "training"))
    ended = subprocess.run(
        [*torchrun, str(program), str(folder), str(tiny_model)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=180,
    )
    assert ended.returncode == 0, ended.stderr
    return folder


def test_the_same_gradients_in_both_as_in_one(folder: Path, tiny_model: Path) -> None:
    expected = gradients(recipe_of(tiny_model), folder / "pairs.parquet")
    found = [torch.load(folder / f"gradients-{rank}.pt") for rank in range(2)]
    assert found[0].keys() == found[1].keys() == expected.keys()
    assert any("lora_A" in name for name in expected)
    for name, value in expected.items():
        assert value.abs().max() > 0
        assert torch.equal(found[0][name], found[1][name])
        torch.testing.assert_close(found[0][name], value, rtol=1e-4, atol=1e-6)


def test_the_same_adapter_after_several_steps(folder: Path, tiny_model: Path) -> None:
    report = trainer.train([folder / "pairs.parquet"], folder / "one", recipe_of(tiny_model))
    one, two = (load_file(folder / run / "adapter" / "adapter_model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert value.abs().max() > 0
        # As a whole: Adam makes a full step of an element whose gradient is hardly more than rounding.
        assert torch.linalg.norm(two[name] - value) < 1e-2 * torch.linalg.norm(value)
    logs = [(folder / run / "log.jsonl").read_text(encoding="utf-8").splitlines() for run in ("one", "two")]
    assert len(logs[0]) == len(logs[1])
    for mine, others in zip(*(map(json.loads, log) for log in logs), strict=True):
        assert mine == pytest.approx(others, rel=1e-3)
    for rank in range(2):
        assert int((folder / f"tokens-{rank}.txt").read_text(encoding="utf-8")) == report.tokens


def test_alone_there_is_nothing_to_gather() -> None:
    own = torch.ones(2, 2)
    assert (distributed.world(), distributed.rank(), distributed.total(3)) == (1, 0, 3)
    assert distributed.gather(own) is own
    distributed.start("cpu")
    assert distributed.world() == 1


def test_a_rank_without_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    """As some cluster managers set it."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(UsageError, match=r"^RANK is set, .* WORLD_SIZE expected, .* or unset RANK") as caught:
        distributed.start("cpu")
    assert "\n" not in str(caught.value)


def test_each_process_needs_a_pair(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs_file = write_pairs(tmp_path / "pairs.parquet")
    monkeypatch.setattr(distributed, "world", lambda: 10)
    with pytest.raises(RecipeError, match=r"^optim\.batch_size is 9, less than a pair for each of 10 processes$"):
        trainer.train([pairs_file], tmp_path / "run", recipe_of(tiny_model))
    assert not (tmp_path / "run").exists()
