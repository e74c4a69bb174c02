"""Training as a Python program asks for it: what it hands over, and what it gets back as it was."""

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from llmindex import Encoder
from llmindex.errors import RecipeError, UsageError
from llmindex_training import mining, trainer
from llmindex_training import pairs as pair_files
from llmindex_training import recipe as recipes
from llmindex_training.recipe import Loss, Optim, Recipe
from tests.training_runs import COUNT, tiny_recipe, write_pairs


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.parquet")


def test_a_recipe_put_together_in_python_is_one_of_a_file(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    plain = tiny_recipe(tiny_model, "optim.steps=2")
    numbers: dict[str, Any] = {"steps": np.int64(2), "learning_rate": np.float32(0.25), "batch_size": np.int32(8)}
    lists: dict[str, Any] = {"matryoshka": [8, np.int64(16)]}
    recipe = replace(plain, optim=replace(plain.optim, **numbers), loss=replace(plain.loss, **lists))
    report = trainer.train(pairs, tmp_path / "run", recipe)
    kept = recipes.load(str(tmp_path / "run" / "recipe.toml"))
    assert (kept.optim.learning_rate, kept.loss.matryoshka) == (0.25, (8, 16))
    assert not report.complete_before
    assert trainer.train(pairs, tmp_path / "run", recipe).complete_before


@pytest.mark.parametrize(
    ("recipe", "why"),
    [
        (Recipe(optim=Optim(steps=-3)), "^recipe of this call: optim.steps must not be negative, not -3$"),
        (Recipe(optim=Optim(warmup_steps=0.5)), "optim.warmup_steps must be a whole number, not 0.5$"),  # type: ignore[arg-type]
        (Recipe(optim=Optim(schedule="liner")), 'optim.schedule is "liner", not one of linear, cosine, constant$'),  # type: ignore[arg-type]
        (Recipe(loss=Loss(temperature=0.0)), "loss.temperature must be at least 0.001, not 0.0$"),
        ("tiny-cpu", "^a recipe is what recipe.load gives, not str$"),
    ],
)
def test_a_recipe_put_together_in_python_is_checked(pairs: Path, tmp_path: Path, recipe: Any, why: str) -> None:  # noqa: ANN401
    with pytest.raises(RecipeError, match=why):
        trainer.train(pairs, tmp_path / "run", recipe)
    assert not (tmp_path / "run").exists()


def test_pairs_files_in_whatever_holds_them(pairs: Path, tmp_path: Path) -> None:
    held: list[str | Path | Iterable[str | Path]] = [pairs, str(pairs), [str(pairs)], (path for path in [pairs])]
    assert [len(pair_files.read(files)) for files in held] == [COUNT] * 4
    table = pq.read_table(pairs)
    frame = pytest.importorskip("pandas").DataFrame()
    others: list[tuple[Any, str]] = [(table, "Table"), (frame, "DataFrame"), ([7], "int")]
    for none, kind in others:
        with pytest.raises(UsageError, match=rf"^pairs are Parquet files, not {kind}; write them to one first$"):
            pair_files.read(none)
    with pytest.raises(UsageError, match=r"^no pairs are named; name a Parquet file$"):
        mining.mine([], tmp_path / "x", tmp_path / "out.parquet")


@dataclass
class Falling:
    """A score of someone's own."""

    values: list[Any]
    identity: str = "falling"

    def __call__(self, encoder: Encoder) -> float:
        value: float = self.values.pop(0)
        return value


def test_a_score_of_numpys(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    score = Falling([np.float32(0.5), np.float64(0.25), np.int64(0)])
    report = trainer.train(pairs, tmp_path / "run", tiny_recipe(tiny_model, "optim.steps=8"), score=score)
    assert (report.scores, report.kept_steps) == ({0: 0.5, 4: 0.25, 8: 0.0}, (4,))


@pytest.mark.parametrize("value", [math.nan, -math.inf, np.float32("nan")])
def test_a_score_that_compares_nothing(value: float, pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^the score \(falling\) is (nan|-inf): checkpoints are compared by finite"):
        trainer.train(pairs, tmp_path / "run", tiny_recipe(tiny_model), score=Falling([value] * 9))
    assert not (tmp_path / "run").exists()


def drawn() -> tuple[float, float, float]:
    return random.random(), float(np.random.random()), float(torch.rand(()))  # noqa: NPY002 - a program may


def test_a_programs_random_numbers_stay_its_own(pairs: Path, tiny_model: Path, tmp_path: Path) -> None:
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    wanted = [drawn(), drawn()]
    random.setstate(before[0])
    np.random.set_state(before[1])  # noqa: NPY002
    torch.set_rng_state(before[2])
    trainer.train(pairs, tmp_path / "run", tiny_recipe(tiny_model, "optim.steps=2"))
    assert drawn() == wanted[0]
    with pytest.raises(UsageError):
        trainer.train(pairs, tmp_path / "other", tiny_recipe(tiny_model), score=Falling([0.5, math.nan]))
    assert drawn() == wanted[1]
