"""A plane of an image or volume to be drawn, turned as people look at scans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.figures.drawing import resized, sampled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.figures.drawing import Pixels
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Frame

_LETTERS = ("RL", "AP", "SI")
_DIRECTIONS = ("sagittal", "coronal", "axial")
"""Names of planes across x, y and z of the body."""
ORDER = _DIRECTIONS[::-1]


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """A plane of an image or volume, in cells of the preview."""

    across: int
    """The axis of the volume across which it lies; 0 for images."""
    photo: Pixels
    """(y, x, 3)."""
    valid: NDArray[np.bool_]
    labels: NDArray[np.integer]
    """(y, x); the greatest value of their type: no class."""
    name: str = ""
    """The direction of its view."""
    letters: str = ""
    """Of the directions at its left, right, upper and lower side; empty if not known."""

    def drawn(self, shape: Shape) -> Plane:
        """The plane in another size."""
        return Plane(
            self.across,
            resized(self.photo, shape),
            sampled(self.valid, shape),
            sampled(self.labels, shape),
            self.name,
            self.letters,
        )


def as_looked_at(plane: Plane, frame: Frame) -> Plane:
    """A slice of a scan with rows and columns that run to the left, the back or the feet."""
    flips = tuple(
        slice(None, None, -1 if max(step, key=abs) > 0 else 1)
        for step in (frame.affine[1::4], frame.affine[0::4])
    )
    return Plane(0, plane.photo[flips], plane.valid[flips], plane.labels[flips])


def turned_to_viewer(plane: Plane, frame: Frame) -> Plane:
    """A plane of a scan with its upper side to the head, or else to the front, and its left side to
    the patient's right or front.
    """
    # Columns of the affine are the steps along x, y and z of the array.
    steps = [frame.affine[axis::4] for axis in (2, 1, 0)]
    towards = [int(np.argmax(np.abs(step))) for step in steps]
    if sorted(towards) != [0, 1, 2]:
        return plane
    rows, columns = (axis for axis in range(3) if axis != plane.across)
    swapped = towards[rows] < towards[columns]
    if swapped:
        rows, columns = columns, rows
    flips = tuple(
        slice(None, None, -1 if steps[axis][towards[axis]] > 0 else 1) for axis in (rows, columns)
    )

    def turned(picture: NDArray[Any]) -> NDArray[Any]:
        return np.ascontiguousarray((np.swapaxes(picture, 0, 1) if swapped else picture)[flips])

    return Plane(
        plane.across,
        turned(plane.photo),
        turned(plane.valid),
        turned(plane.labels),
        _DIRECTIONS[towards[plane.across]],
        _LETTERS[towards[columns]] + _LETTERS[towards[rows]],
    )
