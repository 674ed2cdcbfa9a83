"""Flow: pixels walk to the middle of their object, and those that meet are one object.

Each pixel of the foreground has a vector: its offset from the middle of its object, along x and y,
each divided by the object's reach to that side (HoVer-Net, Graham et al. 2019). Pixels walk against
its direction for some steps of `RATE` pixels. Where at least `LEAST_ARRIVALS` of them end is a sink; sinks,
widened by one pixel, that touch (corners included) are one part, and every pixel belongs to the
part where it ends (as in Cellpose, Stringer et al. 2021).

All of this is local. Where a pixel ends depends on the vectors within `Walk.reach` pixels, whether
a pixel is a sink on the ends within one pixel of it, and a pixel's part on the sinks within `reach`
pixels. Only parts may be of any size, and connected parts are joined over tiles
(`segcore.objects.arrivals`). So there is no bound on the size of an object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.objects.arrivals import Parts
from maskloom.segcore.objects.components import Components

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

RATE = 0.5
"""Pixels of a step."""
LEAST_ARRIVALS = 3


@dataclass(frozen=True, slots=True)
class Walk:
    """How far pixels walk."""

    steps: int

    @property
    def reach(self) -> int:
        """Pixels between the start of a walk and its end, at most, along each axis."""
        return math.ceil(RATE * self.steps)

    @property
    def margin(self) -> int:
        """Pixels around a core that decide the parts of its pixels: those that end beside a sink
        where a pixel of the core may end, and what they see on their way.
        """
        return 3 * self.reach + 1

    def parts(
        self,
        foreground: NDArray[np.bool_],
        vectors: NDArray[np.float32],
        seen: Box,
        shape: Shape,
        core: Box,
    ) -> Parts:
        """The parts of a core and of its pixels.

        `foreground` (y, x) and `vectors` (y, x, 2: x and y) cover the box `seen` of an image of
        this shape: the core and `margin` pixels around it, as far as the image goes.
        """
        from maskloom.segcore.kernels.flow import count_ends, walk

        ends = np.empty(foreground.shape, np.int32)
        frame = (
            -seen.start[0],
            shape[0] - 1 - seen.start[0],
            -seen.start[1],
            shape[1] - 1 - seen.start[1],
        )
        walk(foreground, vectors, frame, self.steps, RATE, ends)
        counts = np.zeros(ends.size, np.int32)
        count_ends(ends, counts)
        sinks = _widened((counts >= LEAST_ARRIVALS).reshape(ends.shape))
        around = core.grow((self.reach, self.reach)) & Box.whole(shape)
        inner = around.relative_to(seen).slices
        found, _ = Components((1,)).label(np.ascontiguousarray(sinks[inner]))
        parts = np.zeros(ends.shape, np.uint32)
        parts[inner] = found
        at = ends[core.relative_to(seen).slices]
        owners = np.where(at >= 0, parts.ravel()[at], np.uint32(0))
        return Parts(owners, found, around, self.reach)


def _widened(sinks: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Sinks and the pixels around them, corners included."""
    import cv2

    return np.asarray(cv2.dilate(sinks.astype(np.uint8), np.ones((3, 3), np.uint8)), np.uint8)
