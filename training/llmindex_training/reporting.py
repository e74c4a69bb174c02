"""How far a training run is, told to whoever watches, and what it came to."""

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from llmindex.progress import Progress, ProgressCallback
from llmindex_training.run_folder import RunFolder


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What a run came to.

    Attributes:
        run: its folder.
        adapter: what ``--model`` takes.
        pairs: how many were given.
        steps: how many were taken, by all its processes together.
        kept_steps: the step whose adapter was kept, or those whose mean was.
        scores: score by step.
        tokens: model tokens this call trained on, all processes together.
        tokens_per_s: of the training steps alone.
        seconds: wall time of this call.
        cosine: of the trained to the saved encoder, the lowest of some texts.
        complete_before: whether there was nothing left to do.
    """

    run: Path
    adapter: Path
    pairs: int
    steps: int
    kept_steps: tuple[int, ...]
    scores: dict[int, float]
    tokens: int = 0
    tokens_per_s: float = 0.0
    seconds: float = 0.0
    cosine: float = 1.0
    complete_before: bool = False

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        return asdict(self) | {"run": str(self.run), "adapter": str(self.adapter)}


@contextmanager
def to_tensorboard(trainer: Trainer, folder: RunFolder) -> Iterator[None]:
    """Have a trainer write its log for TensorBoard, too, where that is installed."""
    if importlib.util.find_spec("tensorboard") is None:
        yield
        return
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    writer = SummaryWriter(str(folder.tensorboard))
    trainer.add_callback(TensorBoardCallback(writer))
    try:
        yield
    finally:
        # Trainer does so after the last step alone; until then a thread writes, which would miss a folder cleared away.
        with suppress(OSError):  # what stopped the run is told
            writer.close()


class Reporter(TrainerCallback):  # type: ignore[misc]
    """Tells how far the training is, with the newest loss and score."""

    def __init__(self, on_progress: ProgressCallback, tokens: Callable[[], int]) -> None:
        self._on_progress = on_progress
        self._tokens = tokens
        self._first = 0
        self._details: dict[str, str] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Tell where the run begins, or goes on."""
        self._first = state.global_step
        if not args.eval_on_start:  # else the first score tells it: what that takes is no step's time
            self._report(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:  # noqa: ANN401
        """Tell the newest loss or score."""
        named = {"loss": "loss {:.3f}", "learning_rate": "lr {:.1e}", "eval_score": "score {:.4f}"}
        self._details |= {key: named[key].format(value) for key, value in (logs or {}).items() if key in named}
        self._report(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Tell how many steps are done."""
        self._report(state)

    def _report(self, state: Any) -> None:  # noqa: ANN401
        done = state.global_step
        self._on_progress(
            Progress(
                "train",
                done,
                state.max_steps,
                "steps",
                tokens=self._tokens(),
                fresh=done - self._first,
                detail=", ".join(self._details.values()),
            )
        )
