"""Windows for images of any size, so that what is found does not depend on how an image is tiled.

Group normalisation and the proposals look at a whole window, so windows are always the same: their
cores lie on a lattice that starts at the image's first pixel, and each is seen with a halo. What
lies outside of the image is filled by the window's own pixels, mirrored: zeros would shift the
means of a normalisation that spans the window, and a small image would look like none that the
network has learned from.

    home        A detection is at home in the window whose core holds the middle of its box, as far
                as that lies in the image.
    slack       An object in the middle of an edge between cores may be seen just beyond it by both
                windows. So detections up to `slack` pixels outside of the core are kept as well,
                and doubles go: of two detections of one class from different windows that overlap
                too much, the one at home stays before the one that is not, then the one with the
                higher score. What is itself a double still makes doubles: otherwise what becomes of
                a detection could depend on others far away.

So what becomes of a detection depends on detections that it overlaps, and a mask on detections that
meet there: for objects no larger than the halo, `reach` is as far as the masks of those that touch
a region can depend on anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections, hit_by_better
from maskloom.segcore.geometry import Box, Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WindowLattice:
    """Windows of one size, side by side."""

    core: int
    """Side of a window's core in pixels."""
    halo: int
    """How far a window looks beyond its core: the side of the largest object that comes out the
    same under any tiling.
    """

    @property
    def window(self) -> int:
        """Side of a window in pixels."""
        return self.core + 2 * self.halo

    @property
    def slack(self) -> int:
        """How far outside of a core a detection is kept."""
        return max(1, self.halo // 8)

    @property
    def reach(self) -> int:
        """How far from a region lie the pixels that the masks of all objects touching it depend on,
        to their last pixel.
        """
        return self._centres + self.slack + self.core - 1 + self.halo

    @property
    def _centres(self) -> int:
        # An object that touches the region reaches one halo beyond it. One that takes pixels of it
        # there reaches another, and one that can make this one a double overlaps it and has the
        # middle of its box at most half a halo farther.
        return 2 * self.halo + -(-self.halo // 2)

    def windows(self, region: Box, shape: Shape) -> Iterator[tuple[Shape, Box]]:
        """Places in the lattice, and pixels, of the windows that the objects touching a region of
        an image of this shape depend on.
        """
        margin = self._centres + self.slack
        near = region.grow((margin, margin)) & Box.whole(shape)
        first = [start // self.core for start in near.start]
        last = [-(-stop // self.core) for stop in near.stop]
        for row in range(first[0], last[0]):
            for column in range(first[1], last[1]):
                start = (row * self.core - self.halo, column * self.core - self.halo)
                yield (row, column), Box(start, tuple(side + self.window for side in start))

    def detections(
        self, region: Box, shape: Shape, find: Callable[[Box], Detections], greatest_overlap: float
    ) -> Detections:
        """The detections of all windows about a region, in the image's coordinates, without
        doubles, by descending score.

        `find` detects in a window, whose box may reach beyond the image, in the window's
        coordinates.
        """
        found = {
            place: find(box).moved(box.start).clipped(shape)
            for place, box in self.windows(region, shape)
        }
        return self.merged(found, shape, greatest_overlap)

    def merged(
        self, found: Mapping[Shape, Detections], shape: Shape, greatest_overlap: float
    ) -> Detections:
        """The detections of windows (by their places, in the image's coordinates) without doubles,
        by descending score.
        """
        kept: list[Detections] = []
        homes, places, ranks = [], [], []
        for place, detections in sorted(found.items()):
            centres = detections.centres(shape)
            outside = np.max(
                np.maximum(
                    np.array(place) * self.core - centres,
                    centres - (np.array(place) + 1) * self.core,
                ),
                axis=1,
                initial=-np.inf,
            )
            near = np.flatnonzero(outside < self.slack)
            kept.append(detections[near])
            # The core's last edge is the next core's first.
            homes.append(np.all(np.floor(centres[near] / self.core) == place, axis=1))
            places.append(np.tile(np.array(place), (len(near), 1)))
            ranks.append(near)
        together = Detections.together(kept)
        home, window, rank = np.concatenate(homes), np.concatenate(places), np.concatenate(ranks)
        number = window[:, 0] * (window[:, 1].max(initial=0) + 1) + window[:, 1]
        order = np.lexsort((rank, number, -together.scores, ~home))
        hit = hit_by_better(
            together.boxes[order], together.classes[order], number[order], greatest_overlap
        )
        stays = order[~hit]
        return together[stays[np.lexsort((rank[stays], number[stays], -together.scores[stays]))]]


def mirrored(pixels: NDArray[np.float32], inside: Box, window: Box) -> NDArray[np.float32]:
    """The pixels (y, x, channel) of a whole window from those inside the image, mirrored at the
    image's edges as often as it takes.
    """
    lacking = [
        (first - start, stop - last)
        for first, last, start, stop in zip(
            inside.start, inside.stop, window.start, window.stop, strict=True
        )
    ]
    return np.pad(pixels, (*lacking, (0, 0)), mode="symmetric")
