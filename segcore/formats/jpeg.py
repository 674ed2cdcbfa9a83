"""JPEG damage, from the warnings of libjpeg while it decodes a file.

libjpeg decodes any content: it fills missing or wrong data with grey and only warns, and PIL and
OpenCV hide its warnings. GDAL reports them. A file is therefore decoded twice, here at an eighth of
its size, which takes about a third of the time of the first decoding. Damage that libjpeg does not
notice cannot be detected: JPEG has no checksums, and damaged data may decode to other pixels.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from maskloom.segcore.errors import ReadError
from maskloom.segcore.formats.tiff.dataset import environment, errors, reason

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape

_SCALE = 8
_DAMAGE = re.compile(r"Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG file")
_SETTINGS = {
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    # GDAL has limits that PIL does not have: files beyond them would not be checked.
    "GDAL_ALLOW_LARGE_LIBJPEG_MEM_ALLOC": "YES",
    "GDAL_JPEG_MAX_ALLOWED_SCAN_NUMBER": "1000000",
}
_SCAN, _ADOBE, _COMMENT = 0xDA, 0xEE, 0xFE
_START, _END = b"\xff\xd8", b"\xff\xd9"
_PADDING = re.compile(r"Corrupt JPEG data: \d extraneous bytes before marker 0xd9")
"""The complaint about a few bytes that some programs add after the last pixel."""
_APPLICATIONS = range(0xE0, 0xF0)
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA), 0xFF))
"""Bytes that may follow 0xFF without a segment: stuffing, fill, and markers without length."""


def require_whole_jpeg(location: str, content: bytes) -> None:
    """Raise `ReadError` if libjpeg has to guess pixels of a JPEG file, or if its end marker is
    missing.
    """
    essential = _without_metadata(content)
    # In pixel data these two bytes are never adjacent.
    ended = _END in essential
    # A file that lacks only its last bytes may have all pixels.
    complaint = _complaint(essential if ended else essential + _END)
    if complaint:
        raise ReadError(
            f"{location} is damaged or incomplete ({complaint}), so some of its pixels would be "
            "guessed. Copy or save it again."
        )
    if not ended:
        raise ReadError(
            f"{location} ends before its end marker (the bytes FF D9), so it is not whole. Copy or "
            "save it again."
        )


def require_whole_tile(data: bytes, tables: bytes, shape: Shape) -> None:
    """Raise `ValueError` if a tile of a TIFF, which is a JPEG without the tables that all tiles
    share, has another shape (y, x) than it should, or if libjpeg has to guess its pixels. A tile of
    another shape is not decoded.
    """
    if data[:2] != _START or _END not in data[-16:]:
        raise ValueError("it is no JPEG, or ends early")
    complaint = _complaint(tables.removesuffix(_END) + data[2 * bool(tables) :], shape)
    if complaint and not _PADDING.search(complaint):
        raise ValueError(complaint)


def _complaint(content: bytes, shape: Shape | None = None) -> str:
    """The warning of libjpeg about damage, or the error of a picture that should have `shape`;
    empty without either. Raises `ValueError` for a picture of another shape.
    """
    from rasterio.io import MemoryFile

    # Read by libjpeg itself: a progressive picture is decoded in memory, which takes more than the
    # 500 MB that GDAL allows.
    os.environ.setdefault("JPEGMEM", "100000M")
    complaint = ""
    with environment(_SETTINGS):
        try:
            with MemoryFile(content) as file, file.open(driver="JPEG") as picture:
                height, width = picture.shape
                if shape is not None and picture.shape != shape:
                    raise ValueError(f"it is a picture of {width} x {height} pixels")
                small = (max(1, height // _SCALE), max(1, width // _SCALE))
                picture.read(1, out_shape=small)
        except errors() as error:
            # If GDAL cannot read the file for other reasons, PIL decides.
            complaint = reason(error)
    return complaint if shape is not None or _DAMAGE.search(complaint) else ""


def _without_metadata(content: bytes) -> bytes:
    """The file without segments that contain no pixels: GDAL would read a small preview as the
    picture, and damage there is harmless.
    """
    kept, at = [content[:2]], content.find(0xFF, 2)
    while 0 <= at < len(content) - 3 and content[at + 1] != _SCAN:
        marker = content[at + 1]
        if marker in _WITHOUT_LENGTH:
            end = at + 1
        else:
            end = at + 2 + int.from_bytes(content[at + 2 : at + 4], "big")
            if marker == _ADOBE or (marker not in _APPLICATIONS and marker != _COMMENT):
                kept.append(content[at:end])
        at = content.find(0xFF, end)
    return b"".join((*kept, content[at:])) if at >= 0 else content
