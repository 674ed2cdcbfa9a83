"""Sliding windows whose detections do not depend on how an image is tiled.

Group normalisation and the proposals span a whole window, so windows must always be the same: their
cores form a lattice that starts at the image's first pixel, and each is read with a halo. Pixels
outside the image are filled by mirroring the window's own pixels: zeros would shift the means of a
normalisation that spans the window, and a small image would look like nothing the network was
trained on.

    home        A detection's home is the window whose core contains the centre of its box, clipped
                to the image.
    slack       Two windows may both see an object on the edge between their cores just beyond that
                edge. So detections up to `slack` pixels outside the core are kept as well, and
                duplicates are removed: of two detections of one class from different windows that
                overlap too much, the one in its home window is kept before the other, then the one
                with the higher score. A duplicate still suppresses others; otherwise the fate of a
                detection could depend on others far away.

A detection therefore depends only on detections that it overlaps, and a mask only on detections
that meet there. For objects no larger than the halo, `tile_halo` is the greatest distance
over which the masks of objects touching a region depend on pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections, suppressed
from maskloom.segcore.geometry import Box, Shape

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class WindowLattice:
    """Adjacent windows of one size."""

    core: int
    """Side of a window's core in pixels."""
    halo: int
    """Margin of a window around its core in pixels: the side of the largest object that is
    segmented equally under any tiling.
    """

    @property
    def window(self) -> int:
        """Side of a window in pixels."""
        return self.core + 2 * self.halo

    @property
    def slack(self) -> int:
        """Distance in pixels up to which detections outside a core are kept."""
        return max(1, self.halo // 8)

    @property
    def tile_halo(self) -> int:
        """Greatest distance in pixels from a region to the pixels that its objects depend on.

        This covers the whole masks of all objects that touch the region.
        """
        return self._centres + self.slack + self.core - 1 + self.halo

    @property
    def _centres(self) -> int:
        # An object that touches the region extends up to one halo beyond it. Another that takes
        # pixels from it there extends another halo, and one that can make this one a duplicate
        # overlaps it, so the centre of its box is at most half a halo farther.
        return 2 * self.halo + -(-self.halo // 2)

    def windows(self, region: Box, shape: Shape) -> Iterator[tuple[Shape, Box]]:
        """Lattice positions and boxes of the windows that the objects touching a region depend on.

        `shape` is (y, x) of the image.
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
        """Detect objects around a region, in the image's coordinates, by descending score.

        Duplicates from neighbouring windows are removed. `find` detects objects in a window, whose
        box may extend beyond the image, and returns them in the window's coordinates.
        """
        found = {
            place: find(box).moved(box.start).clipped(shape)
            for place, box in self.windows(region, shape)
        }
        return self.merged(found, shape, greatest_overlap)

    def merged(
        self, found: Mapping[Shape, Detections], shape: Shape, greatest_overlap: float
    ) -> Detections:
        """Merge the detections of windows and remove duplicates, by descending score.

        `found` maps lattice positions to detections in the image's coordinates.
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
            # The last edge of a core belongs to the next core.
            homes.append(np.all(np.floor(centres[near] / self.core) == place, axis=1))
            places.append(np.tile(np.array(place), (len(near), 1)))
            ranks.append(near)
        together = Detections.concatenated(kept)
        home, window, rank = np.concatenate(homes), np.concatenate(places), np.concatenate(ranks)
        number = window[:, 0] * (window[:, 1].max(initial=0) + 1) + window[:, 1]
        order = np.lexsort((rank, number, -together.scores, ~home))
        hit = suppressed(
            together.boxes[order], together.classes[order], number[order], greatest_overlap
        )
        stays = order[~hit]
        return together[stays[np.lexsort((rank[stays], number[stays], -together.scores[stays]))]]


def mirrored(pixels: NDArray[np.float32], inside: Box, window: Box) -> NDArray[np.float32]:
    """Extend the pixels (y, x, channel) inside the image to a whole window by mirroring.

    Mirrors at the image's edges, repeatedly if needed.
    """
    lacking = [
        (first - start, stop - last)
        for first, last, start, stop in zip(
            inside.start, inside.stop, window.start, window.stop, strict=True
        )
    ]
    return np.pad(pixels, (*lacking, (0, 0)), mode="symmetric")
