"""Contrastive training: transformers' Trainer for schedule, checkpoints and resuming; our step for the gradients.

The Trainer sees a data set of steps: an item is the rows of one step's batch that belong to one process. So a batch is
as large as the recipe says, whatever fits into memory, and a resumed run takes the same rows as an uninterrupted one.
"""

import importlib.util
import logging
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, SequentialSampler
from transformers import PrinterCallback, Trainer, TrainingArguments

from llmindex.encode.encoder import Encoder
from llmindex.errors import CorruptStore, Interrupted, MissingPackage, ModelError, NotFinite, RecipeError, StorageError
from llmindex.progress import ProgressCallback
from llmindex.store.files import check_name, refused
from llmindex_training import adapter, distributed, random_states, scoring
from llmindex_training import pairs as pair_files
from llmindex_training import recipe as recipes
from llmindex_training import step as training_step
from llmindex_training.pairs import Deal, Pairs
from llmindex_training.recipe import Recipe
from llmindex_training.reporting import Reporter, TrainReport, to_tensorboard
from llmindex_training.run_folder import RunFolder, step_of
from llmindex_training.scoring import CheckpointScore, HeldOutPairs

logger = logging.getLogger(__name__)


@random_states.kept()
def train(
    files: str | Path | Iterable[str | Path],
    run: str | Path,
    recipe: Recipe,
    *,
    score: CheckpointScore | None = None,
    overwrite: bool = False,
    on_progress: ProgressCallback | None = None,
) -> TrainReport:
    """Train an adapter; goes on where an earlier call with the same arguments stopped.

    Started by ``torchrun``, its processes share each batch and its negatives.

    Args:
        files: pairs in Parquet.
        run: the run's folder.
        recipe: how to train.
        score: by what the best checkpoint is chosen; the mean reciprocal rank among the held-out pairs by default.
        overwrite: start afresh where there is a run already.
        on_progress: told of the stages "train" and, where the vectors are whitened, "whiten".

    Raises:
        Interrupted: Ctrl-C; the same call goes on from the last checkpoint. A first run that ends before there is one,
            however it does, leaves nothing behind.
        RecipeError: the recipe has an impossible value, or does not suit the model or the pairs.
        LlmindexError: whatever else a user can act on.
    """
    started = time.perf_counter()
    _check_packages()
    check_name(Path(run).resolve())  # as encoder.json will name it
    recipe = adapter.settled(recipes.checked(recipe))
    pairs = pair_files.read(files)
    deal = pair_files.deal(pairs, recipe.data, recipe.optim.batch_size, recipe.optim.steps)
    if len(deal.steps) == 1 and recipe.optim.warmup_steps:
        raise RecipeError(
            "the run's only step would be the first of the warm-up, whose learning rate is 0: raise optim.steps, or "
            "set optim.warmup_steps to 0"
        )
    if score is None and len(deal.held_out):
        score = HeldOutPairs(pairs.table.take(pa.array(deal.held_out)), recipe.data.query_prompt)
    identity = score.identity if score is not None else "nothing"
    base = adapter.base_sha256(recipe.model)
    distributed.start(recipe.optim.device)
    if (size := recipe.optim.batch_size) < distributed.world():
        raise RecipeError(f"optim.batch_size is {size}, less than a pair for each of {distributed.world()} processes")
    folder = RunFolder(Path(run))
    try:
        if distributed.from_first(lambda: folder.take(recipe, base, pairs.sha256, identity, overwrite=overwrite)):
            return _finished(folder, recipe, len(pairs))
        if distributed.rank() == 0:
            pair_files.tell_too_small(deal, recipe.optim.batch_size)
        encoder = adapter.load_base(recipe, _device(recipe))
        wrapped = adapter.attach(encoder, recipe)
        trainer = ContrastiveTrainer(encoder, wrapped, recipe, folder, pairs, deal, score, on_progress)
        trainer.run()
        tokens = distributed.total(trainer.tokens)
        # No process is done before the adapter is there.
        try:
            cosine = distributed.from_first(lambda: _keep_best(trainer, encoder, recipe, folder, on_progress))
        except KeyboardInterrupt as interrupt:
            raise Interrupted(f"all {len(deal.steps):,} steps are done, the adapter is yet to be made") from interrupt
        return TrainReport(
            run=folder.path,
            adapter=folder.adapter,
            pairs=len(pairs),
            steps=len(deal.steps),
            kept_steps=trainer.kept_steps,
            scores=_scores(folder.read_log()),
            tokens=tokens,
            tokens_per_s=tokens / trainer.step_seconds if tokens else 0.0,
            seconds=time.perf_counter() - started,
            cosine=cosine,
        )
    except BaseException:
        folder.abandon()
        raise
    finally:
        folder.close()


class ContrastiveTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer with our data, step and evaluation.

    Attributes:
        tokens: model tokens that this process has trained on.
        step_seconds: time that the gradients of all steps took, neither loading nor evaluation in it.
    """

    def __init__(
        self,
        encoder: Encoder,
        wrapped: Any,  # noqa: ANN401 - a PeftModel
        recipe: Recipe,
        folder: RunFolder,
        pairs: Pairs,
        deal: Deal,
        score: CheckpointScore | None,
        on_progress: ProgressCallback | None,
    ) -> None:
        self._encoder, self._recipe, self._folder, self._pairs, self._score = encoder, recipe, folder, pairs, score
        self.tokens = 0
        self.step_seconds = 0.0
        arguments = _arguments(recipe, folder, len(deal.steps), encoder, scored=score is not None)
        items = _Items(deal.steps, distributed.world())
        # Trainer wants a data set to evaluate, too; our evaluation has its own texts.
        super().__init__(model=wrapped, args=arguments, train_dataset=items, eval_dataset=items, data_collator=_only)
        self.remove_callback(PrinterCallback)
        if distributed.rank() == 0 and on_progress is not None:
            self.add_callback(Reporter(on_progress, lambda: self.tokens))

    @property
    def kept_steps(self) -> tuple[int, ...]:
        """The step of the best checkpoint, or the last one where nothing is scored; or those to be averaged."""
        last = int(self.state.global_step)
        if self._recipe.optim.average:
            return _averaged(last, self._recipe)
        return (int(self.state.best_global_step) if self._score is not None else last,)

    def sample(self, most: int) -> list[str]:
        """So many texts at most, of both sides of the pairs; always the same ones."""
        rows = np.random.default_rng(0).permutation(len(self._pairs))[: most // 2]
        drawn = self._pairs.table.take(pa.array(rows))
        return [*drawn[pair_files.TEXT].to_pylist(), *drawn[pair_files.PAIR].to_pylist()]

    def run(self) -> None:
        """Train to the end, from the last checkpoint if there is one.

        Raises:
            Interrupted: Ctrl-C; before the first checkpoint a plain KeyboardInterrupt.
            StorageError: a checkpoint could not be written.
        """
        checkpoint = distributed.from_first(self._folder.last_checkpoint)
        if checkpoint is not None:
            self.args.eval_on_start = False
            logger.info("going on from %s", checkpoint)
        if distributed.rank() == 0:
            self._folder.drop_cut_off()
            self._folder.cut_log(step_of(checkpoint) if checkpoint else -1)
        try:
            with to_tensorboard(self, self._folder) if distributed.rank() == 0 else nullcontext():
                self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except KeyboardInterrupt as interrupt:
            last = self._folder.last_checkpoint()
            if last is None:
                raise KeyboardInterrupt("before the first checkpoint; the same command begins anew") from interrupt
            raise Interrupted(f"the checkpoint of step {step_of(last)} is kept") from interrupt

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:  # noqa: ANN401
        """One batch's gradients; returns its loss.

        Raises:
            ModelError: the loss is not finite.
        """
        started = time.perf_counter()
        model.train()
        rows = self._pairs.table.take(pa.array(inputs["rows"]))
        result = training_step.backward(self._encoder, self._recipe, rows)
        if not torch.isfinite(result.loss):
            raise _diverged(f"the loss of step {self.state.global_step + 1} is {result.loss.item()}")
        self.tokens += result.tokens
        self.step_seconds += time.perf_counter() - started
        # Not all versions of transformers score the last step where it is no multiple of evaluate_every.
        self.control.should_evaluate |= self._score is not None and self.state.global_step + 1 == self.state.max_steps
        return result.loss

    def evaluate(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> dict[str, float]:  # noqa: ANN401
        """The score of the encoder as it is now, as ``eval_score``.

        Raises:
            ModelError: its vectors are not finite.
            UsageError: its score is not.
        """
        self._encoder.backbone.model.eval()
        with self.blamed():
            value = scoring.measured(self._score, self._encoder) if self._score is not None else math.nan
        metrics = {f"{metric_key_prefix}_score": value}
        self.log(metrics)
        self.control: Any = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Where vectors are not finite after a step, blame the training, not the model that it began with."""
        try:
            yield
        except NotFinite as error:
            if not self.state.global_step:
                raise NotFinite(adapter.in_keys(str(error))) from error
            raise _diverged(f"the vectors after step {self.state.global_step} are not finite") from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Keep an entry in the run's log, beside transformers' own ways."""
        super().log(logs, start_time)
        if distributed.rank() == 0 and not {"train_runtime"} & set(logs):
            kept = {key.removeprefix("eval_"): value for key, value in logs.items() if key != "epoch"}
            self._folder.append_log({"step": self.state.global_step, **kept})

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:  # noqa: ANN401
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        # The file that makes the checkpoint whole, written next, must not come before another process's state.
        distributed.wait()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:  # noqa: ANN401
        from safetensors import SafetensorError

        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self._folder.seal(self.state.global_step)
                self._folder.drop_old(max(2, self._recipe.optim.average + 1), self.state.best_global_step or None)
        except (OSError, RuntimeError, SafetensorError) as error:
            # torch's writer keeps the system's reason to itself.
            unsaid = "the disk is full, or a file cannot be written" if "inline_container" in str(error) else str(error)
            told = refused(error) or unsaid
            if self.args.should_save:
                self._folder.drop_cut_off()
            last = self._folder.last_checkpoint()
            kept = f"the checkpoint of step {step_of(last)} is safe" if last else "there is no checkpoint yet"
            raise StorageError(
                f"cannot write the checkpoint of step {self.state.global_step} to {self._folder.checkpoints}: "
                f"{told.partition(chr(10))[0]}; {kept}; free space and run the same command again"
            ) from error


def _diverged(what: str) -> ModelError:
    return ModelError(f"{what}: lower optim.learning_rate, or set optim.dtype to float32")


class _Items(Dataset[dict[str, NDArray[np.int64]]]):
    """The rows of each process's part of each step; item ``s * world + r`` is for process r, as accelerate deals."""

    def __init__(self, steps: NDArray[np.int64], world: int) -> None:
        self._parts = [part for step in steps for part in np.array_split(step, world)]

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> dict[str, NDArray[np.int64]]:
        return {"rows": self._parts[number]}


