"""Zarr arrays of version 2 and 3, and OME-Zarr 0.1 to 0.5: a folder is one image, or several.

The axes of an array come from the `multiscales` around it (OME-Zarr), `dimension_names` (version 3)
or `_ARRAY_DIMENSIONS` (xarray); without these they are (y, x) or (z, y, x). A channel axis becomes
the bands. Each time is an image of its own, and so is each field of a plate; other axes must have
length 1. Labels in an image are not read; a group of labels that is named itself is an image.

Chunks that are not stored have the fill value, which is data; without a fill value they are not
data, and neither are NaN and infinity.

OME-Zarr states the size of a pixel if each of its spatial axes has a scale and a unit of length.
Without units, sizes are in px.

The package `zarr` is an extra. It is imported when needed, which takes a second.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import ReadError, SourceChanged
from maskloom.segcore.formats.pixels import drop_not_finite
from maskloom.segcore.formats.source import store_failures
from maskloom.segcore.formats.zarr import ome
from maskloom.segcore.formats.zarr.array import DAMAGE, ZarrArray
from maskloom.segcore.formats.zarr.folder import Folder
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box, Shape

_WRITERS = {2: "ome_zarr_2", 3: "ome_zarr"}
"""Mask writers by the version of Zarr, so that a program that reads the image reads its mask."""


@dataclass(frozen=True, slots=True)
class Zarr:
    """Zarr 2 and 3, and OME-Zarr 0.1 to 0.5 with its levels, times and plates (extra `zarr`)."""

    kinds: tuple[FileKind, ...] = (
        FileKind("Zarr", (".zarr",), markers=("zarr.json", ".zarray", ".zgroup")),
    )
    mask: str = "ome_zarr"

    def parts(self, image: StoredImage, options: ReadOptions) -> Sequence[str]:
        """The fields of a plate and the times of a series; see `OptionsFormat.parts`."""
        folder = Folder.open(image.location)
        paths = folder.images()
        found = [
            ome.name_of_part(path, time) for path in paths for time in folder.times(path, options)
        ]
        return found if len(found) > 1 else ()

    def describe(self, location: str, version: str) -> RasterSpec:
        """Read the metadata; see `Format.describe`."""
        return self.describe_image(StoredImage(location, version), ReadOptions())

    def describe_image(self, image: StoredImage, options: ReadOptions) -> RasterSpec:
        """Read the metadata of an image at a level; see `OptionsFormat.describe_image`."""
        array = Folder.open(image.location).image(image.part, options)
        array.check()
        values = array.values
        shape, chunks = (array.spatial(sizes) for sizes in (values.shape, values.chunks))
        space, note = array.space()
        return RasterSpec(
            location=image.location,
            format="zarr",
            shape=shape,
            bands=tuple(range(1, array.bands + 1)),
            dtype=array.dtype.name,
            chunks=tuple(map(min, chunks, shape)),
            version=image.version,
            file_bands=array.bands,
            space=space,
            notes=note,
            part=image.part,
            level=array.level,
            reduction=array.reduction(),
            mask=_WRITERS[values.metadata.zarr_format],
        )

    def open(self, spec: RasterSpec) -> ZarrReader:
        """Open the array; see `Format.open`. A process opens an image once, since a distant store
        answers several requests for that.
        """
        known = (spec.location, spec.part, spec.level)
        # Without a version, it cannot be told whether the image is the same.
        array = (
            _opened_once(*known, spec.version, os.getpid()) if spec.version else _opened_at(*known)
        )
        shape = array.spatial(array.values.shape)
        if (shape, array.bands, array.dtype.name) != (spec.shape, spec.file_bands, spec.dtype):
            raise SourceChanged(
                f"{spec.location} has changed since its header was read. Run the same command "
                "again."
            )
        return ZarrReader(array, spec)

    def reduced_shapes(self, spec: RasterSpec) -> tuple[Shape, ...]:
        """Those of the coarser levels of OME-Zarr; see `PyramidFormat.reduced_shapes`."""
        array = _opened_at(spec.location, spec.part, spec.level)
        coarser = range(spec.level + 1, 0 if array.image is None else len(array.image.levels))
        levels = (_opened_at(spec.location, spec.part, level) for level in coarser)
        return tuple(each.spatial(each.values.shape) for each in levels)

    def open_reduced(
        self,
        spec: RasterSpec,
        number: int,
        *,
        stored: bool = False,  # noqa: ARG002  the numbers are those stored
    ) -> ZarrReader:
        """Open a coarser level; see `PyramidFormat.open_reduced`."""
        level = spec.level + 1 + number
        array = _opened_at(spec.location, spec.part, level)
        return self.open(replace(spec, level=level, shape=array.spatial(array.values.shape)))


FORMATS.register("zarr")(Zarr())


@dataclass(frozen=True, slots=True)
class ZarrReader(NothingToClose):
    """An open array."""

    array: ZarrArray
    spec: RasterSpec

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `Reader.read`."""
        pixels = np.empty((*box.shape, self.spec.channels), self.spec.dtype)
        valid = np.ones(box.shape, np.bool_)
        with store_failures(self.spec.location):
            try:
                for bands in _runs(self.spec.bands):
                    stored = self.array.read(box, slice(bands[0] - 1, bands[-1]))
                    for channel, band in enumerate(self.spec.bands):
                        if band in bands:
                            pixels[..., channel] = stored[..., band - bands[0]]
                    self.array.drop_absent(box, bands, pixels, valid)
            except DAMAGE as error:
                raise ReadError(
                    f"{self.spec.location}: the chunks from {box.start} to {box.stop} cannot be "
                    f"read: {error}. The array is damaged or incomplete; copy or write it again."
                ) from error
        drop_not_finite(pixels, valid)
        return pixels, valid


@lru_cache(maxsize=16)
def _opened_once(
    location: str,
    part: str,
    level: int,
    version: str,  # noqa: ARG001  another version is another image
    process: int,  # noqa: ARG001  a forked process cannot use the connections of its parent
) -> ZarrArray:
    return _opened_at(location, part, level)


def _opened_at(location: str, part: str, level: int) -> ZarrArray:
    # Axes without names were taken for times if the part has a time.
    is_time = ome.path_of_part(part)[1] is not None
    options = ReadOptions(level=level, axes="tyx" if is_time else None)
    return Folder.open(location).image(part, options)


def _runs(bands: Sequence[int]) -> Iterator[range]:
    """The bands as runs of neighbours, so that no channel between them is read.

    >>> list(_runs((7, 1, 2)))
    [range(1, 3), range(7, 8)]
    """
    chosen = sorted(set(bands))
    first = [band for band in chosen if band - 1 not in chosen]
    last = [band for band in chosen if band + 1 not in chosen]
    return (range(a, b + 1) for a, b in zip(first, last, strict=True))
