"""The structure of a TIFF as bytes: tags, directories and offsets.

The directories of a Cloud Optimized GeoTIFF are packed twice: once to determine their length, and
again with the offsets of the data that follow. After: TIFF 6.0 (Adobe 1992), the BigTIFF design
(2004), and the description of GDAL's COG driver.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ASCII, SHORT, LONG, RATIONAL, DOUBLE, LONG8 = 2, 3, 4, 5, 12, 16
SUB_IFDS = 330
TILE_OFFSETS, TILE_BYTE_COUNTS = 324, 325

# With leaders and trailers, GDAL fetches a block in one request, without reading the byte counts.
_STRUCTURE = (
    b"LAYOUT=IFDS_BEFORE_DATA\nBLOCK_ORDER=ROW_MAJOR\nBLOCK_LEADER=SIZE_AS_UINT4\n"
    b"BLOCK_TRAILER=LAST_4_BYTES_REPEATED\nKNOWN_INCOMPATIBLE_EDITION=NO\n "
)
_LEADER_SIZE = _TRAILER_SIZE = 4

_DTYPES = {SHORT: "<u2", LONG: "<u4", RATIONAL: "<u4", LONG8: "<u8", DOUBLE: "<f8"}
_SIZES = {ASCII: 1, SHORT: 2, LONG: 4, RATIONAL: 8, LONG8: 8, DOUBLE: 8}


@dataclass(frozen=True, slots=True)
class Tag:
    """One entry of a directory."""

    code: int
    type: int
    data: bytes
    """Its values, little-endian."""

    @classmethod
    def of(cls, code: int, kind: int, values: object) -> Tag:
        """A tag of one or many numbers; of fractions: each as two numbers."""
        return cls(code, kind, np.atleast_1d(np.asarray(values)).astype(_DTYPES[kind]).tobytes())

    @classmethod
    def text(cls, code: int, value: str) -> Tag:
        """A tag of zero-terminated text."""
        return cls(code, ASCII, value.encode() + b"\0")

    @classmethod
    def ratio(cls, code: int, value: float) -> Tag:
        """A tag of one fraction."""
        fraction = Fraction(value).limit_denominator(max(1, min(2**16, int((2**32 - 1) / value))))
        return cls(code, RATIONAL, struct.pack("<II", *fraction.as_integer_ratio()))

    @property
    def count(self) -> int:
        """Number of values."""
        return len(self.data) // _SIZES[self.type]


@dataclass(frozen=True, slots=True)
class Flavour:
    """Classic TIFF, or BigTIFF for files that 32-bit offsets cannot address."""

    version: int
    pointer: str
    """Format character of an offset."""
    number: str
    """Format character of a directory's number of entries."""
    offset_type: int
    """Type of a tag that holds offsets."""

    @property
    def pointer_size(self) -> int:
        """Bytes of an offset; a value of at most this size is stored in the entry itself."""
        return struct.calcsize("<" + self.pointer)

    def header(self, first_directory: int) -> bytes:
        """The first bytes of the file."""
        size = (8, 0) if self.version == 43 else ()
        return struct.pack(
            "<2sH" + "H" * len(size) + self.pointer, b"II", self.version, *size, first_directory
        )

    @property
    def header_size(self) -> int:
        """Length of the header in bytes."""
        return len(self.header(0))


CLASSIC = Flavour(version=42, pointer="I", number="H", offset_type=LONG)
BIG = Flavour(version=43, pointer="Q", number="Q", offset_type=LONG8)


def pack_directories(
    directories: Sequence[Sequence[Tag]], start: int, flavour: Flavour, nested: bool = False
) -> bytes:
    """The directories in sequence, each followed by its values that do not fit into its entries.

    `start` is the offset of the first one in the file, a multiple of 8. Each directory leads to the
    next; `nested`: the first leads to all others as its sub-directories.
    """
    first, *others = directories
    if not (nested and others):
        return _pack(directories, start, flavour, chained=True)
    nowhere = Tag.of(SUB_IFDS, flavour.offset_type, [0] * len(others))
    ends = start + np.cumsum(
        [len(_pack_directory(each, start, flavour, True)) for each in ([*first, nowhere], *others)]
    )
    places = Tag.of(SUB_IFDS, flavour.offset_type, ends[:-1])
    return _pack([[*first, places], *others], start, flavour, chained=False)


def _pack(
    directories: Sequence[Sequence[Tag]], start: int, flavour: Flavour, chained: bool
) -> bytes:
    out = bytearray()
    for i, tags in enumerate(directories):
        last = i == len(directories) - 1 or not chained
        out += _pack_directory(tags, start + len(out), flavour, last)
    return bytes(out)


