"""What many images and many tiles cost, and whether memory stays flat, with a segmenter that does
nothing:

    python tests/benchmarks/bench_soak.py --images 100000
    python tests/benchmarks/bench_soak.py --tiles 1000000

`--images` makes so many PNG files of 16 x 16 pixels; `--tiles` makes one sparse TIFF of so many
tiles of 16 x 16. Both print seconds and seconds of the processor for each of them, and write the
resident memory of the driver (which holds the Dask scheduler) and of each worker over time:
`FOLDER/images.csv` and `.png`, or `FOLDER/tiles.csv` and `.png`. Growth is the slope of the
driver's memory over the last two thirds of the segmentation.
"""

from __future__ import annotations

import argparse
import csv
import logging
import math
import os
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import psutil

from maskloom.flows.progress.displays import Quiet
from maskloom.flows.progress.run import RunProgress

if TYPE_CHECKING:
    from collections.abc import Iterator

SIDE = 16
LINKS = 50_000
"""Links to one file: file systems allow some 65,000."""
COLOURS = ((200, 30, 30), (30, 90, 200), (20, 140, 60), (130, 60, 160), (110, 110, 110))
PERIOD = 1.0
"""Seconds between samples of the memory."""
WRITTEN = 60
"""Samples after which they are written."""


@dataclass
class Memory(RunProgress):
    """Samples of the memory of this process and its children. Shows nothing."""

    started: float = field(default_factory=time.monotonic)
    samples: list[tuple[float, int, int, dict[int, float]]] = field(default_factory=list)
    """Seconds, images and tiles done, and MiB by process, this one first."""
    images: int = 0
    tiles: int = 0
    began: float = 0.0
    """When segmentation began, in seconds."""

    def __post_init__(self) -> None:
        super().__init__(Quiet())

    def start(self, stage: str, images: object, settings: object) -> None:
        """A pass begins."""
        self.began, self.images, self.tiles = time.monotonic() - self.started, 0, 0

    def advance(self, job: object) -> None:
        """A job is done."""
        self.images += len(getattr(job, "images", ()))
        self.tiles += getattr(job, "stop", 0) - getattr(job, "first", 0)

    @contextmanager
    def sampled(self, stem: Path) -> Iterator[None]:
        """Take samples until the block ends, and write them now and then, so that a soak which is
        stopped leaves its curve.
        """
        ended = threading.Event()
        sampler = threading.Thread(target=self._sample, args=(ended, stem), daemon=True)
        sampler.start()
        try:
            yield
        finally:
            ended.set()
            sampler.join()

    def _sample(self, ended: threading.Event, stem: Path) -> None:
        this = psutil.Process()
        while not ended.wait(PERIOD):
            found = {}
            for process in (this, *this.children(recursive=True)):
                try:
                    found[process.pid] = process.memory_info().rss / 2**20
                except psutil.NoSuchProcess:
                    continue
            seconds = time.monotonic() - self.started
            self.samples.append((seconds, self.images, self.tiles, found))
            if len(self.samples) % WRITTEN == 0:
                self.write(stem)

    def growth(self) -> float:
        """KiB by which the driver grows for each image (or tile) of the last two thirds."""
        done = np.array([images or tiles for _, images, tiles, _ in self.samples], float)
        resident = np.array([next(iter(found.values())) for *_, found in self.samples])
        late = done > done.max() / 3
        if late.sum() < 3 or np.ptp(done[late]) == 0:
            return math.nan
        return float(np.polyfit(done[late], resident[late], 1)[0]) * 1024

    def write(self, stem: Path) -> None:
        """The table and the figure."""
        processes = sorted({pid for *_, found in self.samples for pid in found})
        with stem.with_suffix(".csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["seconds", "images", "tiles", *map(self._name, processes)])
            for seconds, images, tiles, found in self.samples:
                resident = [f"{found[pid]:.1f}" if pid in found else "" for pid in processes]
                writer.writerow([f"{seconds:.1f}", images, tiles, *resident])
        self._draw(stem.with_suffix(".png"), processes)

    def _draw(self, path: Path, processes: list[int]) -> None:
        from maskloom.segcore.figures.drawing import FAINT, RULE, SMALL, Sheet

        left, top, width, height = 64, 44, 800, 300
        sheet = Sheet.blank(left + width + 20, top + height + 36)
        longest = max(seconds for seconds, *_ in self.samples)
        highest = 100 * math.ceil(max(max(found.values()) for *_, found in self.samples) / 100)
        for i in range(5):
            y, x = top + height - i * height / 4, left + i * width / 4
            sheet.line([(left, y), (left + width, y)], RULE)
            memory, time = f"{highest * i / 4:.0f}", f"{longest * i / 4:.0f}"
            sheet.text((left - 8, y), memory, ink=FAINT, size=SMALL, anchor="right")
            sheet.text((x, top + height + 16), time, ink=FAINT, size=SMALL, anchor="middle")
        x = sheet.text((20, 20), "Resident memory in MiB over seconds:") + 12
        for i, pid in enumerate(processes):
            colour = COLOURS[min(i, len(COLOURS) - 1)]
            line = [
                (left + seconds / longest * width, top + height * (1 - found[pid] / highest))
                for seconds, *_, found in self.samples
                if pid in found
            ]
            sheet.line(line, colour, 2)
            x = sheet.text((x, 20), self._name(pid), ink=colour) + 16
        path.write_bytes(sheet.png())

    def _name(self, pid: int) -> str:
        return "driver" if pid == os.getpid() else f"process {pid}"


def make_images(folder: Path, count: int) -> Path:
    """A list of so many PNG files, most of them links, since they are alike in what they cost."""
    from PIL import Image

    generator = np.random.default_rng(0)
    listed = folder / f"images-{count}.txt"
    if listed.exists():
        return listed
    names = []
    for i in range(count):
        path = folder / "images" / f"{i // 1000:04d}" / f"{i:07d}.png"
        original = folder / "images" / f"{i // LINKS * LINKS // 1000:04d}"
        original /= f"{i // LINKS * LINKS:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if path == original:
                pixels = generator.integers(0, 256, (SIDE, SIDE), np.uint8)
                Image.fromarray(pixels).save(path)
            else:
                path.hardlink_to(original)
        names.append(str(path))
    listed.write_text("\n".join(names))
    return listed


def make_tiles(folder: Path, count: int, tile: int = SIDE) -> Path:
    """A sparse TIFF that is cut into about so many tiles."""
    import rasterio

    side = round(math.sqrt(count)) * tile
    path = folder / f"sparse-{side}.tif"
    if not path.exists():
        profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8"}
        blocks = {"tiled": True, "blockxsize": 512, "blockysize": 512, "compress": "deflate"}
        with rasterio.open(path, "w", **profile, **blocks, sparse_ok=True, bigtiff="yes"):
            pass
    return path


def processor_seconds() -> float:
    """Seconds of the processor of this process and of its children."""
    this = psutil.Process()
    total = 0.0
    for process in (this, *this.children(recursive=True)):
        times = process.cpu_times()
        total += times.user + times.system
    return total


def soak(
    inputs: Path, output: Path, tile: int, workers: int, stem: Path
) -> tuple[Memory, dict[str, float]]:
    """The samples of a run, and its seconds: planning, segmenting, and those of the processor."""
    import no_op  # noqa: F401 - registers the segmenter

    from maskloom.flows.inventory import Sharing, inventory_to_write
    from maskloom.flows.recipes import run as recipes
    from maskloom.flows.segment import segment
    from maskloom.flows.stages import Stages
    from maskloom.segcore.pipeline.worker import prepare_process

    shutil.rmtree(output, ignore_errors=True)
    document = {
        "name": "soak",
        "inputs": str(inputs),
        "output": str(output),
        "segmenter": "no_op",
        "tiling": {"tile": tile},
        "cluster": {"kind": "local", "workers": workers},
    }
    recipe, memory, sharing = recipes.make(document, inputs.parent), Memory(), Sharing()
    with recipe.cluster.opened(prepare_process, threading.Event()) as fanout, memory.sampled(stem):
        fanout.start()
        inventory = inventory_to_write(recipe, sharing)
        outcome = segment(recipe, inventory, Stages(), fanout, memory, sharing)
        seconds = time.monotonic() - memory.started
        processor = processor_seconds()
    assert outcome.failed == 0, outcome.failures[:3]
    return memory, {
        "planning": memory.began,
        "segmenting": seconds - memory.began,
        "processor": processor,
    }


def report(what: str, count: int, memory: Memory, seconds: dict[str, float], stem: Path) -> None:
    """Print the figures, and write the curve."""
    memory.write(stem)
    peaks: dict[int, float] = {}
    for *_, found in memory.samples:
        for pid, resident in found.items():
            peaks[pid] = max(peaks.get(pid, 0.0), resident)
    driver = peaks.pop(os.getpid(), 0.0)
    per = 1e3 / count
    print(
        f"{count} {what}: planning {seconds['planning']:.1f} s, segmenting "
        f"{seconds['segmenting']:.1f} s: {seconds['segmenting'] * per:.2f} ms each; processor "
        f"{seconds['processor']:.1f} s in all: {seconds['processor'] * per:.2f} ms each\n"
        f"  peak of the driver {driver:.0f} MiB, of the others "
        f"{', '.join(f'{each:.0f}' for each in sorted(peaks.values()))} MiB; the driver grows by "
        f"{memory.growth():.2f} KiB each; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description="Cost and memory of many images and tiles.")
    parser.add_argument("--images", type=int, default=0, help="number of tiny images")
    parser.add_argument("--tiles", type=int, default=0, help="number of tiles of one image")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where images, outputs and curves go")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if options.images:
            listed = make_images(folder, options.images)
            found = soak(listed, folder / "out-images", 2048, options.workers, folder / "images")
            report("images", options.images, *found, folder / "images")
        if options.tiles:
            image = make_tiles(folder, options.tiles)
            found = soak(image, folder / "out-tiles", SIDE, options.workers, folder / "tiles")
            report("tiles", options.tiles, *found, folder / "tiles")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    main()
