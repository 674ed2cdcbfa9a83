"""K-means of weighted values: the centres of `kmeans`, the start of `mixture`.

Distances are measured in the units of the values, or in spreads: lengths along each channel that
count as 1.

Starts (greedy k-means++, several restarts) are searched on few points: the data itself up to 2**16
values, otherwise the means of 8 x 8 x 8 cells of colours, or a systematic subset of a sample. The
best start is then iterated on all values.

Steps on millions of colours add whole cells that belong to one centre (the filtering algorithm:
Kanungo et al., IEEE TPAMI 24, 2002). All sums of colours are integers below 2**53, so the order of
addition does not matter.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskloom.segcore.errors import FitError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.methods.samples import WeightedValues

    Floats = NDArray[np.float64]

FEW_POINTS = 2**16
_SEED_POINTS = 2**15
_RESTARTS = 8
_MOST_STEPS = 300
_CHUNKS = 32
_LEAST_CHUNK = 8192
"""Passing a smaller chunk to a thread costs more than its work."""
_MOST_THREADS = 4


@dataclass(frozen=True, slots=True, eq=False)
class Clustering:
    """The result of k-means."""

    centres: Floats
    """Shape (cluster, channel)."""
    weights: Floats
    """Number of pixels nearest to each centre."""
    inertia: float
    """Sum of squared distances of all pixels to their centres, in the units of the distances."""
    steps: int
    """Number of steps on all values."""


@dataclass(frozen=True, slots=True, eq=False)
class ClusterPoints:
    """Few weighted points that represent all values."""

    values: Floats
    """Shape (channel, n)."""
    weights: Floats
    within_variance: Floats
    """Mean squared deviation of the values from their points, one number per channel."""
    whole: bool
    """Whether the points are the values themselves."""

    def scaled(self, scale: Floats) -> ClusterPoints:
        """The points with all lengths along each channel multiplied by `scale` (channel,)."""
        return replace(
            self,
            values=self.values * scale[:, None],
            within_variance=self.within_variance * scale**2,
        )


class Step(Protocol):
    """One step of k-means: sums by centre (weight, values), shape (cluster, 1 + channel)."""

    def __call__(self, centres: Floats, /) -> Floats:
        """The sums for these centres, shape (cluster, channel)."""
        ...


def representative_points(dataset: WeightedValues) -> ClusterPoints:
    """Few points on which to search for a start."""
    values, weights = dataset.values, dataset.weights
    nothing = np.zeros(values.shape[0])
    if weights.size <= FEW_POINTS:
        # In the same order for all types, so the same random numbers draw the same seeds.
        values, weights = dataset.ascending()
        return ClusterPoints(values.astype(np.float64), weights, nothing, whole=True)
    if dataset.codes is None:
        mass = np.cumsum(weights)
        every = mass[-1] / _SEED_POINTS
        places = np.searchsorted(mass, (np.arange(_SEED_POINTS) + 0.5) * every).clip(
            0, mass.size - 1
        )
        chosen, times = np.unique(places, return_counts=True)
        return ClusterPoints(
            values[:, chosen].astype(np.float64, order="C"), times * every, nothing, whole=False
        )
    cells = Cells.of(dataset)
    means = cells.sums[:, 1:4] / cells.sums[:, :1]
    squares = cells.sums[:, 4].sum() - float((cells.sums[:, :1] * means**2).sum())
    within_variance = np.full(3, squares / 3 / weights.sum())
    return ClusterPoints(
        np.ascontiguousarray(means.T), cells.sums[:, 0].copy(), within_variance, whole=False
    )


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cubes of colours with their sums."""

    starts: NDArray[np.int64]
    """Index of the first colour of each cell, and the number of colours at the end."""
    corners: Floats
    """The lowest red, green and blue of each cell, shape (cell, 3)."""
    sums: Floats
    """Weight, red, green, blue and squares of each cell, shape (cell, 5)."""

    @classmethod
    def of(cls, dataset: WeightedValues) -> Cells:
        """The cells of counted colours. Raises `TypeError` for other values."""
        from maskloom.segcore.kernels import clustering as kernels
        from maskloom.segcore.methods.counting import decode

        if dataset.codes is None:
            raise TypeError("cells are made of counted 8-bit colours; these values are none")
        numbers = dataset.codes >> np.uint32(kernels.CELL_BITS)
        first = np.flatnonzero(np.concatenate([[True], numbers[1:] != numbers[:-1]]))
        corners = decode(numbers[first] << np.uint32(kernels.CELL_BITS), "uint8", 3).T.astype(
            np.float64
        )
        starts = np.append(first, numbers.size)
        sums = np.zeros((first.size, 5))
        kernels.cell_sums(starts, dataset.values, dataset.weights, sums)
        return cls(starts, np.ascontiguousarray(corners), sums)


def fit_kmeans(dataset: WeightedValues, clusters: int, spread: Floats, seed: int) -> Clustering:
    """The best of several k-means on all values, run until no centre moves (or for 300 steps).

    Distances along each channel are in units of `spread` (channel,). Raises `FitError` if there are
    fewer distinct values than clusters.
    """
    points = points_for_start(dataset, clusters).scaled(1 / spread)
    return refine(dataset, search(points, clusters, seed)[0][0] * spread, spread)


def points_for_start(dataset: WeightedValues, clusters: int) -> ClusterPoints:
    """Points with at least as many distinct values as clusters. Raises `FitError` if there are
    fewer.
    """
    points = representative_points(dataset)
    if different(points) < clusters and not points.whole:
        points = ClusterPoints(
            dataset.values.astype(np.float64),
            dataset.weights,
            np.zeros(dataset.values.shape[0]),
            whole=True,
        )
    if different(points) < clusters:
        raise FitError(
            f"{clusters} clusters need as many different values; the {dataset.pixels} valid pixels "
            f"have {different(points)}. "
            "Ask for fewer, or leave these images out."
        )
    return points


