"""How fast volumes are segmented in memory, against the libraries that do the same.

    python tests/benchmarks/bench_volumes.py [side]

One volume of 8 bits, one process and one thread for every side, compiled before; the best of three
runs, in seconds of the processor, which other work on the machine disturbs least. Ours are the
functions that run on every tile, here on the whole volume as one tile. cc3d
(connected-components-3d, LGPL, never a dependency) is left out where it is not installed.
"""

from __future__ import annotations

import os

# One thread for every library, set before any is imported.
os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", NUMBA_NUM_THREADS="1")

import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_volume_memory import blobs
from scipy import ndimage

from maskloom.segcore.geometry import Tile
from maskloom.segcore.objects.components import Components
from maskloom.segcore.segmenters.kmeans import KMeans
from maskloom.segcore.segmenters.mixture import MixtureOfGaussians
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.segmenters.watershed import split_touching
from maskloom.segcore.testing.segmenters import Picture

RUNS, LONG = 3, 5.0
CLUSTERS = 3
WINDOW = 51
DISTANCE = 12


def best_of(work: Callable[[], Any]) -> float:
    """The least processor seconds of several runs, or of one that takes long."""
    seconds: list[float] = []
    while len(seconds) < RUNS and sum(seconds) < LONG:
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def one_thread() -> None:
    """Bind this process to one processor, which `segcore` takes for the number of threads."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


class Table:
    """Lines of results."""

    def __init__(self, voxels: int) -> None:
        self.megavoxels = voxels / 1e6

    def line(self, job: str, ours: Callable[[], Any], others: dict[str, Callable[[], Any]]) -> None:
        """Time all sides on one job and print them."""
        ours()
        mine = best_of(ours)
        parts = [f"{job}: maskloom {self.megavoxels / mine:.1f} Mvoxel/s ({mine:.3f} s)"]
        for name, work in others.items():
            seconds = best_of(work)
            parts.append(
                f"{name} {self.megavoxels / seconds:.1f} ({seconds:.3f} s, {seconds / mine:.2f} x)"
            )
        print(", ".join(parts), flush=True)


def fit_and_apply(recipe: Any, picture: Picture) -> np.ndarray:
    """The classes of a volume by a model fitted to it."""
    (block,) = picture.blocks(recipe)
    return recipe.finish(recipe.observe(block)).segment(block).values


def components(mask: np.ndarray, connectivity: int) -> np.ndarray:
    """The connected parts of a mask."""
    rule = Components((1,), connectivity)
    return rule.fragment(mask, Tile.whole(mask.shape), mask.shape).values


def main(side: int) -> None:
    """Print all lines."""
    from skimage import filters, measure, segmentation
    from sklearn.cluster import KMeans as SklearnKMeans
    from sklearn.mixture import GaussianMixture

    one_thread()
    volume = blobs(side)
    picture = Picture(volume[..., None], np.ones(volume.shape, np.bool_))
    table = Table(volume.size)

    table.line(
        "threshold (Otsu), fit and apply",
        lambda: fit_and_apply(Threshold(), picture),
        {"scikit-image": lambda: volume > filters.threshold_otsu(volume)},
    )
    # scikit-learn would convert integers on every call.
    values = volume.reshape(-1, 1).astype(np.float32)
    # Until no centre moves, as ours; and one start instead of our eight.
    sklearn_means = SklearnKMeans(CLUSTERS, n_init=1, tol=0, random_state=0)
    table.line(
        "k-means, fit and apply",
        lambda: fit_and_apply(KMeans(clusters=CLUSTERS), picture),
        {"scikit-learn": lambda: sklearn_means.fit_predict(values)},
    )
    # The tolerance of scikit-learn's default is ours.
    sklearn_mixture = GaussianMixture(CLUSTERS, random_state=0)
    table.line(
        "mixture (EM), fit and apply",
        lambda: fit_and_apply(MixtureOfGaussians(components=CLUSTERS), picture),
        {"scikit-learn": lambda: sklearn_mixture.fit_predict(values)},
    )
    table.line(
        "mixture, smoothed",
        lambda: fit_and_apply(MixtureOfGaussians(components=CLUSTERS, smoothness=1), picture),
        {},
    )

    mask = (volume > filters.threshold_otsu(volume)).astype(np.uint8)
    for connectivity, reach in ((6, 1), (26, 3)):
        structure = ndimage.generate_binary_structure(3, reach)
        others: dict[str, Callable[[], Any]] = {
            "SciPy": lambda structure=structure: ndimage.label(mask, structure),
            "scikit-image": lambda reach=reach: measure.label(mask, connectivity=reach),
        }
        try:
            import cc3d
        except ImportError:
            pass
        else:
            others["cc3d"] = lambda connectivity=connectivity: cc3d.connected_components(
                mask, connectivity=connectivity
            )
        table.line(
            f"connected parts, {connectivity}",
            lambda connectivity=connectivity: components(mask, connectivity),
            others,
        )

    from maskloom.segcore.kernels.watershed import squared_distances

    classes = mask.astype(np.int32)
    squares = np.empty(classes.shape, np.int32)
    table.line(
        f"distances, at most {DISTANCE}",
        lambda: squared_distances(classes, DISTANCE, squares),
        {"SciPy": lambda: ndimage.distance_transform_edt(mask)},
    )

    distances = np.minimum(ndimage.distance_transform_edt(mask), DISTANCE)
    markers = measure.label(distances == ndimage.maximum_filter(distances, 3))
    table.line(
        "watershed with its distances and peaks",
        lambda: split_touching(classes, DISTANCE, 1.0),
        {
            "scikit-image's watershed alone, with markers": lambda: segmentation.watershed(
                -distances, markers, mask=mask > 0
            ),
        },
    )
    for statistic in ("gaussian", "mean"):
        recipe = Threshold(method="local", window=WINDOW, window_statistic=statistic)
        model: Any = recipe.start()
        (block,) = picture.blocks(model)
        table.line(
            f"local threshold, {statistic} of {WINDOW}",
            lambda model=model, block=block: model.segment(block),
            {
                "scikit-image": lambda statistic=statistic: (
                    volume > filters.threshold_local(volume, WINDOW, statistic)
                )
            },
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
