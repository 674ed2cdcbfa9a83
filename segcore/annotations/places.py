"""Whether a mask lies where its image lies, and the order of its voxels on the image's grid.

Programs write the labels of one scan with their axes in any order and direction; the header places
the voxels in the coordinates of the scanner (`Frame`). Voxels that only stand in another order are
put in that of the image by exchanging and reversing axes, without any resampling. Any other
difference is a different grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Frame
    from maskloom.segcore.raster.spec import RasterSpec, Reader

NEAR = 0.1
"""Voxels by which the rounding of headers may shift a mask."""
_SAME_SPACING = 1e-3
"""Relative difference of distances that a message does not mention."""

Placing = Literal["by position", "by index", "by index of one"]
"""How the voxels of two grids are matched: by their positions; by their indices because neither
states a position; or by their indices because only one does.
"""


@dataclass(frozen=True, slots=True)
class Turn:
    """An order of voxels: axes exchanged, and some of them reversed."""

    axes: tuple[int, ...]
    """For each axis of the result, the axis of the file."""
    reversed: tuple[bool, ...]
    """For each axis of the result, whether it runs against that of the file."""

    @classmethod
    def none(cls, axes: int) -> Turn:
        """The order of the file."""
        return cls(tuple(range(axes)), (False,) * axes)

    def shape(self, stored: Shape) -> Shape:
        """The shape of the result of a raster with this shape."""
        return tuple(stored[axis] for axis in self.axes)

    def stored_box(self, box: Box, shape: Shape) -> Box:
        """The box of the file for a box of the result, which has this shape."""
        start, stop = [0] * len(shape), [0] * len(shape)
        for axis, back, first, last, size in zip(
            self.axes, self.reversed, box.start, box.stop, shape, strict=True
        ):
            start[axis], stop[axis] = (size - last, size - first) if back else (first, last)
        return Box(tuple(start), tuple(stop))

    def apply(self, array: NDArray[np.generic]) -> NDArray[np.generic]:
        """An array of the file (further axes, such as bands, are kept) in this order."""
        further = range(len(self.axes), array.ndim)
        steps = (slice(None, None, -1 if back else 1) for back in self.reversed)
        return array.transpose(*self.axes, *further)[tuple(steps)]


@dataclass(frozen=True, slots=True)
class TurnedReader:
    """A reader of a raster in another order; it reads no more than the box."""

    reader: Reader
    turn: Turn
    shape: Shape
    """Of the result."""

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box of the result; see `Reader`."""
        pixels, valid = self.reader.read(self.turn.stored_box(box, self.shape))
        known: NDArray[np.bool_] = self.turn.apply(valid)  # type: ignore[assignment]
        return self.turn.apply(pixels), known

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.reader.__exit__(*exception)


@dataclass(frozen=True, slots=True)
class Fit:
    """How a mask fits the grid of its image."""

    turn: Turn
    placing: Placing
    same_shape: bool
    elsewhere: str = ""
    """How the positions of both differ, in words. Empty: they do not, or are not stated."""


def fit(mask: RasterSpec, image: RasterSpec) -> Fit:
    """How a mask fits the grid of an image, by what both headers say about positions."""
    there, here = _stated_frame(mask), _stated_frame(image)
    as_stored = Turn.none(len(mask.shape))
    same_shape = mask.shape == image.shape
    if there is None or here is None or len(mask.shape) != len(image.shape):
        placing: Placing = "by index" if there is here is None else "by index of one"
        return Fit(as_stored, placing, same_shape)
    stored, wanted = _steps(there, mask.shape), _steps(here, image.shape)
    turn = _likely_turn(stored, wanted) or as_stored
    if turn.shape(mask.shape) != image.shape:
        return Fit(turn, "by position", same_shape, "its axes point in other directions")
    return Fit(turn, "by position", True, _difference(turn, there, here, image))


def _stated_frame(spec: RasterSpec) -> Frame | None:
    """The position of a volume or slice. None if unknown: with both codes 0 it is only assumed."""
    frame = spec.space.frame
    return frame if frame is not None and (frame.sform_code or frame.qform_code) else None


def _matrix(frame: Frame) -> NDArray[np.float64]:
    """The affine (3, 4)."""
    return np.array(frame.affine, np.float64).reshape(3, 4)


def _steps(frame: Frame, shape: Shape) -> NDArray[np.float64]:
    """The step to the next voxel along each axis of the array, in mm: (axis, xyz)."""
    return _matrix(frame)[:, : len(shape)].T[::-1]


def _likely_turn(stored: NDArray[np.float64], wanted: NDArray[np.float64]) -> Turn | None:
    """The turn that makes the steps point in the wanted directions as nearly as possible; None if
    two axes are nearest to the same one.
    """
    cosines = _unit(wanted) @ _unit(stored).T
    axes = np.abs(cosines).argmax(axis=1)
    if len(np.unique(axes)) < len(axes):
        return None
    return Turn(tuple(axes.tolist()), tuple((cosines[range(len(axes)), axes] < 0).tolist()))


def _unit(steps: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = steps / np.linalg.norm(steps, axis=1, keepdims=True)
    return unit


def _difference(turn: Turn, there: Frame, here: Frame, image: RasterSpec) -> str:
    """How the positions of the turned mask differ from those of the image, in words; empty if they
    are the same but for rounding.

    Positions are linear in the indices, so that the corners are the voxels that are furthest apart.
    """
    corners = np.array(list(product(*((0, n - 1) for n in image.shape))))
    moved = np.empty_like(corners)
    for axis, back, column, size in zip(
        turn.axes, turn.reversed, corners.T, image.shape, strict=True
    ):
        moved[:, axis] = size - 1 - column if back else column
    shifts = _positions(there, moved) - _positions(here, corners)
    apart = float(np.linalg.norm(shifts, axis=1).max())
    # The step along an axis with one voxel leads nowhere.
    long = np.array(image.shape) > 1
    ours = np.linalg.norm(_steps(here, image.shape), axis=1)[long]
    if apart <= NEAR * ours.min(initial=np.inf):
        return ""
    theirs = np.linalg.norm(_steps(there, image.shape), axis=1)[list(turn.axes)][long]
    if np.allclose(theirs, ours, rtol=_SAME_SPACING):
        return f"voxels with the same index are up to {apart:.3g} mm apart"
    spacings = [" x ".join(f"{each:.4g}" for each in reversed(of)) for of in (theirs, ours)]
    return f"its voxels are {spacings[0]} mm apart, not {spacings[1]} mm"


def _positions(frame: Frame, indices: NDArray[np.int64]) -> NDArray[np.float64]:
    """The positions (place, xyz) of voxels (place, axis)."""
    matrix = _matrix(frame)
    return indices[:, ::-1] @ matrix[:, : indices.shape[1]].T + matrix[:, 3]
