"""A run that was stopped, however, goes on to the same adapter bit for bit; with anything changed it does not go on."""

import errno
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from transformers import TrainerState

from llmindex.errors import IndexLocked, Interrupted, RecipeError, StorageError
from llmindex.progress import Progress
from llmindex.store import files as store_files
from llmindex_training import adapter, trainer
from llmindex_training.recipe import Recipe
from llmindex_training.reporting import TrainReport
from llmindex_training.run_folder import RunFolder
from tests.full_disk import files_up_to
from tests.training_runs import tiny_recipe, write_pairs

HERE = Path(__file__).parents[2]
WEIGHTS = "adapter/adapter_model.safetensors"


class Stopped(BaseException):
    """Ends a run where nobody catches it."""


class Runs:
    """The same run in several folders."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.model = model
        self.pairs = write_pairs(folder / "pairs.parquet")
        self.recipe = tiny_recipe(model)
        self.whole = folder / "whole"
        self.train(self.whole)

    def train(self, run: Path, **options: object) -> TrainReport:
        return trainer.train([self.pairs], run, self.recipe, **options)  # type: ignore[arg-type]

    def stop_at(self, run: Path, step: int, error: type[BaseException] = Stopped) -> None:
        def tell(record: Progress) -> None:
            if record.done == step:
                raise error

        self.train(run, on_progress=tell)

    def check_equal(self, run: Path) -> None:
        """The adapter, and the log, are those of the uninterrupted run."""
        for name in (WEIGHTS, "log.jsonl", "recipe.toml", "run.json"):
            assert (run / name).read_bytes() == (self.whole / name).read_bytes(), name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), tiny_model)


def test_a_run_is_reproducible(runs: Runs, tmp_path: Path) -> None:
    runs.train(tmp_path / "run")
    runs.check_equal(tmp_path / "run")


@pytest.mark.parametrize("steps", [(0,), (5, 9), (4, 8, 12)], ids=str)
def test_stopped_at_steps(runs: Runs, tmp_path: Path, steps: tuple[int, ...]) -> None:
    run = tmp_path / "run"
    for step in steps:
        with pytest.raises(Stopped):
            runs.stop_at(run, step)
        assert not (run / "adapter").exists()
    report = runs.train(run)
    runs.check_equal(run)
    assert report.scores == runs.train(runs.whole).scores
    assert list((run / "checkpoints").iterdir())


def test_killed_at_random_moments(runs: Runs, tmp_path: Path) -> None:
    """Real processes, killed with SIGKILL until one comes through."""
    program = """
import os, random, signal, sys, time
from pathlib import Path
import peft, sklearn.cluster, transformers.models.llama.modeling_llama, transformers.trainer
from llmindex_training import recipe, trainer

folder, pairs = Path(sys.argv[1]), sys.argv[2]

def start(run):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            trainer.train([pairs], folder / run, recipe.load(sys.argv[3]))
            code = 0
        finally:
            os._exit(code)
    return child

def logged():
    log = folder / "killed" / "log.jsonl"
    return log.read_bytes() if log.is_file() else b""

assert os.waitpid(start("uninterrupted"), 0)[1] == 0
chance = random.Random(5)
killed = 0
while True:
    before = logged()
    child = start("killed")
    if killed < 6:
        exited = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while logged() == before and os.waitid(os.P_PID, child, exited) is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] == 0:
        break
    killed += 1
    seen = sorted(path.name for path in (folder / "killed").glob("checkpoints/*"))
    print(killed, *seen, file=sys.stderr)
