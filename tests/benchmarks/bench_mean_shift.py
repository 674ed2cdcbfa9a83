"""Joint mean shift against Orfeo ToolBox: python tests/benchmarks/bench_mean_shift.py [MEGAPIXELS]
[FOLDER].

Both read one RGB GeoTIFF of photographs and write ids of regions with equal radii, on two processes
or threads: ours over tiles of 512, `otbcli_LargeScaleMeanShift` (Debian's otb-bin) over tiles of
500, as its users run it. Rounds alternate; medians and the ratio are printed. Our workers have
compiled before; theirs are compiled. Then both cut the image into tiles of 512 and into one tile:
pixels whose region is not the same are counted.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

SPATIAL_RADIUS, RANGE_RADIUS, MIN_SIZE = 5, 15, 50
ROUNDS = 3


def make_image(path: Path, side: int) -> None:
    """Photographs side by side, each enlarged twice and with noise of its own."""
    import cv2
    import rasterio
    from skimage import data

    rng = np.random.default_rng(7)
    sources = [
        data.astronaut(),
        data.coffee()[:400, :400],
        data.chelsea()[:300, :300],
        data.rocket()[:400, :400],
    ]
    pixels = np.empty((side, side, 3), np.uint8)
    step = 800
    for n, (y, x) in enumerate((y, x) for y in range(0, side, step) for x in range(0, side, step)):
        height, width = min(step, side - y), min(step, side - x)
        enlarged = cv2.resize(
            sources[n % len(sources)], (step, step), interpolation=cv2.INTER_CUBIC
        )[:height, :width]
        noise = rng.integers(-4, 5, enlarged.shape, dtype=np.int16)
        pixels[y : y + height, x : x + width] = np.clip(enlarged + noise, 0, 255).astype(np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", height=side, width=side, count=3, dtype="uint8", tiled=True
    ) as file:
        file.write(np.moveaxis(pixels, -1, 0))


def spec_of(image: Path):
    """What the header tells, and the model."""
    from maskloom.segcore.formats.tiff.geotiff import GeoTiff
    from maskloom.segcore.segmenters.mean_shift import MeanShift

    recipe = MeanShift(
        space="joint", spatial_radius=SPATIAL_RADIUS, range_radius=RANGE_RADIUS, min_size=MIN_SIZE
    )
    return GeoTiff().describe(image.as_uri(), "1"), recipe.start()


def work(image: Path, tile_size: int, number: int):
    """Read one tile and find its fragments."""
    from maskloom.segcore.formats.tiff.geotiff import GeoTiff
    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.objects.two_pass import pack_labels
    from maskloom.segcore.raster.spec import Block

    spec, model = spec_of(image)
    tile = Grid(spec.shape, (tile_size, tile_size), model.requirements.halo)[number]
    with GeoTiff().open(spec) as reader:
        block = Block(tile, *reader.read(tile.read), spec)
    return pack_labels(model.fragment(block), tile.trim(block.valid), tile, spec.shape)


def ours(image: Path, mask: Path, tile_size: int, pool: ProcessPoolExecutor) -> float:
    """Seconds from the file of pixels to the file of ids."""
    import rasterio
    from rasterio.windows import Window

    from maskloom.segcore.geometry import Grid
    from maskloom.segcore.objects.two_pass import join_tiles, relabel

    started = time.perf_counter()
    spec, model = spec_of(image)
    grid = Grid(spec.shape, (tile_size, tile_size), model.requirements.halo)
    count = len(grid)
    tiles = list(pool.map(work, [image] * count, [tile_size] * count, range(count)))
    relabellings = join_tiles(model, grid, tiles, "")
    height, width = spec.shape
    with rasterio.open(
        mask, "w", driver="GTiff", height=height, width=width, count=1, dtype="uint32"
    ) as file:
        for tile, packed, relabelling in zip(grid, tiles, relabellings, strict=True):
            (y, x), (rows, columns) = tile.core.start, tile.core.shape
            ids = relabel(packed.labels, relabelling).ids
            file.write(ids, 1, window=Window(x, y, columns, rows))
    return time.perf_counter() - started


def orfeo(image: Path, mask: Path, tile_size: int) -> float:
    """Seconds of Orfeo ToolBox."""
    radii = f"-spatialr {SPATIAL_RADIUS} -ranger {RANGE_RADIUS}"
    options = f"{radii} -minsize {MIN_SIZE} -mode raster".split()
    tiles = f"-tilesizex {tile_size} -tilesizey {tile_size}".split()
    environment = {
        **os.environ,
        "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "2",
        "OTB_MAX_RAM_HINT": "2048",
    }
    command = [
        "otbcli_LargeScaleMeanShift",
        "-in",
        str(image),
        *options,
        "-mode.raster.out",
        str(mask),
        "uint32",
        *tiles,
    ]
    started = time.perf_counter()
    subprocess.run(command, check=True, env=environment, cwd=mask.parent, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def differing(one: Path, other: Path) -> tuple[int, int, int]:
    """Pixels outside the common part of each region and its best match, whatever the ids; and how
    many regions there are.
    """
    import rasterio

    flat = []
    for path in (one, other):
        with rasterio.open(path) as file:
            flat.append(np.unique(file.read(1), return_inverse=True)[1].astype(np.int64).ravel())
    width = int(flat[1].max()) + 1
    pairs, counts = np.unique(flat[0] * width + flat[1], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    a, b = np.divmod(pairs[order], width)
    best_of_a, best_of_b = np.unique(a, return_index=True)[1], np.unique(b, return_index=True)[1]
    common = counts[order][np.intersect1d(best_of_a, best_of_b)].sum()
    return len(flat[0]) - int(common), len(best_of_a), len(best_of_b)


def main() -> None:
    """Make the image, warm the workers, alternate the rounds, compare tiles with the whole."""
    megapixels = float(sys.argv[1]) if len(sys.argv) > 1 else 4.0
    side = round((megapixels * 1e6) ** 0.5)
    there = shutil.which("otbcli_LargeScaleMeanShift") is not None
    if not there:
        print(
            "otbcli_LargeScaleMeanShift is not installed (Debian: otb-bin); only our own times "
            "follow"
        )
    with (
        tempfile.TemporaryDirectory() as temporary,
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool,
    ):
        folder = Path(sys.argv[2] if len(sys.argv) > 2 else temporary).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        image, small, mask = folder / "image.tif", folder / "small.tif", folder / "ours.tif"
        make_image(image, side)
        make_image(small, 600)
        ours(small, mask, 256, pool)
        times: dict[str, list[float]] = {"ours": [], "Orfeo ToolBox": []}
        for _ in range(ROUNDS):
            times["ours"].append(ours(image, mask, 512, pool))
            if there:
                times["Orfeo ToolBox"].append(orfeo(image, folder / "orfeo.tif", 500))
        middle = {name: statistics.median(seconds) for name, seconds in times.items() if seconds}
        for name, seconds in middle.items():
            ratio = f"  {seconds / middle['ours']:5.1f} x ours"
            print(
                f"{name:14} {seconds:7.2f} s  {seconds / side**2 * 1e6:6.2f} s/megapixel{ratio}",
                times[name],
            )
        ours(image, folder / "ours_whole.tif", side, pool)
        lost, whole, tiled = differing(folder / "ours_whole.tif", mask)
        print(
            f"ours           tiles of 512 against the whole: {lost} of {side * side} pixels "
            f"differ; {tiled} and {whole} regions"
        )
        if there:
            orfeo(image, folder / "orfeo.tif", 512)
            orfeo(image, folder / "orfeo_whole.tif", side)
            lost, whole, tiled = differing(folder / "orfeo_whole.tif", folder / "orfeo.tif")
            print(
                f"Orfeo ToolBox  tiles of 512 against the whole: {lost} of {side * side} pixels "
                f"differ; {tiled} and {whole} regions"
            )


if __name__ == "__main__":
    main()
