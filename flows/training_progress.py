"""Progress of a training for people: a bar on a terminal, a line an epoch elsewhere, at most half a
minute of silence, or only what they must know.

Everything goes to standard error.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from maskloom.flows.terminal import count, escaped

if TYPE_CHECKING:
    from maskloom.segcore.training.checkpoint import TrainingState
    from maskloom.segcore.training.setup import TrainingSetup

SECONDS_BETWEEN_LINES = 30.0


class Quiet:
    """Shows no progress."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None

    def say(self, text: str) -> None:
        """What people should know, a line."""
        sys.stderr.write(f"{escaped(text)}\n")

    def checked(self, what: str, done: int, of: int) -> None:
        """Nothing."""

    def begin(self, lesson: TrainingSetup, score_name: str, standing: TrainingState) -> None:
        """Nothing."""

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Nothing."""

    def measured(self, windows: int, of: int) -> None:
        """Nothing."""

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Nothing."""


class Lines(Quiet):
    """A line an epoch, and one every half minute within."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream, clock
        self._last = clock()
        self._epochs = self._steps = 0
        self._score_name = ""

    def say(self, text: str) -> None:
        """A line."""
        self._stream.write(f"{escaped(text)}\n")
        self._stream.flush()
        self._last = self._clock()

    def checked(self, what: str, done: int, of: int) -> None:
        """A line where there was none for half a minute."""
        self._say_at_times(f"looking at {what}: {done}/{of}")

    def begin(self, lesson: TrainingSetup, score_name: str, standing: TrainingState) -> None:
        """Tell what is trained."""
        self._epochs, self._steps, self._score_name = (
            lesson.recipe.training.epochs,
            lesson.steps,
            score_name,
        )
        self.say(beginning(lesson, standing))

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A line where there was none for half a minute."""
        self._say_at_times(
            f"epoch {epoch}/{self._epochs}: step {step}/{self._steps}, loss {loss:.4f}"
        )

    def measured(self, windows: int, of: int) -> None:
        """A line where there was none for half a minute."""
        self._say_at_times(f"measuring: {windows}/{of} windows")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """The epoch's line."""
        self.say(epoch_line(record, self._epochs, self._score_name))

    def _say_at_times(self, text: str) -> None:
        if self._clock() - self._last >= SECONDS_BETWEEN_LINES:
            self.say(text)


class Bar(Quiet):
    """A bar on the terminal; a line an epoch above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("train", total=None, detail="")
        self._epochs = self._steps = 0
        self._score_name = ""

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(escaped(text), highlight=False, markup=False)

    def checked(self, what: str, done: int, of: int) -> None:
        """Move the bar of what comes before training."""
        self._bar.update(
            self._task, total=of, completed=done, detail=f"looking at {what}: {done}/{of}"
        )

    def begin(self, lesson: TrainingSetup, score_name: str, standing: TrainingState) -> None:
        """Tell what is trained, and put the bar where it stands: what was done before says nothing
        of the speed now.
        """
        self._epochs, self._steps, self._score_name = (
            lesson.recipe.training.epochs,
            lesson.steps,
            score_name,
        )
        self.say(beginning(lesson, standing))
        done = standing.epoch * self._steps + standing.step
        self._bar.reset(self._task, total=self._epochs * self._steps, completed=done, detail="")

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Move the bar."""
        done = (epoch - 1) * self._steps + step
        detail = f"epoch {epoch}/{self._epochs}  step {step}/{self._steps}  loss {loss:.4f}"
        self._bar.update(self._task, completed=done, detail=detail)

    def measured(self, windows: int, of: int) -> None:
        """Tell that it is measured."""
        self._bar.update(self._task, detail=f"measuring: {windows}/{of} windows")

    def epoch(self, record: Mapping[str, Any]) -> None:
        """The epoch's line."""
        self.say(epoch_line(record, self._epochs, self._score_name))


def beginning(lesson: TrainingSetup, standing: TrainingState) -> str:
    """What is trained on what, and from where it goes on."""
    wanted = lesson.recipe.training
    step = f", step {standing.step}" if standing.step else ""
    after = (
        f", going on after epoch {standing.epoch}{step}" if standing.epoch or standing.step else ""
    )
    return (
        f"Training {lesson.recipe.kind} on {count(len(lesson.training), 'image')}, measuring on "
        f"{len(lesson.validation)}: "
        f"{count(wanted.epochs, 'epoch')} of {count(lesson.steps, 'step')} of "
        f"{count(wanted.batch, 'patch', 'patches')}{after}"
    )


def epoch_line(record: Mapping[str, Any], epochs: int, score_name: str) -> str:
    """What an epoch came to, and how long the others will take."""
    left = (epochs - record["epoch"]) * record["seconds"]
    validation = (
        f", validation loss {record['validation_loss']:.4f}" if "validation_loss" in record else ""
    )
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.4f}{validation}, {score_name} "
        f"{record['score']:.4f}, "
        f"{record['patches_per_second']:.1f} patches/s, {_duration(left)} left"
    )


def watcher(quiet: bool) -> Quiet:
    """The progress that suits the standard error of this process."""
    console = Console(stderr=True)
    if quiet:
        return Quiet()
    return Bar(console) if console.is_terminal else Lines(console.file)  # type: ignore[arg-type]


def _duration(seconds: float) -> str:
    """Time for people.

    >>> _duration(5000)
    '1 h 23 min'
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
