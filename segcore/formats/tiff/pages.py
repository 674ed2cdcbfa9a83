"""The pages of a TIFF: a traversal of its directories, bounded for any content of the file.

GDAL opens one directory of a file and ignores the others. Here all of them are read, so that
`tiff.contents` can decide which are the image. Sources: TIFF 6.0 (Adobe 1992), its Technical Note 1
(trees of directories), and the BigTIFF design (2004).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.orientation import UPRIGHT

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape

FIRST_DIRECTORY = {42: (4, "I"), 43: (8, "Q")}
"""Position and `struct` type of the offset of the first directory, by the version of the file."""
MAX_PAGES = 2**13
MAX_DESCRIPTION_BYTES = 16 << 20
_MAX_ENTRIES = 4096
_LARGEST_FILE = 2**43
"""In bytes. Systems refuse to go to places beyond what their files can have."""
_MAX_CHILDREN = 64
_MAX_VALUES = 2**16
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 6: 1, 7: 1, 8: 2, 9: 4, 13: 4, 16: 8, 17: 8, 18: 8}
_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_REDUCED, _MASK = 1, 4
_OLD_KINDS = {2: _REDUCED}
"""Value of the old tag 255 for a reduced image."""


class Stream(Protocol):
    """A seekable file."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, fewer at the end."""
        ...

    def seek(self, offset: int, /) -> int:
        """Move to an offset."""
        ...


