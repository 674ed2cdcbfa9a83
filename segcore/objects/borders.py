"""Objects with a border: the connected parts of a class, grown back into the border around them.

A network that gives each pixel one class keeps touching objects apart if a class of its own lies
between them. A pixel of that class belongs to the nearest part of an object (Euclidean, of equals
the one that comes first, row by row) within some pixels; others are background. This is local but
for the parts, which are joined over tiles (`segcore.objects.arrivals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.objects.arrivals import Maps, Parts, Shown, join_parts, part_fragments
from maskloom.segcore.objects.components import Components

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Grid, Shape
    from maskloom.segcore.models.fragments import Equivalences, Fragments, TileBoundary

_CONNECTIVITY = 4
"""Of parts: a border may be one pixel wide along a diagonal."""


@dataclass(frozen=True, slots=True)
class BorderRule:
    """How pixels with a class become objects."""

    border: int
    """Class id of the border."""
    grow: int = 3
    """Pixels, along each axis, by which a part grows into the border."""
    min_size: int = 20
    """Smallest size of an object in pixels."""

    @property
    def margin(self) -> int:
        """Pixels around a core that decide the parts of its pixels."""
        return self.grow

    def fragment(
        self, maps: Maps, core: Box, shape: Shape, shown: Shown | None = None
    ) -> Fragments:
        """The objects of a tile with this core in an image of this shape, as far as the maps of the
        core and of `margin` pixels around it determine them. `shown`: see `part_fragments`.
        """
        from maskloom.segcore.kernels.flow import grow_into

        labels = np.where(maps.valid, maps.classes.argmax(axis=-1), 0)
        inside = (labels > 0) & (labels != self.border)
        around = core.grow((self.grow, self.grow)) & Box.whole(shape)
        seen = around.relative_to(maps.seen).slices
        found, _ = Components((1,), _CONNECTIVITY).label(
            np.ascontiguousarray(inside[seen]).astype(np.uint8)
        )
        grown = np.empty_like(found)
        grow_into(found, labels[seen] == self.border, self.grow, grown)
        parts = Parts(found, core, around, self.grow, shape)
        owners = grown[core.relative_to(around).slices]
        objects = replace(maps, classes=np.delete(maps.classes, self.border, axis=-1))
        return part_fragments(parts, owners, objects, self.min_size, shown)

    def join(self, grid: Grid, boundaries: Sequence[TileBoundary]) -> list[Equivalences]:
        """Which fragments of all tiles are one object, from what `fragment` left of each."""
        return join_parts(grid, boundaries, self.min_size)
