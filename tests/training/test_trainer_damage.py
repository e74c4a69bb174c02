"""Files of a run that were lost or damaged: training goes back to what is whole, or says in one line what to do."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from llmindex.errors import AdapterError, CorruptStore, LlmindexError, ModelError
from llmindex.progress import Progress
from llmindex_training import trainer
from llmindex_training.recipe import Recipe
from llmindex_training.trainer import TrainReport
from tests.training_runs import tiny_recipe, write_pairs

WEIGHTS = "adapter_model.safetensors"
Damage = Callable[[Path], object]


def emptied(path: Path) -> int:
    return path.write_bytes(b"")


def halved(path: Path) -> int:
    return path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Trained:
    """A run of 12 steps with checkpoints every 4, stopped after 9 and complete."""

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.recipe, self.pairs = recipe, write_pairs(folder / "pairs.parquet")
        self.stopped, self.whole = folder / "stopped", folder / "whole"

        def stop(record: Progress) -> None:
            if record.done == 9:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            trainer.train([self.pairs], self.stopped, recipe, on_progress=stop)
        trainer.train([self.pairs], self.whole, recipe)

    def go_on(self, run: Path) -> TrainReport:
        return trainer.train([self.pairs], run, self.recipe)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Trained:
    return Trained(tmp_path_factory.mktemp("damage"), tiny_recipe(tiny_model))


@pytest.fixture
def stopped(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.stopped, tmp_path / "run"))


@pytest.fixture
def whole(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.whole, tmp_path / "run"))


@pytest.mark.parametrize("damage", [emptied, halved, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_damaged_checkpoint_is_passed_over(trained: Trained, stopped: Path, name: str, damage: Damage) -> None:
    damage(stopped / "checkpoints/checkpoint-8" / name)
    report = trained.go_on(stopped)
    assert report.tokens  # of the steps after the one before
    assert (stopped / "adapter" / WEIGHTS).read_bytes() == (trained.whole / "adapter" / WEIGHTS).read_bytes()
    assert (stopped / "log.jsonl").read_bytes() == (trained.whole / "log.jsonl").read_bytes()


def test_a_checkpoint_that_the_adapter_needs_is_gone(trained: Trained, tiny_model: Path, tmp_path: Path) -> None:
    run, recipe = tmp_path / "run", tiny_recipe(tiny_model, "optim.average=2")
    assert trainer.train([trained.pairs], run, recipe).kept_steps == (8, 12)
    shutil.rmtree(run / "adapter")
    shutil.rmtree(run / "checkpoints/checkpoint-8")
    with pytest.raises(CorruptStore, match="checkpoint-8, which the adapter is made of, is gone or damaged; start"):
        trainer.train([trained.pairs], run, recipe)
    assert trainer.train([trained.pairs], run, recipe, overwrite=True).kept_steps == (8, 12)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"base_sha256": "a"}', "\0"], ids=repr)
def test_a_damaged_run_json(trained: Trained, stopped: Path, text: str) -> None:
    (stopped / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(CorruptStore, match=r"run\.json is damaged; start afresh with --overwrite$"):
        trained.go_on(stopped)


@pytest.mark.parametrize("line", ["{}", "[]", "null", '{"step": "x"}', "no", '{"step": null}'])
def test_a_damaged_line_of_the_log(trained: Trained, stopped: Path, line: str) -> None:
    log = stopped / "log.jsonl"
    log.write_text(line + "\n" + log.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(CorruptStore, match=r"log\.jsonl, line 1 is damaged; remove that line$"):
        trained.go_on(stopped)


@pytest.mark.parametrize("damage", [emptied, halved, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS, "adapter_config.json", "encoder.json"])
def test_a_damaged_adapter_is_not_called_complete(trained: Trained, whole: Path, name: str, damage: Damage) -> None:
    damage(whole / "adapter" / name)
    with pytest.raises(AdapterError, match=r"; remove .*adapter and run the same command again") as caught:
        trained.go_on(whole)
    assert "\n" not in str(caught.value)
    shutil.rmtree(whole / "adapter")
    assert not trained.go_on(whole).tokens
    assert (whole / "adapter" / WEIGHTS).read_bytes() == (trained.whole / "adapter" / WEIGHTS).read_bytes()


def test_a_lost_log(trained: Trained, whole: Path) -> None:
    (whole / "log.jsonl").unlink()
    with pytest.raises(CorruptStore, match=r"has lost its log; .*adapter is whole"):
        trained.go_on(whole)


@pytest.mark.parametrize("settings", [("optim.steps=1", "optim.warmup_steps=1"), ("loss.false_negative_margin=-2",)])
def test_training_that_changes_nothing(tiny_model: Path, tmp_path: Path, settings: tuple[str, ...]) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet")
    with pytest.raises(LlmindexError) as caught:
        trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model, *settings))
    assert isinstance(caught.value, ModelError)
    assert str(caught.value).startswith("training has changed nothing: ")
