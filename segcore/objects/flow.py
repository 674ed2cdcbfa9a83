"""Flow: pixels walk to the middle of their object, and those that meet are one object.

Each pixel of the foreground has a vector: its offset from the middle of its object, along x and y,
each divided by the object's reach to that side (HoVer-Net, Graham et al. 2019). Pixels walk against
its direction for some steps of `RATE` pixels. Where at least `LEAST_ARRIVALS` of them end is a
sink. Sinks, widened by one pixel, that touch (corners included) are one part, and every pixel
belongs to the part where it ends (as in Cellpose, Stringer et al. 2021).

All of this is local. Where a pixel ends depends on the vectors within `FlowRule.reach` pixels,
whether a pixel is a sink on the ends within one pixel of it, and a pixel's part on the sinks within
`reach` pixels. Only parts may be of any size, and connected parts are joined over tiles
(`segcore.objects.arrivals`). So there is no bound on the size of an object.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.objects.arrivals import Maps, Parts, Shown, join_parts, part_fragments
from maskloom.segcore.objects.components import Components

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Grid, Shape
    from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary

RATE = 0.5
"""Pixels of a step."""
LEAST_ARRIVALS = 3
DEFAULT_STEPS = 40


@dataclass(frozen=True, slots=True)
class FlowRule:
    """How pixels become objects."""

    threshold: float = 0.5
    """Least probability of all classes but the background, of a pixel in an object."""
    steps: int = DEFAULT_STEPS
    min_size: int = 20
    """Smallest size of an object in pixels."""

    @property
    def reach(self) -> int:
        """Pixels between the start of a walk and its end, at most, along each axis."""
        return math.ceil(RATE * self.steps)

    @property
    def margin(self) -> int:
        """Pixels around a core that decide the parts of its pixels.

        Those of the core end within `reach` of it, and whether places there are sinks depends on
        walks that end within `reach` + 1. All of such a walk is within `reach` of its end. Others
        may leave these pixels and be led back wrongly, but not as far as that.
        """
        return 2 * self.reach + 1

    def fragment(
        self, maps: Maps, core: Box, shape: Shape, shown: Shown | None = None
    ) -> Fragments:
        """The objects of a tile with this core in an image of this shape, as far as the maps of the
        core and of `margin` pixels around it determine them. `shown`: see `part_fragments`.
        """
        parts, owners = self._parts(maps, core, shape)
        return part_fragments(parts, owners, maps, self.min_size, shown)

    def whole(self, classes: NDArray[np.float32], vectors: NDArray[np.float32]) -> Fragments:
        """The objects of a whole image (y, x, class) and (y, x, 2)."""
        shape = classes.shape[:2]
        maps = Maps(Box.whole(shape), classes, vectors, np.ones(shape, np.bool_))
        return self.fragment(maps, Box.whole(shape), shape)

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        """Which fragments of all tiles are one object, from what `fragment` left of each."""
        return join_parts(grid, boundaries, self.min_size)

    def _parts(self, maps: Maps, core: Box, shape: Shape) -> tuple[Parts, NDArray[np.uint32]]:
        """The parts around a core, and the part of each of its pixels."""
        from maskloom.segcore.kernels.flow import count_ends, moves_of, walk

        foreground = maps.valid & (1 - maps.classes[..., 0] > np.float32(self.threshold))
        ends = np.empty(foreground.shape, np.int32)
        moves = np.empty((*ends.shape, 2), np.int32)
        moves_of(maps.vectors, RATE, moves)
        walk(foreground, moves, self.steps, ends)
        counts = np.zeros(ends.size, np.int32)
        count_ends(ends, counts)
        sinks = _widened((counts >= LEAST_ARRIVALS).reshape(ends.shape))
        around = core.grow((self.reach, self.reach)) & Box.whole(shape)
        inner = around.relative_to(maps.seen).slices
        found, _ = Components((1,)).label(np.ascontiguousarray(sinks[inner]))
        parts = np.zeros(ends.shape, np.uint32)
        parts[inner] = found
        at = ends[core.relative_to(maps.seen).slices]
        owners = np.where(at >= 0, parts.ravel()[at], np.uint32(0))
        return Parts(found, core, around, self.reach, shape), owners


def _widened(sinks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Sinks and the pixels around them, corners included."""
    import cv2

    return np.asarray(cv2.dilate(sinks.astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8)
