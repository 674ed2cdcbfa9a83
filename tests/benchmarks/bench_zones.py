"""How many zones a second are measured, beside exactextract alone and rasterstats (which counts a
pixel by its centre) on the same mask and polygons:

    python tests/benchmarks/bench_zones.py [polygons] [side]

Prints polygons a second, the ratio to exactextract, the largest difference to it, and the growth of
the peak memory. rasterstats is left out where it is not installed.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
from affine import Affine
from exactextract import exact_extract

from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.statistics.protocol import LabelledTile
from maskloom.segcore.storage.store import Store
from maskloom.tasks.zones import ZonesFile, described, prepare

TILE = 1024
NAMES = ("water", "forest", "crop", "urban")


def peak() -> float:
    """Peak resident memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main(count: int, side: int) -> None:
    """Measure `count` polygons of 40 corners, some 200 pixels wide, on a mask of this side."""
    rng = np.random.default_rng(0)
    affine = Affine(10, 0, 500000, 0, -10, 5300000)
    labels = np.kron(
        rng.integers(0, 4, (side // 8, side // 8), np.uint8), np.ones((8, 8), np.uint8)
    )
    angles = np.sort(rng.random((count, 40)), axis=1) * 2 * np.pi
    radii = rng.uniform(500, 1000, (count, 40))
    centres = np.stack(
        [rng.uniform(5e5, 5e5 + 10 * side, count), 53e5 - rng.uniform(0, 10 * side, count)], 1
    )
    corners = centres[:, None] + radii[..., None] * np.stack([np.cos(angles), np.sin(angles)], -1)
    polygons = geopandas.GeoDataFrame(
        geometry=shapely.make_valid(shapely.polygons(corners)), crs=32633
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        polygons.to_file(folder / "zones.gpkg")
        mask = folder / "mask.tif"
        profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint8"}
        with rasterio.open(
            mask, "w", crs="EPSG:32633", transform=affine, tiled=True, **profile
        ) as file:
            file.write(labels, 1)
        print(f"{count} polygons on {side} x {side} pixels, one process")
        before, started = peak(), time.perf_counter()
        wanted = exact_extract(mask, polygons, ["count", "frac", "unique"])
        theirs = time.perf_counter() - started
        print(f"exactextract alone: {count / theirs:,.0f} a second, +{peak() - before:.0f} MiB")
        before, started = peak(), time.perf_counter()
        source = ZonesFile(str(folder / "zones.gpkg"))
        zones = described(source, str(folder / "out"))
        prepare(zones, source, Store(str(folder / "out")))
        prepared = time.perf_counter() - started
        space = Space(tuple(affine)[:6], rasterio.crs.CRS.from_epsg(32633).to_wkt())
        spec = RasterSpec(
            "m", "tiff", (side, side), (1,), "uint8", (side, side), "", 1, space=space
        )
        table, total, started = ClassTable.of(NAMES), {}, time.perf_counter()
        for tile in Grid((side, side), (TILE, TILE)):
            tile_labels = labels[tile.core.slices]
            total = zones.merge(total, zones.observe(LabelledTile(tile_labels, tile, spec, table)))
        rows = zones.finish(total, spec, table)
        ours = time.perf_counter() - started
        print(
            f"zones, tiles of {TILE}: {count / ours:,.0f} a second ({theirs / ours:.2f} x "
            f"exactextract), +{peak() - before:.0f} MiB; prepared in {prepared:.1f} s"
        )
        pixels = {(row["zone"], row["class_id"]): row["pixels"] for row in rows}
        difference = max(
            abs(pixels.get((i, int(label)), 0.0) - share * found["properties"]["count"])
            for i, found in enumerate(wanted)
            for label, share in zip(
                found["properties"]["unique"], found["properties"]["frac"], strict=True
            )
        )
        print(f"largest difference to exactextract on the whole mask: {difference:.1e} pixels")
        try:
            from rasterstats import zonal_stats
        except ImportError:
            return
        started = time.perf_counter()
        zonal_stats(polygons, str(mask), categorical=True)
        taken = time.perf_counter() - started
        print(f"rasterstats: {count / taken:,.0f} a second ({taken / ours:.2f} times as long)")


if __name__ == "__main__":
    main(*(int(each) for each in sys.argv[1:3])) if len(sys.argv) == 3 else main(1000, 8192)
