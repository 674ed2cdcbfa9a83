"""What the pipeline costs beside the work: python tests/benchmarks/bench_overhead.py [FOLDER].

- start-up: seconds from the command to the first mask of one small photograph, with Prefect
  (embedded) and without, and to the end;
- images: 2,000 pictures of 64 x 64, minus what the same functions take on them one after the other
  in one process;
- tiles: one image of 4,096 x 4,096 in 4,096 tiles of 64, minus the same in 4 tiles of 2,048;
- memory: peak of a worker on an image of 4,096 x 4,096 and on one of 32,768 x 32,768.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import rasterio
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TINY = 2_000
KMEANS = {"kind": "kmeans", "clusters": 5}
COMMAND = [sys.executable, "-c", "from maskloom.flows.cli import main; main()"]


def start_up(folder: Path) -> None:
    """Seconds to the first mask and to the end of the command."""
    from skimage import data

    Image.fromarray(data.astronaut()).save(folder / "photo.png")
    for name, flags in (("without Prefect", ["--no-prefect"]), ("with Prefect", [])):
        for attempt in ("first", "again"):
            output = folder / "start"
            shutil.rmtree(output, ignore_errors=True)
            command = [
                *COMMAND,
                "segment",
                str(folder / "photo.png"),
                "-o",
                str(output),
                "-s",
                "kmeans",
                "--quiet",
                *flags,
            ]
            started = time.perf_counter()
            run = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while run.poll() is None and not list(output.glob("masks/*.png")):
                time.sleep(0.01)
            mask = time.perf_counter() - started
            run.wait()
            print(
                f"start-up {name}, {attempt}: first mask {mask:.1f} s, end "
                f"{time.perf_counter() - started:.1f} s"
            )


def timed_run(fanout: object, inputs: Path, output: Path, **keys: object) -> float:
    """Seconds of one run on a cluster that is up."""
    from maskloom.flows.inventory import Sharing, take_inventory
    from maskloom.flows.progress.displays import Quiet
    from maskloom.flows.progress.run import RunProgress
    from maskloom.flows.recipes import run as recipes
    from maskloom.flows.segment import segment
    from maskloom.flows.stages import Stages

    shutil.rmtree(output, ignore_errors=True)
    recipe = recipes.make(
        {"inputs": str(inputs), "output": str(output), "segmenter": KMEANS, **keys}, inputs.parent
    )
    started = time.perf_counter()
    segment(recipe, take_inventory(recipe), Stages(), fanout, RunProgress(Quiet()), Sharing())
    return time.perf_counter() - started


def per_image(folder: Path, fanout: object) -> None:
    """Overhead of an image."""
    from skimage import data

    from maskloom.flows.recipes import run as recipes
    from maskloom.segcore.pipeline.jobs import DescribeJob, ImagesJob, RunSettings
    from maskloom.segcore.pipeline.worker import describe, segment_images
    from maskloom.segcore.raster.source import Source

    tiny = folder / "tiny"
    tiny.mkdir(exist_ok=True)
    photograph = data.astronaut()
    for i in range(TINY):
        y, x = 10 * (i // 44), 10 * (i % 44)
        Image.fromarray(photograph[y : y + 64, x : x + 64]).save(tiny / f"{i:05d}.png")
    seconds = min(timed_run(fanout, tiny, folder / "tiny-out", fit="image") for _ in range(3))
    recipe = recipes.make(
        {
            "inputs": str(tiny),
            "output": str(folder / "tiny-direct"),
            "segmenter": KMEANS,
            "fit": "image",
        },
        folder,
    )
    order = RunSettings(
        recipe.output, "direct", recipe.segmenter, recipe.statistics, recipe.tiling, recipe.kind
    )
    sources = tuple(Source(str(path), path.stem, "1", 1) for path in sorted(tiny.iterdir()))
    started = time.perf_counter()
    segment_images(ImagesJob(order, describe(DescribeJob(sources))))
    direct = time.perf_counter() - started
    print(
        f"images: {TINY} in {seconds:.2f} s on 2 workers, {direct:.2f} s directly in one process: "
        f"overhead {(seconds - direct / 2) / TINY * 1e3:.2f} ms an image"
    )


def large_image(path: Path, side: int) -> Path:
    """A mosaic of photographs of side x side pixels, written by windows."""
    from skimage import data

    if path.exists():
        return path
    block = np.moveaxis(np.tile(data.astronaut(), (4, 4, 1)), -1, 0)
    profile = {
        "driver": "GTiff",
        "height": side,
        "width": side,
        "count": 3,
        "dtype": "uint8",
        "tiled": True,
        "blockxsize": 512,
        "blockysize": 512,
    }
    with rasterio.open(
        path,
        "w",
        compress="deflate",
        zlevel=1,
        interleave="pixel",
        num_threads=2,
        bigtiff="if_safer",
        **profile,
    ) as file:
        for y in range(0, side, 2048):
            for x in range(0, side, 2048):
                # Four variants, all of which the smallest image has too: peaks are compared over
                # the same colours.
                file.write(
                    block ^ np.uint8(x // 2048 % 2 + 2 * (y // 2048 % 2)),
                    window=rasterio.windows.Window(x, y, 2048, 2048),
                )
    return path


def per_tile(folder: Path, fanout: object) -> None:
    """Overhead of a tile."""
    image = large_image(folder / "image-4096.tif", 4096)
    many = min(
        timed_run(fanout, image, folder / "tiles-out", tiling={"tile": 64}) for _ in range(2)
    )
    few = min(timed_run(fanout, image, folder / "tiles-out") for _ in range(2))
    print(
        f"tiles: 4096 in {many:.2f} s, 4 in {few:.2f} s: overhead {(many - few) / 4092 * 1e3:.2f} "
        "ms a tile"
    )


def worker_peaks() -> list[float]:
    """Peak resident memory of each worker process, in MB."""
    workers = [
        child
        for child in psutil.Process().children(recursive=True)
        if "spawn_main" in " ".join(child.cmdline())
    ]
    peaks = []
    for worker in workers:
        status = Path(f"/proc/{worker.pid}/status").read_text()
        peaks += [
            int(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM")
        ]
    return peaks


def main() -> None:
    """Print all figures."""
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    from maskloom.segcore.pipeline.worker import prepare_process
    from maskloom.tasks.clusters.local import LocalCluster

    def cluster() -> object:
        return LocalCluster(workers=2).open(partial(prepare_process, {}), threading.Event())

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        folder.mkdir(parents=True, exist_ok=True)
        start_up(folder)
        with cluster() as fanout:  # type: ignore[attr-defined]
            timed_run(fanout, large_image(folder / "image-4096.tif", 4096), folder / "warm-out")
            per_image(folder, fanout)
            per_tile(folder, fanout)
        for side in (4096, 32768):
            image = large_image(folder / f"image-{side}.tif", side)
            with cluster() as fanout:  # type: ignore[attr-defined]
                seconds = timed_run(fanout, image, folder / "memory-out")
                peaks = ", ".join(f"{peak:.0f}" for peak in worker_peaks())
            print(f"memory: {side} x {side} in {seconds:.1f} s, peak of the workers {peaks} MB")


if __name__ == "__main__":
    main()
