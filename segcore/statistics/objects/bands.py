"""Band values of objects: sums that give mean and standard deviation, the same for any tiling.

Integers of up to 32 bits are summed exactly. Floating-point numbers (and integers of 64 bits, read
as float64) are summed in pairs of float64, about 106 bits. This is exact if the ratio of the
float32 values of an object is below about 2**20. Otherwise the error is 2**-100 of the sum of their
magnitudes, so a mean or deviation rounded to 53 bits depends on the tiling about once in 2**40. If
a valid pixel is infinite, the mean is infinite and there is no deviation; if it is NaN, there is
neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.statistics.objects.int96 import as_integers, as_wide, normalised
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAFE = 2.0**62


@packable
@dataclass(frozen=True, slots=True, eq=False)
class BandSums:
    """Sums of the band values of objects, one row per object."""

    pixels: NDArray[np.int64]
    """(n,) number of pixels in the sums."""
    sums: NDArray[Any]
    """(n, band, 2): wide integers (`segcore.statistics.objects.int96`) in int64, or pairs of
    float64 that represent their sum.
    """
    squares: NDArray[Any]
    """Sums of squared values, like `sums`."""

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """Number of bands."""
        return int(self.sums.shape[1])

    @classmethod
    def none(cls, rows: int, channels: int = 0) -> BandSums:
        """Empty sums, of integers; also for objects without band values."""
        return cls(
            np.zeros(rows, np.int64),
            np.zeros((rows, channels, 2), np.int64),
            np.zeros((rows, channels, 2), np.int64),
        )

    @classmethod
    def concatenate(cls, parts: Sequence[BandSums]) -> BandSums:
        """The rows of all parts, which have the same number of bands of the same kind."""
        return cls(
            *(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__slots__)
        )

    def take(self, index: NDArray[np.integer] | slice) -> BandSums:
        """Rows by index."""
        return BandSums(self.pixels[index], self.sums[index], self.squares[index])

    def sum_by(self, index: NDArray[np.integer], n: int) -> BandSums:
        """`n` rows, where row k is the sum of the rows with index k."""
        pixels = np.zeros(n, np.int64)
        np.add.at(pixels, index, self.pixels)
        return BandSums(pixels, _added(self.sums, index, n), _added(self.squares, index, n))

    def __add__(self, other: BandSums) -> BandSums:
        return BandSums.concatenate([self, other]).sum_by(
            np.tile(np.arange(len(self)), 2), len(self)
        )

    def mean(self) -> NDArray[np.float64]:
        """(n, band) means; NaN without pixels."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.sums.dtype.kind == "f":
                return np.asarray(
                    (self.sums[..., 0] + self.sums[..., 1]) / self.pixels[:, None], np.float64
                )
            return np.asarray(
                (self.sums[..., 0] * 2.0**32 + self.sums[..., 1]) / self.pixels[:, None], np.float64
            )

    def deviation(self) -> NDArray[np.float64]:
        """(n, band) population standard deviations; NaN without pixels."""
        out = np.full(self.sums.shape[:2], np.nan)
        if self.sums.dtype.kind == "f":
            from maskloom.segcore.kernels.measures import spread_of_pairs

            some = self.pixels > 0
            spread = np.empty((int(some.sum()), self.channels))
            spread_of_pairs(self.pixels[some], self.sums[some], self.squares[some], spread)
            out[some] = spread
            return out
        count = np.broadcast_to(self.pixels[:, None], out.shape)
        small = count * (self.squares[..., 0] * 2.0**32 + self.squares[..., 1]) < _SAFE
        number = np.empty(out.shape)
        sums, squares = self.sums[small], self.squares[small]
        total = (sums[:, 0] << 32) + sums[:, 1]
        number[small] = count[small] * ((squares[:, 0] << 32) + squares[:, 1]) - total * total
        large = zip(
            count[~small].tolist(),
            as_integers(self.squares[~small]),
            as_integers(self.sums[~small]),
            strict=True,
        )
        number[~small] = [float(n * square - total**2) for n, square, total in large]
        np.divide(np.sqrt(number), count, out=out, where=count > 0)
        return out


def observe_bands(values: NDArray[np.uint32], pixels: NDArray[Any], count: int) -> BandSums:
    """Sums of the band values of a tile's fragments, `count` + 1 rows; the first, background, stays
    empty.

    `values` numbers the fragments of the tile's core, (y, x) or (z, y, x), from 1 to `count`;
    `pixels` covers the core and has the bands as a last axis.
    """
    from maskloom.segcore.kernels.measures import add_floats, add_integers

    counts, shape = np.zeros(count + 1, np.int64), (count + 1, pixels.shape[-1])
    # Planes of a volume one below the other: sums do not depend on the axes.
    values = np.ascontiguousarray(values).reshape(prod(values.shape[:-1]), values.shape[-1])
    pixels = pixels.reshape(*values.shape, pixels.shape[-1])
    if pixels.dtype.kind in "iub" and pixels.dtype.itemsize <= 4:
        sums, squares = np.zeros(shape, np.int64), np.zeros((*shape, 2), np.int64)
        add_integers(values, np.ascontiguousarray(pixels), counts, sums, squares)
        return BandSums(counts, as_wide(sums), normalised(squares))
    pairs, squared = np.zeros((*shape, 2)), np.zeros((*shape, 2))
    # numba knows no float16, and few images have 64-bit integers.
    floats = pixels if pixels.dtype.name in ("float32", "float64") else pixels.astype(np.float64)
    add_floats(values, np.ascontiguousarray(floats), counts, pairs, squared)
    return BandSums(counts, pairs, squared)


def _added(rows: NDArray[Any], index: NDArray[np.integer], n: int) -> NDArray[Any]:
    total = np.zeros((n, *rows.shape[1:]), rows.dtype)
    if rows.dtype.kind == "f":
        from maskloom.segcore.kernels.measures import add_pairs

        add_pairs(total, np.asarray(index, np.int64), np.ascontiguousarray(rows))
        return total
    np.add.at(total, index, rows)
    return normalised(total)