@dataclass(frozen=True, slots=True)
class Page:
    """One directory of a TIFF."""

    offset: int
    shape: Shape
    samples: int
    bits: tuple[int, ...]
    sample_format: int
    photometric: int | None
    """None: not in the file."""
    coloured: bool
    """Whether it has a palette."""
    kind: int
    """NewSubfileType: bit 0 a reduced image, bit 1 a page of many, bit 2 a transparency mask."""
    tiled: bool
    compressed: bool
    data_offset: int
    """Offset of its first strip or tile."""
    children: tuple[int, ...]
    """Offsets of its sub-directories."""
    depth: int
    """Number of planes in this directory: those of a volume (ImageDepth), or of a MetaMorph stack
    (UIC2).
    """
    orientation: int
    description: str
    """Of the first page only; not read for others."""

    @property
    def reduced(self) -> bool:
        """Whether it is a smaller version or a part of another page."""
        return bool(self.kind & _REDUCED)

    @property
    def mask(self) -> bool:
        """Whether it is the mask of another page."""
        return bool(self.kind & _MASK)

    @property
    def content(self) -> bool:
        """Whether it is a picture in its own right."""
        return not (self.reduced or self.mask) and min(self.shape) > 0

    @property
    def plane_bytes(self) -> int:
        """Bytes of its uncompressed pixels."""
        bits = sum(self.bits) if len(self.bits) == self.samples else self.samples * self.bits[0]
        return self.shape[0] * -(-self.shape[1] * bits // 8)

    def like(self, other: Page) -> bool:
        """Whether its pixels have the number and type of those of another page."""
        return all(
            getattr(self, name) == getattr(other, name)
            for name in ("shape", "samples", "bits", "sample_format", "photometric")
        )

    def shrinks(self, other: Page) -> bool:
        """Whether it could be the other page at a lower resolution: smaller, with the same
        proportions up to rounding.
        """
        (height, width), (tall, wide) = self.shape, other.shape
        if (
            height > tall
            or width > wide
            or self.shape == other.shape
            or self.samples != other.samples
        ):
            return False
        # Sides are rounded up or down, level by level.
        return abs(height * wide - width * tall) <= tall + wide


@dataclass(frozen=True, slots=True)
class Pages:
    """The directories of an open TIFF."""

    stream: Stream
    location: str

    def chain(self) -> Iterator[Page]:
        """The pages in order; a circular chain ends where it would repeat. Raises `FormatError` if
        the chain is broken.
        """
        order, version = self._head()
        at, letter = FIRST_DIRECTORY[version]
        (offset,) = struct.unpack(order + letter, self._bytes(at, struct.calcsize(letter)))
        seen: set[int] = set()
        while offset and offset not in seen:
            if len(seen) == MAX_PAGES:
                raise FormatError(
                    f"{self.location} has more than {MAX_PAGES} pages. Cut it into several files."
                )
            first = not seen
            seen.add(offset)
            page, offset = self._page(offset, order, version, first)
            yield page

    def at(self, offset: int) -> Page:
        """The page whose directory is at this offset. Raises `FormatError`."""
        order, version = self._head()
        return self._page(offset, order, version)[0]

    def _head(self) -> tuple[str, int]:
        head = self._bytes(0, 4)
        order = "<" if head[:2] == b"II" else ">"
        (version,) = struct.unpack(order + "H", head[2:])
        if version not in FIRST_DIRECTORY:
            raise self._damaged(f"its version is {version}, not 42 or 43")
        return order, version

    def _page(
        self, offset: int, order: str, version: int, described: bool = False
    ) -> tuple[Page, int]:
        """A directory, and the offset of the next one; 0 at the end."""
        big = version == 43
        count_letter, word = ("Q", "Q") if big else ("H", "I")
        width = struct.calcsize(word)
        (count,) = struct.unpack(
            order + count_letter, self._bytes(offset, struct.calcsize(count_letter))
        )
        if not 0 < count <= _MAX_ENTRIES:
            raise self._damaged(f"the directory at byte {offset} claims {count} entries")
        size = 4 + 2 * width
        entries = self._bytes(offset + struct.calcsize(count_letter), count * size + width)
        (following,) = struct.unpack_from(order + word, entries, count * size)
        tags: dict[int, tuple[int, int, bytes]] = {}
        for i in range(count):
            tag, kind, number = struct.unpack_from(order + "HH" + word, entries, i * size)
            tags.setdefault(tag, (kind, number, entries[i * size + 4 + width : (i + 1) * size]))
        return _page_of(_Directory(self, tags, order, word), offset, described), following

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset < _LARGEST_FILE:
            self.stream.seek(offset)
            data = self.stream.read(size)
            if len(data) == size:
                return data
        raise self._damaged(
            f"{size} bytes of its structure should lie at byte {offset}, beyond its end"
        )

    def _damaged(self, what: str) -> FormatError:
        return FormatError(
            f"{self.location} is damaged or incomplete: {what}. Copy or write the file again."
        )


@dataclass(frozen=True, slots=True)
class _Directory:
    """The entries of one directory, whose values are read on request."""

    pages: Pages
    tags: dict[int, tuple[int, int, bytes]]
    order: str
    word: str

    def numbers(
        self, tag: int, default: tuple[int, ...] = (), most: int = _MAX_VALUES
    ) -> tuple[int, ...]:
        """The integers of a tag, at most `most`; the default if it is absent or not a number."""
        kind, count, _ = self.tags.get(tag, (0, 0, b""))
        letter, count = _LETTERS.get(kind), min(count, most)
        if letter is None or not count:
            return default
        return struct.unpack(f"{self.order}{count}{letter}", self._data(tag, count))

    def number(self, tag: int, default: int) -> int:
        """The first number of a tag."""
        return self.numbers(tag, (default,), 1)[0]

    def text(self, tag: int) -> str:
        """The text of a tag; empty if it is absent."""
        kind, count, _ = self.tags.get(tag, (0, 0, b""))
        if _SIZES.get(kind) != 1:
            return ""
        return (
            self._data(tag, min(count, MAX_DESCRIPTION_BYTES))
            .partition(b"\0")[0]
            .decode("utf-8", "replace")
        )

    def _data(self, tag: int, count: int) -> bytes:
        kind, full, field = self.tags[tag]
        size = count * _SIZES[kind]
        if full * _SIZES[kind] <= len(field):
            return field[:size]
        (offset,) = struct.unpack(self.order + self.word, field)
        return self.pages._bytes(offset, size)  # noqa: SLF001  both are this module's


def _page_of(directory: _Directory, offset: int, described: bool) -> Page:
    kind = directory.number(254, _OLD_KINDS.get(directory.number(255, 0), 0))
    photometric = directory.number(262, -1)
    tiled, orientation = 322 in directory.tags, directory.number(274, UPRIGHT)
    return Page(
        offset=offset,
        shape=(directory.number(257, 0), directory.number(256, 0)),
        samples=max(1, directory.number(277, 1)),
        bits=directory.numbers(258, (1,), 16),
        sample_format=directory.number(339, 1),
        photometric=None if photometric < 0 else photometric,
        coloured=320 in directory.tags,
        kind=kind,
        tiled=tiled,
        compressed=directory.number(259, 1) != 1,
        data_offset=directory.number(324 if tiled else 273, 0),
        children=directory.numbers(330, most=_MAX_CHILDREN),
        depth=max(directory.number(32997, 1), directory.tags.get(33629, (0, 1))[1]),
        orientation=orientation if 1 <= orientation <= 8 else UPRIGHT,
        description=directory.text(270) if described else "",
    )
