"""The folder of a training run: what it was started with, its checkpoints, its log, its adapter.

::

    RUN/recipe.toml        as run, every key
    RUN/run.json           identity of the base and of the pairs, and by what checkpoints are compared
    RUN/checkpoints/       transformers' own, each with a checksum of its files; the newest, the best, and those to be
                           averaged
    RUN/averaged/          the mean of several, where the recipe wants one
    RUN/log.jsonl          one object an evaluation or a log entry
    RUN/tensorboard/       the same for TensorBoard, where that is installed
    RUN/adapter/           appears last: the finished encoder

A run goes on only with the recipe, the pairs and the score that it was started with.
"""

import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from llmindex.errors import CorruptStore, RecipeError, UsageError
from llmindex.folder import LOCK_NAME
from llmindex.store.files import hash_file, is_at, is_temporary, lock, make_folder, replacing, storage_error
from llmindex_training import recipe as recipes
from llmindex_training.recipe import Recipe

logger = logging.getLogger(__name__)

RECIPE, STATE, LOG = "recipe.toml", "run.json", "log.jsonl"
CHECKPOINTS, ADAPTER, TENSORBOARD, AVERAGED = "checkpoints", "adapter", "tensorboard", "averaged"

# What a run that was killed while it started, or while it was cleared away, leaves behind.
_HALF_STARTED = {STATE, LOCK_NAME}
_CLEARED = ".cleared"
# What a run has in its folder before its adapter.
_BEGUN = _HALF_STARTED | {RECIPE, LOG, CHECKPOINTS, TENSORBOARD, AVERAGED, _CLEARED}
# The sha256 of each other file of a checkpoint. Written last: a checkpoint without it was cut off.
_CHECKSUMS = "checksums.json"

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
        self._made = self._first = False

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
            CorruptStore: what says so is gone or damaged.
            IndexLocked: another process trains there.
            StorageError: the disk refused.
        """
        _check_run(self.path)
        self._made = not self.path.exists()
        self._first = self._made or _is_half_started(self.path)
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

    def abandon(self) -> None:
        """Leave nothing of a first start that came to no checkpoint: there is nothing to go on from."""
        with suppress(OSError):  # what stopped the run is told, and what is left stands in nobody's way
            # The folder may have been moved away since, and another run begun in its place.
            if self._lock is None or not self._first or not is_at(self._lock, self.path / LOCK_NAME):
                return
            if self.last_checkpoint() is not None or self._holds_other():
                return  # without its recipe, a folder with something else in it would be no run any more
            self._clear()
            (self.path / LOCK_NAME).unlink()
            if self._made:
                self.path.rmdir()

    def _holds_other(self) -> bool:
        """Whether there is something that no run before its adapter has made."""
        ours = set(self._all_checkpoints())
        copies = self.checkpoints.is_dir() and any(entry not in ours for entry in self.checkpoints.iterdir())
        return copies or any(entry.name not in _BEGUN and not is_temporary(entry) for entry in self.path.iterdir())

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
        if _fault(folder):
            raise CorruptStore(f"{folder}, which the adapter is made of, is gone or damaged; {_AFRESH}")
        return folder

    def last_checkpoint(self) -> Path | None:
        """The newest checkpoint that was written whole."""
        return next((folder for folder in reversed(self._all_checkpoints()) if not _fault(folder)), None)

    def seal(self, step: int) -> None:
        """Record the checksums of a checkpoint that has just been written, which makes it whole.

        Raises:
            StorageError: the disk refused.
        """
        folder = self.checkpoints / f"checkpoint-{step}"
        sums = {file.name: hash_file(file) for file in sorted(folder.iterdir()) if file.is_file()}
        with replacing(folder / _CHECKSUMS) as temporary:
            temporary.write_text(json.dumps(sums, indent=1) + "\n", encoding="utf-8")

    def drop_old(self, most: int, best: int | None) -> None:
        """Remove the oldest checkpoints until there are so many, never that of the best step."""
        others = [folder for folder in self._all_checkpoints() if step_of(folder) != best]
        kept = most if best is None else most - 1
        for folder in others[:-kept]:
            shutil.rmtree(folder, ignore_errors=True)

    def drop_cut_off(self) -> None:
        """Remove the checkpoints that are not whole, and say which were damaged since they were."""
        for folder in self._all_checkpoints():
            if fault := _fault(folder):
                level = logging.WARNING if (folder / _CHECKSUMS).exists() else logging.INFO
                logger.log(level, "%s is passed over: %s", folder, fault)
                shutil.rmtree(folder, ignore_errors=True)

    def _all_checkpoints(self) -> list[Path]:
        """Transformers' folders, the oldest first; not what someone may have copied beside them."""
        found = self.checkpoints.glob("checkpoint-*")
        return sorted((folder for folder in found if folder.name[len("checkpoint-") :].isdigit()), key=step_of)

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
            except (ValueError, TypeError, KeyError, RecursionError) as error:
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
        try:
            before = recipes.load(str(self.path / RECIPE))
        except RecipeError as error:
            raise CorruptStore(f"{self.path / RECIPE} is damaged ({error}); {_AFRESH}") from error
        if changed := recipes.changes(before, recipe):
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
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
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


def _check_run(path: Path) -> None:
    """Refuse a folder that neither is that of a run nor may become one: empty, or with what a killed start leaves."""
    if not path.exists() or (path.is_dir() and _is_half_started(path)):
        return
    lost = [name for name in (RECIPE, STATE) if not (path / name).is_file()]
    folders = [path / name for name in (CHECKPOINTS, ADAPTER, TENSORBOARD, AVERAGED)]
    if len(lost) == 1 and any(folder.is_dir() for folder in folders):
        raise CorruptStore(f"{path / lost[0]} is gone: put it back, or remove {path}, or name another folder with -o")
    if lost:
        raise UsageError(f"{path} exists and is no training run; name another folder with -o")
    if wrong := [folder for folder in folders if folder.exists() and not folder.is_dir()]:
        raise UsageError(
            f"{wrong[0]} is a file where the run keeps a folder; remove it, or name another folder with -o"
        )


def _is_half_started(path: Path) -> bool:
    return all(entry.name in _HALF_STARTED or is_temporary(entry) for entry in path.iterdir())


def _fault(checkpoint: Path) -> str:
    """Why a checkpoint cannot be gone on from; empty where it is as it was written."""
    file = checkpoint / _CHECKSUMS
    if not file.is_file():
        return "it was not written whole"
    try:
        sums = json.loads(file.read_text(encoding="utf-8"))
        damaged = next((name for name, sha256 in sums.items() if hash_file(checkpoint / name) != sha256), None)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        return f"{getattr(error, 'filename', None) or file} is gone or damaged"
    return f"{checkpoint / damaged} is damaged" if damaged else ""


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])
