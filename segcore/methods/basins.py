"""Mean shift of weighted values: the modes of their density, and the basin of attraction of every
value.

The method is that of Fukunaga and Hostetler (1975), Cheng (IEEE TPAMI 17, 1995) and Comaniciu and
Meer (IEEE TPAMI 24, 2002). From every point a path steps to the kernel-weighted mean of the points
around it until it converges; the ends of the paths are the modes. Of ends closer together than the
bandwidth the strongest is kept, as in `sklearn.cluster.MeanShift`.

Up to 2**12 distinct values are individual points, and every path is followed to its end. The only
approximation is the gaussian kernel, truncated at three bandwidths. More values are grouped in the
cells of a lattice. Each occupied cell is a point at the exact mean of its values, with their total
weight. The cells are an eighth of the bandwidth wide (half for the gaussian, an eighth of that for
one band), but wide enough that at most 2**15 are occupied, up to half the bandwidth (the whole for
the gaussian). A path ends early if it crosses a cell of a sixty-fourth of the bandwidth that an
earlier path crossed. If even the widest cells are too many, up to three bands may have 2**17 of
them; for more bands every nth value is used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from maskloom.segcore.errors import FitError
from maskloom.segcore.methods.clustering import cuts, threads

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]
    Keys = NDArray[np.uint64]
    Table = tuple[Keys, NDArray[np.int64]]

Kernel = Literal["flat", "epanechnikov", "gaussian"]

FEW_VALUES = 2**12
_MOST_POINTS, _LEAST_POINTS = 2**15, 2**10
_MOST_SMALL = 2**17
_CELLS: dict[Kernel, tuple[float, float]] = {
    "flat": (1 / 8, 1 / 2),
    "epanechnikov": (1 / 8, 1 / 2),
    "gaussian": (1 / 2, 1.0),
}
"""Sides of the finest and the coarsest cells in bandwidths. A gaussian is smooth, and its bandwidth
is a standard deviation.
"""
_REACH: dict[Kernel, float] = {"flat": 1.0, "epanechnikov": 1.0, "gaussian": 3.0}
"""Radius at which the kernel is truncated, in bandwidths."""
_MOST_CELLS = 2**53
"""Largest number of cells along a channel: floats represent all their indices."""
_MOST_STEPS = 300
_SUBSET = 1024
_NEAREST_OF_ONE, _NEAREST_OF_MORE, _THIN = 0.1, 0.05, 0.1
"""Fractions: of the subset within the bandwidth, if values spread in one direction and in more; and
of the bandwidth, the smallest spread along a direction that counts.
"""
_MOST_ENDS = 2**12


@dataclass(frozen=True, slots=True)
class ModeLattice:
    """Cubic cells over the range of the values. They are finite, so a shift of all values moves the
    cells along.
    """

    side: float
    lows: tuple[float, ...]
    """Lower bound of the first cell along each channel."""
    extents: tuple[float, ...]
    """Number of cells along each channel."""

    @classmethod
    def over(cls, values: NDArray[np.generic], side: float) -> ModeLattice:
        """The lattice that covers these values (channel, n).

        Raises `FitError` if floats cannot represent so many cells.
        """
        lows, highs = (ends.astype(np.float64) for ends in (values.min(axis=1), values.max(axis=1)))
        widest = int(np.argmax(highs - lows))
        if not highs[widest] - lows[widest] < _MOST_CELLS * side:
            raise FitError(
                f"Mean shift cannot tell cells of width {side:.6g} apart between values from "
                f"{lows[widest]:g} to {highs[widest]:g}. "
                "Check nodata, or raise `bandwidth`."
            )
        return cls(
            side, tuple(lows.tolist()), tuple((np.floor((highs - lows) / side) + 1).tolist())
        )

    @property
    def arrays(self) -> tuple[float, Floats, Floats, Keys]:
        """The lattice as arguments of the kernels.

        Up to 2**64 cells have unique keys. With more, two occupied cells with the same key are as
        unlikely as a hash collision (extents are made odd for this, or strides would become 0).
        """
        strides = [1]
        for extent in self.extents[:-1]:
            strides.append(strides[-1] * (int(extent) | 1) % 2**64)
        return self.side, np.array(self.lows), np.array(self.extents), np.array(strides, np.uint64)


def table_for(entries: int) -> Table:
    """An empty hash table for the kernels, with room for this many entries."""
    slots = 1 << max(4, (2 * entries - 1).bit_length())
    return np.zeros(slots, np.uint64), np.full(slots, -1, np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class ModePoints:
    """Weighted points that represent all values."""

    values: Floats
    """Shape (n, channel)."""
    weights: Floats
    lattice: ModeLattice
    """Cells that identify a basin: values in one cell share a basin."""
    keys: Keys
    """The key of each point's cell."""
    whole: bool
    """Whether each point is one value."""
    complete: bool = True
    """Whether the points represent all values, with none left out."""


