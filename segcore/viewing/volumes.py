"""Volumes as planes: the three planes through a voxel, as radiologists look at them.

The patient's right is on the left, the front or the head at the top. A volume is read once, into
memory or a temporary file, since a plane across the slices touches all of them.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.annotations.masks import open_mask
from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.viewing.pyramids import Kind

_HELD = 2**28
"""Bytes from which on a volume is in a file."""
_SLAB = 2**24
"""Voxels that are read at once."""
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
"""The two ends of each direction of a patient: x to the right, y to the front, z to the head."""
_NAMES = {0: "sagittal", 1: "coronal", 2: "axial"}
"""Name of a plane by the direction of the patient across it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction on the screen, along an axis of the array."""

    axis: int
    """Of the array: z, y, x are 0, 1, 2."""
    flipped: bool
    """Whether the last voxel comes first."""
    first: str
    """Letter at the left or upper end; empty where the orientation is unknown."""
    last: str


@dataclass(frozen=True, slots=True)
class Plane:
    """One of the three planes."""

    name: str
    across: int
    """The axis of the array across the plane."""
    rows: Axis
    columns: Axis


def planes_of(spec: RasterSpec) -> tuple[Plane, ...]:
    """The planes of a volume: axial, sagittal, coronal if its orientation is known, otherwise those
    across z, x and y.
    """
    frame = spec.space.frame
    if frame is None:
        plain = [Axis(axis, False, "", "") for axis in range(3)]
        return (
            Plane("across z", 0, plain[1], plain[2]),
            Plane("across x", 2, plain[0], plain[1]),
            Plane("across y", 1, plain[0], plain[2]),
        )
    affine = np.array(frame.affine).reshape(3, 4)[:, 2::-1]
    directions = _directions(affine)
    of = {direction: axis for axis, direction in enumerate(directions)}
    axes = {}
    for direction, axis in of.items():
        rising = affine[direction, axis] > 0
        low, high = _LETTERS[direction]
        # Right, front and head come first.
        axes[direction] = Axis(axis, bool(rising), high, low)
    return (
        Plane(_NAMES[2], of[2], axes[1], axes[0]),
        Plane(_NAMES[0], of[0], axes[2], axes[1]),
        Plane(_NAMES[1], of[1], axes[2], axes[0]),
    )


def _directions(affine: NDArray[np.float64]) -> list[int]:
    """The direction of the patient that each axis of the array is closest to, each once."""
    lengths = np.linalg.norm(affine, axis=0)
    sizes = np.abs(affine / np.where(lengths > 0, lengths, 1))
    found = [-1] * 3
    for _ in range(3):
        direction, axis = np.unravel_index(int(np.argmax(sizes)), (3, 3))
        found[int(axis)] = int(direction)
        sizes[direction, :] = sizes[:, axis] = -1
    return found


@dataclass(frozen=True, slots=True)
class Volume:
    """A volume that has been read."""

    spec: RasterSpec
    voxels: NDArray[Any]
    """(z, y, x, band) of a source, (z, y, x) of a mask."""
    valid: NDArray[np.bool_]
    """(z, y, x)."""

    @classmethod
    def read(
        cls, spec: RasterSpec, kind: Kind, report: Callable[[float], None] = lambda _: None
    ) -> Volume:
        """Read a source or a mask. Raises `ReadError`."""
        depth, height, width = spec.shape
        step = max(1, _SLAB // (height * width))
        step = max(step, spec.chunks[0])
        voxels: NDArray[Any] | None = None
        valid = _room(spec.shape, np.bool_)
        with open_mask(spec, "index") if kind == "mask" else formats.open_image(spec) as reader:
            for start in range(0, depth, step):
                stop = min(start + step, depth)
                part, known = reader.read(Box((start, 0, 0), (stop, height, width)))
                if voxels is None:
                    voxels = _room((*spec.shape, *part.shape[3:]), part.dtype)
                voxels[start:stop], valid[start:stop] = part, known
                report(stop / depth)
        assert voxels is not None
        return cls(spec, voxels, valid)

    def plane(self, plane: Plane, index: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Pixels and `valid` of a plane as it is shown."""
        place = (slice(None),) * plane.across + (index,)
        return (
            _as_shown(np.asarray(self.voxels[place]), plane),
            _as_shown(np.asarray(self.valid[place]), plane),
        )


def _as_shown(array: NDArray[Any], plane: Plane) -> NDArray[Any]:
    if plane.rows.axis > plane.columns.axis:
        array = array.swapaxes(0, 1)
    if plane.rows.flipped:
        array = array[::-1]
    if plane.columns.flipped:
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def _room(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    if math.prod(shape) * np.dtype(dtype).itemsize <= _HELD:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="maskloom-view-") as file:
        return np.memmap(file, dtype, "w+", shape=shape)
