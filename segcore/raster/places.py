"""Where the slices of a volume are stored, as `RasterSpec.files` names them."""

from __future__ import annotations

import re
from dataclasses import dataclass

_PLACE = re.compile(r"#slice=(-?\d+)\.(\d+)\.(-?\d+)$")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a slice is stored."""

    uri: str
    entry: int = -1
    """Number of the file in an archive, from 0. -1: the file is no archive."""
    frame: int = 0
    """Number of the frame in the file, from 0."""
    tile: int = -1
    """Number of the tile in a mosaic, from 0. -1: the frame is no mosaic."""

    def __str__(self) -> str:
        if (self.entry, self.frame, self.tile) == (-1, 0, -1):
            return self.uri
        return f"{self.uri}#slice={self.entry}.{self.frame}.{self.tile}"

    @classmethod
    def of(cls, text: str) -> Place:
        """The place from its text.

        >>> Place.of(str(Place("a.zip", 3))).entry, Place.of("b.dcm").uri
        (3, 'b.dcm')
        """
        found = _PLACE.search(text)
        return cls(text[: found.start()], *map(int, found.groups())) if found else cls(text)