def different(points: ClusterPoints) -> int:
    """Number of distinct values."""
    return int(np.unique(points.values, axis=1).shape[1])


def search(points: ClusterPoints, clusters: int, seed: int) -> list[tuple[Floats, float]]:
    """The distinct results of several restarts on the points: centres (cluster, channel) and
    inertia, the best first.
    """
    found: list[tuple[Floats, float]] = []
    with threads() as run:
        step = _points_step(points.values, points.weights, np.ones(len(points.values)), run)
        for restart in range(_RESTARTS):
            generator = np.random.default_rng([seed, clusters, restart])
            centres, _ = _iterate(step, _plus_plus(points, clusters, generator))
            inertia = float(step(centres)[:, -1].sum())
            if all(abs(inertia - other) > 1e-6 * other for _, other in found):
                found.append((centres, inertia))
    return sorted(found, key=lambda rest: rest[1])


def refine(dataset: WeightedValues, centres: Floats, spread: Floats) -> Clustering:
    """K-means on all values from these centres (cluster, channel) until none moves, with distances
    along each channel in units of `spread` (channel,).
    """
    from maskloom.segcore.kernels import clustering as kernels

    channels, scale = dataset.values.shape[0], 1 / spread
    with threads() as run:
        points_step = _points_step(dataset.values, dataset.weights, scale, run)
        step = points_step
        if dataset.codes is not None and dataset.weights.size > FEW_POINTS:
            cells = Cells.of(dataset)
            chunks = list(cuts(cells.starts.size - 1, 256))
            arrays = (cells.starts, cells.corners, cells.sums)

            def step(centres: Floats) -> Floats:
                """Sums of the values nearest to each centre, see `Step`."""
                sums = np.zeros((len(chunks), len(centres), 4))
                colours, weights = dataset.values, dataset.weights
                run(
                    lambda i: kernels.lloyd_cells(
                        chunks[i], arrays, colours, weights, (centres, scale), sums[i]
                    ),
                    len(chunks),
                )
                return np.asarray(sums.sum(axis=0))

        centres, steps = _iterate(step, centres)
        final = points_step(centres)
    return Clustering(centres, final[:, 0], float(final[:, 1 + channels].sum()), steps)


def _iterate(step: Step, centres: Floats) -> tuple[Floats, int]:
    """Iterate until no centre moves. A centre without values stays in place."""
    for number in range(_MOST_STEPS):
        sums = step(centres)
        channels = centres.shape[1]
        occupied = sums[:, 0] > 0
        moved = centres.copy()
        moved[occupied] = sums[occupied, 1 : 1 + channels] / sums[occupied, :1]
        if np.array_equal(moved, centres):
            return centres, number
        centres = moved
    return centres, _MOST_STEPS


def _points_step(values: NDArray[np.generic], weights: Floats, scale: Floats, run: Run) -> Step:
    from maskloom.segcore.kernels import clustering as kernels

    chunks = list(cuts(weights.size))

    def step(centres: Floats) -> Floats:
        sums = np.zeros((len(chunks), len(centres), 2 + centres.shape[1]))
        run(
            lambda i: kernels.lloyd_points(chunks[i], values, weights, (centres, scale), sums[i]),
            len(chunks),
        )
        return np.asarray(sums.sum(axis=0))

    return step


def _plus_plus(points: ClusterPoints, clusters: int, generator: np.random.Generator) -> Floats:
    """Greedy k-means++ (Arthur and Vassilvitskii 2007): each seed is the best of several drawn by
    squared distance.
    """
    values, weights = points.values, points.weights
    trials = 2 + int(np.log(clusters))
    chosen = [_drawn(np.cumsum(weights), generator.random(1))[0]]
    nearest = _squares(values, chosen[0])
    while len(chosen) < clusters:
        mass = np.cumsum(weights * nearest)
        drawn = _drawn(mass, generator.random(trials))
        tried = [np.minimum(nearest, _squares(values, at)) for at in drawn]
        best = int(np.argmin([float((weights * squares).sum()) for squares in tried]))
        chosen.append(drawn[best])
        nearest = tried[best]
    return np.ascontiguousarray(values[:, chosen].T)


def _drawn(mass: Floats, random_numbers: Floats) -> list[int]:
    """Indices of points drawn by cumulated mass."""
    return [
        int(at)
        for at in np.searchsorted(mass, random_numbers * mass[-1], side="right").clip(
            0, mass.size - 1
        )
    ]


def _squares(values: Floats, at: int) -> Floats:
    return np.asarray(((values - values[:, at : at + 1]) ** 2).sum(axis=0))


# ---- threads
# --------------------------------------------------------------------------------------------------

Run = Callable[[Callable[[int], Any], int], list[Any]]
"""run(work, n) returns [work(0), … work(n - 1)], several at a time."""


def cuts(size: int, least: int = _LEAST_CHUNK) -> Iterator[tuple[int, int]]:
    """The bounds of chunks of at least `least` elements. They depend on `size` alone, never on the
    number of threads.
    """
    number = min(_CHUNKS, max(1, size // least))
    bounds = [size * i // number for i in range(number + 1)]
    return pairwise(bounds)


@contextmanager
def threads() -> Iterator[Run]:
    """A function that runs chunks in parallel on the processors available to this process (at most
    four).
    """
    processors = (
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    )
    with ThreadPoolExecutor(min(_MOST_THREADS, processors)) as pool:

        def run(work: Callable[[int], Any], number: int) -> list[Any]:
            if number == 1:
                return [work(0)]
            return list(pool.map(work, range(number)))

        yield run
