"""Whole runs against `gdal_translate`, on one 10,000 x 10,000 RGB COG: python
tests/benchmarks/bench_run.py [FOLDER].

The baseline copies one band of the same file to a COG (ZSTD level 1, two threads, nearest
overviews; Debian's gdal-bin): read all, write one band. Each segmenter runs on a local cluster of
two workers that has started and compiled before. Rounds alternate; medians and ratios are printed.
"""

from __future__ import annotations

import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SIDE = 10_000
ROUNDS = 3
SEGMENTERS = {
    "otsu": {"kind": "threshold", "method": "otsu"},
    "kmeans 5": {"kind": "kmeans", "clusters": 5},
    "mixture 5": {"kind": "mixture", "components": 5},
}


def make_image(path: Path, side: int) -> None:
    """Photographs side by side, each enlarged and with noise of its own, as a DEFLATE COG without
    georeference.
    """
    import cv2
    from skimage import data

    rng = np.random.default_rng(7)
    sources = [
        data.astronaut(),
        data.coffee()[:, :400],
        data.chelsea(),
        data.rocket()[:400, :400],
        data.retina()[:1000, :1000],
    ]
    pixels = np.empty((side, side, 3), np.uint8)
    step = 2_000
    for n, (y, x) in enumerate((y, x) for y in range(0, side, step) for x in range(0, side, step)):
        height, width = min(step, side - y), min(step, side - x)
        enlarged = cv2.resize(
            sources[n % len(sources)], (step, step), interpolation=cv2.INTER_CUBIC
        )[:height, :width]
        noise = rng.integers(-4, 5, enlarged.shape, dtype=np.int16)
        pixels[y : y + height, x : x + width] = np.clip(enlarged + noise, 0, 255).astype(np.uint8)
    profile = {
        "driver": "COG",
        "height": side,
        "width": side,
        "count": 3,
        "dtype": "uint8",
        "compress": "deflate",
        "num_threads": 2,
    }
    with rasterio.open(
        path, "w", crs="EPSG:32633", transform=from_origin(400_000, 5_400_000, 0.5, 0.5), **profile
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))


def baseline(image: Path, folder: Path) -> float:
    """Seconds of `gdal_translate`."""
    options = [
        "-q",
        "-of",
        "COG",
        "-b",
        "1",
        "-co",
        "COMPRESS=ZSTD",
        "-co",
        "LEVEL=1",
        "-co",
        "NUM_THREADS=2",
        "-co",
        "OVERVIEW_RESAMPLING=NEAREST",
    ]
    started = time.perf_counter()
    subprocess.run(
        ["gdal_translate", *options, str(image), str(folder / "baseline.tif")], check=True
    )
    return time.perf_counter() - started


def main() -> None:
    """Make the image, warm the workers, alternate the rounds, print medians and ratios."""
    from maskloom.flows.inventory import Sharing, take_inventory
    from maskloom.flows.progress.displays import Quiet
    from maskloom.flows.progress.run import RunProgress
    from maskloom.flows.recipes import run as recipes
    from maskloom.flows.segment import segment
    from maskloom.flows.stages import Stages
    from maskloom.segcore.pipeline.worker import prepare_process
    from maskloom.tasks.clusters.local import LocalCluster

    logging.basicConfig(level=logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        image, small = folder / "image.tif", folder / "small.tif"
        for path, side in ((image, SIDE), (small, 3_000)):
            if not path.exists():
                make_image(path, side)
        with LocalCluster(workers=2).open(
            partial(prepare_process, {}), threading.Event()
        ) as fanout:

            def once(source: Path, segmenter: dict[str, object]) -> float:
                output = folder / "out"
                shutil.rmtree(output, ignore_errors=True)
                recipe = recipes.make(
                    {"inputs": str(source), "output": str(output), "segmenter": segmenter}, folder
                )
                started = time.perf_counter()
                segment(
                    recipe,
                    take_inventory(recipe),
                    Stages(),
                    fanout,
                    RunProgress(Quiet()),
                    Sharing(),
                )
                return time.perf_counter() - started

            for segmenter in SEGMENTERS.values():
                once(small, segmenter)
                once(image, segmenter)
            times: dict[str, list[float]] = {name: [] for name in ("gdal_translate", *SEGMENTERS)}
            for _ in range(ROUNDS):
                times["gdal_translate"].append(baseline(image, folder))
                for name, segmenter in SEGMENTERS.items():
                    times[name].append(once(image, segmenter))
        reference = statistics.median(times["gdal_translate"])
        for name, seconds in times.items():
            middle = statistics.median(seconds)
            print(
                f"{name:15} {middle:6.2f} s  {SIDE * SIDE / 1e6 / middle:6.1f} megapixels/s  "
                f"{middle / reference:5.2f} x gdal_translate"
            )


if __name__ == "__main__":
    main()
