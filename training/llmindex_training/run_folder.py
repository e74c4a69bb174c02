"""The folder of a training run: what it was started with, its checkpoints, its log, its adapter.

::

    RUN/recipe.toml        as run, every key
    RUN/run.json           identity of the base and of the pairs, and by what checkpoints are compared
    RUN/checkpoints/       transformers' own; the newest whole one, the best one, and those to be averaged
    RUN/averaged/          the mean of several, where the recipe wants one
    RUN/log.jsonl          one object an evaluation or a log entry
    RUN/tensorboard/       the same for TensorBoard, where that is installed
    RUN/adapter/           appears last: the finished encoder

A run goes on only with the recipe, the pairs and the score that it was started with.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO
from zipfile import is_zipfile

from safetensors import SafetensorError, safe_open

from llmindex.encode.adapter import CONFIG_NAME, WEIGHTS_NAME
from llmindex.errors import CorruptStore, RecipeError, UsageError
from llmindex.store.files import LOCK_NAME, is_temporary, lock, make_folder, replacing, storage_error
from llmindex_training import recipe as recipes
from llmindex_training.recipe import Recipe

RECIPE, STATE, LOG = "recipe.toml", "run.json", "log.jsonl"
CHECKPOINTS, ADAPTER, TENSORBOARD, AVERAGED = "checkpoints", "adapter", "tensorboard", "averaged"

# What a run that was killed while it started, or while it was cleared away, leaves behind.
_HALF_STARTED = {STATE, LOCK_NAME}
_CLEARED = ".cleared"
# Written last by transformers: a checkpoint without it, or with a part of it, was cut off.
_CHECKPOINT_END = "trainer_state.json"

_AFRESH = "start afresh with --overwrite"


class RunFolder:
    """A training run on disk.

    Attributes:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        """Name a folder; :meth:`take` it before anything is written."""
        self.path = path
        self._lock: BinaryIO | None = None

    def take(self, recipe: Recipe, base_sha256: str, pairs_sha256: str, score: str, *, overwrite: bool) -> bool:
        """Take the folder for this process: a new one, or one left with the same recipe, base, pairs and score.

        A run that was left before its first checkpoint has nothing to go on from, and starts afresh with what is given.

        Args:
            recipe: how to train.
            base_sha256: identity of the model that training starts from.
            pairs_sha256: identity of the pairs.
            score: identity of what checkpoints are compared by.
            overwrite: clear away a run that is there.

        Returns:
            whether the run is complete.

        Raises:
            UsageError: there is a folder of something else.
            RecipeError: it was started with another recipe or base, other pairs or another score.
            CorruptStore: what says so is damaged.
            IndexLocked: another process trains there.
            StorageError: the disk refused.
        """
        if self.path.exists() and not _is_run(self.path):
            raise UsageError(f"{self.path} exists and is no training run; name another folder with -o")
        make_folder(self.path)
        state = {"base_sha256": base_sha256, "pairs_sha256": pairs_sha256, "score": score}
        self._lock = lock(self.path)
        try:
            if overwrite:
                self._clear()
            complete = self.adapter.is_dir()
            if complete or self.last_checkpoint() is not None:
                self._check_same(recipe, state)
            else:
                self._start(recipe, state)
        except BaseException:
            self.close()
            raise
        return complete

    def close(self) -> None:
        """Let others take the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    @property
    def adapter(self) -> Path:
        """The finished encoder, once it is there."""
        return self.path / ADAPTER

    @property
    def checkpoints(self) -> Path:
        """The output folder of transformers."""
        return self.path / CHECKPOINTS

    @property
    def averaged(self) -> Path:
        """The mean of several checkpoints."""
        return self.path / AVERAGED

    @property
    def tensorboard(self) -> Path:
        """Where TensorBoard finds the log."""
        return self.path / TENSORBOARD

    def checkpoint(self, step: int) -> Path:
        """The checkpoint of a step.

        Raises:
            CorruptStore: it is gone or damaged.
        """
        folder = self.checkpoints / f"checkpoint-{step}"
        if not _is_whole(folder):
            raise CorruptStore(f"{folder}, which the adapter is made of, is gone or damaged; {_AFRESH}")
        return folder

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written whole."""
        whole = [folder for folder in self._all_checkpoints() if _is_whole(folder)]
        return max(whole, key=step_of, default=None)

    def drop_cut_off(self) -> None:
        """Remove the checkpoints that were not written whole; they would only take room."""
        for folder in self._all_checkpoints():
            if not _is_whole(folder):
                shutil.rmtree(folder, ignore_errors=True)

    def _all_checkpoints(self) -> list[Path]:
        """Transformers' folders; not what someone may have copied beside them."""
        return [
            folder for folder in self.checkpoints.glob("checkpoint-*") if folder.name[len("checkpoint-") :].isdigit()
        ]

    def append_log(self, entry: dict[str, float]) -> None:
        """Add a line to the log.

        Raises:
            StorageError: the disk refused.
        """
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise storage_error(self.path / LOG, error) from error

    def read_log(self) -> list[dict[str, float]]:
        """All entries of the log, each with its step, but for a last one that was cut off.

        Raises:
            CorruptStore: another line is damaged.
        """
        if not (self.path / LOG).is_file():
            return []
        entries: list[dict[str, float]] = []
        lines = (self.path / LOG).read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
                entries.append({"step": int(entry["step"])} | entry)
            except (ValueError, TypeError, KeyError) as error:
                if line.endswith("\n"):
                    raise CorruptStore(f"{self.path / LOG}, line {number} is damaged; remove that line") from error
        return entries

    def cut_log(self, step: int) -> None:
        """Drop the entries after a step: the run goes on from there."""
        kept = [json.dumps(entry) + "\n" for entry in self.read_log() if entry["step"] <= step]
        with replacing(self.path / LOG) as temporary:
            temporary.write_text("".join(kept), encoding="utf-8")

    def _start(self, recipe: Recipe, state: Mapping[str, str]) -> None:
        shutil.rmtree(self.path / _CLEARED, ignore_errors=True)
        with replacing(self.path / STATE) as temporary:
            temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
        with replacing(self.path / RECIPE) as temporary:
            temporary.write_text(recipe.to_toml(), encoding="utf-8")

    def _check_same(self, recipe: Recipe, state: Mapping[str, str]) -> None:
        remedy = f"train into another folder with -o, or {_AFRESH}"
        if changed := recipes.changes(recipes.load(str(self.path / RECIPE)), recipe):
            raise RecipeError(f"{self.path} was started with another recipe ({'; '.join(changed)}); {remedy}")
        started = self._read_state()
        if started["base_sha256"] != state["base_sha256"]:
            raise RecipeError(f"{self.path} was started from another model of the same name; {remedy}")
        if started["pairs_sha256"] != state["pairs_sha256"]:
            raise RecipeError(f"{self.path} was started with other pairs; {remedy}")
        if started["score"] != state["score"]:
            raise RecipeError(f"{self.path} was scored by {started['score']}, now by {state['score']}; {remedy}")

    def _read_state(self) -> dict[str, str]:
        file = self.path / STATE
        try:
            state = json.loads(file.read_text(encoding="utf-8"))
            return {key: str(state[key]) for key in ("base_sha256", "pairs_sha256", "score")}
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise CorruptStore(f"{file} is damaged; {_AFRESH}") from error

    def _clear(self) -> None:
        """Remove the run: what would make half of it look whole goes in one stroke, and first."""
        for name in (ADAPTER, CHECKPOINTS, TENSORBOARD, AVERAGED):
            shutil.rmtree(self.path / _CLEARED, ignore_errors=True)
            if (self.path / name).is_dir():
                (self.path / name).rename(self.path / _CLEARED)
        shutil.rmtree(self.path / _CLEARED, ignore_errors=True)
        for name in (LOG, RECIPE, STATE):
            (self.path / name).unlink(missing_ok=True)


def _is_run(path: Path) -> bool:
    """Whether a folder is that of a run, or may become one: empty, or with what a killed start leaves."""
    if not path.is_dir():
        return False
    if (path / RECIPE).is_file() and (path / STATE).is_file():
        return True
    return all(entry.name in _HALF_STARTED or is_temporary(entry) for entry in path.iterdir())


def _is_whole(checkpoint: Path) -> bool:
    """Whether transformers wrote all of a checkpoint, and nothing of it was lost since."""
    states = [checkpoint / "optimizer.pt", checkpoint / "scheduler.pt", *checkpoint.glob("rng_state*.pth")]
    try:
        for name in (_CHECKPOINT_END, CONFIG_NAME):
            json.loads((checkpoint / name).read_text(encoding="utf-8"))
        with safe_open(checkpoint / WEIGHTS_NAME, framework="numpy") as weights:
            return len(states) > 2 and any(weights.keys()) and all(map(is_zipfile, states))
    except (OSError, ValueError, SafetensorError):
        return False


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
