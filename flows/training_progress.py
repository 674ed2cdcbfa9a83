"""Progress of a training for people: a bar on a terminal, a line an epoch elsewhere, nothing when quiet. Everything goes to standard error."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from segcore.training.lesson import Lesson

SECONDS_BETWEEN_LINES = 30.0


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """How much there is to do."""

    epochs: int
    steps: int
    batch: int


class Quiet:
    """Shows nothing."""

    _score_name = "score"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def say(self, text: str) -> None:
        """Nothing."""

    def begin(self, lesson: Lesson, score_name: str) -> None:
        """Tell what is trained."""
        self._score_name = score_name
        recipe = lesson.recipe
        self.say(
            f"Training {recipe.kind} on {len(lesson.training)} images, measuring on {len(lesson.validation)}: "
            f"{recipe.training.epochs} epochs of {lesson.steps} steps of {recipe.training.batch} patches"
        )

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Nothing."""

    def measured(self, windows: int, of: int) -> None:
        """Nothing."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


class Lines(Quiet):
    """A line an epoch, and one every half minute within."""

    def __init__(self, stream: TextIO, pace: Pace, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._pace, self._clock = stream, pace, clock
        self._last = clock()

    def say(self, text: str) -> None:
        """A line."""
        self._stream.write(f"{text}\n")
        self._stream.flush()
        self._last = self._clock()

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A line where there was none for half a minute."""
        if self._clock() - self._last >= SECONDS_BETWEEN_LINES:
            self.say(f"epoch {epoch}/{self._pace.epochs}: step {step}/{self._pace.steps}, loss {loss:.4f}")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """The epoch's line."""
        self.say(epoch_line(record, self._pace, self._score_name))


class Bar(Quiet):
    """A bar on the terminal; a line an epoch above it."""

    def __init__(self, console: Console, pace: Pace) -> None:
        self._pace, self._console = pace, console
        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[detail]}"), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("train", total=pace.epochs * pace.steps, detail="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, highlight=False, markup=False)

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Move the bar."""
        done = (epoch - 1) * self._pace.steps + step
        detail = f"epoch {epoch}/{self._pace.epochs}  step {step}/{self._pace.steps}  loss {loss:.4f}"
        self._bar.update(self._task, completed=done, detail=detail)

    def measured(self, windows: int, of: int) -> None:
        """Tell that it is measured."""
        self._bar.update(self._task, detail=f"measuring: {windows}/{of} windows")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """The epoch's line."""
        self.say(epoch_line(record, self._pace, self._score_name))


def epoch_line(record: Mapping[str, Any], pace: Pace, score_name: str) -> str:
    """What an epoch came to, and how long the others will take."""
    left = (pace.epochs - record["epoch"]) * record["seconds"]
    validation = f", validation loss {record['validation_loss']:.4f}" if "validation_loss" in record else ""
    return (
        f"epoch {record['epoch']}/{pace.epochs}: loss {record['loss']:.4f}{validation}, {score_name} {record['score']:.4f}, "
        f"{record['patches_per_second']:.1f} patches/s, {_duration(left)} left"
    )


def watcher(quiet: bool, pace: Pace) -> Quiet:
    """The progress that suits the standard error of this process."""
    console = Console(stderr=True)
    if quiet:
        return Quiet()
    return Bar(console, pace) if console.is_terminal else Lines(console.file, pace)  # type: ignore[arg-type]


def _duration(seconds: float) -> str:
    """Time for people.

    >>> _duration(5000)
    '1 h 23 min'
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
