"""Siemens mosaics: the slices of a volume as tiles of one picture.

The number of tiles and the normal are in the private CSA header, whose layout is known from
reverse engineering (the description in the documentation of NiBabel).
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.dicom.header import Header, numbers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.formats.dicom.geometry import Directions
    from maskloom.segcore.formats.dicom.spacing import InPlane

_CSA = (0x0029, 0x1010)
_MAGIC = b"SV10"
_TAG = struct.Struct("<64si4siii")
_ITEM = struct.Struct("<4i")
_MOST = 4096
"""Tags, and items of a tag."""


@dataclass(frozen=True, slots=True)
class Mosaic:
    """The tiles of a picture."""

    count: int
    side: int
    """Tiles along each side."""
    positions: NDArray[np.float64]
    """Of the first pixel of each tile, (tile, 3)."""


def mosaic_of(header: Header, directions: Directions, in_plane: InPlane) -> Mosaic:
    """The tiles of a mosaic. Raises `FormatError` if its header does not say what is needed."""
    element = header.elements.get(_CSA)
    values = _csa(element.value if element is not None else b"")
    count = int(values.get("NumberOfImagesInMosaic", [0])[0])
    between = numbers(header.elements, "SpacingBetweenSlices")
    rows, columns = header.shape
    side = math.isqrt(count - 1) + 1 if count > 0 else 0
    if not count or rows % side or columns % side or len(between) != 1 or between[0] <= 0:
        raise FormatError(
            f"it is a mosaic, but its header does not say how {rows} x {columns} pixels are cut "
            "into slices of a known distance. Export it as single slices, or as an enhanced object."
        )
    normal = np.asarray(values.get("SliceNormalVector", directions.normal), np.float64)
    if normal.shape != (3,) or abs(abs(normal @ directions.normal) - 1) > 1e-3:
        raise FormatError("it is a mosaic whose normal does not suit its orientation.")
    # The stated position is that of the corner of the whole picture around the first slice's
    # centre.
    corner = np.asarray(numbers(header.elements, "ImagePositionPatient"))
    corner = corner + directions.row * in_plane[1] * (columns - columns // side) / 2
    corner = corner + directions.column * in_plane[0] * (rows - rows // side) / 2
    steps = np.arange(count)[:, np.newaxis] * between[0]
    return Mosaic(count, side, corner + steps * normal)


def _csa(content: bytes) -> dict[str, list[float]]:
    """The numbers in a CSA header (version 2) by name."""
    found: dict[str, list[float]] = {}
    try:
        if content[:4] != _MAGIC:
            return {}
        (tags,) = struct.unpack_from("<I", content, 8)
        place = 16
        for _ in range(min(tags, _MOST)):
            name, _, _, _, count, _ = _TAG.unpack_from(content, place)
            place += _TAG.size
            values = []
            for _ in range(min(count, _MOST)):
                length = max(0, _ITEM.unpack_from(content, place)[1])
                place += _ITEM.size
                values.append(content[place : place + length].split(b"\0")[0].strip())
                place += -(-length // 4) * 4
            numbers_of = [float(value) for value in values if _is_number(value)]
            if numbers_of:
                found[name.split(b"\0")[0].decode("ascii", "replace")] = numbers_of
    except struct.error:
        pass  # cut off: what was found so far counts
    return found


def _is_number(value: bytes) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
