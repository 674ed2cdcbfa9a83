"""Pictures with more than one picture in their file: animated PNG and WebP, and JPEG with further
pictures (MPO).

One file is read as one picture, so frames and views are refused. Previews, gain maps and depth maps
that a camera adds to its photo are not separate pictures. After: CIPA DC-007 (Multi-Picture
Format).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maskloom.segcore.errors import FormatError

if TYPE_CHECKING:
    from PIL.ImageFile import ImageFile

    from maskloom.segcore.formats.source import StoredFile

_ENTRIES, _ENTRY_SIZE = 0xB002, 16
_UNDEFINED, _PRIMARY = 0x000000, 0x030000
_PREVIEWS = (0x010001, 0x010002)
_BESIDE = re.compile(
    rb"hdrgm|HDRGainMap|GainMap|GDepth|DepthMap|iso:std:iso:ts:21496", re.IGNORECASE
)
"""Words in the header of a further picture, or of the photo, that mark a gain map or depth map."""
_HEAD_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class _Further:
    """A further picture of a JPEG."""

    kind: int
    offset: int


def notes_on_frames(location: str, source: StoredFile, image: ImageFile) -> tuple[str, ...]:
    """Notes for users on further pictures in the file. Raises `FormatError` if they are separate
    pictures.
    """
    frames = getattr(image, "n_frames", 1)
    if frames > 1:
        raise _several(location, f"{frames} frames (an animation)")
    try:
        further = list(_further_pictures(image))
    except struct.error:
        return (
            "its index of further pictures is broken: the first picture is read, whatever follows",
        )
    unknown = [picture for picture in further if picture.kind == _UNDEFINED]
    views = [
        picture for picture in further if picture.kind not in (_UNDEFINED, _PRIMARY, *_PREVIEWS)
    ]
    if unknown and not views and all(_shows_the_same(source, picture) for picture in unknown):
        return ("the photo alone is read; the gain map or map of depth in the file is not",)
    if views or unknown:
        raise _several(location, f"{1 + len(views) + len(unknown)} pictures (MPO)")
    return ()


def _several(location: str, what: str) -> FormatError:
    return FormatError(
        f"{location} holds {what}; one file is read as one picture. Write each into a file of its "
        "own, such as with ffmpeg, ImageMagick or Pillow."
    )


def _shows_the_same(source: StoredFile, picture: _Further) -> bool:
    start = min(picture.offset, source.size())
    heads = [
        source.read(at, min(at + _HEAD_BYTES, source.size()))
        for at in (0, start)
        if at < source.size()
    ]
    return any(_BESIDE.search(head) for head in heads)


def _further_pictures(image: ImageFile) -> Iterator[_Further]:
    """The pictures after the first, from the index of a JPEG. Raises `struct.error` if the index is
    broken.
    """
    index, start = image.info.get("mp"), image.info.get("mpoffset")
    if not isinstance(index, bytes) or not isinstance(start, int):
        return
    order = ">" if index.startswith(b"MM") else "<"
    (directory,) = struct.unpack_from(order + "I", index, 4)
    (count,) = struct.unpack_from(order + "H", index, directory)
    for i in range(count):
        tag, _, size, at = struct.unpack_from(order + "HHII", index, directory + 2 + 12 * i)
        if tag == _ENTRIES:
            for entry in range(1, size // _ENTRY_SIZE):
                attribute, _, offset = struct.unpack_from(
                    order + "III", index, at + _ENTRY_SIZE * entry
                )
                yield _Further(attribute & 0xFFFFFF, start + offset)
