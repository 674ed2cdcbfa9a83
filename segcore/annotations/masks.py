"""Masks as they are compared: one whole number a pixel, from any box of a file in any store.

The readers of images show a palette as colours, as people see it; in a mask its index is what
counts. So a mask is read in one of two ways: by `index` (the value of a single band, or the index
into a palette) or by `colour` (red, green and blue packed into one number). Pixels that the file
itself calls no data (nodata of a GeoTIFF, alpha 0) are not known.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError, ReadError
from maskloom.segcore.formats.orientation import picture_orientation, turn
from maskloom.segcore.formats.picture import PictureReader
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.tiff.geotiff import TiffReader
from maskloom.segcore.raster.spec import FORMATS, RasterSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import Reader

By = Literal["index", "colour"]
"""What tells the pixels of a mask apart."""
_PALETTE, _GREY = 3, 0
"""Colour types of PNG."""
_COLOURS_SHOWN = 5


@dataclass(frozen=True, slots=True)
class MaskFile:
    """The header of a mask."""

    spec: RasterSpec
    """As `segcore.formats` reads the file, a palette as colours."""
    indexed_png: bool
    """Whether it is a PNG whose pixels are indices: a palette, or black and white of one bit."""
    numbers_objects: bool
    """Whether the values of a mask that maskloom wrote are ids of objects: a TIFF of 32 bits, or a
    grey PNG of 16 bits without class names.
    """

    @classmethod
    def describe(cls, location: str) -> MaskFile:
        """Read the header. Raises `FormatError` where the file is no mask that we read,
        `Unavailable` where its store fails.
        """
        source = StoredFile.of(location)
        head = source.head()
        spec = FORMATS[formats.format_of(location, head)].describe(location, "")
        png = head.startswith(b"\x89PNG")
        depth, colour = (head[24], head[25]) if png else (0, 0)
        unnamed = (depth, colour) == (16, _GREY) and b"tEXtclasses\0" not in source.read(
            0, min(source.size(), 2**20)
        )
        return cls(
            spec,
            png and (colour == _PALETTE or (depth, colour) == (1, _GREY)),
            spec.dtype == "uint32" or unnamed,
        )


@dataclass(frozen=True, slots=True)
class MaskReader:
    """An open mask."""

    reader: Reader
    location: str
    by: By

    def read(self, box: Box) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """The numbers of a box, and where they are known.

        Raises `FormatError` where the pixels are no whole numbers, or colours where indices were
        expected, and `ReadError`.
        """
        pixels, known = self.reader.read(box)
        if pixels.dtype.kind == "f":
            if not (pixels[known] == np.rint(pixels[known])).all():
                raise FormatError(
                    f"{self.location} has fractions among its values; a mask has whole numbers. "
                    "Round it, or give another file."
                )
            pixels = np.where(known[..., None], pixels, 0)
        if self.by == "colour":
            return self._packed(pixels), known
        first = pixels[..., 0].astype(np.int64)
        if pixels.shape[-1] > 1 and not (pixels == pixels[..., :1])[known].all():
            found = np.unique(self._packed(pixels[known]))
            shown = ", ".join(f"#{value:06X}" for value in found[:_COLOURS_SHOWN])
            raise FormatError(
                f"{self.location} has {pixels.shape[-1]} bands that differ, such as colours "
                f"({shown}). Say which colour is which class: "
                "--colours classes.yaml, or --values '#3C1098=building'."
            )
        return first, known

    def _packed(self, pixels: NDArray[np.generic]) -> NDArray[np.int64]:
        if pixels.dtype != np.uint8 or pixels.shape[-1] not in (1, 3):
            raise FormatError(
                f"{self.location} has {pixels.shape[-1]} band(s) of {pixels.dtype}; a mask in "
                "colours has one or three of uint8. "
                "Give values in place of colours, or another file."
            )
        parts = np.broadcast_to(pixels, (*pixels.shape[:-1], 3)).astype(np.int64)
        packed: NDArray[np.int64] = parts[..., 0] << 16 | parts[..., 1] << 8 | parts[..., 2]
        return packed


@contextlib.contextmanager
def open_mask(mask: MaskFile, by: By) -> Iterator[MaskReader]:
    """Open a mask for reading. Raises `ReadError` where its pixels are broken."""
    spec = mask.spec
    if by == "index" and mask.indexed_png:
        yield MaskReader(_indices(spec.location), spec.location, by)
        return
    with FORMATS[spec.format].open(spec) as reader:
        yield MaskReader(_without_palette(reader) if by == "index" else reader, spec.location, by)


def _without_palette(reader: Reader) -> Reader:
    """The reader, of a TIFF with a palette, or whose 0 is white, the one that gives the numbers in
    the file.
    """
    return (
        reader.as_stored() if isinstance(reader, TiffReader) and reader.stores_otherwise else reader
    )


def _indices(location: str) -> PictureReader:
    from PIL.PngImagePlugin import PngImageFile

    try:
        # The header was read before, with its limits on size.
        image = PngImageFile(io.BytesIO(StoredFile.of(location).read()))
        index = np.asarray(image).astype(np.uint8)
    except (OSError, SyntaxError, ValueError) as error:
        raise ReadError(
            f"The pixels of {location} cannot be decoded: {error}. Copy the file again."
        ) from error
    transparent = image.info.get("transparency")
    hidden = np.zeros(256, np.bool_)
    if isinstance(transparent, bytes):
        hidden[: len(transparent)] = np.frombuffer(transparent, np.uint8) == 0
    elif isinstance(transparent, int):
        hidden[transparent] = True
    orientation = picture_orientation(image.info)
    return PictureReader(turn(index[..., None], orientation), turn(~hidden[index], orientation))
