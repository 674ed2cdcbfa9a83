"""Pixels: windows of images and their masks as training wants them, read through a bounded cache.

Small images, and those of formats without random access, are decoded once and kept as long as there
is room; of large ones each window is read. A mask is read by its stored values where these matter:
a palette picture then gives indices, not colours.
"""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.deep.inference.patches import mirrored
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.storage.store import filesystem, store_errors
from maskloom.segcore.training.labels import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec, Reader
    from maskloom.segcore.training.labels import Table
    from maskloom.segcore.training.pairs import Pair

_WHOLE_SHARE = 8
"""An image is kept whole where it takes less than this part of the memory."""
_OPEN_READERS = 8
_STRIP_PIXELS = 2**22
_PNG_DEPTH = 24
"""Byte of a PNG that tells the bits of a sample."""


@dataclass(frozen=True, slots=True)
class DatasetWindow:
    """A part of an image with what is known of it."""

    pixels: NDArray[np.generic]
    """(y, x, band) as read."""
    valid: NDArray[np.bool_]
    classes: NDArray[np.uint8]
    """(y, x): class ids, or `VOID` where nobody labelled or there is no data."""
    ids: NDArray[np.integer] | None = None
    """(y, x): numbers of objects, 0 for none. None where the labels have no objects."""


