"""Slides of many scanners by the library OpenSlide, the extra `microscopy`.

OpenSlide takes the place of a box in pixels of full resolution. If a level is not smaller by a
whole number, such a place is between two pixels of the level, and OpenSlide interpolates. Levels
are therefore requested in blocks on one grid, whatever box is read, so that a pixel has one value
for any tiling. Pixels that OpenSlide gives as transparent were not scanned: they are no data.

The size of a pixel counts only where OpenSlide has it from the scanner. Of ordinary TIFFs it takes
the resolution for printing, and calls them slides; they are refused here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, NotInstalled, ReadError
from maskloom.segcore.formats.slide.pyramid import Pyramid, plausible
from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from maskloom.segcore.formats.source import StoredFile
    from maskloom.segcore.raster.spec import RasterSpec, Reader

_BLOCK = 512
"""Side of the blocks of the grid."""
_NO_SCANNER = "generic-tiff"


@dataclass(frozen=True, slots=True)
class OpenSlide:
    """A slide that OpenSlide reads."""

    source: StoredFile
    pyramid: Pyramid

    @classmethod
    def read(cls, source: StoredFile) -> OpenSlide:
        """The header. Raises `FormatError`."""
        location = source.location
        with _opened(source, FormatError) as slide:
            properties, attached = dict(slide.properties), list(slide.associated_images)
            levels = tuple((height, width) for width, height in slide.level_dimensions)
        vendor = properties.get("openslide.vendor", _NO_SCANNER)
        if vendor == _NO_SCANNER:
            raise FormatError(
                f"{location} is a TIFF that no slide scanner wrote. Rename it to end in .tif, or "
                "set `format: tiff`."
            )
        return cls(
            source,
            Pyramid(
                location=location,
                levels=levels,
                tiles=((_BLOCK, _BLOCK),) * len(levels),
                spacing=_spacing(properties),
                attached=bool(attached),
            ),
        )

    def open(self, spec: RasterSpec) -> Reader:
        """A reader of the level of `spec`."""
        scale = tuple(
            full / own for full, own in zip(self.pyramid.levels[0], spec.shape, strict=True)
        )
        return OpenSlideReader(_opened(self.source, ReadError), spec, (scale[0], scale[1]))


@dataclass(frozen=True, slots=True)
class OpenSlideReader:
    """An open level; the library may be used by several threads."""

    slide: Any
    spec: RasterSpec
    scale: tuple[float, float]
    """Pixels of full resolution in one of the level, along (y, x)."""

    def __enter__(self) -> OpenSlideReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self.slide.close()

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        bands = [band - 1 for band in self.spec.bands]
        pixels = np.zeros((*box.shape, len(bands)), np.uint8)
        valid = np.zeros(box.shape, np.bool_)
        for block in _blocks(box, self.spec):
            inside = block & box
            decoded = self._decoded(block)[inside.relative_to(block).slices]
            part = inside.relative_to(box).slices
            valid[part] = decoded[..., 3] != 0
            pixels[part] = np.where(valid[part][..., np.newaxis], decoded[..., bands], 0)
        return pixels, valid

    def _decoded(self, block: Box) -> NDArray[np.uint8]:
        """Red, green, blue and alpha of a block of the grid, (y, x, band)."""
        from openslide import OpenSlideError

        (top, left), (height, width) = block.start, block.shape
        corner = (round(left * self.scale[1]), round(top * self.scale[0]))
        try:
            return np.asarray(self.slide.read_region(corner, self.spec.level, (width, height)))
        except OpenSlideError as error:
            raise ReadError(
                f"{self.spec.location}: rows {top} to {block.stop[0]}, columns {left} to "
                f"{block.stop[1]} of level {self.spec.level} cannot be read: {error}. The slide is "
                "damaged or incomplete; copy or export it again."
            ) from error


def _opened(source: StoredFile, kind: type[FormatError | ReadError]) -> Any:
    """The open slide. Raises `kind` and `NotInstalled`."""
    location = source.location
    try:
        import openslide
    except (ImportError, OSError) as error:
        # The library itself may be missing beside the Python package.
        raise NotInstalled(
            f"{location} is no slide of Aperio that maskloom reads alone. Slides of other scanners "
            "need the extra 'microscopy': pip install 'maskloom[microscopy]'. For an ordinary TIFF "
            "set `format: tiff`."
        ) from error
    if source.local_path is None:
        raise kind(
            f"{location}: slides of this scanner are read from disks only, not from object stores. "
            "Copy it to a disk that the workers share."
        )
    try:
        return openslide.OpenSlide(source.local_path)
    except openslide.OpenSlideUnsupportedFormatError as error:
        raise kind(
            f"{location} is no slide that OpenSlide knows, or files that belong to it are missing. "
            "Copy it again with all its files; for an ordinary TIFF set `format: tiff`."
        ) from error
    except openslide.OpenSlideError as error:
        raise kind(
            f"{location} cannot be read as a slide: {error}. It is damaged or incomplete; copy or "
            "export it again."
        ) from error


def _spacing(properties: dict[str, str]) -> tuple[float, float] | None:
    try:
        return plausible(
            (float(properties["openslide.mpp-y"]), float(properties["openslide.mpp-x"]))
        )
    except (KeyError, ValueError):
        return None


def _blocks(box: Box, spec: RasterSpec) -> Iterator[Box]:
    """The blocks of the grid that a box touches."""
    whole = Box.whole(spec.shape)
    for top in range(box.start[0] // _BLOCK * _BLOCK, box.stop[0], _BLOCK):
        for left in range(box.start[1] // _BLOCK * _BLOCK, box.stop[1], _BLOCK):
            yield Box((top, left), (top + _BLOCK, left + _BLOCK)) & whole
