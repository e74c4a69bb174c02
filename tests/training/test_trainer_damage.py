"""Files of a run that were lost or damaged: training goes back to what is whole, or says in one line what to do."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from llmindex.encode.encoder import Encoder
from llmindex.errors import AdapterError, CorruptStore, LlmindexError, ModelError, RecipeError, UsageError
from llmindex.progress import Progress
from llmindex_training import trainer
from llmindex_training.recipe import Recipe
from llmindex_training.reporting import TrainReport
from tests.training_runs import tiny_recipe, write_pairs

WEIGHTS = "adapter_model.safetensors"
# JSON that Python gives up on.
DEEP = "[" * 100_000
Damage = Callable[[Path], object]


def emptied(path: Path) -> int:
    return path.write_bytes(b"")


def halved(path: Path) -> int:
    return path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(path: Path) -> int:
    """One bit, in the middle."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    return path.write_bytes(content)


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


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        *((name, flipped) for name in (WEIGHTS, "optimizer.pt", "rng_state.pth", "trainer_state.json")),
        (WEIGHTS, emptied),
        ("adapter_config.json", halved),
        ("scheduler.pt", Path.unlink),
        ("checksums.json", halved),
        ("checksums.json", lambda path: path.write_text("[]")),
        ("checksums.json", lambda path: path.write_text(DEEP)),
    ],
)
def test_a_damaged_checkpoint_is_passed_over(
    trained: Trained, stopped: Path, name: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    cut = stopped / "checkpoints/checkpoint-8"
    damage(cut / name)
    report = trained.go_on(stopped)
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line for line in told if line.startswith(f"{cut} is passed over: {cut / name} is ")]
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


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"base_sha256": "a"}', "\0", DEEP], ids=lambda text: repr(text)[:20]
)
def test_a_damaged_run_json(trained: Trained, stopped: Path, text: str) -> None:
    (stopped / "run.json").write_text(text, encoding="utf-8")
    with pytest.raises(CorruptStore, match=r"run\.json is damaged; start afresh with --overwrite$"):
        trained.go_on(stopped)


@pytest.mark.parametrize("line", ["{}", "[]", "null", '{"step": "x"}', "no", '{"step": null}', DEEP])
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


@pytest.mark.parametrize("name", ["recipe.toml", "run.json"])
@pytest.mark.parametrize("damage", [emptied, halved, Path.unlink])
def test_what_a_run_was_started_with_is_damaged(trained: Trained, stopped: Path, name: str, damage: Damage) -> None:
    damage(stopped / name)
    with pytest.raises(LlmindexError) as caught:
        trained.go_on(stopped)
    assert str(stopped / name) in str(caught.value) or "was started with another recipe" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (stopped / "checkpoints/checkpoint-8").is_dir()


@pytest.mark.parametrize("name", ["adapter", "checkpoints"])
def test_a_file_in_the_place_of_a_folder(trained: Trained, stopped: Path, name: str) -> None:
    shutil.rmtree(stopped / name, ignore_errors=True)
    (stopped / name).write_text("mine")
    with pytest.raises(UsageError, match=f"{name} is a file where the run keeps a folder; remove it, or name another"):
        trained.go_on(stopped)
    assert (stopped / name).read_text() == "mine"


def test_a_lost_log(trained: Trained, whole: Path) -> None:
    (whole / "log.jsonl").unlink()
    with pytest.raises(CorruptStore, match=r"has lost its log; .*adapter is whole"):
        trained.go_on(whole)


@dataclass
class AllAlike:
    """A score that finds every checkpoint as good as the others."""

    identity: str = "nothing"

    def __call__(self, encoder: Encoder) -> float:
        return 0.5


