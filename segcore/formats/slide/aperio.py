"""Slides of Aperio scanners (.svs): TIFF in which the tiled pages are levels.

The first page is the slide at full resolution, and its description begins with `Aperio` and states
the size of a pixel (`MPP`, microns per pixel). Each further tiled page of the same proportions is a
level. The thumbnail, the label and the macro picture are pages in strips; they are never read: the
label may name a patient. Only the tiles that a box touches are read and decoded. A tile of 0 bytes
was not scanned, and its pixels are no data.

After: Aperio's "Digital Slides and Third-Party Data Interchange" (2012), and the description of the
format by the OpenSlide project.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError
from maskloom.segcore.formats.jpeg import require_whole_tile
from maskloom.segcore.formats.slide.pyramid import Pyramid, plausible
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.readers import NothingToClose

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.formats.source import StoredFile
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec, Reader

_JPEG, _JPEG_2000_YCC, _JPEG_2000 = 7, 33003, 33005
_COMPRESSIONS = {1: "none", 5: "LZW", _JPEG: "JPEG", 8: "deflate", 32946: "deflate", _JPEG_2000: ""}
_GREY, _RGB, _YCBCR = 1, 2, 6
"""Photometric interpretations that scanners write."""
_MPP = re.compile(r"\|\s*MPP\s*=\s*([-+\d.,eE]+)")
_ATTACHED = re.compile(r"^\s*(label|macro|thumbnail)\b", re.IGNORECASE | re.MULTILINE)
_MOST_PAGES = 256
_J2K_SIZE = re.compile(rb"\xff\x4f\xff\x51.{4}(.{16}).{16}(.{2})", re.DOTALL)
"""The head of a JPEG 2000 codestream: width, height, the offsets of both, and components."""
_MOST_COMPONENTS = 4
_END = b"\xff\xd9"
"""Ends JPEG and JPEG 2000."""


@dataclass(frozen=True, slots=True)
class Level:
    """How a page stores its tiles."""

    shape: Shape
    tile: Shape
    compression: int
    tables: bytes
    """JPEG tables that all tiles share."""
    starts: NDArray[np.int64]
    """Offset of each tile in the file, in row order."""
    sizes: NDArray[np.int64]
    """Bytes of each tile."""
    decode: Callable[..., Any]
    """The decoder of tifffile: data and number of a tile to (pixels, place, shape)."""

    @property
    def columns(self) -> int:
        """Number of tiles in a row."""
        return -(-self.shape[1] // self.tile[1])


@dataclass(frozen=True, slots=True)
class Aperio:
    """A slide of an Aperio scanner."""

    source: StoredFile
    pyramid: Pyramid
    levels: tuple[Level, ...]

    @classmethod
    def read(cls, source: StoredFile) -> Aperio | None:
        """The header; None if the file is no slide of Aperio, or one that only OpenSlide reads.

        Raises `FormatError` for a broken file, and `Unavailable`.
        """
        from tifffile import TiffFile

        if (logger := logging.getLogger("tifffile")).level == logging.NOTSET:
            # The faults of files are reported by us; a level set by the user is kept.
            logger.setLevel(logging.CRITICAL)
        with source.stream() as stream:
            try:
                with TiffFile(stream) as file:
                    return _read(source, list(_pages(file, source.location)))
            except FormatError:
                raise
            except Exception as error:
                # What tifffile makes of broken directories is open-ended.
                raise FormatError(
                    f"The header of {source.location} cannot be read as a slide: {error}. The file "
                    "is damaged or incomplete; copy or export it again."
                ) from error

    def open(self, spec: RasterSpec) -> Reader:
        """A reader of the level of `spec`."""
        return AperioReader(self.source, self.levels[spec.level], spec)


@dataclass(frozen=True, slots=True)
class AperioReader(NothingToClose):
    """A level of a slide; each read opens the file anew, so threads may share it."""

    source: StoredFile
    level: Level
    spec: RasterSpec

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        bands = [band - 1 for band in self.spec.bands]
        pixels = np.zeros((*box.shape, len(bands)), self.spec.dtype)
        valid = np.zeros(box.shape, np.bool_)
        for tiles in _rows_of_tiles(box, self.level):
            scanned = [tile for tile in tiles if self.level.sizes[tile[0]]]
            for (number, place), data in zip(scanned, self._stored(scanned), strict=True):
                inside = place & box
                part = inside.relative_to(box).slices
                decoded = self._decoded(number, place, data)
                pixels[part] = decoded[inside.relative_to(place).slices][..., bands]
                valid[part] = True
        return pixels, valid

    def _stored(self, tiles: list[tuple[int, Box]]) -> list[bytes]:
        starts = [int(self.level.starts[number]) for number, _ in tiles]
        sizes = [int(self.level.sizes[number]) for number, _ in tiles]
        return self.source.read_ranges(starts, sizes) if tiles else []

    def _decoded(self, number: int, place: Box, data: bytes) -> NDArray[Any]:
        """The part of a tile that is inside the slide, (y, x, band)."""
        level, (height, width) = self.level, place.shape
        try:
            if len(data) < level.sizes[number]:
                raise ValueError("the file ends within the tile")
            if level.compression == _JPEG:
                require_whole_tile(data, level.tables, level.tile)
            elif level.compression == _JPEG_2000:
                _require_whole_codestream(data, level.tile)
            tile = level.decode(data, number, jpegtables=level.tables or None)[0][0]
            if tile.shape[0] < height or tile.shape[1] < width or tile.dtype != self.spec.dtype:
                raise ValueError(f"it holds {tile.shape[1]} x {tile.shape[0]} of {tile.dtype}")
            part: NDArray[Any] = tile[:height, :width]
            return part.reshape(height, width, self.spec.file_bands)
        except Exception as error:
            # The errors of codecs have no common base class.
            (top, left), (bottom, right) = place.start, place.stop
            raise ReadError(
                f"{self.spec.location}: the tile of rows {top} to {bottom}, columns {left} to "
                f"{right} of level {self.spec.level} cannot be read: {error}. The slide is "
                "damaged; copy or export it again."
            ) from error


def _pages(file: Any, location: str) -> Iterator[Any]:
    for number, page in enumerate(file.pages):
        if number == _MOST_PAGES:
            raise FormatError(
                f"{location} has more than {_MOST_PAGES} pages, which no slide has. Set `format: "
                "tiff` if it is an ordinary TIFF."
            )
        yield page


def _read(source: StoredFile, pages: list[Any]) -> Aperio | None:
    location = source.location
    if not pages:
        raise FormatError(
            f"The header of {location} cannot be read as a slide: it leads to no picture. The file "
            "is damaged or incomplete; copy or export it again."
        )
    first = pages[0]
    if not first.description.startswith("Aperio"):
        return None
    if not first.is_tiled:
        raise FormatError(
            f"{location} is a file of Aperio software whose first picture is not the slide (it is "
            "not in tiles). Export the slide again."
        )
    if first.compression == _JPEG_2000_YCC:
        return None
    _check(location, first)
    tiled = [page for page in pages[1:] if page.is_tiled]
    planes = sum(page.shape == first.shape for page in tiled)
    if planes:
        raise FormatError(
            f"{location} has {planes + 1} pictures at full resolution, focal planes of one slide; "
            "one must not pass for all. Export the plane to segment."
        )
    smaller = sorted(
        (page for page in tiled if _is_level(page, first)), key=lambda page: -page.imagewidth
    )
    levels = tuple(_level(source, page) for page in (first, *smaller))
    pyramid = Pyramid(
        location=location,
        levels=tuple(level.shape for level in levels),
        tiles=tuple(level.tile for level in levels),
        spacing=_spacing(first.description),
        bands=first.samplesperpixel,
        dtype=np.dtype(first.dtype).name,
        attached=len(pages) > len(levels),
    )
    return Aperio(source, pyramid, levels)


def _check(location: str, page: Any) -> None:
    """Raise `FormatError` for pixels that are stored in ways that no such scanner uses."""
    dtype = np.dtype(page.dtype)
    samples, colours = page.samplesperpixel, page.photometric
    stored = f"{samples} samples of {dtype}, photometric {int(colours)}"
    if (
        dtype.name not in ("uint8", "uint16")
        or (samples, int(colours)) not in ((1, _GREY), (3, _RGB), (3, _YCBCR))
        or (samples > 1 and page.planarconfig != 1)
    ):
        raise FormatError(
            f"{location}: expected pixels of one grey or three colours (red, green, blue) of 8 or "
            f"16 bits; got {stored}. Export the slide as TIFF or OME-TIFF."
        )
    if int(page.compression) not in _COMPRESSIONS:
        raise FormatError(
            f"{location}: its tiles are compressed by method {int(page.compression)}, which is not "
            "read. Export the slide with JPEG or LZW."
        )


def _is_level(page: Any, first: Any) -> bool:
    """Whether a tiled page is the first at a lower resolution: alike, and of the same proportions
    up to rounding of the sides.
    """
    same = ("dtype", "samplesperpixel", "photometric", "planarconfig", "compression")
    height, width, tall, wide = (
        page.imagelength,
        page.imagewidth,
        first.imagelength,
        first.imagewidth,
    )
    return (
        all(getattr(page, name) == getattr(first, name) for name in same)
        and _ATTACHED.search(page.description) is None
        and height <= tall
        and width <= wide
        and abs(height * wide - width * tall) <= tall + wide
    )


def _level(source: StoredFile, page: Any) -> Level:
    level = Level(
        shape=(page.imagelength, page.imagewidth),
        tile=(page.tilelength, page.tilewidth),
        compression=int(page.compression),
        tables=page.jpegtables or b"",
        starts=np.array(page.dataoffsets, np.int64),
        sizes=np.array(page.databytecounts, np.int64),
        decode=page.decode,
    )
    if min(level.tile) < 1 or page.tiledepth > 1:
        raise FormatError(f"{source.location} has tiles without a size. Export it again.")
    rows = -(-level.shape[0] // level.tile[0])
    ends = level.starts + level.sizes
    if not len(level.starts) == len(level.sizes) == rows * level.columns:
        raise FormatError(
            f"{source.location} has {len(level.starts)} tiles; its size needs "
            f"{rows * level.columns}. It is damaged; copy or export it again."
        )
    if min(level.starts.min(), level.sizes.min()) < 0 or ends.max() > source.size():
        raise FormatError(
            f"{source.location} ends early: it has {source.size()} bytes, its tiles need "
            f"{ends.max()}. Copy it again."
        )
    most = 2 * level.tile[0] * level.tile[1] * page.samplesperpixel * page.dtype.itemsize + 2**16
    if level.sizes.max() > most:
        raise FormatError(
            f"{source.location} has a tile of {level.sizes.max()} bytes, more than its pixels can "
            "need. It is damaged; copy or export it again."
        )
    return level


def _spacing(description: str) -> tuple[float, float] | None:
    """The size of a pixel in um that a scanner states."""
    found = _MPP.search(description)
    try:
        # Scanners write the decimal comma of some countries.
        return found and plausible((float(found[1].replace(",", ".")),) * 2)
    except ValueError:
        return None


def _rows_of_tiles(box: Box, level: Level) -> Iterator[list[tuple[int, Box]]]:
    """The tiles that a box touches, row by row: the number and the place of each."""
    (top, left), (bottom, right) = box.start, box.stop
    height, width = level.tile
    whole = Box.whole(level.shape)
    for row in range(top // height, -(-bottom // height)):
        yield [
            (
                row * level.columns + column,
                Box((row * height, column * width), ((row + 1) * height, (column + 1) * width))
                & whole,
            )
            for column in range(left // width, -(-right // width))
        ]


def _require_whole_codestream(data: bytes, tile: Shape) -> None:
    """Raise `ValueError` unless the picture in JPEG 2000 is of the size of a tile and has its end:
    decoders allocate what a header claims, and fill what is missing with grey.
    """
    found = _J2K_SIZE.search(data[:256])
    if found is None:
        raise ValueError("it is no JPEG 2000")
    right, bottom, left, top = (int.from_bytes(found[1][i : i + 4], "big") for i in (0, 4, 8, 12))
    components = int.from_bytes(found[2], "big")
    if (bottom - top, right - left) != tile or components > _MOST_COMPONENTS:
        raise ValueError(
            f"it is a picture of {right - left} x {bottom - top} pixels with {components} bands"
        )
    if _END not in data[-16:]:
        raise ValueError("it ends early")
