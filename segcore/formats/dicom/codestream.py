"""The size that a compressed frame itself announces, before a decoder trusts it."""

from __future__ import annotations

_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC} | {0xF7}
"""Markers of frames of JPEG (SOF0 to SOF15) and JPEG-LS."""
_ALONE = {0x01, *range(0xD0, 0xD8)}
"""Markers without a length."""
_CODESTREAM = b"\xff\x4f\xff\x51"
"""Begin of a JPEG 2000 codestream, and its marker of sizes."""


def announced_size(content: bytes) -> tuple[int, int, int] | None:
    """Rows, columns and components of a JPEG, JPEG-LS or JPEG 2000 frame; None if not found."""
    start = content.find(_CODESTREAM, 0, 2**12)
    if start >= 0 and not content.startswith(b"\xff\xd8"):
        return _of_jpeg_2000(content, start + len(_CODESTREAM))
    place = 2
    while content.startswith(b"\xff\xd8") and place + 10 <= len(content):
        if content[place] != 0xFF:
            return None
        marker = content[place + 1]
        if marker == 0xFF:
            place += 1
        elif marker in _ALONE:
            place += 2
        elif marker in _FRAMES:
            rows, columns = _whole(content, place + 5, 2), _whole(content, place + 7, 2)
            return rows, columns, content[place + 9]
        else:
            place += 2 + _whole(content, place + 2, 2)
    return None


def _of_jpeg_2000(content: bytes, start: int) -> tuple[int, int, int] | None:
    """The sizes after the marker: length, capabilities, extent, offset (ISO 15444-1, A.5.1)."""
    if len(content) < start + 38:
        return None
    right, bottom, left, top = (_whole(content, start + 4 + 4 * i, 4) for i in range(4))
    return bottom - top, right - left, _whole(content, start + 36, 2)


def _whole(content: bytes, place: int, size: int) -> int:
    return int.from_bytes(content[place : place + size], "big")