def _arguments(recipe: Recipe, folder: RunFolder, steps: int, encoder: Encoder, *, scored: bool) -> TrainingArguments:
    optim = recipe.optim
    on_cpu = encoder.placement.device.type == "cpu"
    arguments = TrainingArguments(
        output_dir=str(folder.checkpoints),
        per_device_train_batch_size=1,
        max_steps=steps,
        learning_rate=optim.learning_rate,
        warmup_steps=optim.warmup_steps,
        lr_scheduler_type="constant_with_warmup" if optim.schedule == "constant" else optim.schedule,
        weight_decay=optim.weight_decay,
        max_grad_norm=optim.max_grad_norm,
        seed=recipe.data.seed,
        use_cpu=on_cpu,
        ddp_backend="gloo" if on_cpu and "RANK" in os.environ else None,
        logging_steps=1,
        eval_strategy="steps" if scored else "no",
        eval_steps=optim.evaluate_every,
        eval_on_start=scored,
        save_strategy="steps",
        save_steps=optim.evaluate_every,
        load_best_model_at_end=False,
        metric_for_best_model="score" if scored else None,
        greater_is_better=True if scored else None,
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to=[],
    )
    if encoder.placement.device.type == "cuda" and "RANK" not in os.environ:
        _to_one_gpu(arguments, encoder.placement.device)
    return arguments