def _pack_directory(tags: Sequence[Tag], start: int, flavour: Flavour, last: bool) -> bytes:
    width = flavour.pointer_size
    number = struct.pack("<" + flavour.number, len(tags))
    values_start = start + len(number) + len(tags) * (4 + 2 * width) + width
    values_start += -values_start % 8
    entries, values = bytearray(), bytearray()
    for tag in sorted(tags, key=lambda tag: tag.code):
        entries += struct.pack("<HH" + flavour.pointer, tag.code, tag.type, tag.count)
        if len(tag.data) <= width:
            entries += tag.data.ljust(width, b"\0")
            continue
        entries += struct.pack("<" + flavour.pointer, values_start + len(values))
        values += tag.data.ljust(len(tag.data) + -len(tag.data) % 8, b"\0")
    following = 0 if last else values_start + len(values)
    head = number + bytes(entries) + struct.pack("<" + flavour.pointer, following)
    return head.ljust(values_start - start, b"\0") + bytes(values)


def pack_cog_head(
    directories: Sequence[Sequence[Tag]],
    sizes: Sequence[NDArray[np.int64]],
    largest_classic: int,
    nested: bool = False,
) -> bytes:
    """All bytes of a Cloud Optimized GeoTIFF before the data of its blocks.

    `directories` (full resolution first) lack the offsets of their blocks; `sizes` has the bytes of
    each block, an array (row, column) per directory. The data must follow directly: the smallest
    level first, the blocks of a level in row order, each as `framed`. Files beyond
    `largest_classic` bytes become BigTIFF. `nested`: see `pack_directories`.
    """
    head, end = _pack_head(directories, sizes, CLASSIC, nested)
    return head if end <= largest_classic else _pack_head(directories, sizes, BIG, nested)[0]


def framed(payload: bytes) -> bytes:
    """A block as stored in the file, with its leader and trailer."""
    return struct.pack("<I", len(payload)) + payload + payload[-_TRAILER_SIZE:]


def _pack_head(
    directories: Sequence[Sequence[Tag]],
    sizes: Sequence[NDArray[np.int64]],
    flavour: Flavour,
    nested: bool,
) -> tuple[bytes, int]:
    """All bytes before the data, and the length of the whole file."""
    ghost = b"GDAL_STRUCTURAL_METADATA_SIZE=%06d bytes\n" % len(_STRUCTURE) + _STRUCTURE
    first = flavour.header_size + len(ghost)
    first += -first % 8
    front = (flavour.header(first) + ghost).ljust(first, b"\0")
    nowhere = [np.zeros(counts.size, np.int64) for counts in sizes]
    unplaced = _placed(directories, sizes, nowhere, flavour)
    end = first + len(pack_directories(unplaced, first, flavour, nested))
    offsets = list(nowhere)
    for level in reversed(range(len(sizes))):
        ends = end + np.cumsum(sizes[level] + _LEADER_SIZE + _TRAILER_SIZE)
        offsets[level] = ends - sizes[level].ravel() - _TRAILER_SIZE
        end = int(ends[-1])
    placed = _placed(directories, sizes, offsets, flavour)
    return front + pack_directories(placed, first, flavour, nested), end


def _placed(
    directories: Sequence[Sequence[Tag]],
    sizes: Sequence[NDArray[np.int64]],
    offsets: Sequence[NDArray[np.int64]],
    flavour: Flavour,
) -> list[list[Tag]]:
    return [
        [
            *tags,
            Tag.of(TILE_OFFSETS, flavour.offset_type, places),
            Tag.of(TILE_BYTE_COUNTS, LONG, counts.ravel()),
        ]
        for tags, places, counts in zip(directories, offsets, sizes, strict=True)
    ]


def read_first_directory(file: bytes) -> list[Tag]:
    """The tags of the first directory of a small little-endian classic TIFF, without those of
    unknown types.
    """
    (start,) = struct.unpack_from("<I", file, 4)
    (number,) = struct.unpack_from("<H", file, start)
    tags = []
    for i in range(number):
        entry = start + 2 + 12 * i
        code, kind, count = struct.unpack_from("<HHI", file, entry)
        if kind not in _SIZES:
            continue
        size = count * _SIZES[kind]
        at = entry + 8 if size <= 4 else struct.unpack_from("<I", file, entry + 8)[0]
        tags.append(Tag(code, kind, file[at : at + size]))
    return tags