class Dataset:
    """All pairs of a training. For one thread at a time."""

    def __init__(self, pairs: Sequence[Pair], table: Table, megabytes: int) -> None:
        self.pairs = list(pairs)
        self.table = table
        self._room, self._held = megabytes * 2**20, 0
        self._whole: OrderedDict[int, DatasetWindow] = OrderedDict()
        self._readers: OrderedDict[int, tuple[Reader, Reader]] = OrderedDict()

    def close(self) -> None:
        """Close files and forget pixels."""
        for both in self._readers.values():
            _close(both)
        self._readers.clear()
        self._whole.clear()
        self._held = 0

    def shape(self, number: int) -> tuple[int, int]:
        """(height, width) of an image."""
        height, width = self.pairs[number].image.shape
        return height, width

    def strips(
        self, number: int, multiple: int
    ) -> Iterator[tuple[Box, DatasetWindow, NDArray[Any]]]:
        """An image from top to bottom: the box of each strip, its window, and what its mask's
        values are looked up by.

        Strips start at multiples of `multiple` rows.
        """
        height, width = self.shape(number)
        rows = multiple * max(1, _STRIP_PIXELS // width // multiple)
        both = self._open(number)
        try:
            kept, whole = self._kept(number), []
            for top in range(0, height, rows):
                box = Box((top, 0), (min(top + rows, height), width))
                window, keys = self._decoded(number, both, box)
                if kept:
                    whole.append(window)
                yield box, window, keys
            if kept:
                self._keep(number, _stacked(whole))
        finally:
            _close(both)

    def window(self, number: int, box: Box) -> DatasetWindow:
        """A box of an image; what lies beyond its border is mirrored, as when the network is used,
        and `VOID`. Raises `ReadError`.

        The arrays may be views of what others get too.
        """
        shape = self.shape(number)
        inside = box & Box.whole(shape)
        found = self._inside(number, inside)
        if inside == box:
            return found
        rows, columns = (
            mirrored(np.arange(box.start[axis], box.stop[axis]), shape[axis]) - inside.start[axis]
            for axis in (0, 1)
        )
        if (
            min(rows.min(), columns.min()) < 0
            or rows.max() >= inside.shape[0]
            or columns.max() >= inside.shape[1]
        ):
            # The mirror shows more than the box itself.
            first = (inside.start[0] + int(rows.min()), inside.start[1] + int(columns.min()))
            found = self._inside(
                number,
                Box(first, (first[0] + int(np.ptp(rows)) + 1, first[1] + int(np.ptp(columns)) + 1)),
            )
            rows, columns = rows - rows.min(), columns - columns.min()
        place = np.ix_(rows, columns)
        within = inside.relative_to(box).slices
        classes = np.full(box.shape, VOID, np.uint8)
        classes[within] = found.classes[place][within]
        if found.ids is None:
            return DatasetWindow(found.pixels[place], found.valid[place], classes)
        ids = np.zeros(box.shape, found.ids.dtype)
        ids[within] = found.ids[place][within]
        return DatasetWindow(found.pixels[place], found.valid[place], classes, ids)

    def _inside(self, number: int, box: Box) -> DatasetWindow:
        whole = self._whole.get(number)
        if whole is not None:
            self._whole.move_to_end(number)
            return _cut(whole, box)
        if self._kept(number):
            both = self._open(number)
            try:
                whole = self._decoded(number, both, Box.whole(self.shape(number)))[0]
            finally:
                _close(both)
            self._keep(number, whole)
            return _cut(whole, box)
        if number not in self._readers:
            self._readers[number] = self._open(number)
            if len(self._readers) > _OPEN_READERS:
                _close(self._readers.popitem(last=False)[1])
        self._readers.move_to_end(number)
        return self._decoded(number, self._readers[number], box)[0]

    def _decoded(
        self, number: int, both: tuple[Reader, Reader], box: Box
    ) -> tuple[DatasetWindow, NDArray[Any]]:
        image, mask = both
        pixels, valid = image.read(box)
        # What lies around the box too: a border between objects is known by the objects on both
        # sides of it.
        around = box.grow((self.table.reach, self.table.reach)) & Box.whole(self.shape(number))
        raw, labelled = mask.read(around)
        inner = box.relative_to(around).slices
        classes, keys = self.table.decode(raw, labelled)[inner], self.table.keys(raw)[inner]
        classes[~valid] = VOID
        ids = np.where((classes == VOID) | (classes == 0), 0, keys) if self.table.numbered else None
        return DatasetWindow(pixels, valid, classes, ids), keys

    def _open(self, number: int) -> tuple[Reader, Reader]:
        pair = self.pairs[number]
        return FORMATS[pair.image.format].open(pair.image), open_mask(pair.mask, self.table)

    def _kept(self, number: int) -> bool:
        spec = self.pairs[number].image
        # Without random access the whole is decoded anyway, and each window would cost as much.
        return spec.chunks == spec.shape or self._bytes(number) < self._room // _WHOLE_SHARE

    def _bytes(self, number: int) -> int:
        """What an image takes once it is decoded: pixels, whether they are valid, classes, numbers
        of objects.
        """
        image, mask = self.pairs[number].image, self.pairs[number].mask
        ids = np.dtype(mask.dtype).itemsize if self.table.numbered else 0
        return image.pixels * (image.channels * np.dtype(image.dtype).itemsize + 2 + ids)

    def _keep(self, number: int, whole: DatasetWindow) -> None:
        self._held += 0 if number in self._whole else self._bytes(number)
        self._whole[number] = whole
        while self._held > self._room and len(self._whole) > 1:
            oldest, _ = self._whole.popitem(last=False)
            self._held -= self._bytes(oldest)


def open_mask(spec: RasterSpec, table: Table) -> Reader:
    """A reader of what the table looks up. Raises `RecipeError` where the mask does not have it."""
    if table.by == "colour":
        if spec.channels < 3 or spec.dtype != "uint8":
            raise RecipeError(
                f"{spec.location} has {spec.channels} band(s) of {spec.dtype}, but `labels` name "
                "colours, which need 3 of uint8. "
                "Use labels: {kind: index} or {kind: values} for such masks."
            )
        return FORMATS[spec.format].open(replace(spec, bands=spec.bands[:3]))
    reader = _stored_picture(spec) if spec.format == "picture" else _stored_tiff(spec)
    if reader is not None:
        return reader
    if spec.channels != 1 or np.dtype(spec.dtype).kind not in "ui":
        raise RecipeError(
            f"{spec.location} has {spec.channels} band(s) of {spec.dtype}, but `labels` name whole "
            "numbers of one band. "
            "For RGB masks use labels: {kind: colours, colours: {name: '#RRGGBB', ...}}."
        )
    return FORMATS[spec.format].open(spec)


@dataclass(frozen=True, slots=True)
class _Stored:
    """Values of a mask in memory."""

    values: NDArray[Any]

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Values (y, x, 1) of a box."""
        return self.values[box.slices][..., None], np.ones(box.shape, np.bool_)

    def __enter__(self) -> _Stored:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is held open."""


def _stored_picture(spec: RasterSpec) -> Reader | None:
    """The indices of a palette picture, or grey values of 1 to 4 bits before they are spread; None
    for other pictures.
    """
    from PIL import Image

    fs, path = filesystem(spec.location)
    with store_errors(f"read {spec.location}"):
        content = bytes(fs.cat_file(path))
    # The header has been read, and its size found within limits, by the format.
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        image = Image.open(io.BytesIO(content))
        if image.mode == "P":
            return _Stored(np.asarray(image))
        if image.mode == "1":
            return _Stored(np.asarray(image).astype(np.uint8))
        if image.format == "PNG" and image.mode == "L" and content[_PNG_DEPTH] < 8:
            return _Stored(np.asarray(image) // (255 // (2 ** content[_PNG_DEPTH] - 1)))
    except (OSError, SyntaxError, ValueError) as error:
        raise RecipeError(
            f"The mask {spec.location} cannot be decoded: {error}. Write it again."
        ) from error
    finally:
        Image.MAX_IMAGE_PIXELS = limit
    return None


def _stored_tiff(spec: RasterSpec) -> Reader | None:
    """The numbers in a TIFF that has a palette, or whose 0 is white; None for others."""
    from maskloom.segcore.formats.tiff.geotiff import TiffReader

    reader = FORMATS[spec.format].open(spec)
    if isinstance(reader, TiffReader) and reader.stores_otherwise:
        return reader.as_stored()
    reader.__exit__(None, None, None)
    return None


def _close(both: tuple[Reader, Reader]) -> None:
    for reader in both:
        reader.__exit__(None, None, None)


def _cut(whole: DatasetWindow, box: Box) -> DatasetWindow:
    ids = None if whole.ids is None else whole.ids[box.slices]
    return DatasetWindow(
        whole.pixels[box.slices], whole.valid[box.slices], whole.classes[box.slices], ids
    )


def _stacked(strips: Sequence[DatasetWindow]) -> DatasetWindow:
    if len(strips) == 1:
        return strips[0]
    pixels, valid, classes = (
        np.concatenate([getattr(strip, name) for strip in strips])
        for name in ("pixels", "valid", "classes")
    )
    numbered = [strip.ids for strip in strips if strip.ids is not None]
    return DatasetWindow(pixels, valid, classes, np.concatenate(numbered) if numbered else None)
