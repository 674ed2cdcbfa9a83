"""How fast the classical segmenters count, fit and label, against scikit-learn where it does the
same.

    python tests/benchmarks/bench_labelling.py [megapixels]

One thread for counting and labelling; fitting uses the processors it finds. Prints one line a
measurement.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import reduce
from typing import Any

import cv2
import numpy as np
from skimage import data

from maskloom.segcore.geometry import Grid
from maskloom.segcore.methods import pointwise
from maskloom.segcore.methods.samples import Samples
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.testing.segmenters import Picture, fitted

TILE = 2048
RUNS = 5


def natural_picture(megapixels: float) -> Picture:
    """Photographs scaled up side by side, with correlated grain that gives them millions of
    different colours.
    """
    side = round((megapixels * 1e6) ** 0.5)
    third = -(-side // 3)
    photos = [
        data.astronaut(),
        data.coffee(),
        data.chelsea(),
        data.rocket(),
        data.immunohistochemistry(),
        data.retina(),
    ]
    photos += [np.ascontiguousarray(photo[::-1, ::-1][..., [1, 2, 0]]) for photo in photos[:3]]
    scaled = [cv2.resize(photo, (third, third), interpolation=cv2.INTER_CUBIC) for photo in photos]
    whole = np.concatenate([np.concatenate(scaled[row : row + 3], axis=1) for row in (0, 3, 6)])[
        :side, :side
    ]
    generator = np.random.default_rng(0)
    pixels = np.empty_like(whole)
    for y in range(0, side, 1000):
        rows = whole[y : y + 1000]
        grain = (
            cv2.GaussianBlur(generator.standard_normal(rows.shape, dtype=np.float32), (0, 0), 0.8)
            * 7
        )
        pixels[y : y + 1000] = np.clip(rows + grain, 0, 255).astype(np.uint8)
    return Picture(pixels, np.ones(pixels.shape[:2], bool), "rgb")


class Seconds(float):
    """Least seconds on the clock, with the processor seconds of that run (all threads)."""

    processor: float


def best_of(times: int, work: Callable[[], Any]) -> tuple[Seconds, Any]:
    """The quickest of several runs, and the last result."""
    runs: list[Seconds] = []
    result = None
    for _ in range(times):
        started, worked = time.perf_counter(), time.process_time()
        result = work()
        runs.append(Seconds(time.perf_counter() - started))
        runs[-1].processor = time.process_time() - worked
    return min(runs), result


def report(name: str, seconds: Seconds, megapixels: float | None = None) -> None:
    rate = (
        ""
        if megapixels is None
        else f"{megapixels / seconds:10.0f} MP/s, "
        f"{megapixels / seconds.processor:6.0f} per processor second"
    )
    print(f"{name:48s}{seconds:10.4f} s, processor {seconds.processor:8.4f} s{rate}")


def main(megapixels: float) -> None:
    picture = natural_picture(megapixels)
    size = picture.valid.size / 1e6
    spec, samples = picture.spec, Samples()
    tiles = [picture.block(tile, spec) for tile in Grid(spec.shape, (TILE, TILE))]
    one = tiles[0]
    one_size = one.valid.size / 1e6

    for name, recipe in (("counting", KMeans(clusters=5)), ("histogram of luminance", Threshold())):
        report(
            f"{name}: first call of the process",
            best_of(1, lambda recipe=recipe: recipe.observe(one))[0],
        )
        report(
            f"{name}: one tile, warm",
            best_of(5, lambda recipe=recipe: recipe.observe(one))[0],
            one_size,
        )
    seconds, states = best_of(1, lambda: [samples.observe(tile) for tile in tiles])
    report("counting: all tiles", seconds, size)
    seconds, total = best_of(1, lambda: reduce(samples.merge, states))
    report("merging: all tiles", seconds, size)
    print(f"{samples.finish(total).weights.size} different colours in {size:.0f} megapixels")

    models = {}
    for name, recipe in (
        ("k-means", KMeans(clusters=5)),
        ("mixture", MixtureOfGaussians(components=5)),
    ):
        report(
            f"{name}: fit, first call", best_of(1, lambda recipe=recipe: recipe.finish(total))[0]
        )
        seconds, models[name] = best_of(3, lambda recipe=recipe: recipe.finish(total))
        report(f"{name}: fit, warm", seconds)
    models["threshold"] = fitted(
        Threshold(band=1), [Picture(picture.pixels[:TILE, :TILE], picture.valid[:TILE, :TILE])]
    )
    for name, model in models.items():
        block = one if name != "threshold" else picture.block(one.tile, spec.select((1,)))
        report(
            f"{name}: labelling, first call",
            best_of(1, lambda model=model, block=block: model.segment(block))[0],
        )
        seconds, _ = best_of(5, lambda model=model, block=block: model.segment(block))
        report(f"{name}: labelling one tile, warm", seconds, one_size)
        if name != "threshold":
            seconds, _ = best_of(1, lambda model=model: [model.segment(tile) for tile in tiles])
            report(f"{name}: labelling all tiles", seconds, size)
    compare(one.pixels, models["k-means"], models["mixture"], one)


def compare(pixels: np.ndarray, kmeans: Any, mixture: Any, block: Any) -> None:
    """The same labels by scikit-learn: equal numbers of runs, each side given its pixels in the
    layout that it likes.

    Ours is timed with an empty table of colours too, since a batch pays for that once a model and
    process.
    """
    from sklearn.cluster import KMeans as ReferenceMeans
    from sklearn.mixture import GaussianMixture

    rows = np.ascontiguousarray(pixels.reshape(-1, 3), dtype=np.float64)
    size = len(rows) / 1e6
    means = ReferenceMeans(5, init=np.array(kmeans.centres), n_init=1, max_iter=1).fit(
        np.array(kmeans.centres)
    )
    gaussians = GaussianMixture(5)
    gaussians.weights_, gaussians.means_ = np.array(mixture.weights), np.array(mixture.means)
    gaussians.precisions_cholesky_ = np.swapaxes(np.array(mixture.factors), 1, 2)

    def from_cold(model: Any) -> Any:
        pointwise._memo.cache_clear()
        return model.segment(block)

    for name, reference, model in (("k-means", means, kmeans), ("mixture", gaussians, mixture)):
        theirs, expected = best_of(RUNS, lambda reference=reference: reference.predict(rows))
        cold, _ = best_of(RUNS, lambda model=model: from_cold(model))
        warm, labels = best_of(RUNS, lambda model=model: model.segment(block))
        report(f"{name}: scikit-learn's predict", theirs, size)
        report(f"{name}: ours, empty table", cold, size)
        report(f"{name}: ours, warm table", warm, size)
        agreement = np.mean(labels.values.ravel() == expected)
        print(
            f"{name}: {theirs / cold:.1f} (empty table) to {theirs / warm:.1f} (warm) times "
            "scikit-learn on the clock, ",
            end="",
        )
        print(
            f"{theirs.processor / cold.processor:.1f} to {theirs.processor / warm.processor:.1f} "
            "by processor time, ",
            end="",
        )
        print(f"{100 * agreement:.4f} % of labels equal")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 100)
