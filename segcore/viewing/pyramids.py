"""Images at every power of two of reduction, from the levels in their file or from built ones.

Level k has one pixel for 2**k x 2**k pixels of the image, and the shape ceil(n / 2**k). A window of
a level is read from the coarsest level of the file that is fine enough. Where the coarsest one is
still large (a picture without overviews), further ones are built from it once: means of sources,
modes of masks. They are held in memory, large ones in a temporary file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.annotations.masks import MaskReader
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.viewing.readers import MOST, Pixels, Readers, open_layer, room

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.viewing.readers import Kind

COARSEST = 1024
"""Longest side of a level from which no further one is needed."""
_BLOCK = 2048
_STRIP = 2**23
"""Pixels of a strip that is read at once."""
_SAME = 0.02
"""Relative difference of two scales that is due to sides of whole pixels."""
_BY_OPENCV = ("uint8", "uint16", "int16", "float32")

Report = Callable[[float], None]


class Boxes(Protocol):
    """Delivers pixels and `valid` of boxes."""

    def read(self, box: Box) -> Pixels:
        """See `segcore.raster.spec.Reader.read`."""
        ...


@dataclass(frozen=True, slots=True)
class Held:
    """A level in memory, or in a temporary file."""

    pixels: NDArray[Any]
    valid: NDArray[np.bool_]

    def read(self, box: Box) -> Pixels:
        """See `segcore.raster.spec.Reader.read`."""
        return np.asarray(self.pixels[box.slices]), np.asarray(self.valid[box.slices])


@dataclass(frozen=True, slots=True)
class Level:
    """A stored level."""

    shape: Shape
    boxes: Boxes


@dataclass(frozen=True, slots=True)
class Pyramid:
    """An image (y, x) that is read at any level."""

    spec: RasterSpec
    kind: Kind
    levels: tuple[Level, ...]
    """Full resolution first."""
    readers: tuple[Readers, ...]

    @classmethod
    def open(cls, spec: RasterSpec, kind: Kind, report: Report = lambda _: None) -> Pyramid:
        """Open a source or a mask. `report` is called with the done share of the levels that must
        be built. Raises `ReadError`.
        """
        whole = spec.chunks == spec.shape
        readers = [Readers(lambda: open_layer(spec, kind), 1 if whole else MOST)]
        shapes = [spec.shape]
        for number, shape in enumerate(formats.reduced_shapes(spec)):
            readers.append(Readers(lambda n=number: _open_reduced(spec, kind, n)))  # type: ignore[misc]
            shapes.append(shape)
        levels = [Level(*pair) for pair in zip(shapes, readers, strict=True)]
        if max(shapes[-1]) > COARSEST:
            chunks = spec.chunks if len(shapes) == 1 else (1, 1)
            levels += _built(levels[-1], chunks, kind, report)
        return cls(spec, kind, tuple(levels), tuple(readers))

    @property
    def count(self) -> int:
        """Number of levels that are shown: the last one fits into a tile of 256."""
        return max(1, math.ceil(math.log2(max(1.0, max(self.spec.shape) / 256))) + 1)

    def shape(self, level: int) -> Shape:
        """Shape (y, x) of a level."""
        return tuple(-(-n // 2**level) for n in self.spec.shape)

    def read(self, level: int, box: Box) -> Pixels:
        """Pixels (y, x, band) and `valid` (y, x) of a box in pixels of a level; level 0 is the
        file. Raises `ReadError`.
        """
        stored = self._stored(2**level)
        scales = [n / m for n, m in zip(self.spec.shape, stored.shape, strict=True)]
        ratios = [2**level / scale for scale in scales]
        if all(abs(ratio - 1) < _SAME for ratio in ratios):
            inside = _inside(box, stored.shape)
            pixels, valid = stored.boxes.read(inside)
            return (pixels, valid) if inside == box else (_filled(pixels, box), _filled(valid, box))
        return self._resampled(stored, ratios, box)

    def close(self) -> None:
        """Close the file."""
        for each in self.readers:
            each.close()

    def _stored(self, step: int) -> Level:
        """The coarsest stored level whose pixels are not larger than `step`."""
        fine = [
            level
            for level in self.levels
            if all(
                n / m <= step * (1 + _SAME)
                for n, m in zip(self.spec.shape, level.shape, strict=True)
            )
        ]
        return fine[-1]

    def _resampled(self, stored: Level, ratios: Sequence[float], box: Box) -> Pixels:
        around = _inside(
            Box(
                tuple(math.floor(a * ratio) for a, ratio in zip(box.start, ratios, strict=True)),
                tuple(math.ceil(b * ratio) for b, ratio in zip(box.stop, ratios, strict=True)),
            ),
            stored.shape,
        )
        pixels, valid = stored.boxes.read(around)
        # The middle of each pixel.
        near = np.ix_(
            *(
                np.minimum(((np.arange(a, b) + 0.5) * ratio).astype(int), stop - 1) - start
                for a, b, ratio, start, stop in zip(
                    box.start, box.stop, ratios, around.start, around.stop, strict=True
                )
            )
        )
        if self.kind == "mask" or not valid.all() or pixels.dtype.name not in _BY_OPENCV:
            return pixels[near], valid[near]
        return _resized(pixels, box.shape), valid[near]


def _open_reduced(spec: RasterSpec, kind: Kind, number: int) -> Any:
    if kind == "source":
        return formats.open_reduced(spec, number)
    return MaskReader(formats.open_reduced(spec, number, stored=True), spec.location, "index")


def _inside(box: Box, shape: Shape) -> Box:
    """The part of a box in a level of this shape. A level whose sides were rounded down lacks the
    last row or column; a box that lies wholly there becomes the row or column before it.
    """
    start = tuple(min(a, n - 1) for a, n in zip(box.start, shape, strict=True))
    stop = tuple(min(max(b, a + 1), n) for a, b, n in zip(start, box.stop, shape, strict=True))
    return Box(start, stop)


def _filled(array: NDArray[Any], box: Box) -> NDArray[Any]:
    """The array with its border repeated: sides of levels are rounded up or down."""
    more = [(0, n - m) for n, m in zip(box.shape, array.shape, strict=False)]
    return np.pad(array, more + [(0, 0)] * (array.ndim - 2), mode="edge")


def _resized(pixels: NDArray[Any], shape: Shape) -> NDArray[Any]:
    import cv2

    bands = [
        cv2.resize(
            np.ascontiguousarray(pixels[..., band]), shape[::-1], interpolation=cv2.INTER_AREA
        )
        for band in range(pixels.shape[2])
    ]
    return np.stack(bands, axis=-1)


# ---- building levels
# --------------------------------------------------------------------------------------------------


def _built(finest: Level, chunks: Shape, kind: Kind, report: Report) -> Iterator[Level]:
    """Levels that follow a stored one, each half as large as the one before."""
    shape, level = finest.shape, finest
    while max(shape) > COARSEST:
        grid = _grid(shape, chunks if level is finest else (1, 1))
        shape = tuple(-(-n // 2) for n in shape)
        arrays: list[NDArray[Any]] = []
        for number, tile in enumerate(grid):
            halves = _halved(*level.boxes.read(tile.core), kind)
            arrays = arrays or [room((*shape, *each.shape[2:]), each.dtype) for each in halves]
            place = tuple(slice(a // 2, -(-b // 2)) for a, b in zip(*_ends(tile.core), strict=True))
            for array, half in zip(arrays, halves, strict=True):
                array[place] = half
            if level is finest:
                report((number + 1) / len(grid))
        level = Level(shape, Held(arrays[0], arrays[1]))
        yield level


def _ends(box: Box) -> tuple[Shape, Shape]:
    return box.start, box.stop


def _grid(shape: Shape, chunks: Shape) -> Grid:
    """Boxes of even sides that decode no chunk twice, if possible."""
    if chunks[1] < shape[1] or chunks == (1, 1):
        return Grid(shape, (_BLOCK, _BLOCK))
    rows = max(2 * chunks[0], _STRIP // shape[1])
    return Grid(shape, (min(rows - rows % 2, shape[0] + shape[0] % 2), shape[1] + shape[1] % 2))


def _halved(pixels: NDArray[Any], valid: NDArray[np.bool_], kind: Kind) -> Pixels:
    odd = [(0, n % 2) for n in valid.shape]
    if any(after for _, after in odd):
        valid = np.pad(valid, odd, mode="edge")
        pixels = np.pad(pixels, odd + [(0, 0)] * (pixels.ndim - 2), mode="edge")
    known = valid[::2, ::2] | valid[1::2, ::2] | valid[::2, 1::2] | valid[1::2, 1::2]
    if kind == "mask":
        from maskloom.segcore.kernels.overviews import halve

        unsigned = pixels.astype(np.uint32) if pixels.dtype.kind != "u" else pixels
        most = np.iinfo(unsigned.dtype).max
        return halve(np.where(valid, unsigned, unsigned.dtype.type(most))), known
    if valid.all() and pixels.dtype.name in _BY_OPENCV:
        return _resized(pixels, known.shape), known
    values = np.where(valid[..., None], pixels, 0).astype(np.float64)
    weights = _quarters(valid[..., None].astype(np.float64))
    means = _quarters(values) / np.maximum(weights, 1)
    return (np.rint(means) if pixels.dtype.kind in "iu" else means).astype(pixels.dtype), known


def _quarters(values: NDArray[Any]) -> NDArray[Any]:
    """Sums of 2 x 2 pixels."""
    sums: NDArray[Any] = (
        values[::2, ::2] + values[1::2, ::2] + values[::2, 1::2] + values[1::2, 1::2]
    )
    return sums
