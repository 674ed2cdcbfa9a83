"""What the objects table costs: a million blobs of some 50 pixels, measured tile by tile, in one
process and one thread.

    python tests/benchmarks/bench_objects.py [objects] [EPSG code, or 0 for none]

The image is computed as it is asked for and never stands in memory. Prints one line a step and the
peak memory.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter

import numpy as np
import pyarrow.parquet as pq
from pyproj import CRS

from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.statistics.objects.bands import BandSums, observe_bands
from maskloom.segcore.statistics.objects.geoparquet import geo_metadata
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.table import TileObjects, finish, measure
from maskloom.segcore.storage.packing import pack, unpack

TILE, BLOCK = 2048, 12
NAMES = ("background", "blob")


def blob_templates() -> np.ndarray:
    """Random ellipses with ragged edges and some holes, in blocks of 12 pixels."""
    generator = np.random.default_rng(1)
    y, x = np.mgrid[:BLOCK, :BLOCK] - (BLOCK - 1) / 2
    angles, long, short = (
        generator.uniform(0, np.pi, 256),
        generator.uniform(3.5, 5.5, 256),
        generator.uniform(2, 4, 256),
    )
    u = np.cos(angles)[:, None, None] * x + np.sin(angles)[:, None, None] * y
    v = np.cos(angles)[:, None, None] * y - np.sin(angles)[:, None, None] * x
    inside = (u / long[:, None, None]) ** 2 + (v / short[:, None, None]) ** 2 + generator.normal(
        0, 0.15, u.shape
    ) < 1
    inside[:, 0, :] = inside[:, :, 0] = False
    inside[:, 6, 6] = True
    return inside


class Blobs:
    """An image of blobs that is computed on demand."""

    def __init__(self, objects: int, epsg: int) -> None:
        self.across = round(objects**0.5)
        side = self.across * BLOCK
        place = (
            Space((10.0, 0.0, 399960.0, 0.0, -10.0, 5600040.0), CRS.from_epsg(epsg).to_wkt())
            if epsg
            else Space()
        )
        self.spec = RasterSpec(
            "memory://blobs",
            "memory",
            (side, side),
            (1, 2, 3),
            "uint8",
            (512, 512),
            "1",
            3,
            space=place,
        )
        self.templates = blob_templates()

    def ids(self, box: Box) -> np.ndarray:
        rows, columns = (np.arange(a, b) for a, b in zip(box.start, box.stop, strict=True))
        block = (rows // BLOCK)[:, None] * self.across + columns // BLOCK
        inside = self.templates[
            (block * 2654435761 >> 7) % len(self.templates),
            (rows % BLOCK)[:, None],
            columns % BLOCK,
        ]
        return np.where(inside, block + 1, 0).astype(np.int64)

    def tile(self, tile: Tile, seconds: Counter[str]) -> TileObjects:
        window = tile.core.grow((2, 2)) & Box.whole(self.spec.shape)
        ring = np.zeros(tuple(n + 4 for n in tile.core.shape), np.int64)
        offset = Box(tuple(n - 2 for n in tile.core.start), tuple(n + 2 for n in tile.core.stop))
        ring[window.relative_to(offset).slices] = self.ids(window)
        object_id, flat = np.unique(np.concatenate([[0], ring.ravel()]), return_inverse=True)
        labels = flat[1:].reshape(ring.shape).astype(np.uint32)
        pixels = np.random.default_rng(tile.index).integers(0, 256, (*tile.core.shape, 3), np.uint8)
        first, last = (object_id - 1) // self.across * BLOCK, (object_id - 1) % self.across * BLOCK
        whole = (first >= tile.core.start[0]) & (first + BLOCK <= tile.core.stop[0])
        whole &= (last >= tile.core.start[1]) & (last + BLOCK <= tile.core.stop[1])
        started = time.process_time()
        bands: BandSums = observe_bands(labels[2:-2, 2:-2], pixels, len(object_id) - 1)
        seconds["bands"] += time.process_time() - started
        return TileObjects(
            labels, object_id, (object_id > 0).astype(np.int32), whole, bands, tile, self.spec
        )


def main(objects: int, epsg: int) -> None:
    blobs, seconds = Blobs(objects, epsg), Counter[str]()
    # Once before the clock runs: numba compiles, or reads what it compiled before.
    small = Blobs(400, epsg)
    finish(
        measure(small.tile(next(iter(Grid(small.spec.shape, small.spec.shape))), seconds)),
        small.spec,
        NAMES,
        3,
    )
    seconds.clear()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows, staged, rest = 0, 0, []
    with pq.ParquetWriter(
        "/dev/null",
        finish(_empty(small), small.spec, NAMES, 3).schema.with_metadata(geo_metadata(epsg > 0)),
    ) as out:

        def write(table: object) -> None:
            started = time.process_time()
            out.write_table(table)
            seconds["write"] += time.process_time() - started

        for tile in Grid(blobs.spec.shape, (TILE, TILE)):
            known = blobs.tile(tile, seconds)
            started = time.process_time()
            whole, part = (measures := measure(known)).split(measures.whole)
            seconds["measure"] += time.process_time() - started
            started = time.process_time()
            table = finish(whole, blobs.spec, NAMES, 3)
            seconds["finish"] += time.process_time() - started
            rows += len(table)
            write(table)
            rest.append(pack(part))
            staged += len(rest[-1])
        started = time.process_time()
        merged = Measures.concatenate([unpack(Measures, part) for part in rest])
        table = finish(merged, blobs.spec, NAMES, 3)
        seconds["merge"] += time.process_time() - started
        write(table)
    rows += len(table)
    pixels = blobs.spec.pixels
    print(
        f"{rows} objects, {len(table)} of them over several tiles, {pixels / 1e6:.0f} megapixels, "
        f"EPSG {epsg}"
    )
    for step, spent in seconds.items():
        print(
            f"{step:10s}{spent:8.2f} s {1e9 * spent / pixels:8.1f} ns a pixel "
            f"{1e6 * spent / rows:8.2f} us an object"
        )
    print(f"{'all':10s}{sum(seconds.values()):8.2f} s; parts that travel {staged / 1e6:.1f} MB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(
        f"peak memory {peak / 1024:.0f} MiB, {(peak - before) / 1024:.0f} MiB above that of the "
        "warm process"
    )


def _empty(blobs: Blobs) -> Measures:
    tile = next(iter(Grid(blobs.spec.shape, blobs.spec.shape)))
    return measure(blobs.tile(tile, Counter())).take(np.zeros(0, np.int64))


if __name__ == "__main__":
    main(
        int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000,
        int(sys.argv[2]) if len(sys.argv) > 2 else 0,
    )
