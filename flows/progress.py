"""Progress on standard error: a bar on a terminal, a line every half minute elsewhere, only notices
if quiet.

A display knows neither runs nor trainings; `RunProgress` and `TrainingProgress` give it their
position.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskID, TextColumn
from rich.text import Text

from maskloom.flows.terminal import count, duration, escaped, millions, pixels
from maskloom.segcore.pipeline.jobs import FinishJob, ImagesJob, Job, RunSettings, TileRangeJob
from maskloom.segcore.pipeline.records import PlannedImage

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.training.checkpoint import TrainingState
    from maskloom.segcore.training.setup import TrainingSetup

log = logging.getLogger("maskloom.train")

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


class RunProgress:
    """The progress of a run (`tasks.progress.Progress`): images, tiles and pixels of each pass."""

    def __init__(self, shown_by: Quiet) -> None:
        self._display = shown_by
        self._lock = threading.Lock()
        self._counter: Counter | None = None
        self._passes = 0

    def begin(self, label: str) -> None:
        """Begin a step in which nothing is counted."""
        with self._lock:
            self._counter = None
            self._display.begin(lambda: Position(label))

    def items(self, label: str, items: str, total: int) -> ItemProgress:
        """Begin a pass over items of equal weight."""
        with self._lock:
            self._counter = None
            return ItemProgress(self._display, label, items, total)

    def start(self, stage: str, images: Collection[PlannedImage], settings: RunSettings) -> None:
        """Begin a pass over these images. A stage may need several passes."""
        with self._lock:
            again = self._counter is not None and self._counter.stage == stage
            self._passes = self._passes + 1 if again else 1
            self._counter = Counter(stage, images, settings, self._passes)
            self._display.begin(self._counter.position)

    def advance(self, job: Job) -> None:
        """Count a finished job of this pass."""
        with self._lock:
            if self._counter is not None:
                self._counter.add(job)
                self._display.update()

    def position(self) -> dict[str, Any]:
        """How far the present pass is, as JSON values; empty before the first."""
        with self._lock:
            now = None if self._counter is None else self._counter.position()
        if now is None:
            return {}
        return {
            "stage": now.label,
            "details": list(now.details),
            "pixels_done": now.done,
            "pixels": now.total,
            "seconds_left": now.seconds_left,
        }


class ItemProgress:
    """The progress of a pass over items of equal weight; call it with the number of items done."""

    def __init__(self, shown_by: Quiet, label: str, items: str, total: int) -> None:
        self._display = shown_by
        self._label, self._items, self._total = label, items, total
        self._done, self._started = 0, time.monotonic()
        shown_by.begin(self._position)

    def __call__(self, done: int) -> None:
        """Show that `done` items are done."""
        self._done = done
        self._display.update()

    def _position(self) -> Position:
        counts = f"{self._done:,}/{self._total:,} {self._items}"
        if not self._done:
            return Position(self._label, (counts,), 0, self._total)
        rate = self._done / max(time.monotonic() - self._started, 1e-3)
        details = (counts, f"{rate:.3g}/s" if rate < 100 else f"{rate:,.0f}/s")
        left = (self._total - self._done) / rate
        return Position(self._label, details, self._done, self._total, left)


class Counter:
    """Numbers of images, tiles and pixels of one pass: in all, and done."""

    def __init__(
        self, stage: str, images: Collection[PlannedImage], settings: RunSettings, nth: int = 1
    ) -> None:
        """`nth` pass of this stage, from 1."""
        self.stage = stage
        self.label = stage if nth == 1 else f"{stage}, pass {nth}"
        self.started = time.monotonic()
        specs: dict[Shape, RasterSpec] = {}
        number: dict[Shape, int] = {}
        for spec in (image.spec for image in images if image.spec is not None):
            specs[spec.shape] = spec
            number[spec.shape] = number.get(spec.shape, 0) + 1
        self.all_images = len(images)
        self.images = self.all_images - sum(number.values())
        self.tiles = self.pixels = 0
        self.all_tiles = sum(number[shape] * len(settings.grid(specs[shape])) for shape in specs)
        self.all_pixels = sum(number[shape] * specs[shape].pixels for shape in specs)
        self.unit = millions(specs)

    def add(self, job: Job) -> None:
        """Count a finished job."""
        if isinstance(job, ImagesJob):
            specs = [image.spec for image in job.images if image.spec is not None]
            self.images += len(job.images)
            self.tiles += sum(len(job.settings.grid(spec)) for spec in specs)
            self.pixels += sum(spec.pixels for spec in specs)
        elif isinstance(job, TileRangeJob) and job.image.spec is not None:
            grid = job.settings.grid(job.image.spec)
            self.tiles += job.stop - job.first
            self.pixels += sum(grid[i].core.size for i in range(job.first, job.stop))
            if self.stage == "fit" and job.stop == len(grid):
                self.images += 1
        elif isinstance(job, FinishJob):
            self.images += 1

    def position(self) -> Position:
        """The present position of the pass."""
        if not self.all_images:
            return Position(self.label)
        details = (
            f"{self.images:,}/{self.all_images:,} images",
            f"{self.tiles:,}/{self.all_tiles:,} tiles",
        )
        total = max(self.all_pixels, 1)
        if not self.pixels:
            return Position(self.label, details, 0, total)
        rate = self.pixels / max(time.monotonic() - self.started, 1e-3)
        left = (self.all_pixels - self.pixels) / rate
        speed = f"{pixels(rate, self.unit)}/s"
        return Position(self.label, (*details, speed), self.pixels, total, left)


class TrainingProgress:
    """The progress of a training (`segcore.training.setup.ProgressMonitor`)."""

    def __init__(self, shown_by: Quiet) -> None:
        self._display = shown_by
        self._position = Position("starting")
        self._epochs = self._steps = 0
        self._score_name = ""
        shown_by.begin(lambda: self._position)

    def say(self, text: str) -> None:
        """Show a line that users must see."""
        self._display.notice(text)

    def checked(self, what: str, done: int, of: int) -> None:
        """Show how many images or masks are checked before training begins."""
        self._show(Position(f"looking at {what}", (f"{done}/{of}",), done, of))

    def begin(self, setup: TrainingSetup, score_name: str, state: TrainingState) -> None:
        """Report what is trained, and begin a pass at the present state of the training."""
        self._epochs, self._steps = setup.recipe.training.epochs, setup.steps
        self._score_name = score_name
        self._report(introduction(setup, state))
        done = state.epoch * self._steps + state.step
        self._position = Position("train", (), done, self._epochs * self._steps)
        self._display.begin(lambda: self._position)

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Show a finished step of an epoch, both counted from 1."""
        details = (f"step {step}/{self._steps}", f"loss {loss:.4f}")
        done = (epoch - 1) * self._steps + step
        total = self._epochs * self._steps
        self._show(Position(f"epoch {epoch}/{self._epochs}", details, done, total))

    def measured(self, windows: int, of: int) -> None:
        """Show how many windows of the validation images are measured."""
        total = self._position.total
        self._show(Position("measuring", (f"{windows}/{of} windows",), total=total))

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Report a finished epoch."""
        self._report(epoch_line(record, self._epochs, self._score_name))

    def look(self, location: str) -> None:
        """Report a picture of predictions, which is worth a look while training goes on."""
        self._report(f"First predictions beside the truth: {location}")

    def _report(self, text: str) -> None:
        log.info("%s", text)
        self._display.report(text)

    def _show(self, position: Position) -> None:
        self._position = position
        self._display.update()


def introduction(setup: TrainingSetup, state: TrainingState) -> str:
    """A line on what is trained on which images, and on the state from which it continues."""
    wanted = setup.recipe.training
    step = f", step {state.step}" if state.step else ""
    after = f", continuing after epoch {state.epoch}{step}" if state.epoch or state.step else ""
    return (
        f"Training {setup.recipe.kind} on {count(len(setup.training), 'image')}, measuring on "
        f"{len(setup.validation)}: "
        f"{count(wanted.epochs, 'epoch')} of {count(setup.steps, 'step')} of "
        f"{count(wanted.batch, 'patch', 'patches')}{after}"
    )


def epoch_line(record: Mapping[str, Any], epochs: int, score_name: str) -> str:
    """A line with losses, score and speed of an epoch, and the time left."""
    left = (epochs - record["epoch"]) * record["seconds"]
    # Whatever the loss is: the two are not to be compared.
    validation = (
        f", validation cross-entropy {record['validation_loss']:.4f}"
        if "validation_loss" in record
        else ""
    )
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.4f}{validation}, {score_name} "
        f"{record['score']:.4f}, "
        f"{record['patches_per_second']:.1f} patches/s, {duration(left)} left"
    )
