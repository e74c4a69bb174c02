"""Progress records as people see them: a bar on a terminal, else a line now and then, on standard error."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from llmindex.progress import Progress, ProgressCallback
from llmindex_cli.console import cut, duration, is_quiet, write_to_stderr

LINE_EVERY_S = 10.0
# A stage that took less is over before anybody wonders: it gets no line of its own.
WORTH_A_LINE_S = 1.0
NARROWEST_BAR = 5


@dataclass(slots=True)
class Stage:
    """A stage under way, and how fast it goes.

    Attributes:
        first: its first record; rates count from there, so that loading a model does not slow them.
        last: its newest record.
        began: when the first came, in seconds of the clock.
        now: when the newest came.
    """

    first: Progress
    last: Progress
    began: float
    now: float

    @property
    def elapsed(self) -> float:
        """Seconds from the first record to the newest."""
        return self.now - self.began

    @property
    def rate(self) -> float:
        """Units a second, by this run alone; 0 while unknown."""
        return (_fresh(self.last) - _fresh(self.first)) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def token_rate(self) -> float:
        """Tokens a second; 0 while unknown, or where the stage has none."""
        return (self.last.tokens - self.first.tokens) / self.elapsed if self.elapsed > 0 else 0.0

    def describe(self) -> str:
        """How far, how fast, how long yet: ``12,288 of 20,000 documents, 35 documents/s, 3 min left``."""
        last = self.last
        of = f" of {last.total:,}" if last.total is not None else ""
        return ", ".join([f"{last.done:,}{of} {last.unit}", *self.rates(), *self.outlook()])

    def rates(self) -> list[str]:
        """Units a second, tokens a second, as far as they are known."""
        parts = []
        if self.rate:
            parts.append(f"{_rate(self.rate)} {self.last.unit}/s")
        if self.token_rate:
            parts.append(f"{_rate(self.token_rate)} tokens/s")
        return parts

    def outlook(self) -> list[str]:
        """Time left, and the stage's own details, as far as they are known."""
        last, parts = self.last, []
        if self.rate and last.total is not None and last.total > last.done:
            parts.append(f"{duration((last.total - last.done) / self.rate)} left")
        return [*parts, last.detail] if last.detail else parts


def _brief(stage: Stage) -> str:
    # Beside the bar, where the line is short and the rate names the unit. What can be spared comes last.
    if rates := stage.rates():
        total = "" if stage.last.total is None else f"/{stage.last.total:,}"
        return ", ".join([f"{stage.last.done:,}{total}", *stage.outlook(), *rates])
    return stage.describe()


def _fresh(record: Progress) -> int:
    return record.done if record.fresh is None else record.fresh


def _rate(number: float) -> str:
    if number >= 10:
        return f"{number:,.0f}"
    return f"{number:.1f}" if number >= 0.1 else f"{number:.1g}"


class LineMeter:
    """One plain line every ten seconds and at the end of each stage that took a second or more."""

    def __init__(self, write: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._write = write
        self._clock = clock
        self._stage: Stage | None = None
        self._written = clock()

    def __call__(self, record: Progress) -> None:
        """Take a record."""
        now = self._clock()
        if self._stage is None or self._stage.last.stage != record.stage:
            self.finish()
            self._stage = Stage(record, record, now, now)
        else:
            self._stage.last, self._stage.now = record, now
        if now - self._written >= LINE_EVERY_S and record.done != record.total:  # the end has a line of its own
            self._write(f"{record.stage}: {self._stage.describe()}")
            self._written = now

    def finish(self) -> None:
        """The current stage is over."""
        stage, self._stage = self._stage, None
        if stage is not None and stage.elapsed >= WORTH_A_LINE_S:
            self._write(f"{stage.last.stage}: {stage.describe()}, took {duration(stage.elapsed)}")
            self._written = self._clock()


@contextmanager
def progress() -> Iterator[ProgressCallback | None]:
    """A callback that shows progress while the block runs; None with -q."""
    if is_quiet() or sys.stderr is None:
        yield None
    elif sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        with _bar() as callback:
            yield callback
    else:
        meter = LineMeter(write_to_stderr)
        yield meter
        meter.finish()


@contextmanager
def _bar() -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description:<10}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    # A result that comes meanwhile has to be written above the bar where both go to the terminal, and only there.
    above = sys.stdout is not None and sys.stdout.isatty()
    # Twice a second is enough for the eye, and kind to slow connections.
    with Bar(*columns, console=Console(stderr=True), refresh_per_second=2, redirect_stdout=above) as bar:
        stages: dict[str, tuple[Stage, TaskID]] = {}
        # Seconds pass before there is anything to report, while torch and a model are loaded.
        starting = [bar.add_task("starting", total=None, detail="")]

        def show(record: Progress) -> None:
            now = time.monotonic()
            while starting:
                bar.remove_task(starting.pop())
            if record.stage not in stages:
                task = bar.add_task(record.stage, total=record.total, detail="")
                stages[record.stage] = (Stage(record, record, now, now), task)
            stage, task = stages[record.stage]
            stage.last, stage.now = record, now
            # Only the bar may shrink: rich would take the same from all columns, of all stages, down to no bar at all.
            room = bar.console.width - max(10, *map(len, stages)) - NARROWEST_BAR - 2
            detail = cut(_brief(stage), max(0, room))
            bar.update(task, completed=record.done, total=record.total, detail=detail)

        try:
            yield show
        finally:
            while starting:
                bar.remove_task(starting.pop())
