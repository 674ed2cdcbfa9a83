"""Displays on standard error: a bar on a terminal, a line every half minute elsewhere, only notices
if quiet.

A display knows neither runs nor trainings; `run.RunProgress` and `training.TrainingProgress` give
it their position.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from maskloom.flows.terminal import duration, escaped

SECONDS_BETWEEN_LINES = 30.0
_NARROW = 60
"""Columns of a terminal that has no room for a bar beside the text."""
_BESIDE_DETAILS = 16
"""Columns for the time, and for the spaces around the details."""
_SHORTEST_BAR = 6
"""Columns for the shortest bar, and a space."""
_WITHOUT_BAR = 80
"""Columns of a terminal that are better used for text than for a longer bar."""


@dataclass(frozen=True, slots=True)
class Position:
    """The position of a pass over images or steps."""

    label: str
    """Name of the pass."""
    details: tuple[str, ...] = ()
    done: float | None = None
    """Amount done, of `total`. None: unchanged."""
    total: float | None = None
    """The whole amount. None: unknown."""
    seconds_left: float | None = None

    def __str__(self) -> str:
        left = () if self.seconds_left is None else (f"{duration(self.seconds_left)} left",)
        details = ", ".join((*self.details, *left))
        return f"{self.label}: {details}" if details else self.label


class Quiet:
    """A display that shows notices only, and the base of all displays. A context manager."""

    def notice(self, text: str) -> None:
        """Show a line that users must see."""
        sys.stderr.write(f"{escaped(text)}\n")

    def report(self, text: str) -> None:
        """Show a line for users who follow the progress."""

    def begin(self, position: Callable[[], Position]) -> None:
        """Begin a pass; `position` returns its position."""

    def update(self) -> None:
        """Show the changed position of the pass."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class Lines(Quiet):
    """A display for logs: writes a line after every half minute without one."""

    def __init__(self, stream: TextIO, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream, self._seconds = stream, seconds
        self._position: Callable[[], Position] | None = None
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._last = self._begun = time.monotonic()
        self._writer = threading.Thread(target=self._write_by_the_clock, daemon=True)

    def notice(self, text: str) -> None:
        """Write a line now."""
        with self._lock:
            self._stream.write(f"{escaped(text)}\n")
            self._stream.flush()
            self._last = time.monotonic()

    def report(self, text: str) -> None:
        """Write a line now."""
        self.notice(text)

    def begin(self, position: Callable[[], Position]) -> None:
        """Begin a pass, whose positions are written from now on."""
        self._position, self._begun = position, time.monotonic()

    def _write_by_the_clock(self) -> None:
        # By the clock, not by updates: a job may take minutes, and a silent run seems to hang.
        while not self._closed.wait(max(0.0, self._last + self._seconds - time.monotonic())):
            if time.monotonic() - self._last >= self._seconds:
                self.notice("starting" if self._position is None else self._line(self._position()))

    def _line(self, now: Position) -> str:
        # A step without counts would repeat one line.
        return str(now) if now.details else f"{now}: {duration(time.monotonic() - self._begun)}"

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._closed.set()
        self._writer.join()


class Bar(Quiet):
    """A display for terminals: a bar, with notices and reports above it."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._position: Callable[[], Position] | None = None
        self._task: TaskID | None = None
        bar = BarColumn(bar_width=max(_SHORTEST_BAR - 1, min(40, console.width - _WITHOUT_BAR)))
        self._bar = _Live(
            self.update,
            TextColumn("{task.description}"),
            *([bar] if console.width >= _NARROW else []),
            TextColumn("{task.fields[detail]}"),
            _Clock(),
            console=console,
            transient=True,
        )

    def notice(self, text: str) -> None:
        """Show a line above the bar."""
        self._console.print(escaped(text), highlight=False, markup=False, soft_wrap=True)

    def report(self, text: str) -> None:
        """Show a line above the bar."""
        self.notice(text)

    def begin(self, position: Callable[[], Position]) -> None:
        """Begin a pass with a new bar. What is already done does not count for its speed."""
        ended, self._task = self._task, None
        if ended is not None:
            self._bar.remove_task(ended)
        now = position()
        self._position = position
        self._task = self._bar.add_task(
            f"{now.label:8}",
            total=now.total,
            completed=int(now.done or 0),
            detail=self._detail(now),
            left=now.seconds_left,
        )

    def update(self) -> None:
        """Move the bar."""
        task = self._task
        if self._position is None or task is None:
            return
        now = self._position()
        # The next pass may just have begun in another thread.
        with suppress(KeyError):
            self._bar.update(
                task,
                description=f"{now.label:8}",
                total=now.total,
                completed=now.done,
                detail=self._detail(now),
                left=now.seconds_left,
            )

    def _detail(self, now: Position) -> str:
        """The details that fit into a line, the first ones first."""
        width = self._console.width
        bar = _SHORTEST_BAR if width >= _NARROW else 0
        room = width - _BESIDE_DETAILS - bar - max(8, len(now.label))
        shown = ""
        for detail in now.details:
            longer = f"{shown}  {detail}" if shown else detail
            if len(longer) > room:
                break
            shown = longer
        return shown

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()


class _Live(Progress):
    """A bar that looks at its position whenever it is drawn: a job may take minutes."""

    def __init__(self, look: Callable[[], None], *columns: ProgressColumn, **options: Any) -> None:
        self._look = look
        super().__init__(*columns, **options)

    def get_renderables(self) -> Iterable[RenderableType]:
        """What is drawn."""
        self._look()
        return super().get_renderables()


class _Clock(ProgressColumn):
    """The time left of a pass; the time that it has taken while that is unknown."""

    max_refresh = None

    def render(self, task: Task) -> Text:
        """A time."""
        left = task.fields["left"]
        if left is not None and not task.finished:
            return Text(f"{_clock(left)} left", style="progress.remaining")
        return Text(_clock(task.elapsed or 0.0), style="progress.elapsed")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Both(Quiet):
    """Two displays of one run."""

    def __init__(self, first: Quiet, second: Quiet) -> None:
        self._displays = (first, second)

    def notice(self, text: str) -> None:
        """Show a line that users must see in both."""
        for each in self._displays:
            each.notice(text)

    def report(self, text: str) -> None:
        """Show a line in both."""
        for each in self._displays:
            each.report(text)

    def begin(self, position: Callable[[], Position]) -> None:
        """Begin a pass in both."""
        for each in self._displays:
            each.begin(position)

    def update(self) -> None:
        """Show the changed position in both."""
        for each in self._displays:
            each.update()


def display(quiet: bool) -> Quiet:
    """The display that suits the standard error of this process."""
    console = Console(stderr=True)
    if quiet:
        return Quiet()
    return Bar(console) if console.is_terminal else Lines(console.file)  # type: ignore[arg-type]
