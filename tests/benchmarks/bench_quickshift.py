"""How fast quick shift is against scikit-image, one thread each, and whether both find the same
regions.

    python tests/benchmarks/bench_quickshift.py [runs]

Same parameters (the defaults) and, for the comparison of regions, the same noise. Prints a line a
picture, in processor seconds; where regions differ, also what is left of the difference when both
start from the colours of scikit-image.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from skimage import color, data, segmentation

from maskloom.segcore.geometry import Box
from maskloom.segcore.kernels.quickshift import number_trees
from maskloom.segcore.segmenters.quickshift import Quickshift, QuickshiftModel, scaled_planes
from maskloom.segcore.testing.segmenters import Picture


def timed(work: Callable[[], Any], runs: int) -> tuple[float, Any]:
    """Least processor seconds of several runs, and the last result. Both sides have one thread, so
    other work on the machine counts little.
    """
    seconds = []
    result = None
    for _ in range(runs):
        started = time.process_time()
        result = work()
        seconds.append(time.process_time() - started)
    return min(seconds), result


def regions(model: QuickshiftModel, planes: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """The regions of a whole picture of these colours with this noise."""
    whole = Box.whole(noise.shape)
    values = np.zeros(noise.shape, np.uint32)
    number_trees(model.parents_of(planes, noise.copy(), whole, whole), values)
    return values


def different(one: np.ndarray, other: np.ndarray) -> int:
    """Pixels that lie in another region, once each region of the one is matched with that of the
    other which it shares most pixels with.
    """
    table = np.zeros((int(one.max()) + 1, int(other.max()) + 1), np.int64)
    np.add.at(table, (one.ravel(), other.ravel()), 1)
    return one.size - min(int(table.max(axis=axis).sum()) for axis in (0, 1))


def main(runs: int) -> None:
    model = Quickshift().start()
    photos = {
        "astronaut 512": data.astronaut(),
        "immunohistochemistry 512": data.immunohistochemistry(),
        "retina 1024": data.retina()[200:1224, 200:1224],
        "coffee 400 x 600": data.coffee(),
        "chelsea 300 x 451": data.chelsea(),
    }
    for name, photo in photos.items():
        picture = Picture(np.ascontiguousarray(photo), np.ones(photo.shape[:2], bool), "rgb")
        (block,) = picture.blocks(model)
        model.fragment(block)
        ours, _ = timed(lambda block=block: model.fragment(block), runs)
        theirs, reference = timed(
            lambda photo=photo: segmentation.quickshift(photo, kernel_size=5, max_dist=10), runs
        )
        noise = np.random.default_rng(42).normal(scale=1e-5, size=photo.shape[:2])
        differing = different(
            regions(model, scaled_planes(photo, 1 / 255, lab=True), noise), reference
        )
        print(
            f"{name:26s}ours {ours:7.3f} s, {1e9 * ours / noise.size:6.0f} ns a pixel   "
            f"scikit-image {theirs:7.3f} s"
            f"   {theirs / ours:5.1f} times   {reference.max() + 1:5d} regions, {differing} pixels "
            "differ"
        )
        if differing:
            lab = np.ascontiguousarray(np.moveaxis(color.rgb2lab(photo), -1, 0))
            print(
                f"{'':26s}from the Lab colours of scikit-image: "
                f"{different(regions(model, lab, noise), reference)} pixels differ"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
