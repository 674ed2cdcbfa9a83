"""Orientation: the EXIF and TIFF tag for the rotation that makes stored pixels upright.

Values 1 to 8 as in EXIF 2.32 and TIFF 6.0: 5 to 8 exchange rows and columns, then some values flip
one axis or both.
"""

from __future__ import annotations

import re
import struct
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

UPRIGHT = 1
_TAG = 274
_SHORT = 3
_FLIPPED_ROWS = frozenset({3, 4, 7, 8})
_FLIPPED_COLUMNS = frozenset({2, 3, 6, 7})
_XMP = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])\b")


class _Stream(Protocol):
    """A file open for reading."""

    def read(self, size: int, /) -> bytes: ...
    def seek(self, offset: int, /) -> int: ...


def transposed(orientation: int) -> bool:
    """Whether rows and columns are exchanged."""
    return orientation >= 5


def turn(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Upright pixels, C-contiguous, from stored pixels (y, x, ...)."""
    array = array.swapaxes(0, 1) if transposed(orientation) else array
    array = array[::-1] if orientation in _FLIPPED_ROWS else array
    array = array[:, ::-1] if orientation in _FLIPPED_COLUMNS else array
    return np.ascontiguousarray(array)


def turn_shape(shape: Shape, orientation: int) -> Shape:
    """The upright shape (y, x) of an image stored with this shape, and vice versa."""
    return shape[::-1] if transposed(orientation) else shape


def stored_box(box: Box, shape: Shape, orientation: int) -> Box:
    """The stored box of an upright box; `shape` is that of the upright image."""
    ranges = list(zip(box.start, box.stop, strict=True))
    for axis, flipped in enumerate((_FLIPPED_ROWS, _FLIPPED_COLUMNS)):
        if orientation in flipped:
            first, last = ranges[axis]
            ranges[axis] = shape[axis] - last, shape[axis] - first
    ranges = ranges[::-1] if transposed(orientation) else ranges
    return Box(tuple(first for first, _ in ranges), tuple(last for _, last in ranges))


def tiff_orientation(stream: _Stream) -> int:
    """The orientation tag in the first directory of a TIFF (or EXIF) stream; upright if it is
    absent or broken.
    """
    stream.seek(0)
    head = stream.read(16)
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 8:
        return UPRIGHT
    big = head[2:4] in (b"+\0", b"\0+")
    if big and len(head) < 16:
        return UPRIGHT
    (offset,) = (
        struct.unpack(order + "Q", head[8:16]) if big else struct.unpack(order + "I", head[4:8])
    )
    if offset >= 2**63:
        return UPRIGHT
    stream.seek(offset)
    width, entry = (8, 20) if big else (2, 12)
    count = int.from_bytes(stream.read(width), "little" if order == "<" else "big")
    # Valid directories have a few dozen entries, sorted by tag.
    entries = stream.read(min(count, 4096) * entry)
    for at in range(0, len(entries) - entry + 1, entry):
        tag, kind = struct.unpack_from(order + "HH", entries, at)
        if (tag, kind) == (_TAG, _SHORT):
            (value,) = struct.unpack_from(order + "H", entries, at + (12 if big else 8))
            return int(value) if 1 <= value <= 8 else UPRIGHT
    return UPRIGHT


def picture_orientation(info: Mapping[Any, Any]) -> int:
    """The orientation from the EXIF or else the XMP data that PIL found in the header of a
    picture.
    """
    import io

    exif = info.get("exif")
    if exif is None and isinstance(text := info.get("Raw profile type exif"), str):
        # As written by ImageMagick: three lines about the data, then hexadecimal digits.
        digits = "".join(text.split("\n")[3:])
        exif = bytes.fromhex(digits) if re.fullmatch("(?:[0-9a-fA-F]{2})*", digits) else None
    if isinstance(exif, bytes):
        found = tiff_orientation(io.BytesIO(exif.removeprefix(b"Exif\0\0")))
        if found != UPRIGHT:
            return found
    xmp = info.get("xmp") or info.get("XML:com.adobe.xmp") or b""
    match = _XMP.search(xmp.encode() if isinstance(xmp, str) else xmp)
    return int(match[1]) if match else UPRIGHT
