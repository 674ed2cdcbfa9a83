"""Warps: which place of an image each pixel of a patch shows.

All geometric changes of a patch (mirrored, turned, scaled, bent) are collected in one `Warp`, so
that only the window that it shows is read, and its pixels are interpolated once: linearly, labels
by the nearest pixel. A warp that only mirrors or turns by right angles moves pixels without any
arithmetic. The planes of volumes are all warped alike; along z they are only scaled and mirrored.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.training.augmentations.protocols import Patch

    Pixels = NDArray[np.float32]
    Matrix = tuple[tuple[float, float], tuple[float, float]]
    Places = tuple[NDArray[np.float32], NDArray[np.float32]]

_AVERAGED = 2
"""Pixels of an image for each of the patch, along an axis, from which on they are averaged."""
_MOVED_BY_OPENCV = frozenset({"uint8", "uint16", "int16", "float32"})


@dataclass(frozen=True, slots=True, eq=False)
class Warp:
    """A place of an image for each pixel of a patch.

    Both are counted from the middle: of the patch, and of the window that is read. The place of
    a pixel at (y, x) is `matrix` times ((y, x) + its shifts), that of plane z is `depth` times z.
    """

    matrix: Matrix = ((1.0, 0.0), (0.0, 1.0))
    depth: float = 1.0
    shifts: tuple[NDArray[np.float32], ...] = ()
    """(2, y, x) each: along y and along x, in pixels of the patch."""

    def then(self, matrix: Matrix, depth: float = 1.0) -> Warp:
        """This warp after a change by this matrix and this factor along z."""
        (a, b), (c, d) = self.matrix
        (e, f), (g, h) = matrix
        product = ((a * e + b * g, a * f + b * h), (c * e + d * g, c * f + d * h))
        return replace(self, matrix=product, depth=self.depth * depth)

    def shifted(self, shift: NDArray[np.float32]) -> Warp:
        """This warp with another shift (2, y, x) of each pixel."""
        return replace(self, shifts=(*self.shifts, shift))

    def window(self, sides: Shape) -> Shape:
        """Sides of the window that a patch with these sides shows."""
        *planes, height, width = sides
        reach = [(height - 1) / 2, (width - 1) / 2]
        for shift in self.shifts:
            most = (max(float(along.max()), -float(along.min())) for along in shift)
            reach = [a + b for a, b in zip(reach, most, strict=True)]
        across = [abs(row[0]) * reach[0] + abs(row[1]) * reach[1] for row in self.matrix]
        along = [abs(self.depth) * (n - 1) / 2 for n in planes]
        # Rounding errors must not add a pixel.
        return tuple(1 + math.ceil(2 * each - 1e-6) for each in (*along, *across))

    def apply(self, window: Patch, sides: Shape) -> Patch:
        """The patch with these sides, from its window, whose pixels it may take over."""
        planes = len(sides) - 2
        if self._only_moves:
            moved = window.turned(lambda array: self._moved(array, planes))
            return replace(moved, pixels=_contiguous(moved.pixels))
        places = self._places(sides[planes:], window.classes.shape[planes:])
        heights = self._heights(sides[0], window.classes.shape[0]) if planes else None

        def labels(array: NDArray[Any]) -> NDArray[Any]:
            if heights is None:
                return _nearest(array, places)
            chosen = np.floor(heights + 0.5).astype(np.intp)
            return np.stack([_nearest(array[z], places) for z in chosen])

        ids, valid = (None if each is None else labels(each) for each in (window.ids, window.valid))
        return replace(
            window,
            pixels=self._interpolated(window.pixels, places, heights),
            classes=labels(window.classes),
            ids=ids,
            valid=valid,
        )

    @property
    def _only_moves(self) -> bool:
        values = sorted(abs(value) for row in self.matrix for value in row)
        return not self.shifts and values == [0, 0, 1, 1] and abs(self.depth) == 1

    def _moved(self, array: NDArray[Any], planes: int) -> NDArray[Any]:
        """Pixels or labels mirrored and turned, as a view."""
        signs = [self.depth] * planes + [sum(row) for row in self.matrix]
        array = np.flip(array, tuple(axis for axis, sign in enumerate(signs) if sign < 0))
        return array if self.matrix[0][0] else array.swapaxes(planes, planes + 1)

    def _places(self, sides: Shape, window: Shape) -> Places:
        """Rows and columns (y, x) of the window that the pixels of a plane show."""
        y, x = (np.arange(n, dtype=np.float32) - np.float32((n - 1) / 2) for n in sides)
        rows, columns = y[:, np.newaxis], x[np.newaxis]
        for shift in self.shifts:
            rows, columns = rows + shift[0], columns + shift[1]
        first, second = (
            _sum(a, rows, b, columns, (n - 1) / 2)
            for (a, b), n in zip(self.matrix, window, strict=True)
        )
        return np.broadcast_to(first, sides), np.broadcast_to(second, sides)

    def _heights(self, depth: int, window: int) -> NDArray[np.float64]:
        """Place of each plane in the window, along z."""
        return np.clip(
            self.depth * (np.arange(depth) - (depth - 1) / 2) + (window - 1) / 2, 0, window - 1
        )

    def _interpolated(
        self, pixels: Pixels, places: Places, heights: NDArray[np.float64] | None
    ) -> Pixels:
        (a, b), (c, d) = self.matrix
        shrunk = math.sqrt(abs(a * d - b * c))
        if heights is None:
            return _bilinear(pixels, places, shrunk)
        below = np.floor(heights).astype(np.intp)
        above = np.minimum(below + 1, len(pixels) - 1)
        share = (heights - below).astype(np.float32)
        flat = {z: _bilinear(pixels[z], places, shrunk) for z in sorted({*below, *above})}
        return np.stack(
            [
                (1 - part) * flat[low] + part * flat[high]
                for low, high, part in zip(below, above, share, strict=True)
            ]
        )


def _sum(a: float, rows: Pixels, b: float, columns: Pixels, middle: float) -> Pixels:
    """The sum a * rows + b * columns + middle, without the work for factors of 0."""
    if not a:
        return np.float32(b) * columns + np.float32(middle)
    if not b:
        return np.float32(a) * rows + np.float32(middle)
    found = np.float32(a) * rows + np.float32(b) * columns
    found += np.float32(middle)
    return found


def _bilinear(pixels: Pixels, places: Places, shrunk: float) -> Pixels:
    """Pixels (y, x, band) at these places; averaged before where the patch shows far more of them
    than it has.
    """
    import cv2

    rows, columns = places
    if shrunk >= _AVERAGED:
        before = pixels.shape[:2]
        after = tuple(max(1, int(n / shrunk)) for n in before)
        pixels = cv2.resize(pixels, after[::-1], interpolation=cv2.INTER_AREA)
        rows, columns = (
            (place + np.float32(0.5)) * np.float32(new / old) - np.float32(0.5)
            for place, new, old in zip(places, after, before, strict=True)
        )
    moved = cv2.remap(pixels, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, np.float32).reshape(*rows.shape, -1)


def _nearest(labels: NDArray[Any], places: Places) -> NDArray[Any]:
    """Labels (y, x) at these places."""
    import cv2

    if labels.dtype == np.bool_:
        return _nearest(labels.view(np.uint8), places).view(np.bool_)
    # Numbers of objects that OpenCV does not know are moved as float64, which holds them.
    known = labels if labels.dtype.name in _MOVED_BY_OPENCV else labels.astype(np.float64)
    rows, columns = places
    moved = cv2.remap(known, columns, rows, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(moved, labels.dtype)


def _contiguous(pixels: Pixels) -> Pixels:
    """Pixels (..., band) in their own order in memory; copied by whole pixels, which takes a
    quarter of the time of a copy by numbers.
    """
    if pixels.flags.c_contiguous:
        return pixels
    whole = np.dtype((np.void, pixels.itemsize * pixels.shape[-1]))
    return np.ascontiguousarray(pixels.view(whole)).view(pixels.dtype)
