"""JPEG damage, from the warnings of libjpeg while it decodes a file.

libjpeg decodes whatever it finds: where data is missing or wrong it fills in grey and only warns,
and PIL and OpenCV keep its warnings to themselves. GDAL reports them. A file is therefore decoded
twice, here at an eighth of its size, which costs about a third of the first decoding. What libjpeg
does not notice nobody can: JPEG has no checksums, and damage may decode to other pixels.
"""

from __future__ import annotations

import os
import re

from maskloom.segcore.errors import ReadError
from maskloom.segcore.formats.tiff.dataset import environment, errors, reason

_SCALE = 8
_DAMAGE = re.compile(r"Corrupt JPEG data: (?!bad ICC)|Premature end of JPEG file")
_SETTINGS = {
    "GDAL_ERROR_ON_LIBJPEG_WARNING": "YES",
    # Limits of GDAL's own, which PIL does not have: what is refused by them would go unchecked.
    "GDAL_ALLOW_LARGE_LIBJPEG_MEM_ALLOC": "YES",
    "GDAL_JPEG_MAX_ALLOWED_SCAN_NUMBER": "1000000",
}
_SCAN, _ADOBE, _COMMENT = 0xDA, 0xEE, 0xFE
_END = b"\xff\xd9"
_APPLICATIONS = range(0xE0, 0xF0)
_WITHOUT_LENGTH = frozenset((0x00, 0x01, *range(0xD0, 0xDA), 0xFF))
"""What follows the byte 0xFF without being a segment: stuffing, fill, and markers that stand
alone.
"""


def require_whole_jpeg(location: str, content: bytes) -> None:
    """Raise `ReadError` where libjpeg has to guess pixels of a JPEG file, or where its end marker
    is missing.
    """
    essential = _without_metadata(content)
    # Among pixels these two bytes never follow one another.
    ended = _END in essential
    # A file that was cut in its last bytes may have all pixels.
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


def _complaint(content: bytes) -> str:
    """The warning of libjpeg about damage; empty where it notices none."""
    from rasterio.io import MemoryFile

    # Read by libjpeg itself: a progressive picture is held as a whole, which takes more than the
    # 500 MB that GDAL gives it.
    os.environ.setdefault("JPEGMEM", "100000M")
    complaint = ""
    with environment(_SETTINGS):
        try:
            with MemoryFile(content) as file, file.open(driver="JPEG") as picture:
                shape = (max(1, picture.height // _SCALE), max(1, picture.width // _SCALE))
                picture.read(1, out_shape=shape)
        except errors() as error:
            # What GDAL cannot read for other reasons is left to PIL.
            complaint = reason(error)
    return complaint if _DAMAGE.search(complaint) else ""


def _without_metadata(content: bytes) -> bytes:
    """The file without what decodes to no pixels: GDAL would take a small preview for the picture,
    and damage there harms nobody.
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
