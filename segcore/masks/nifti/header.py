"""Headers of NIfTI masks (nifti1.h and nifti2.h of the NIfTI Data Format Working Group).

A mask states the transforms of its source, with their codes. The numbers are those of the source
bit for bit, as far as their precision allows; so every reader places mask and source alike, also
one that prefers the other transform.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.ground.space import AXES, MILLIMETRES, Frame

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.ground.space import Space

_LONGEST = 2**15 - 1
"""Longest axis of NIfTI-1."""
_TYPES = {"uint8": 2, "uint16": 512, "uint32": 768}
_INTENT_LABEL = 1002
_UNIT_CODES = {"": 0, "m": 1, "mm": 2, "um": 3}
_ALIGNED = 2
"""Code of a transform that places voxels in some frame, not in that of a scanner."""
_WRITER = b"maskloom"
_NO_EXTENSIONS = b"\0\0\0\0"
_ROTATION = 1e-3
"""Largest deviation of axes from perpendicular that a quaternion may hide."""
_FIRST = struct.Struct("<i10s18sihcB8h3f4h8f3fhBB4f2i80s24s2h6f12f16s4s")
_SECOND = struct.Struct("<i8s2h8q3d8dq6d2q80s24s2i6d12d3i16sB15s")


@dataclass(frozen=True, slots=True)
class _Fields:
    """The numbers of a header that depend on the mask."""

    dim: tuple[int, ...]
    pixdim: tuple[float, ...]
    dtype: str
    greatest: int
    units: int
    qform_code: int
    sform_code: int
    place: tuple[float, ...]
    """Quaternion and offset of the second transform."""
    rows: tuple[float, ...]
    """The rows of the affine."""

    @property
    def bits(self) -> int:
        """Bits of a label."""
        return 8 * np.dtype(self.dtype).itemsize

    def first(self) -> bytes:
        """The header of NIfTI-1, in the order of nifti1.h."""
        start = _FIRST.size + len(_NO_EXTENSIONS)
        return _FIRST.pack(
            *(_FIRST.size, b"", b"", 0, 0, b"r", 0),
            *(*self.dim, 0, 0, 0, _INTENT_LABEL, _TYPES[self.dtype], self.bits, 0),
            *(*self.pixdim, start, 1, 0, 0, 0, self.units),
            *(self.greatest, 0, 0, 0, 0, 0, _WRITER, b""),
            *(self.qform_code, self.sform_code, *self.place, *self.rows, b"", b"n+1\0"),
        )

    def second(self) -> bytes:
        """The header of NIfTI-2, in the order of nifti2.h."""
        start = _SECOND.size + len(_NO_EXTENSIONS)
        return _SECOND.pack(
            *(_SECOND.size, b"n+2\0\r\n\x1a\n", _TYPES[self.dtype], self.bits),
            *(*self.dim, 0, 0, 0, *self.pixdim, start, 1, 0),
            *(self.greatest, 0, 0, 0, 0, 0, _WRITER, b""),
            *(self.qform_code, self.sform_code, *self.place, *self.rows),
            *(0, self.units, _INTENT_LABEL, b"", 0, b""),
        )


def header(shape: Shape, dtype: str, space: Space, greatest: int) -> bytes:
    """The bytes before the labels of a mask (y, x) or (z, y, x); a mask of an image has one slice.

    `greatest` is the highest label that viewers should show.
    """
    frame = frame_of(space)
    second = frame.qform if frame.qform is not None else _second_transform(frame.affine)
    place: tuple[float, ...] = (0.0,) * 6
    lengths, handedness, unit = _lengths(frame.affine), 1.0, frame.factor
    if frame.qform_code > 0 and second is not None:
        place, lengths, handedness = second[:6], second[6:9], second[9]
    fields = _Fields(
        dim=(3, *reversed(shape), *(1,) * (7 - len(shape))),
        pixdim=(handedness, *(each / unit for each in lengths), *(0.0,) * 4),
        dtype=dtype,
        greatest=greatest,
        units=0 if space.metric is None else _UNIT_CODES[frame.unit],
        qform_code=0 if second is None else frame.qform_code,
        sform_code=frame.sform_code,
        place=(*place[:3], *(each / unit for each in place[3:])),
        rows=tuple(each / unit for each in frame.affine) if frame.sform_code > 0 else (0.0,) * 12,
    )
    large = max(shape) > _LONGEST
    return (fields.second() if frame.double or large else fields.first()) + _NO_EXTENSIONS


def frame_of(space: Space) -> Frame:
    """The position of a raster in the coordinates of NIfTI. One that has none begins at 0, and its
    columns, rows and slices run to the right, to the front and up, in steps of its spacing, or of 1
    if that is unknown too.
    """
    if space.frame is not None:
        return space.frame
    steps = (1.0,) * len(AXES)
    if space.metric is not None:
        millimetre = MILLIMETRES[space.metric.unit]
        stated = [distance * millimetre for distance in reversed(space.metric.spacing)]
        steps = (*stated, *steps[len(stated) :])
    affine = np.diag([*steps, 1.0])[:3].ravel().tolist()
    return Frame(tuple(affine), sform_code=0 if space.metric is None else _ALIGNED)


def _lengths(affine: tuple[float, ...]) -> tuple[float, ...]:
    """Distances of neighbours along i, j and k."""
    return tuple(math.hypot(*affine[axis::4]) for axis in range(3))


def _second_transform(affine: tuple[float, ...]) -> tuple[float, ...] | None:
    """The ten numbers of `Frame.qform` for an affine. None if its axes are not perpendicular, which
    these numbers cannot say.
    """
    matrix = np.array(affine).reshape(3, 4)
    lengths = _lengths(affine)
    turn = matrix[:, :3] / lengths
    if np.abs(turn.T @ turn - np.eye(3)).max() > _ROTATION:
        return None
    left, _, right = np.linalg.svd(turn)
    turn = left @ right
    factor = 1.0 if np.linalg.det(turn) > 0 else -1.0
    turn[:, 2] *= factor
    return (*_unit_quaternion(turn), *matrix[:, 3].tolist(), *lengths, factor)


def _unit_quaternion(turn: NDArray[Any]) -> tuple[float, float, float]:
    """b, c and d of the quaternion of a rotation; a, which is not negative, follows from them."""
    # The eigenvector of this matrix is the quaternion, without the cases of a trace near -1
    # (Bar-Itzhack, New method for extracting the quaternion from a rotation matrix, 2000).
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = turn
    matrix = np.array(
        [
            [xx + yy + zz, zy - yz, xz - zx, yx - xy],
            [zy - yz, xx - yy - zz, yx + xy, xz + zx],
            [xz - zx, yx + xy, yy - xx - zz, zy + yz],
            [yx - xy, xz + zx, zy + yz, zz - xx - yy],
        ]
    )
    quaternion = np.linalg.eigh(matrix)[1][:, -1]
    a, b, c, d = (quaternion if quaternion[0] >= 0 else -quaternion).tolist()
    # Below the precision of the file, a is 0; otherwise a reader finds the root of a rounding
    # error.
    return (b, c, d) if a > 1e-7 else tuple((np.array([b, c, d]) / math.hypot(b, c, d)).tolist())
