"""The dataset: windows of images and their masks as training needs them, read through a bounded
cache.

Small images, and those of formats without random access, are decoded once and kept in memory that
all processes of a training share, as long as there is room; of large ones each window is read.
Which images are kept is settled by their order: patches are drawn from all alike, so none is worth
more. Masks are read as in evaluation (`segcore.annotations.masks`).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.annotations.masks import open_mask
from maskloom.segcore.deep.inference.patches import mirrored
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.processes.shared_memory import SharedMemory
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.training.labels import VOID

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.masks import LabelReader
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import Reader
    from maskloom.segcore.training.labels import LabelDecoder
    from maskloom.segcore.training.pairs import Pair

_WHOLE_SHARE = 8
"""An image is kept whole if it takes less than this share of the memory."""
_OPEN_READERS = 8
_ALIGNED = 64
"""Arrays begin at multiples of this many bytes."""
_STRIP_PIXELS = 2**22


@dataclass(frozen=True, slots=True)
class DatasetWindow:
    """A part of an image with its labels; that of a volume has an axis z before y."""

    pixels: NDArray[np.generic]
    """(y, x, band) as read."""
    valid: NDArray[np.bool_]
    """(y, x)."""
    classes: NDArray[np.uint8]
    """(y, x): class ids; `VOID` without a label or without data."""
    ids: NDArray[np.integer] | None = None
    """(y, x): ids of objects, 0 for none. None if the labels have no objects."""


Readers = tuple["Reader", "LabelReader"]
"""Of an image and of its mask."""


class Dataset:
    """All pairs of images and masks of a training. Not safe for several threads at once; a pickled
    one shares its decoded images, see `SharedMemory`.
    """

    def __init__(self, pairs: Sequence[Pair], decoder: LabelDecoder, megabytes: int) -> None:
        self.pairs = list(pairs)
        self.decoder = decoder
        self._room = megabytes * 2**20
        self._places = self._settled()
        self.memory = SharedMemory(self._end)
        self._last: tuple[int, DatasetWindow] | None = None
        self._readers: OrderedDict[int, Readers] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_readers": OrderedDict(), "_last": None}

    def close(self) -> None:
        """Close files and forget pixels."""
        for readers in self._readers.values():
            _close(readers)
        self._readers.clear()
        self._last = None
        self.memory = SharedMemory(self._end)

    @property
    def names(self) -> list[tuple[str, str]]:
        """Name and location of each image."""
        return [(pair.name, pair.image.location) for pair in self.pairs]

    def shape(self, number: int) -> Shape:
        """(height, width) of an image, or (depth, height, width) of a volume."""
        return self.pairs[number].image.shape

    def strips(
        self, number: int, multiple: int
    ) -> Iterator[tuple[Box, DatasetWindow, NDArray[np.integer]]]:
        """An image from top to bottom: the box of each strip, its window, and the values (y, x) of
        its mask.

        Strips start at multiples of `multiple` rows; those of volumes are slabs of planes.
        """
        length, *others = self.shape(number)
        rows = self._rows(number, multiple)
        readers = self._open(number)
        try:
            kept, whole = number in self._places, []
            for top in range(0, length, rows):
                bottom = min(top + rows, length)
                box = Box((top, *[0] * len(others)), (bottom, *others))
                window, values = self._decoded(number, readers, box)
                if kept:
                    whole.append(window)
                yield box, window, values
            if kept:
                self._keep(number, _stacked(whole))
        finally:
            _close(readers)

    def blocks(self, number: int) -> Iterator[Block]:
        """An image from top to bottom, without its mask, in blocks that partition it. Raises
        `ReadError`.
        """
        spec = self.pairs[number].image
        grid = Grid(spec.shape, (self._rows(number), *spec.shape[1:]))
        if number in self._places and self.memory.flag(number):
            whole = self._kept(number)
            for tile in grid:
                place = tile.core.slices
                yield Block(tile, whole.pixels[place], whole.valid[place], spec)
            return
        with formats.open_image(spec) as reader:
            for tile in grid:
                yield Block(tile, *reader.read(tile.core), spec)

    def _rows(self, number: int, multiple: int = 1) -> int:
        """Rows of a strip of an image, or planes of a slab: so many that it has a bounded size."""
        others = math.prod(self.shape(number)[1:])
        return multiple * max(1, _STRIP_PIXELS // others // multiple)

    def window(self, number: int, box: Box) -> DatasetWindow:
        """A box of an image. Beyond the image's border, pixels are mirrored, as in inference, and
        classes are `VOID`. Raises `ReadError`.

        The arrays may be views of the cache: do not write to them.
        """
        shape = self.shape(number)
        inside = box & Box.whole(shape)
        found = self._inside(number, inside)
        if inside == box:
            return found
        places = [
            mirrored(np.arange(start, stop), size)
            for start, stop, size in zip(box.start, box.stop, shape, strict=True)
        ]
        seen = Box(
            tuple(int(each.min()) for each in places),
            tuple(int(each.max()) + 1 for each in places),
        )
        if seen & inside != seen:
            # The mirror shows more than the box itself.
            found = self._inside(number, seen)
        else:
            seen = inside
        place = [each - start for each, start in zip(places, seen.start, strict=True)]
        found = DatasetWindow(
            _picked(found.pixels, place),
            _picked(found.valid, place),
            _picked(found.classes, place),
            None if found.ids is None else _picked(found.ids, place),
        )
        within = inside.relative_to(box).slices
        classes = np.full(box.shape, VOID, np.uint8)
        classes[within] = found.classes[within]
        if found.ids is None:
            return DatasetWindow(found.pixels, found.valid, classes)
        ids = np.zeros(box.shape, found.ids.dtype)
        ids[within] = found.ids[within]
        return DatasetWindow(found.pixels, found.valid, classes, ids)

    def _inside(self, number: int, box: Box) -> DatasetWindow:
        if self._whole_at_once(number):
            return _cut(self._whole(number), box)
        if number not in self._readers:
            self._readers[number] = self._open(number)
            if len(self._readers) > _OPEN_READERS:
                _close(self._readers.popitem(last=False)[1])
        self._readers.move_to_end(number)
        return self._decoded(number, self._readers[number], box)[0]

    def _whole(self, number: int) -> DatasetWindow:
        """A whole image: kept, or the last one that was decoded, or decoded now."""
        kept = number in self._places
        if kept and self.memory.flag(number):
            return self._kept(number)
        if self._last is None or self._last[0] != number:
            self._last = None
            readers = self._open(number)
            try:
                whole = self._decoded(number, readers, Box.whole(self.shape(number)))[0]
            finally:
                _close(readers)
            if kept:
                self._keep(number, whole)
                return self._kept(number)
            self._last = number, whole
        return self._last[1]

    def _decoded(
        self, number: int, readers: Readers, box: Box
    ) -> tuple[DatasetWindow, NDArray[np.integer]]:
        image, mask = readers
        pixels, valid = image.read(box)
        # A border between objects depends on the objects on both sides of it: read around the box.
        reach = self.decoder.reach
        around = box.grow((reach,) * len(box.shape)) & Box.whole(self.shape(number))
        values, known = mask.read(around)
        inner = box.relative_to(around).slices
        classes, values = self.decoder.decode(values, known)[inner], values[inner]
        classes[~valid] = VOID
        ids = None
        if self.decoder.numbered:
            ids = np.where((classes == VOID) | (classes == 0), 0, values)
        return DatasetWindow(pixels, valid, classes, ids), values

    def _open(self, number: int) -> Readers:
        pair = self.pairs[number]
        mask = open_mask(pair.mask, self.decoder.mapping.by, pair.turn)
        return formats.open_image(pair.image), mask

    def _whole_at_once(self, number: int) -> bool:
        """Whether an image is decoded as a whole."""
        spec = self.pairs[number].image
        # Without random access the whole is decoded anyway, and each window would cost as much.
        return spec.chunks == spec.shape or self._bytes(number) < self._room // _WHOLE_SHARE

    def _bytes(self, number: int) -> int:
        """Size of a decoded image: pixels, whether they are valid, classes and ids of objects."""
        return sum(math.prod(shape) * dtype.itemsize for shape, dtype in self._arrays(number))

    def _arrays(self, number: int) -> list[tuple[Shape, np.dtype[Any]]]:
        """Shapes and types of the arrays of a decoded image."""
        image = self.pairs[number].image
        arrays = [
            ((*image.shape, image.channels), np.dtype(image.dtype)),
            (image.shape, np.dtype(np.bool_)),
            (image.shape, np.dtype(np.uint8)),
        ]
        if self.decoder.numbered:
            mask = np.dtype(self.pairs[number].mask.dtype)
            arrays.append((image.shape, mask if mask.kind in "ui" else np.dtype(np.int64)))
        return arrays

    def _settled(self) -> dict[int, int]:
        """Where the images that are kept begin in the memory. Its first bytes tell which are there;
        any process may decode one and write it, because all write the same.
        """
        places, self._end, held = dict[int, int](), -(-len(self.pairs) // _ALIGNED) * _ALIGNED, 0
        for number in range(len(self.pairs)):
            size = self._bytes(number)
            if self._whole_at_once(number) and held + size <= self._room:
                places[number] = self._end
                held += size
                self._end += size + _ALIGNED * len(self._arrays(number))
        return places

    def _kept(self, number: int) -> DatasetWindow:
        """The place of an image in the memory."""
        start, found = self._places[number], []
        for shape, dtype in self._arrays(number):
            start = -(-start // _ALIGNED) * _ALIGNED
            found.append(self.memory.array(start, shape, dtype))
            start += math.prod(shape) * dtype.itemsize
        return DatasetWindow(*found)

    def _keep(self, number: int, whole: DatasetWindow) -> None:
        kept = self._kept(number)
        for name in ("pixels", "valid", "classes", *(["ids"] if kept.ids is not None else [])):
            np.copyto(getattr(kept, name), getattr(whole, name), casting="unsafe")
        self.memory.set_flag(number)


def _close(readers: Readers) -> None:
    for reader in readers:
        reader.__exit__(None, None, None)


def _picked(array: NDArray[Any], places: Sequence[NDArray[np.intp]]) -> NDArray[Any]:
    """`array[np.ix_(*places)]` in a quarter of the time."""
    for axis, each in enumerate(places):
        array = array.take(each, axis)
    return array


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
