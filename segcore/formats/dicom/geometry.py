"""Slices as a volume: their order, their distances, and the affine transform to the patient.

Positions and directions are those of DICOM: x to the left, y to the back, z to the head, in mm
(PS3.3 C.7.6.2). NIfTI's x and y point the other way. `SliceThickness` plays no part: it says how
thick slices are, not how far apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNIT_LENGTH = 1e-3
"""Largest deviation of a direction's length from 1, and of the cosine between rows and columns from
0.
"""
SAME_PLACE = 0.01
"""Millimetres between slices that count as one place."""
_SAME_FRACTION = 0.01
"""The same, as a fraction of the usual distance; also the tolerance of regular distances."""
_DRIFT = 0.05
"""Largest deviation of distances that is accepted with a note, as a fraction."""
_OFF_LINE = 0.1
"""Largest distance in mm of a slice from the line through the first and the last."""
_NAMED = 5
_TILT_DEGREES = 0.05
"""Smallest tilt that is mentioned."""


@dataclass(frozen=True, slots=True)
class Directions:
    """The directions of rows, columns, and the normal of slices."""

    row: NDArray[np.float64]
    column: NDArray[np.float64]
    normal: NDArray[np.float64]

    @classmethod
    def of(cls, orientation: Sequence[float]) -> Directions:
        """From six cosines. Raises `FormatError` unless rows and columns are perpendicular."""
        row, column = np.reshape(np.asarray(orientation, np.float64), (2, 3))
        lengths = [float(np.linalg.norm(each)) for each in (row, column)]
        if max(abs(length - 1) for length in lengths) > UNIT_LENGTH or abs(row @ column) > (
            UNIT_LENGTH
        ):
            raise FormatError(
                "ImageOrientationPatient is no orientation: the directions of rows and columns "
                f"have the lengths {lengths[0]:.4f} and {lengths[1]:.4f} and the product "
                f"{float(row @ column):.4f}; expected 1, 1 and 0."
            )
        row = row / lengths[0]
        column = column - (row @ column) * row
        column /= np.linalg.norm(column)
        return cls(row, column, np.cross(row, column))


@dataclass(frozen=True, slots=True)
class Stack:
    """A regular stack of slices."""

    affine: tuple[float, ...]
    """See `segcore.ground.space.Frame.affine`."""
    spacing: tuple[float, float, float]
    """Along z, y and x in mm; their product is the volume of a voxel."""
    notes: tuple[str, ...]


def depths(directions: Directions, positions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Positions (slice, 3) along the normal, in mm."""
    return positions @ directions.normal


def places(along: NDArray[np.float64]) -> list[list[int]]:
    """Indices of slices by place, in the order along the normal; several slices may be at one."""
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    apart = gaps[gaps > SAME_PLACE]
    near = max(SAME_PLACE, _SAME_FRACTION * float(np.median(apart))) if apart.size else SAME_PLACE
    cuts = np.flatnonzero(gaps > near) + 1
    return [[int(i) for i in part] for part in np.split(order, cuts)]


def place_of_slice(
    directions: Directions, position: tuple[float, ...], in_plane: tuple[float, float]
) -> tuple[float, ...]:
    """`Frame.affine` of one slice at a position. Its depth is not known; the step to a next slice
    would be 1 mm.
    """
    return _affine(directions, np.array(position), in_plane, directions.normal)


def _affine(
    directions: Directions,
    position: NDArray[np.float64],
    in_plane: tuple[float, float],
    step: NDArray[np.float64],
) -> tuple[float, ...]:
    rows, columns = in_plane
    matrix = np.column_stack([directions.row * columns, directions.column * rows, step, position])
    matrix[:2] *= -1  # from left and posterior to right and anterior
    return tuple(float(each) + 0.0 for each in matrix.ravel())


def stack(
    directions: Directions, positions: NDArray[np.float64], in_plane: tuple[float, float]
) -> Stack:
    """The geometry of at least two slices at these positions (slice, 3), sorted along the normal;
    `in_plane` are the distances between rows and between columns.

    Raises `FormatError` for slices that are missing, irregular, or not on a line.
    """
    along = depths(directions, positions)
    notes = list(_check_distances(along))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    line = positions[0] + np.arange(len(positions))[:, np.newaxis] * step
    sideways = positions - line
    sideways -= np.outer(sideways @ directions.normal, directions.normal)
    off = np.linalg.norm(sideways, axis=1)
    if off.max() > _OFF_LINE:
        worst = int(off.argmax())
        raise FormatError(
            f"the slice at {_mm(along[worst])} is {off[worst]:.2f} mm beside the line through the "
            "first and the last slice: the patient or the table was moved, or slices of several "
            "scans are mixed. Give each scan its own folder."
        )
    depth = float(step @ directions.normal)
    tilt = float(np.degrees(np.arctan2(np.linalg.norm(step - depth * directions.normal), depth)))
    if tilt > _TILT_DEGREES:
        notes.append(
            f"the slices are sheared by {tilt:.1f} degrees (a tilted gantry); masks keep the shear "
            "in their transform, and volumes take it into account"
        )
    if len(positions) == 2:
        notes.append("with two slices nobody can check whether one is missing between them")
    affine = _affine(directions, positions[0], in_plane, step)
    return Stack(affine, (depth, *in_plane), tuple(notes))


def _check_distances(along: NDArray[np.float64]) -> tuple[str, ...]:
    """Notes on the distances between neighbours. Raises as `stack`."""
    gaps = np.diff(along)
    usual = float(np.median(gaps))
    tolerance = max(_SAME_FRACTION * usual, SAME_PLACE)
    if np.all(np.abs(gaps - usual) <= tolerance):
        return ()
    for unit in (usual, float(gaps.min())):
        times = np.maximum(1, np.round(gaps / unit))
        whole = np.all(np.abs(gaps - times * unit) <= np.maximum(SAME_PLACE, _SAME_FRACTION * gaps))
        if whole and times.max() > 1 and np.sum(times == 1) > 1:
            raise FormatError(_missing(along, times, unit))
    if np.all(np.abs(gaps - usual) <= _DRIFT * usual):
        ends = f"{gaps.min():.3f} to {gaps.max():.3f} mm"
        return (f"the distances between slices vary from {ends}; their mean is used",)
    odd = np.flatnonzero(np.abs(gaps - usual) > tolerance)
    named = ", ".join(f"{gaps[i]:.3f} mm after {_mm(along[i])}" for i in odd[:_NAMED])
    raise FormatError(
        f"the {len(along)} slices have irregular distances: usually {usual:.3f} mm, but {named}"
        f"{', ...' if odd.size > _NAMED else ''} along the normal. Slices are missing or of "
        "several scans; give each scan its own folder."
    )


def _missing(along: NDArray[np.float64], times: NDArray[np.float64], unit: float) -> str:
    """A message on slices that are missing: `times` are the distances as multiples of `unit`."""
    gaps = np.flatnonzero(times > 1)
    count = int((times - 1).sum())
    named = ", ".join(
        f"{int(times[i]) - 1} between {_mm(along[i])} and {_mm(along[i + 1])}"
        for i in gaps[:_NAMED]
    )
    return (
        f"{count} of {len(along) + count} slices are missing (usual distance {unit:.3g} mm): "
        f"{named}{', ...' if gaps.size > _NAMED else ''} along the normal. Send the series again "
        "from the archive (PACS), or give the parts as folders of their own."
    )


def _mm(place: float) -> str:
    return f"{place:.2f} mm"
