"""Convex hulls of objects, from which their greatest width comes.

Of a hull, only corners are kept, and of an object only the corners of its hull in each plane: few
of its pixels, and the same ones for any tiling. Memory grows with the length of outlines at most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.ground.lengths import distances, steps_at
from maskloom.segcore.ground.lonlat import is_located
from maskloom.segcore.statistics.objects.outlines import places_in_lists
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.ground.space import Space

    Integers = NDArray[np.int64]
    Floats = NDArray[np.float64]


@packable
@dataclass(frozen=True, slots=True, eq=False)
class Hulls:
    """Corners of the convex hulls of the planes of objects, in the order of the objects."""

    counts: Integers
    """(objects,) number of corners of each object."""
    points: NDArray[np.int32]
    """(corners, 3) z, y and x of pixels, by object, z, and place around the hull; z is 0 in
    images.
    """

    @classmethod
    def observe(cls, labels: NDArray[np.uint32], rows: int, corner: tuple[int, ...]) -> Hulls:
        """The hulls of the labels below `rows` in the core of a tile, which begins at pixel
        `corner` of the raster. `labels` has a ring of 2 pixels around the core.
        """
        from maskloom.segcore.kernels.hulls import count_rows, find_rows

        inside = labels[(slice(2, -2),) * labels.ndim]
        core = np.ascontiguousarray(inside).reshape((-1, *inside.shape[-2:]))
        counts = np.zeros(rows, np.int64)
        count_rows(core, np.full(rows, -1, np.int64), counts)
        stops = np.cumsum(counts)
        found = np.empty((int(counts.sum()), 4), np.int64)
        find_rows(core, np.full(rows, -1, np.int64), stops - counts, found)
        z, y, x = (0, *corner)[-3:]
        return cls._of_rows(found + np.array([z, y, x, x]), stops)

    @classmethod
    def _of_rows(cls, rows: Integers, stops: Integers) -> Hulls:
        """From z, y, least x and greatest x of the rows of objects, which end at `stops`."""
        from maskloom.segcore.kernels.hulls import hull_planes

        points, counts = np.empty((2 * len(rows), 3), np.int64), np.zeros(len(stops), np.int64)
        total = hull_planes(rows, stops, points, counts)
        return cls(counts, points[:total].astype(np.int32))

    @staticmethod
    def concatenate(parts: Sequence[Hulls]) -> Hulls:
        """The objects of all parts."""
        return Hulls(
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.points for part in parts]),
        )

    def take(self, index: Integers) -> Hulls:
        """Objects by index."""
        return Hulls(self.counts[index], self.points[places_in_lists(self.counts, index)])

    def grouped(self, starts: Integers) -> Hulls:
        """Consecutive objects merged into groups, which begin at `starts`."""
        return Hulls(np.add.reduceat(self.counts, starts), self.points).thinned((0, 1, 2))

    def thinned(self, axes: tuple[int, int, int]) -> Hulls:
        """The corners that are corners in the planes across the first of these axes too."""
        planes = self.points[:, axes].astype(np.int64)
        owner = np.repeat(np.arange(len(self.counts)), self.counts)
        order = np.lexsort((*planes.T[::-1], owner))
        planes, owner = planes[order], owner[order]
        lines = np.column_stack([owner, planes[:, :2]])
        starts = np.flatnonzero((np.diff(lines, axis=0, prepend=-1) != 0).any(axis=1))
        lasts = np.append(starts[1:], len(planes)) - 1
        rows = np.column_stack([planes[starts], planes[lasts, 2]])
        stops = np.searchsorted(owner[starts], np.arange(len(self.counts)), side="right")
        found = Hulls._of_rows(rows, stops)
        return Hulls(found.counts, found.points[:, np.argsort(axes)])

    def diameters(self, space: Space, centroids: Floats) -> Floats:
        """(objects,) maximum Feret diameter of whole objects: the greatest distance between the
        middles of sides (faces) of their pixels, as in `skimage.measure.regionprops`. In metres
        on the ground for rasters with a CRS, otherwise in mm or pixels; NaN where positions are
        unknown. `centroids` (objects, axes) are those of the objects in pixels.
        """
        from maskloom.segcore.kernels.hulls import find_widest

        corners = self
        if len(space.axes) == len("zyx"):
            # A corner of the whole object is one in all three directions.
            corners = self.thinned((1, 0, 2)).thinned((2, 0, 1))
        objects = len(corners.counts)
        steps, ends = np.zeros((objects, 3, 3)), np.zeros((objects, 2, 3))
        axes = len(space.axes)
        steps[:, -axes:, -axes:] = steps_at(space, centroids)
        squares = np.zeros(objects)
        find_widest(corners.points, np.cumsum(corners.counts), steps, ends, squares)
        if not is_located(space):
            return np.sqrt(squares)
        return distances(space, ends[:, 0, 1:], ends[:, 1, 1:])
