"""Reading truth masks, and masks of runs: one whole number per pixel, from any format and store.

Readers of images deliver a palette as its colours; in a mask its index is what counts. A mask is
therefore read by `index` (the stored value of its only band, or the index into its palette) or by
`colour` (red, green and blue packed into one number). Stored values are those in the file: 0 and 1
in black and white, 0 to 3 in grey of two bits. Pixels that the file declares as no data (nodata of
a GeoTIFF, alpha 0, a transparent palette entry) are not known, and neither are those with the
nodata label in the file that maskloom writes beside a mask in NumPy's format.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.annotations.places import Turn, TurnedReader
from maskloom.segcore.annotations.polygons.masks import PolygonMask
from maskloom.segcore.errors import FormatError, ImageError, StoreError
from maskloom.segcore.formats.source import StoredFile

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.label_mapping import By
    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import RasterSpec, Reader

_PNG_GREY = 0
"""Colour type of PNG."""
_CLASS_NAMES = b"tEXtclasses\0"
"""How a PNG mask of classes by maskloom names them."""
_COLOURS_SHOWN = 5
_LARGEST_NOTE = 2**22
"""Bytes of the file beside a mask that are read."""


def holds_object_ids(spec: RasterSpec) -> bool:
    """Whether the values of a mask written by maskloom are ids of objects: numbers of 32 bits, or a
    grey PNG of 16 bits without class names.
    """
    if spec.dtype != "uint16" or spec.format != "picture":
        return spec.dtype == "uint32"
    file = StoredFile.of(spec.location)
    return _png_type(file.head()) == (16, _PNG_GREY) and _CLASS_NAMES not in file.read(
        0, min(file.size(), 2**20)
    )


@dataclass(frozen=True, slots=True)
class MaskReader:
    """An open mask."""

    reader: Reader
    location: str
    by: By
    nodata: int | None = None
    """Index that means "not known". None: the reader knows."""

    def read(self, box: Box) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """The number of each pixel of a box, and whether it is known, both in the box's shape.

        Raises `FormatError` if the pixels are no whole numbers, or colours instead of indices, and
        `ReadError`.
        """
        pixels, known = self.reader.read(box)
        if pixels.dtype.kind == "f":
            if not (pixels[known] == np.rint(pixels[known])).all():
                raise FormatError(
                    f"{self.location} has fractions among its values; a mask has whole numbers. "
                    "Round it, or give another file."
                )
            pixels = np.where(known[..., None], pixels, 0).astype(np.int64)
        if self.by == "colour":
            return self._packed(pixels), known
        first: NDArray[np.integer] = pixels[..., 0]  # type: ignore[assignment]
        if self.nodata is not None:
            known &= first != self.nodata
        if pixels.shape[-1] > 1 and not (pixels == pixels[..., :1])[known].all():
            found = np.unique(self._packed(pixels[known]))
            shown = ", ".join(f"#{value:06X}" for value in found[:_COLOURS_SHOWN])
            raise FormatError(
                f"{self.location} has {pixels.shape[-1]} bands that differ, for example colours "
                f"({shown}). Give the class of each colour: --colours classes.yaml or --values "
                "'#3C1098=building' for `maskloom evaluate`, labels: {kind: colours, colours: "
                "{building: '#3C1098'}} in a training recipe."
            )
        return first, known

    def close(self) -> None:
        """Close the file."""
        self.reader.__exit__(None, None, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _packed(self, pixels: NDArray[np.generic]) -> NDArray[np.int32]:
        if pixels.dtype != np.uint8 or pixels.shape[-1] == 2:
            raise FormatError(
                f"{self.location} has {pixels.shape[-1]} band(s) of {pixels.dtype}; a mask in "
                "colours has one, or three and more, of uint8. Give the classes by values, or "
                "another file."
            )
        return packed_colours(pixels)


def packed_colours(pixels: NDArray[np.generic]) -> NDArray[np.int32]:
    """Colours as numbers of 24 bits, from uint8 pixels (..., band): grey, or red, green, blue and
    perhaps more bands.
    """
    red, green, blue = (
        pixels[..., min(band, pixels.shape[-1] - 1)].astype(np.int32) for band in range(3)
    )
    packed: NDArray[np.int32] = red << 16 | green << 8 | blue
    return packed


class LabelReader(Protocol):
    """An open mask, stored as pixels or drawn from polygons. Use as a context manager."""

    @property
    def location(self) -> str:
        """Where it is, for messages."""
        ...

    def read(self, box: Box) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
        """The number of each pixel of a box, and whether it is known, both in the box's shape."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...


def open_mask(spec: RasterSpec | PolygonMask, by: By, turn: Turn | None = None) -> LabelReader:
    """Open a mask for reading, its pixels in the order of `turn`, or as stored. Raises `ReadError`
    if its pixels are broken.
    """
    if isinstance(spec, PolygonMask):
        return spec.open()
    reader = formats.open_image(spec) if by == "colour" else formats.open_stored(spec)
    if turn is not None and turn != Turn.none(len(spec.shape)):
        reader = TurnedReader(reader, turn, turn.shape(spec.shape))
    return MaskReader(reader, spec.location, by, None if by == "colour" else _nodata_beside(spec))


def _nodata_beside(spec: RasterSpec) -> int | None:
    """The nodata label that the file beside a NumPy array states; None without such a file."""
    if not spec.location.lower().endswith(".npy"):
        return None
    try:
        said = json.loads(StoredFile.of(f"{spec.location}.json").read(0, _LARGEST_NOTE))
    except (OSError, ValueError, StoreError, ImageError):
        # It is no file of maskloom, or none at all.
        return None
    nodata = said.get("nodata") if isinstance(said, dict) else None
    return nodata if type(nodata) is int else None


def _png_type(head: bytes) -> tuple[int, int]:
    """Bits per sample and colour type of a PNG; (0, -1) of other files."""
    return (head[24], head[25]) if head[:4] == b"\x89PNG" else (0, -1)
