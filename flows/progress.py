"""Progress for people: a bar on a terminal, a line every 30 seconds elsewhere, nothing when quiet.

It counts what is done of the pass at hand (fitting, segmenting): images, tiles, pixels a second,
time left. Everything goes to standard error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from maskloom.segcore.pipeline.jobs import FinishJob, ImagesJob, Job, RunSettings, TileRangeJob
from maskloom.segcore.pipeline.records import PlannedImage

SECONDS_BETWEEN_LINES = 30.0


class Counter:
    """How far a pass is."""

    def __init__(self, stage: str, items: Sequence[PlannedImage], order: RunSettings) -> None:
        usable = [item.spec for item in items if item.spec is not None]
        self.stage = stage
        self.started = time.monotonic()
        self.images, self.all_images = len(items) - len(usable), len(items)
        self.tiles, self.all_tiles = 0, sum(len(order.grid(spec)) for spec in usable)
        self.pixels, self.all_pixels = 0, sum(spec.pixels for spec in usable)

    def add(self, job: Job) -> None:
        """Count a finished job."""
        if isinstance(job, ImagesJob):
            specs = [item.spec for item in job.items if item.spec is not None]
            self.images += len(job.items)
            self.tiles += sum(len(job.order.grid(spec)) for spec in specs)
            self.pixels += sum(spec.pixels for spec in specs)
        elif isinstance(job, TileRangeJob) and job.item.spec is not None:
            grid = job.order.grid(job.item.spec)
            self.tiles += job.stop - job.first
            self.pixels += sum(grid[i].core.size for i in range(job.first, job.stop))
            if self.stage == "fit" and job.stop == len(grid):
                self.images += 1
        elif isinstance(job, FinishJob):
            self.images += 1

    @property
    def rate(self) -> float:
        """Megapixels a second since the pass began."""
        return self.pixels / 1e6 / max(time.monotonic() - self.started, 1e-3)

    def __str__(self) -> str:
        if not self.all_images:
            return f"{self.stage}: {time.monotonic() - self.started:.0f} s"
        left = (self.all_pixels - self.pixels) / 1e6 / self.rate if self.pixels else None
        until = "" if left is None else f", {left:.0f} s left"
        return (
            f"{self.stage}: {self.images}/{self.all_images} images, {self.tiles}/{self.all_tiles} "
            f"tiles, {self.rate:.1f} megapixels/s{until}"
        )


class Quiet:
    """Shows nothing."""

    def start(self, stage: str, items: Sequence[PlannedImage], order: RunSettings) -> None:
        """Nothing."""

    def advance(self, job: Job) -> None:
        """Nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        return None


class Lines(Quiet):
    """A line every 30 seconds, for logs."""

    def __init__(self, stream: TextIO, seconds: float = SECONDS_BETWEEN_LINES) -> None:
        self._stream, self._seconds = stream, seconds
        self._counter: Counter | None = None
        self._lock, self._over = threading.Lock(), threading.Event()
        self._writer = threading.Thread(target=self._write, daemon=True)

    def __enter__(self) -> Self:
        self._writer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._writer.join()

    def start(self, stage: str, items: Sequence[PlannedImage], order: RunSettings) -> None:
        """Begin a pass."""
        with self._lock:
            self._counter = Counter(stage, items, order)

    def advance(self, job: Job) -> None:
        """Count a job."""
        with self._lock:
            if self._counter is not None:
                self._counter.add(job)

    def _write(self) -> None:
        # By the clock and not by jobs: a job may take minutes, and silence looks like death.
        while not self._over.wait(self._seconds):
            with self._lock:
                line = str(self._counter or "starting")
            self._stream.write(f"{line}\n")
            self._stream.flush()


class Bar(Quiet):
    """A bar on the terminal."""

    def __init__(self, console: Console) -> None:
        self._lock = threading.Lock()
        self._counter: Counter | None = None
        self._task: TaskID | None = None
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[detail]}"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True)

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

    def start(self, stage: str, items: Sequence[PlannedImage], order: RunSettings) -> None:
        """Begin a pass."""
        with self._lock:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._counter = Counter(stage, items, order)
            self._task = self._bar.add_task(
                f"{stage:8}", total=max(self._counter.all_pixels, 1), detail=""
            )

    def advance(self, job: Job) -> None:
        """Count a job and move the bar."""
        with self._lock:
            if self._counter is None or self._task is None:
                return
            self._counter.add(job)
            counter = self._counter
            detail = (
                f"{counter.images}/{counter.all_images} images  "
                f"{counter.tiles}/{counter.all_tiles} tiles  {counter.rate:.1f} megapixels/s"
            )
            self._bar.update(self._task, completed=counter.pixels, detail=detail)


def watcher(quiet: bool) -> Quiet:
    """The progress that suits the standard error of this process."""
    console = Console(stderr=True)
    if quiet:
        return Quiet()
    return Bar(console) if console.is_terminal else Lines(console.file)  # type: ignore[arg-type]