@dataclass(frozen=True, slots=True, eq=False)
class Basins:
    """Modes and the points that belong to them."""

    modes: Floats
    """Shape (mode, channel)."""
    members: NDArray[np.int64]
    """The mode of each point. -1: a weaker one than the 4,096 that are kept."""


# ---- bandwidth
# --------------------------------------------------------------------------------------------------


def auto_bandwidth(
    values: NDArray[np.generic], weights: Floats, kernel: Kernel, seed: int
) -> float:
    """A bandwidth from the spread of the values (channel, n).

    The rule is that of `sklearn.cluster.estimate_bandwidth`: the mean distance to the nearest
    twentieth (tenth, if the values lie along a line) of a subset of 1,024 pixels, one drawn by
    `seed` from each 1,024th of the weight. If that is 0 (few, frequent colours), it is half the
    mean distance to the nearest other value, or 1 for a single value.

    This applies to the flat kernel. For the others, the bandwidth is scaled so that their windows
    have the same standard deviation along the directions in which the values spread. So grey stored
    as red, green and blue is clustered as grey.
    """
    mass = np.cumsum(weights)
    draws = (np.arange(_SUBSET) + np.random.default_rng(seed).random(_SUBSET)) / _SUBSET * mass[-1]
    subset = values[:, np.searchsorted(mass, draws, side="right").clip(0, mass.size - 1)].astype(
        np.float64
    )
    bandwidth = _mean_reach(_squares(subset), int(_NEAREST_OF_MORE * _SUBSET))
    directions = _directions(subset, _THIN * bandwidth)
    if directions == 1:
        bandwidth = _mean_reach(_squares(subset), int(_NEAREST_OF_ONE * _SUBSET))
    if bandwidth == 0:
        bandwidth = (
            _half_gap(np.unique(subset, axis=1))
            or _half_gap(values[:, :: -(-weights.size // _SUBSET)])
            or 1.0
        )
    scale = {
        "flat": 1.0,
        "epanechnikov": ((directions + 4) / (directions + 2)) ** 0.5,
        "gaussian": (directions + 2) ** -0.5,
    }
    return float(bandwidth * scale[kernel])


def _mean_reach(squares: Floats, nearest: int) -> float:
    """The mean distance of the values to their `nearest`th neighbour, counting themselves."""
    return float(np.sqrt(np.partition(squares, nearest - 1, axis=1)[:, nearest - 1]).mean())


def _directions(subset: Floats, thin: float) -> int:
    """Number of principal directions, at least 1, along which the values (channel, n) have a
    standard deviation above `thin`.
    """
    spreads = (
        np.linalg.svd(subset - subset.mean(axis=1, keepdims=True), compute_uv=False)
        / subset.shape[1] ** 0.5
    )
    # 1e-9: rounding adds a little spread.
    return max(1, int(np.count_nonzero(spreads > max(thin, 1e-9 * spreads[0]))))


def _half_gap(values: NDArray[np.generic]) -> float:
    """Half the mean distance from each of these distinct values to the nearest other; 0 if there is
    no other.
    """
    if values.shape[1] < 2:
        return 0.0
    squares = _squares(values.astype(np.float64))
    np.fill_diagonal(squares, np.inf)
    return float(0.5 * np.sqrt(squares.min(axis=1)).mean())


def _squares(values: Floats) -> Floats:
    """Squared distances between all pairs, shape (n, n)."""
    squares = np.zeros((values.shape[1],) * 2)
    for row in values:
        squares += (row[:, None] - row) ** 2
    return squares


# ---- points
# --------------------------------------------------------------------------------------------------


def mode_points(
    values: NDArray[np.generic], weights: Floats, kernel: Kernel, bandwidth: float
) -> ModePoints:
    """Points that represent these distinct values (channel, n).

    Raises `FitError` if the bandwidth is far too small.
    """
    if weights.size <= FEW_VALUES:
        # Each integer has its own cell; other values that share a cell are nearly equal.
        side = (
            1.0
            if np.array_equal(values, np.floor(values))
            and np.ptp(values, axis=1).max() < _MOST_CELLS
            else bandwidth / 64
        )
        return _by_value(values, weights, ModeLattice.over(values, side))
    finest, coarsest = (bandwidth * side for side in _CELLS[kernel])
    side = finest / 8 if len(values) == 1 else finest
    while side < 1.01 * coarsest:
        points = _by_cell(values, weights, ModeLattice.over(values, side), _MOST_POINTS)
        if points is not None:
            return points
        side *= 2**0.5
    if len(values) <= 3:
        # Narrow windows contain few points each, so more points are affordable.
        points = _by_cell(values, weights, ModeLattice.over(values, coarsest), _MOST_SMALL)
        if points is None:
            raise FitError(
                f"Mean shift with bandwidth {bandwidth:.6g}: the values of the pixels lie too far "
                "apart for that; they occupy more than "
                f"{_MOST_SMALL} cells of width {coarsest:.6g}. Raise `bandwidth`."
            )
        return points
    # With many bands, windows cannot be looked up, so the work grows with the square of the number
    # of points.
    stride = -(-weights.size // max(_LEAST_POINTS, _MOST_POINTS // len(values)))
    few, share = values[:, ::stride], weights[::stride].sum() / weights.sum()
    return replace(
        _by_value(few, weights[::stride] / share, ModeLattice.over(few, finest)), complete=False
    )


def _by_value(values: NDArray[np.generic], weights: Floats, lattice: ModeLattice) -> ModePoints:
    """One point per value."""
    floats = values.astype(np.float64)
    side, lows, _, strides = lattice.arrays
    cells = np.floor((floats.T - lows) / side).astype(np.uint64)
    return ModePoints(
        np.ascontiguousarray(floats.T),
        weights,
        lattice,
        (cells * strides).sum(axis=1, dtype=np.uint64),
        whole=True,
    )


def _by_cell(
    values: NDArray[np.generic], weights: Floats, lattice: ModeLattice, most: int
) -> ModePoints | None:
    """One point per occupied cell. None: more than `most` cells."""
    from maskloom.segcore.kernels import modes as kernels

    sums, keys = np.zeros((most, 1 + len(values))), np.empty(most, np.uint64)
    n = kernels.group_by_cell(values, weights, lattice.arrays, table_for(most), (sums, keys))
    if n < 0:
        return None
    return ModePoints(
        sums[:n, 1:] / sums[:n, :1], sums[:n, 0].copy(), lattice, keys[:n], whole=False
    )


# ---- modes
# --------------------------------------------------------------------------------------------------


def find_basins(points: ModePoints, kernel: Kernel, bandwidth: float) -> Basins:
    """Modes by descending strength (ties: by descending values), and the mode at the end of each
    point's path.
    """
    from maskloom.segcore.kernels import modes as kernels

    ends, strengths = _climb(points, kernel, bandwidth)
    order = np.lexsort((*ends.T[::-1], strengths))[::-1]
    kept = np.empty(_MOST_ENDS, np.int64)
    kept = order[kept[: kernels.keep_strongest(ends[order], bandwidth, _MOST_ENDS, kept)]]
    modes = ends[kept]
    members = nearest_mode(ends, modes)
    # Each end is within the bandwidth of a mode, unless its own mode was not kept. The margin
    # covers rounding.
    members[((ends - modes[members]) ** 2).sum(axis=1) > (1 + 1e-9) * bandwidth**2] = -1
    return Basins(modes, members)


def nearest_mode(values: Floats, modes: Floats) -> NDArray[np.int64]:
    """The nearest mode of each value (n, channel), the first of equals. Shape (n,)."""
    from maskloom.segcore.kernels import modes as kernels

    out = np.empty(len(values), np.int64)
    empty_lattice = ModeLattice(1.0, (0.0,) * modes.shape[1], (0.0,) * modes.shape[1])
    kernels.label_values(values, empty_lattice.arrays, table_for(1), modes, out)
    return out


def _climb(points: ModePoints, kernel: Kernel, bandwidth: float) -> tuple[Floats, Floats]:
    """The end of each point's path, shape (n, channel), and the weight of the window there, shape
    (n,).
    """
    from maskloom.segcore.kernels import modes as kernels

    reach = bandwidth * _REACH[kernel]
    # Windows are looked up along the three channels with the largest spread.
    axes = np.argsort(-points.values.std(axis=0), kind="stable")
    values = points.values[:, axes]
    order, starts, rows = _rows(values, reach)
    # Few points need no shared paths (side 0), so any lattice will do.
    individual_paths = points.whole and len(values) <= FEW_VALUES
    micro = (
        points.lattice if individual_paths else ModeLattice.over(values.T, bandwidth / 64)
    ).arrays
    if individual_paths:
        micro = (0.0, *micro[1:])
    codes = {
        "flat": kernels.FLAT,
        "epanechnikov": kernels.EPANECHNIKOV,
        "gaussian": kernels.GAUSSIAN,
    }
    window = (codes[kernel], bandwidth, reach)
    density = (np.ascontiguousarray(values[order].T), points.weights[order], starts, rows)
    found = np.empty_like(values), np.zeros(len(values))
    chunks = list(cuts(len(values), 256))
    with threads() as run:
        run(
            lambda i: kernels.follow_paths(chunks[i], window, density, micro, _MOST_STEPS, found),
            len(chunks),
        )
    ends, strengths = np.empty_like(values), np.empty(len(values))
    ends[np.ix_(order, axes)] = found[0]
    strengths[order] = found[1]
    return ends, strengths


_Rows = tuple[float, float, int, float, int]


def _rows(values: Floats, reach: float) -> tuple[NDArray[np.int64], NDArray[np.int64], _Rows]:
    """Order of the points by rows, start of each row, and (side, low, number, low, number) of the
    two channels of the rows.
    """
    channels = values.shape[1]
    crossed = values[:, : min(2, channels - 1)]
    lows = np.zeros(2)
    numbers = np.ones(2, np.int64)
    row = np.zeros(len(values), np.int64)
    side = reach / 2
    if channels > 1:
        lows[: crossed.shape[1]] = crossed.min(axis=0)
        # At most 2**20 rows, however far apart the values are.
        side = max(side, float(np.ptp(crossed, axis=0).max()) / 1000)
        cells = np.floor((crossed - lows[: crossed.shape[1]]) / side).astype(np.int64)
        numbers[: crossed.shape[1]] = cells.max(axis=0) + 1
        row = cells[:, 0] * numbers[1] + (cells[:, 1] if channels > 2 else 0)
    order = np.lexsort((values[:, min(2, channels - 1)], row))
    starts = np.searchsorted(row[order], np.arange(int(numbers.prod()) + 1))
    return order, starts, (side, float(lows[0]), int(numbers[0]), float(lows[1]), int(numbers[1]))