@pytest.mark.parametrize("base", ["a backbone", "an adapter"])
@pytest.mark.parametrize(
    "settings",
    [
        ("loss.false_negative_margin=-2",),
        ("loss.false_negative_margin=-2", "optim.average=3"),
        ("optim.warmup_steps=3", "optim.evaluate_every=1"),
    ],
    ids=" ".join,
)
def test_training_that_changes_nothing(
    trained: Trained, tiny_model: Path, tmp_path: Path, base: str, settings: tuple[str, ...]
) -> None:
    start = trained.whole / "adapter" if base == "an adapter" else tiny_model
    with pytest.raises(ModelError, match=r"^training has changed nothing: ") as caught:
        trainer.train([trained.pairs], tmp_path / "run", tiny_recipe(start, *settings), score=AllAlike())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_warm_up_that_leaves_nothing_to_learn_is_refused_before(tiny_model: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet")
    with pytest.raises(RecipeError, match=r"^the run's only step would be the first of the warm-up"):
        trainer.train([pairs], tmp_path / "run", tiny_recipe(tiny_model, "optim.steps=1", "optim.warmup_steps=1"))
    assert not (tmp_path / "run").exists()


def test_too_little_to_change_a_vector(tiny_model: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet")
    recipe = tiny_recipe(tiny_model, "optim.steps=2", "optim.warmup_steps=1000000", "optim.learning_rate=1e-30")
    with pytest.raises(AdapterError, match=r"^what was learned is too little .*: raise optim.learning_rate, or lower"):
        trainer.train([pairs], tmp_path / "run", recipe)
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.parametrize("held_out", [8, 0])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_that_diverges(tiny_model: Path, tmp_path: Path, held_out: int, dtype: str) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet")
    settings = ("optim.learning_rate=1e30", "optim.warmup_steps=0", "optim.steps=1")
    recipe = tiny_recipe(tiny_model, *settings, f"data.held_out={held_out}", f"optim.dtype={dtype}")
    with pytest.raises(ModelError) as caught:
        trainer.train([pairs], tmp_path / "run", recipe)
    remedy = "lower optim.learning_rate, or set optim.dtype to float32"
    assert str(caught.value) == f"the vectors after step 1 are not finite: {remedy}"
    assert not (tmp_path / "run" / "adapter").exists()


def test_a_first_run_that_fails_leaves_nothing_of_its_own(tiny_model: Path, tmp_path: Path) -> None:
    pairs, run, kept = write_pairs(tmp_path / "pairs.parquet"), tmp_path / "runs" / "a", tmp_path / "kept"
    kept.mkdir()

    def stop(record: Progress) -> None:
        if not (run / "notes.txt").exists():
            (run / "notes.txt").touch()
            raise KeyboardInterrupt

    for folder in (run, kept):
        with pytest.raises(RecipeError, match="nope"):
            trainer.train([pairs], folder, tiny_recipe(tiny_model, 'model.lora_targets=["nope"]'))
    assert (list(run.parent.iterdir()), list(kept.iterdir())) == ([], [])
    with pytest.raises(KeyboardInterrupt, match="before the first checkpoint; the same command begins anew"):
        trainer.train([pairs], run, tiny_recipe(tiny_model), on_progress=stop)
    assert (run / "recipe.toml").is_file()  # beside what is not ours it stays a run, which the same command takes
    assert trainer.train([pairs], run, tiny_recipe(tiny_model)).adapter.is_dir()


def test_a_first_run_that_fails_leaves_what_others_put_there(tiny_model: Path, tmp_path: Path) -> None:
    pairs, run, away = write_pairs(tmp_path / "pairs.parquet"), tmp_path / "run", tmp_path / "away"

    def train(meanwhile: Callable[[], object]) -> None:
        def stop(record: Progress) -> None:
            meanwhile()
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt, match="before the first checkpoint; the same command begins anew"):
            trainer.train([pairs], run, tiny_recipe(tiny_model), on_progress=stop)

    def begin_another() -> None:
        run.rename(away)
        shutil.copytree(away, run)

    train(begin_another)
    assert (run / "recipe.toml").is_file()
    shutil.rmtree(run)
    train(lambda: shutil.rmtree(run))
    train(lambda: (run / "checkpoints" / "copied").mkdir(parents=True))
    assert (run / "checkpoints" / "copied").is_dir()


def test_a_run_that_fails_later_keeps_what_it_had(trained: Trained, tiny_model: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained.stopped, tmp_path / "run"))
    before = sorted(path.name for path in run.rglob("*"))
    with pytest.raises(RecipeError, match="was started with another recipe"):
        trainer.train([trained.pairs], run, tiny_recipe(tiny_model, 'model.lora_targets=["nope"]'))
    assert sorted(path.name for path in run.rglob("*")) == before
