"""Shapes of objects in volumes: the faces of voxels that bound them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.ground.lengths import steps_at
from maskloom.segcore.storage.packing import packable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.ground.space import Space

    Integers = NDArray[np.int64]


@packable
@dataclass(frozen=True, slots=True, eq=False)
class SolidShape:
    """Shapes of objects in a volume, one row each."""

    faces: Integers
    """(n, 3) faces between a voxel of the object and one that is not, or the border of the volume:
    those across z, across y and across x.
    """

    @classmethod
    def observe(cls, labels: NDArray[np.uint32], rows: int) -> SolidShape:
        """The shapes of the labels below `rows` in the core of `labels`, which has a ring of 2
        voxels around it.
        """
        from maskloom.segcore.kernels.measures import count_faces

        faces = np.zeros((rows, 3), np.int64)
        count_faces(labels, faces)
        return cls(faces)

    def take(self, index: Integers) -> SolidShape:
        """Rows by index."""
        return SolidShape(self.faces[index])

    @staticmethod
    def concatenate(parts: Sequence[SolidShape]) -> SolidShape:
        """The rows of all parts."""
        return SolidShape(np.concatenate([part.faces for part in parts]))

    def added(
        self, starts: Integers, pixels: Integers, first: Integers, shift: Integers
    ) -> SolidShape:
        """The sums of consecutive rows; the rows of an object begin at `starts`."""
        del pixels, first, shift  # faces have no corner to count from
        return SolidShape(np.add.reduceat(self.faces, starts))

    def weights(self) -> Integers:
        """(n,) memory that a row needs to be finished, in numbers."""
        return np.ones(len(self.faces), np.int64)

    def columns(self, pixels: Integers, first: Integers, space: Space) -> dict[str, Any]:
        """The columns of the table: the surface in mm² if the spacing is known, otherwise in faces
        of voxels.
        """
        del pixels, first
        sizes = np.ones(3)
        if space.metric is not None:
            z, y, x = steps_at(space, np.zeros((1, 3)))
            # Where the axes are not at right angles, faces are parallelograms.
            sizes = np.linalg.norm([np.cross(y, x), np.cross(z, x), np.cross(z, y)], axis=1)
        # One axis after the other: in a matrix product, the rounding of a row depends on its
        # neighbours.
        across_z, across_y, across_x = (self.faces * sizes).T
        return {"surface": across_z + across_y + across_x}
