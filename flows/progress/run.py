"""The progress of a run: images, tiles and pixels of each pass, with speed and time left."""

from __future__ import annotations

import threading
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from maskloom.flows.progress.displays import Position, Quiet
from maskloom.flows.terminal import millions, pixels
from maskloom.segcore.pipeline.jobs import FinishJob, ImagesJob, Job, RunSettings, TileRangeJob
from maskloom.segcore.pipeline.records import PlannedImage

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec


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
