"""The bytes of PNG files: whether all chunks and rows are there and undamaged."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

from maskloom.segcore.errors import ReadError

if TYPE_CHECKING:
    from collections.abc import Sequence


_SIGNATURE_SIZE = 8
_CHUNK_FRAME = 12
"""Length, name and checksum of a chunk, in bytes."""
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Numbers per pixel, by type of colour."""
INTERLACED = 28
"""Offset of the interlace method in a PNG."""
_PASSES = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)
"""First row and column of each pass of an interlaced PNG, and the steps to the next (PNG
specification, 8.2).
"""
_INFLATED_BYTES = 1 << 20


def essential_chunks(location: str, png: bytes) -> list[memoryview]:
    """The signature and the essential chunks of a PNG, without optional ones, which OpenCV would
    apply.

    Raises `ReadError` if one is damaged or missing; decoders would return part of the picture, or
    wrong pixels.
    """
    content = memoryview(png)
    found, at = [content[:_SIGNATURE_SIZE]], _SIGNATURE_SIZE
    while at + _CHUNK_FRAME <= len(content):
        size, name = struct.unpack_from(">I4s", content, at)
        end = at + _CHUNK_FRAME + size
        if end > len(content):
            break
        if name in (b"IHDR", b"PLTE", b"IDAT", b"IEND"):
            if (
                zlib.crc32(content[at + 4 : end - 4])
                != struct.unpack_from(">I", content, end - 4)[0]
            ):
                raise ReadError(
                    f"{location} is damaged: the checksum of the chunk {name.decode()} at byte "
                    f"{at} is wrong. Copy it again."
                )
            found.append(content[at:end])
        if name == b"IEND":
            return found
        at = end
    raise ReadError(
        f"{location} ends within its pixels, at byte {len(content)}. The file is incomplete; copy "
        "it again."
    )


def require_all_rows(location: str, head: bytes, essential: Sequence[memoryview]) -> None:
    """Raise `ReadError` if a PNG has fewer pixels than its header declares, although all checksums
    are correct.
    """
    width, height, depth, colour = struct.unpack_from(">IIBB", head, 16)
    passes = _PASSES if head[INTERLACED] else ((0, 0, 1, 1),)
    sizes = (
        (len(range(top, height, down)), len(range(left, width, right)))
        for top, left, down, right in passes
    )
    # Each row begins with a byte for its filter.
    expected = sum(
        rows * (1 + -(-columns * depth * _CHANNELS[colour] // 8))
        for rows, columns in sizes
        if columns
    )
    stream, found = zlib.decompressobj(), 0
    for data in (chunk[8:-4] for chunk in essential if bytes(chunk[4:8]) == b"IDAT"):
        rest: bytes | memoryview = data
        while rest and not stream.eof:
            found += len(stream.decompress(rest, _INFLATED_BYTES))
            rest = stream.unconsumed_tail
    if found + len(stream.flush()) < expected:
        raise ReadError(
            f"{location} holds {found} of the {expected} bytes of pixels that its header promises. "
            "It is damaged; copy or save it again."
        )
