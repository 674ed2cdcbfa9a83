"""What people see of a run under way."""

from __future__ import annotations

import io
import time

from maskloom.flows.progress import Counter, Lines
from maskloom.segcore.geometry import Tiling
from maskloom.segcore.pipeline.jobs import FinishJob, ImagesJob, RunSettings, TileRangeJob
from maskloom.segcore.pipeline.records import PlannedImage
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.segmenters.threshold import Threshold


def image(name: str, side: int) -> PlannedImage:
    spec = RasterSpec(name, "tiff", (side, side), (1,), "uint8", (16, 16), "1", 1)
    return PlannedImage(Source(name, name, "1", 1), spec)


def test_a_pass_ends_with_all_images_tiles_and_pixels_counted():
    order = RunSettings("out", "run", Threshold(), {}, tiling=Tiling(64))
    small, large = image("small", 60), image("large", 200)
    counter = Counter(
        "segment", [small, large, PlannedImage(Source("broken", "broken", "1", 1), None)], order
    )

    counter.add(ImagesJob(order, (small,)))
    for first in range(0, 16, 4):
        counter.add(TileRangeJob(order, large, first, first + 4))
    counter.add(FinishJob(order, large, ()))

    assert (
        (counter.images, counter.tiles, counter.pixels)
        == (counter.all_images, counter.all_tiles, counter.all_pixels)
        == (3, 17, 43_600)
    )
    assert str(counter).startswith("segment: 3/3 images, 17/17 tiles")


def test_lines_come_by_the_clock_even_when_no_job_ends():
    stream = io.StringIO()
    deadline = time.monotonic() + 60
    with Lines(stream, seconds=0.02):
        while stream.getvalue().count("starting\n") < 3 and time.monotonic() < deadline:
            time.sleep(0.02)

    assert stream.getvalue().count("starting\n") >= 3
