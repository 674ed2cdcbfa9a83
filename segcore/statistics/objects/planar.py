"""Shapes of objects in images: perimeter, ellipse and outline.

Shape measures equal those of `skimage.measure.regionprops` on the whole image. Second moments are
wide integers, because 64 bits may not suffice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.statistics.objects.int96 import (
    as_floats,
    as_integers,
    as_wide,
    normalised,
    product,
)
from maskloom.segcore.statistics.objects.outlines import Outlines
from maskloom.segcore.statistics.objects.polygons import polygons
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.ground.space import Space

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]

_SAFE = 2.0**62


@packable
@dataclass(frozen=True, slots=True, eq=False)
class PlanarShape:
    """Shapes of objects in an image, one row each."""

    second: Integers
    """(n, 3, 2) sums of row**2, column**2 and row * column, relative to the corner of the object's
    box; wide.
    """
    border: Integers
    """(n, 3) number of border pixels with length 1, sqrt(2) and (1 + sqrt(2)) / 2 in the
    perimeter.
    """
    outlines: Outlines
    """n rows."""

    @classmethod
    def observe(
        cls, labels: NDArray[np.uint32], sums: Integers, start: Integers, outlines: Outlines
    ) -> PlanarShape:
        """The shapes of the labels in the core of `labels`, which has a ring of 2 pixels around it.

        `sums` are those of `segcore.kernels.measures.add_shapes`, relative to the corner of the
        core; `start` is the first row and column of each label.
        """
        from maskloom.segcore.kernels.measures import count_borders, mark_borders

        border = np.zeros((len(sums), 3), np.int64)
        marks = np.zeros(tuple(n - 2 for n in labels.shape), np.bool_)
        mark_borders(labels, marks)
        count_borders(labels, marks, _border_kinds(), border)
        return cls(_from_own_corner(sums, start), border, outlines)

    def take(self, index: Integers) -> PlanarShape:
        """Rows by index."""
        return PlanarShape(self.second[index], self.border[index], self.outlines.take(index))

    @staticmethod
    def concatenate(parts: Sequence[PlanarShape]) -> PlanarShape:
        """The rows of all parts."""
        return PlanarShape(
            np.concatenate([part.second for part in parts]),
            np.concatenate([part.border for part in parts]),
            Outlines.concatenate([part.outlines for part in parts]),
        )

    def added(
        self, starts: Integers, pixels: Integers, first: Integers, shift: Integers
    ) -> PlanarShape:
        """The sums of consecutive rows; the rows of an object begin at `starts`.

        `pixels` and `first` are those of the rows; `shift` is the offset of their corners (down,
        right) from the corner of the object.
        """
        down, right = shift.T
        rows, columns = first.T
        moved = (
            product(down, 2 * rows + down * pixels),
            product(right, 2 * columns + right * pixels),
            product(down, columns + right * pixels) + product(right, rows),
        )
        second = normalised(self.second + np.stack(moved, axis=1))
        return PlanarShape(
            normalised(np.add.reduceat(second, starts)),
            np.add.reduceat(self.border, starts),
            self.outlines.grouped(starts),
        )

    def weights(self) -> Integers:
        """(n,) memory that a row needs to be finished, in numbers."""
        return self.outlines.sizes() + 8

    def columns(self, pixels: Integers, first: Integers, space: Space) -> dict[str, Any]:
        """The columns of the table, for objects with these numbers of pixels and first moments."""
        # Not as a matrix product, in which the rounding of a row depends on its neighbours.
        straight, diagonal, bent = self.border.T
        perimeter = straight + diagonal * np.sqrt(2) + bent * ((1 + np.sqrt(2)) / 2)
        geometry, bounds = polygons(self.outlines, space)
        return {
            "perimeter": perimeter,
            **_ellipse(pixels, first, self.second),
            "geometry": geometry,
            "bbox": bounds,
        }


def _from_own_corner(sums: Integers, start: Integers) -> Integers:
    """(n, 3, 2) second moments relative to the first row and column of each label; wide."""
    pixels, rows, columns, row_squares, column_squares, products = sums.T
    top, left = start.T
    second = (
        row_squares - 2 * top * rows + top * top * pixels,
        column_squares - 2 * left * columns + left * left * pixels,
        products - top * columns - left * rows + top * left * pixels,
    )
    return as_wide(np.stack(second, axis=1))


@lru_cache(maxsize=1)
def _border_kinds() -> NDArray[np.uint8]:
    """The kind of a perimeter pixel by its neighbourhood: length 1 (kind 1), sqrt(2) (2) or (1 +
    sqrt(2)) / 2 (3).

    After Benkrid and Crookes, Design and FPGA implementation of a perimeter estimator (2000), as in
    scikit-image.
    """
    kinds = np.zeros(49, np.uint8)
    kinds[[4, 6, 14, 16, 24, 26]] = 1
    kinds[[20, 32]] = 2
    kinds[[12, 22]] = 3
    return kinds


def _ellipse(pixels: Integers, first: Integers, second: Integers) -> dict[str, Floats]:
    """Axes, orientation and eccentricity of the ellipse with an object's second moments."""
    from maskloom.segcore.kernels.measures import half_angles

    squared = pixels.astype(np.float64) ** 2
    row, column, both = (number / squared for number in _central(pixels, first, second))
    # The larger by a root of a sum of squares, the smaller from the product of both: no
    # cancellation, and 0 for straight lines.
    root = np.sqrt((column - row) ** 2 + 4 * both**2)
    greater = (column + row + root) / 2
    lesser = np.zeros(len(pixels))
    np.divide(np.maximum(row * column - both**2, 0), greater, out=lesser, where=greater > 0)
    flatness = np.zeros(len(pixels))
    np.divide(lesser, greater, out=flatness, where=greater > 0)
    diagonal, angles = np.where(both > 0, np.pi / 4, -np.pi / 4), np.empty(len(pixels))
    # The angles of NumPy have other last bits on processors with other vectors.
    half_angles(2 * both, row - column, angles)
    return {
        "major_axis_length": 4 * np.sqrt(greater),
        "minor_axis_length": 4 * np.sqrt(lesser),
        "orientation": np.where(row == column, diagonal, angles),
        "eccentricity": np.where(greater > 0, np.sqrt(np.maximum(1 - flatness, 0)), 0.0),
    }


def _central(pixels: Integers, first: Integers, second: Integers) -> tuple[Floats, Floats, Floats]:
    """Second central moments of rows, of columns and of both, times the squared number of pixels:
    integers, rounded once.
    """
    pairs = ((0, 0), (1, 1), (0, 1))
    small = pixels * as_floats(second).max(axis=1) < _SAFE
    central = np.empty((3, len(pixels)))
    for k, (i, j) in enumerate(pairs):
        central[k, small] = (
            pixels[small] * (second[small, k, 0] * 2**32 + second[small, k, 1])
            - first[small, i] * first[small, j]
        )
        large = zip(
            pixels[~small].tolist(),
            as_integers(second[~small, k]),
            first[~small].tolist(),
            strict=True,
        )
        central[k, ~small] = [float(n * square - total[i] * total[j]) for n, square, total in large]
    return central[0], central[1], central[2]
