"""How fast connected parts are found over tiles, against SciPy on a piece in memory and dask-image
over chunks.

    python tests/benchmarks/bench_connected.py [megapixels] [megapixels for dask-image]

One process and thread for ours and SciPy; dask-image gets two threads. Masks are made tile by tile
and not timed: fields of correlated noise that never repeat, at half their area; and for what it
takes at worst, noise without correlation. What is timed of ours is all that labels take: fragments,
first pixels, joining, numbering, and writing ids to pixels.
"""

from __future__ import annotations

import resource
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import ndimage

from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.objects.components import Components
from maskloom.segcore.objects.numbering import first_positions, number_objects

TILE, CHUNK, PIECE = 2048, 1024, 4096
FULL = np.ones((3, 3), bool)


@dataclass
class Field:
    """A mask without end: the sum of two periodic fields of noise is above its median."""

    sigma: float
    periods: tuple[int, int] = (3001, 2503)
    waves: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        generator = np.random.default_rng(0)
        for period in self.periods:
            wave = generator.standard_normal((period, period), dtype=np.float32)
            self.waves.append(
                ndimage.gaussian_filter(wave, self.sigma, mode="wrap") if self.sigma else wave
            )

    def mask(self, box: Box) -> np.ndarray:
        """Class ids 0 and 1 of a box."""
        total = np.zeros(box.shape, np.float32)
        for wave, period in zip(self.waves, self.periods, strict=True):
            rows, columns = (
                np.arange(a, b) % period for a, b in zip(box.start, box.stop, strict=True)
            )
            total += wave[np.ix_(rows, columns)]
        return (total > 0).astype(np.uint8)


class Clock:
    """Seconds by what they were spent on."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def time(self, name: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        self.seconds[name] += time.perf_counter() - started
        return result


def ours(source: Field, side: int, parts: Components, clock: Clock) -> int:
    """Label a square of the field; the number of parts. Labels of tiles are made again for the
    second pass, which is not timed.
    """
    grid = Grid((side, side), (TILE, TILE))
    boundaries, known = [], []

    def fragment(tile: Tile) -> Any:
        return parts.fragment(source.mask(tile.core), tile, grid.shape)

    for tile in grid:
        mask = source.mask(tile.core)
        found = clock.time(
            "fragments", lambda mask=mask, tile=tile: parts.fragment(mask, tile, grid.shape)
        )
        firsts = clock.time(
            "first pixels",
            lambda found=found, tile=tile: first_positions(found.values, tile, grid.shape),
        )
        boundaries.append(found.boundary)
        known.append((firsts, found.class_of))
    groupings = clock.time("joining", lambda: parts.join(grid, boundaries))
    numbers = number_objects(grid, groupings, lambda number: known[number], "memory")
    most = 0
    for tile in grid:
        of_tile = clock.time("numbering", lambda: next(numbers))
        values = fragment(tile).values
        ids = clock.time("writing ids", lambda of_tile=of_tile, values=values: of_tile.ids[values])
        most = max(most, int(ids.max()))
    return most


def best_of(times: int, work: Callable[[], Any]) -> float:
    """The least seconds of several runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def peak() -> float:
    """Most memory of the process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def by_dask_image(source: Field, megapixels: float) -> float | None:
    """Nanoseconds a pixel of dask-image on two threads; None where it is not installed."""
    try:
        import dask.array as da
        from dask_image.ndmeasure import label
    except ImportError:
        return None
    side = round((megapixels * 1e6) ** 0.5 / CHUNK) * CHUNK
    mask = source.mask(Box((0, 0), (side, side)))
    started = time.perf_counter()
    labels, count = label(da.from_array(mask, chunks=CHUNK), structure=FULL)
    da.compute(labels, count, scheduler="threads", num_workers=2)
    return (time.perf_counter() - started) / side**2 * 1e9


def main(megapixels: float, for_dask: float) -> None:
    side = round((megapixels * 1e6) ** 0.5)
    warm = Field(2.0, (257, 251))
    for fill in (False, True):
        ours(warm, 2 * TILE, Components((1,), 8, fill_holes=fill), Clock())
    for name, sigma in (("smooth", 8.0), ("rough", 2.0), ("noise", 0.0)):
        source = Field(sigma)
        piece = source.mask(Box((0, 0), (PIECE, PIECE)))
        scipy = best_of(5, lambda piece=piece: ndimage.label(piece, FULL)) / piece.size * 1e9
        print(
            f"{name}: scipy.ndimage.label on {piece.size / 1e6:.1f} MP in memory: {scipy:.2f} ns a "
            f"pixel, {1e3 / scipy:.0f} MP/s"
        )
        for fill in (False, True):
            clock = Clock()
            count = ours(source, side, Components((1,), 8, fill_holes=fill), clock)
            each = clock.seconds.total() / side**2 * 1e9
            spent = ", ".join(f"{what} {seconds:.2f} s" for what, seconds in clock.seconds.items())
            print(
                f"{name}{', holes filled' if fill else ''}: {side**2 / 1e6:.0f} MP, {count} parts: "
                f"{each:.2f} ns a pixel, "
                f"{1e3 / each:.0f} MP/s ({spent}); {each / scipy:.2f} times SciPy; peak "
                f"{peak():.2f} GB so far"
            )
        if name != "noise":
            theirs = by_dask_image(source, for_dask)
            print(
                f"{name}: dask-image: "
                + ("not installed" if theirs is None else f"{theirs:.1f} ns a pixel, two threads")
            )


if __name__ == "__main__":
    given = [float(number) for number in sys.argv[1:]]
    main(*given, *(268.0, 67.0)[len(given) :])
