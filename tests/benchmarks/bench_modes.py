"""How fast mean shift finds the modes of a picture's colours and labels its pixels, against
scikit-learn.

    python tests/benchmarks/bench_modes.py [megapixels]

Labelling uses one thread, fitting up to four of the processors it finds. Prints one line a
measurement.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
from skimage import data

sys.path.insert(0, str(Path(__file__).parent))
from bench_labelling import natural_picture

from maskloom.segcore.geometry import Grid
from maskloom.segcore.methods import modes as module
from maskloom.segcore.methods.modes import FeatureMeanShift
from maskloom.segcore.models.files import dump_model
from maskloom.segcore.testing.segmenters import Picture, fitted

TILE = 2048


def best_of(times: int, work: Callable[[], Any]) -> tuple[float, Any]:
    """Least seconds of several runs, and the last result."""
    seconds, result = [], None
    for _ in range(times):
        started = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - started)
    return min(seconds), result


def main(megapixels: float) -> None:
    picture = natural_picture(megapixels)
    recipe = FeatureMeanShift()
    tiles = [picture.block(tile, picture.spec) for tile in Grid(picture.spec.shape, (TILE, TILE))]
    total = reduce(recipe.merge, [recipe.observe(tile) for tile in tiles])
    for kernel in ("flat", "epanechnikov", "gaussian"):
        fitter = FeatureMeanShift(kernel=kernel)
        cold, _ = best_of(1, lambda fitter=fitter: fitter.finish(total))
        warm, model = best_of(2, lambda fitter=fitter: fitter.finish(total))
        print(
            f"fit, {kernel}: {cold:.2f} s, warm {warm:.2f} s; {model.values} colours, "
            f"{model.points} points, ",
            end="",
        )
        print(
            f"bandwidth {model.bandwidth:.1f}, {len(model.modes)} classes, model file "
            f"{len(dump_model(model))} bytes"
        )
    one = tiles[0]
    size = one.valid.size / 1e6
    cold, _ = best_of(1, lambda: model.segment(one))
    warm, _ = best_of(5, lambda: model.segment(one))
    module._colours.cache_clear()
    empty, _ = best_of(1, lambda: model.segment(one))
    print(
        f"label a tile of 8-bit RGB: first {cold:.3f} s, empty table {size / empty:.0f} MP/s, warm "
        f"{size / warm:.0f} MP/s"
    )
    floats = Picture(one.pixels.astype(np.float32), one.valid, "rgb")
    (block,) = floats.blocks(model)
    model.segment(block)
    seconds, _ = best_of(3, lambda: model.segment(block))
    print(f"label a tile of 32-bit floats: {size / seconds:.0f} MP/s")
    compare()


def compare() -> None:
    """The same modes by scikit-learn, which starts from bins of the bandwidth's size, on a small
    photograph.
    """
    from sklearn.cluster import MeanShift

    photo = np.ascontiguousarray(data.coffee()[::4, ::4])
    picture = Picture(photo, np.ones(photo.shape[:2], bool), "rgb")
    ours, model = best_of(2, lambda: fitted(FeatureMeanShift(bandwidth=30.0), [picture]))
    theirs, found = best_of(
        1,
        lambda: MeanShift(bandwidth=30.0, bin_seeding=True).fit(photo.reshape(-1, 3).astype(float)),
    )
    print(
        f"{photo.shape[0]} x {photo.shape[1]} pixels: ours {ours:.2f} s, {len(model.modes)} "
        "classes; ",
        end="",
    )
    print(
        f"scikit-learn {theirs:.2f} s, {len(found.cluster_centers_)} clusters; {theirs / ours:.0f} "
        "times"
    )


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 64)
