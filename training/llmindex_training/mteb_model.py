"""An encoder as the `mteb` package wants it, and a run of any of its tasks.

MTEB hands over batches of texts and says whether they are queries or documents; where it says neither, as in
clustering or sentence likeness, they are documents. The encoder's own prompts are put around them: MTEB's instructions
to models are not used, as our spec decides what a vector is made of.
"""

import importlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

from llmindex.encode.encoder import Encoder
from llmindex.errors import CorpusError, LlmindexError, MissingPackage, StorageError, UsageError
from llmindex.progress import Progress, ProgressCallback
from llmindex.records import Vectors

Task = Any
"""An ``mteb`` task: the package is optional."""

_SHOWN = 300


@dataclass(frozen=True, slots=True)
class TaskScore:
    """What an encoder reached in one MTEB task.

    Attributes:
        task: the task's name.
        type: its kind: "Clustering", "Retrieval", "STS", ...
        metric: name of its main score.
        score: the main score, the mean over its splits and subsets, as MTEB takes it.
        seconds: how long it took; None where MTEB did not say.
    """

    task: str
    type: str
    metric: str
    score: float
    seconds: float | None


class MtebModel:
    """An encoder with the methods that ``mteb.evaluate`` calls.

    Attributes:
        mteb_model_meta: what MTEB notes of it; the revision is the spec's fingerprint.
    """

    def __init__(self, encoder: Encoder, *unused: object, **ignored: object) -> None:
        """Wrap an encoder; the other arguments are those of MTEB's protocol, which loads models by name."""
        self._encoder = encoder
        spec = encoder.spec
        self.mteb_model_meta: Any = (
            _mteb()
            .models.ModelMeta.create_empty()
            .model_copy(
                update={
                    "name": f"llmindex/{Path(spec.backbone).name}",
                    "revision": spec.fingerprint(),
                    "embed_dim": spec.dim,
                    "max_tokens": spec.max_tokens,
                }
            )
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        prompt_type: object = None,
        **unused: object,
    ) -> Vectors:
        """Embed batches of texts: ``(n, dim) float32``.

        Args:
            inputs: batches, each with its texts under "text".
            prompt_type: "query", "document" or None.
            **unused: what else MTEB says of the task.
        """
        texts = [text for batch in inputs for text in batch["text"]]
        # An enum whose members are strings.
        is_query = getattr(prompt_type, "value", prompt_type) == "query"
        return self._encoder.encode(texts, role="query" if is_query else "document")

    def similarity(self, first: Vectors, second: Vectors) -> Vectors:
        """Cosines ``(n, m)`` of two sets of unit vectors."""
        cosines: Vectors = np.asarray(first) @ np.asarray(second).T
        return cosines

    def similarity_pairwise(self, first: Vectors, second: Vectors) -> Vectors:
        """Cosines ``(n,)`` of pairs of unit vectors."""
        cosines: Vectors = np.einsum("nd,nd->n", np.asarray(first), np.asarray(second))
        return cosines


def find_tasks(names: Sequence[str]) -> list[Task]:
    """Tasks by their names, or by the names of benchmarks, which are lists of tasks; each once.

    Raises:
        MissingPackage: mteb is not installed.
        UsageError: there is no such task and no such benchmark; the nearest are named.
    """
    mteb = _mteb()
    known_tasks = {task.metadata.name for task in mteb.get_tasks(exclude_superseded=False, exclude_private=False)}
    known_benchmarks = {benchmark.name for benchmark in mteb.get_benchmarks()}
    found: dict[str, Task] = {}
    for name in names:
        if name in known_benchmarks:
            found |= {task.metadata.name: task for task in mteb.get_benchmark(name).tasks}
        elif name in known_tasks:
            found[name] = mteb.get_task(name)
        else:
            near = get_close_matches(name, sorted(known_tasks | known_benchmarks), n=3)
            meant = f"; did you mean {', '.join(near)}?" if near else ""
            raise UsageError(f'MTEB has no task or benchmark "{name}"{meant or "; `mteb available-tasks` lists them"}')
    return list(found.values())


def evaluate_mteb(
    encoder: Encoder,
    tasks: Sequence[Task],
    *,
    results: Path | None = None,
    on_progress: ProgressCallback | None = None,
) -> Iterator[TaskScore]:
    """Run MTEB tasks, one after the other, and give each score as it comes.

    Args:
        encoder: who is measured.
        tasks: of the package; see :func:`find_tasks`.
        results: folder that keeps MTEB's own result files; tasks with a result of this very encoder are not run again.
        on_progress: told of the stage "mteb".

    Raises:
        MissingPackage: mteb is not installed.
        CorpusError: a task's data cannot be had, or it fails on them.
    """
    mteb = _mteb()
    model = MtebModel(encoder)
    cache = None if results is None else mteb.ResultCache(results)
    for number, task in enumerate(tasks):
        if on_progress is not None:
            on_progress(Progress("mteb", number, len(tasks), "tasks"))
        with _explained(task.metadata.name, results), _no_bars():
            answer = mteb.evaluate(
                model,
                task,
                cache=cache,
                co2_tracker=False,
                show_progress_bar=False,
                encode_kwargs={"batch_size": 256, "show_progress_bar": False},
            )
            result = answer.task_results[0]
            score = TaskScore(
                task.metadata.name,
                task.metadata.type,
                task.metadata.main_score,
                float(result.get_score()),
                result.evaluation_time,
            )
        if on_progress is not None:
            on_progress(Progress("mteb", number + 1, len(tasks), "tasks"))
        yield score


@contextmanager
def _no_bars() -> Iterator[None]:
    """Keep the data sets' package from drawing its progress bars."""
    bars = importlib.import_module("datasets.utils")
    shown = bars.is_progress_bar_enabled()
    bars.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            bars.enable_progress_bars()


@contextmanager
def _explained(task: str, results: Path | None) -> Iterator[None]:
    """Whatever a task raises in one line: its data may be unreachable, gone, or another than the package expects."""
    try:
        yield
    except (LlmindexError, MemoryError):
        raise
    except Exception as error:
        if results is not None and isinstance(error, OSError) and str(results) in str(error.filename or ""):
            raise StorageError(f"cannot write MTEB's results to {results}: {error.strerror}") from error
        reason = " ".join(str(error).split())[:_SHOWN]
        raise CorpusError(
            f'MTEB task "{task}" could not be run: {type(error).__name__}: {reason} '
            "(its data come from the Hugging Face hub, or from its cache on this machine)"
        ) from error


def _mteb() -> Any:  # noqa: ANN401 - the package is optional
    try:
        return importlib.import_module("mteb")
    except ImportError as error:
        raise MissingPackage("MTEB tasks need the package mteb: pip install mteb") from error