print(killed)
"""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny_recipe(runs.model, "optim.steps=16", "optim.evaluate_every=2").to_toml(), encoding="utf-8")
    paths = ":".join(str(HERE / name) for name in ("", "cli", "training"))
    ended = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path), str(runs.pairs), str(recipe)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert int(ended.stdout) >= 1, ended.stderr
    for name in (WEIGHTS, "log.jsonl"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "uninterrupted" / name).read_bytes()


def test_another_model_of_the_same_name_is_refused(runs: Runs, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base, run = tmp_path / "base", tmp_path / "run"
    shutil.copytree(runs.model, base)
    recipe = tiny_recipe(base, "optim.steps=4")
    trainer.train([runs.pairs], run, recipe)
    # What someone has put beside the checkpoints is none of them.
    shutil.copytree(run / "checkpoints/checkpoint-4", run / "checkpoints/checkpoint-4 (copy)")
    shutil.rmtree(run / "adapter")
    assert trainer.train([runs.pairs], run, recipe).kept_steps == (4,)
    shutil.rmtree(run / "adapter")
    weights = base / "model.safetensors"
    save_file({name: tensor * 1.01 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(RecipeError, match="was started from another model of the same name; train into another folder"):
        trainer.train([runs.pairs], run, recipe)


@pytest.mark.parametrize("left", ["no end", "half an end", "an empty folder"])
def test_a_checkpoint_that_was_cut_off_is_ignored(runs: Runs, tmp_path: Path, left: str) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        runs.stop_at(run, 6)
    cut = run / "checkpoints" / "checkpoint-8"
    shutil.copytree(run / "checkpoints" / "checkpoint-4", cut)
    end = cut / "trainer_state.json"
    whole = end.read_text(encoding="utf-8")
    end.unlink()
    if left == "half an end":
        end.write_text(whole[: len(whole) // 2], encoding="utf-8")
    elif left == "an empty folder":
        shutil.rmtree(cut)
        cut.mkdir()
    told: list[int] = []
    runs.train(run, on_progress=lambda record: told.append(record.done))
    assert told[0] == 4
    runs.check_equal(run)


def test_a_log_line_that_was_cut_off_is_dropped(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        runs.stop_at(run, 6)
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 7, "lo')
    runs.train(run)
    runs.check_equal(run)


def test_ctrl_c(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> float:
        raise KeyboardInterrupt

    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt, match=r"^before the first checkpoint; the same command begins anew$"):
        runs.stop_at(run, 2, KeyboardInterrupt)
    with pytest.raises(Interrupted, match=r"^the checkpoint of step 8 is kept$"):
        runs.stop_at(run, 9, KeyboardInterrupt)
    with monkeypatch.context() as patch:
        patch.setattr(adapter, "save", interrupted)
        with pytest.raises(Interrupted, match=r"^all 12 steps are done, the adapter is yet to be made$"):
            runs.train(run)
    runs.train(run)
    runs.check_equal(run)


# A full disk


def no_space(*arguments: object, **options: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("owner", "name"),
    [(torch, "save"), (safetensors.torch, "save_file"), (TrainerState, "save_to_json")],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_full_disk_while_checkpointing(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    run = tmp_path / "run"
    with pytest.raises(Stopped):
        runs.stop_at(run, 6)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, no_space)
        if owner is safetensors.torch:
            patch.setattr("peft.peft_model.safe_save_file", no_space)
        with pytest.raises(StorageError) as caught:
            runs.train(run)
    assert str(caught.value) == (
        f"cannot write the checkpoint of step 8 to {run}/checkpoints: No space left on device; "
        "the checkpoint of step 4 is safe; free space and run the same command again"
    )
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-4"]
    runs.train(run)
    runs.check_equal(run)


@pytest.mark.parametrize(
    ("owner", "name", "told"),
    [
        (torch, "save", "the disk is full, or a file cannot be written"),
        (trainer.ContrastiveTrainer, "_save", "File too large"),
    ],
)
def test_a_disk_that_takes_no_more(
    runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, name: str, told: str
) -> None:
    run = tmp_path / "run"
    write = getattr(owner, name)

    def limited(*arguments: object, **options: object) -> None:
        with files_up_to(100):
            write(*arguments, **options)

    monkeypatch.setattr(owner, name, limited)
    with pytest.raises(StorageError) as caught:
        runs.train(run)
    assert str(caught.value) == (
        f"cannot write the checkpoint of step 4 to {run}/checkpoints: {told}; there is no checkpoint yet; free space "
        "and run the same command again"
    )


def test_a_full_disk_while_logging(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr("llmindex_training.run_folder.LOG", "missing/log.jsonl")
        patch.setattr(RunFolder, "cut_log", lambda self, step: None)
        with pytest.raises(StorageError, match=r"log\.jsonl: No such file or directory"):
            runs.train(run)
    runs.train(run)
    runs.check_equal(run)


def test_a_full_disk_while_the_adapter_is_made(runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", no_space)
        with pytest.raises(StorageError, match=r"adapter_model.safetensors: No space left on device$"):
            runs.train(run)
    assert not (run / "adapter").exists()
    assert runs.train(run).tokens == 0
    runs.check_equal(run)


# What must not go on


@pytest.mark.parametrize("stopped", [True, False], ids=["stopped", "complete"])
def test_a_changed_recipe_or_other_pairs_are_refused(runs: Runs, tmp_path: Path, stopped: bool) -> None:
    run = tmp_path / "run"
    if stopped:
        with pytest.raises(Stopped):
            runs.stop_at(run, 6)
    else:
        shutil.copytree(runs.whole, run)
    remedy = "; train into another folder with -o, or start afresh with --overwrite"
    with pytest.raises(RecipeError) as caught:
        trainer.train([runs.pairs], run, tiny_recipe(runs.model, "optim.steps=20", "loss.temperature=0.1"))
    assert str(caught.value) == (
        f"{run} was started with another recipe (loss.temperature was 0.05, now 0.1; "
        f"optim.steps was 12, now 20){remedy}"
    )
    with pytest.raises(RecipeError) as caught:
        trainer.train([runs.pairs, runs.pairs], run, runs.recipe)
    assert str(caught.value) == f"{run} was started with other pairs{remedy}"
    runs.train(run)
    runs.check_equal(run)


def test_before_the_first_checkpoint_there_is_nothing_to_keep(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    other: Recipe = tiny_recipe(runs.model, "optim.steps=20")
    with pytest.raises(Stopped):
        trainer.train([runs.pairs], run, other, on_progress=_stop)
    runs.train(run)
    runs.check_equal(run)


def test_a_stopped_run_writes_no_more(runs: Runs, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    before = set(threading.enumerate())
    with pytest.raises(Stopped):
        trainer.train([runs.pairs], tmp_path / "run", tiny_recipe(runs.model, "optim.steps=20"), on_progress=_stop)
    assert set(threading.enumerate()) <= before


def _stop(record: Progress) -> None:
    if record.done == 3:
        raise Stopped


def test_overwrite(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    first = trainer.train([runs.pairs], run, tiny_recipe(runs.model, "optim.steps=4"))
    (run / "notes.txt").write_text("mine", encoding="utf-8")
    assert first.steps == 4
    assert runs.train(run, overwrite=True).steps == 12
    runs.check_equal(run)
    assert (run / "notes.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize("left", ["nothing", "lock", "run.json", ".recipe.toml.tmp"])
def test_a_start_that_was_killed_is_no_strange_folder(runs: Runs, tmp_path: Path, left: str) -> None:
    run = tmp_path / "run"
    run.mkdir()
    if left != "nothing":
        (run / left).write_text("{}", encoding="utf-8")
    with pytest.raises(Stopped):
        runs.stop_at(run, 0)
    assert list(run.iterdir()) == []


def test_one_process_at_a_time(runs: Runs, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    held = store_files.lock(run)
    with pytest.raises(IndexLocked, match=rf"run is being written by process {os.getpid()}; wait for it or stop it"):
        runs.train(run)
    held.close()
    assert [path.name for path in run.iterdir()] == ["lock"]
    with pytest.raises(Stopped):
        runs.stop_at(run, 0)