def _to_one_gpu(arguments: TrainingArguments, device: torch.device) -> None:
    """Have transformers train on the encoder's GPU: it takes the first, and shares batches out among all there are."""
    one = torch.device("cuda", device.index or 0)
    torch.cuda.set_device(one)
    vars(arguments).update(_setup_devices=one, _n_gpu=1)  # the first is the cached value of ``arguments.device``


def _check_packages() -> None:
    for name in ("peft", "accelerate"):
        if importlib.util.find_spec(name) is None:
            raise MissingPackage(f"training needs {name}: pip install peft accelerate")


def _only(items: Sequence[dict[str, NDArray[np.int64]]]) -> dict[str, NDArray[np.int64]]:
    (item,) = items
    return item


def _keep_best(
    trainer: ContrastiveTrainer,
    encoder: Encoder,
    recipe: Recipe,
    folder: RunFolder,
    on_progress: ProgressCallback | None,
) -> float:
    """Make the run's adapter from its best checkpoint, or the mean of the last; returns the proof's cosine."""
    from peft import load_peft_weights, set_peft_model_state_dict

    kept = [folder.checkpoint(step) for step in trainer.kept_steps]
    if not adapter.is_changed(kept, recipe.model):
        raise ModelError(
            "training has changed nothing: either no pair has a negative in its batch, since all texts are alike, or "
            "the step that is kept is the first of the warm-up, which has the learning rate 0; look at the pairs, or "
            "raise optim.steps"
        )
    weights = adapter.average(kept, folder.averaged) if len(kept) > 1 else kept[0]
    if recipe.model.quantize:
        encoder = adapter.unquantized(recipe, weights)
    else:
        set_peft_model_state_dict(trainer.model, load_peft_weights(str(weights), device=str(encoder.placement.device)))
    texts = trainer.sample(8 * recipe.model.whitening)
    with trainer.blamed():
        return adapter.save(weights, encoder, recipe.model, folder.adapter, texts, on_progress)


def _averaged(last: int, recipe: Recipe) -> tuple[int, ...]:
    """Steps of the last checkpoints, which come every so many steps and at the end."""
    every, most = recipe.optim.evaluate_every, recipe.optim.average
    return tuple(sorted({last, *range(every, last, every)})[-most:])


def _device(recipe: Recipe) -> str:
    """The recipe's device; one GPU for each process where ``torchrun`` started several."""
    rank = os.environ.get("LOCAL_RANK")
    if recipe.optim.device in ("auto", "cuda") and rank is not None and torch.cuda.is_available():
        return f"cuda:{rank}"
    return recipe.optim.device


def _finished(folder: RunFolder, recipe: Recipe, pairs: int) -> TrainReport:
    adapter.check(folder.adapter)
    log = folder.read_log()
    if not log:
        raise CorruptStore(f"{folder.path} has lost its log; {folder.adapter} is whole, and --overwrite starts afresh")
    scores = _scores(log)
    taken = max(int(entry["step"]) for entry in log)
    best = max((step for step in scores if step), key=lambda step: scores[step], default=taken)
    kept = _averaged(taken, recipe) if recipe.optim.average else (best,)
    return TrainReport(folder.path, folder.adapter, pairs, taken, kept, scores, complete_before=True)


def _scores(log: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """Score by step."""
    return {int(entry["step"]): entry["score"] for entry in log if "score" in entry}
