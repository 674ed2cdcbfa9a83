"""The pixels of a stack of TIFF pages: the tiles and strips of a box, page by page."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import ImageError, ReadError, SourceChanged
from maskloom.segcore.formats.pixels import drop_not_finite
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.tiff.opening import DAMAGE, in_tifffile
from maskloom.segcore.formats.tiff.pictures import Picture
from maskloom.segcore.formats.tiff.stack import picture_of
from maskloom.segcore.raster.stored import ReadOptions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import RasterSpec


def open_stack(spec: RasterSpec) -> StackReader:
    """Open an image that `describe` described. Raises `ReadError`."""
    # Pages without a meaning were taken for slices if the image has slices.
    options = ReadOptions(level=spec.level, axes="zyx" if len(spec.shape) == 3 else "tyx")
    with contextlib.ExitStack() as stack:
        source = StoredFile.of(spec.location)
        stream = stack.enter_context(source.stream())
        file = stack.enter_context(in_tifffile(stream, spec.location))
        picture = picture_of(file, spec.location, spec.part, options)
        found = (picture.shape, picture.bands, picture.dtype.name)
        if found != (spec.shape, spec.file_bands, spec.dtype):
            raise SourceChanged(
                f"{spec.location} has changed since its header was read. Run the same command "
                "again."
            )
        return StackReader(picture, spec, stream, source.size(), stack.pop_all())


@dataclass(frozen=True, slots=True)
class StackReader:
    """An open picture of many pages. A reader is for one thread at a time."""

    picture: Picture
    spec: RasterSpec
    stream: Any
    size: int
    """Bytes of the file."""
    resources: contextlib.ExitStack

    def __enter__(self) -> StackReader:
        return self

    def __exit__(self, *exception: Any) -> None:
        self.resources.__exit__(*exception)

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        pixels = np.zeros((*box.shape, self.spec.channels), self.spec.dtype)
        valid = np.ones(box.shape, np.bool_)
        deep = len(box.shape) > 2
        try:
            for i in range(box.shape[0] if deep else 1):
                plane = pixels[i] if deep else pixels
                known = valid[i] if deep else valid
                self._read_plane(box, box.start[0] + i if deep else 0, plane, known)
        except ImageError:
            raise
        except DAMAGE as error:
            raise ReadError(
                f"{self.spec.location}: the pixels from {box.start} to {box.stop} cannot be read: "
                f"{error}. The file is damaged or incomplete; copy or write it again."
            ) from error
        if self.picture.white is not None:
            np.subtract(pixels.dtype.type(self.picture.white), pixels, out=pixels)
            pixels[~valid] = 0
        drop_not_finite(pixels, valid)
        return pixels, valid

    def _read_plane(
        self, box: Box, number: int, pixels: NDArray[Any], valid: NDArray[np.bool_]
    ) -> None:
        """Fill the pixels (y, x, band) of one slice and where they are data."""
        picture = self.picture
        wanted: dict[int, dict[int, list[int]]] = {}
        for channel, band in enumerate(self.spec.bands):
            page = picture.page(band - 1, number)
            wanted.setdefault(page, {}).setdefault((band - 1) % picture.samples, []).append(channel)
        depth = number if picture.key.shaped[1] > 1 else 0
        for page, channels in wanted.items():
            for place, first, values in self._segments(
                page, depth, box, [*channels, *picture.alpha]
            ):
                if values is None:
                    valid[place] = False
                    continue
                for sample, targets in channels.items():
                    if first <= sample < first + values.shape[-1]:
                        for channel in targets:
                            pixels[..., channel][place] = values[..., sample - first]
                for sample in picture.alpha:
                    if first <= sample < first + values.shape[-1]:
                        valid[place] &= values[..., sample - first] != 0

    def _segments(
        self, page: int, depth: int, box: Box, samples: Sequence[int]
    ) -> Iterator[tuple[tuple[slice, ...], int, NDArray[Any] | None]]:
        """The parts of a page inside a box: where they go in it, the number of their first sample,
        and their values (y, x, sample); None for a part that is not in the file.
        """
        key, pages = self.picture.key, self.picture.pages
        (top, left), (bottom, right) = box.start[-2:], box.stop[-2:]
        planes, _, height, width, _ = key.shaped
        if pages.dataoffset is not None:
            yield from self._rows(page, depth, (top, left), (bottom, right), samples)
            return
        frame = pages.pages[page]
        deep, rows, columns = self.picture.stored_block
        across, down = -(-width // columns), -(-height // rows)
        layers = -(-key.shaped[1] // deep)
        for plane in range(planes):
            if planes > 1 and plane not in samples:
                continue
            for y, x in itertools.product(
                range(top // rows, -(-bottom // rows)), range(left // columns, -(-right // columns))
            ):
                index = ((plane * layers + depth // deep) * down + y) * across + x
                values = self._decoded(frame, index, depth % deep)
                a = (max(top, y * rows), max(left, x * columns))
                b = (
                    min(bottom, (y + 1) * rows, height),
                    min(right, (x + 1) * columns, width),
                )
                place = tuple(
                    slice(s - o, e - o) for s, e, o in zip(a, b, (top, left), strict=True)
                )
                if values is not None:
                    values = values[
                        a[0] - y * rows : b[0] - y * rows, a[1] - x * columns : b[1] - x * columns
                    ]
                yield place, plane, values

    def _decoded(self, frame: Any, index: int, depth: int) -> NDArray[Any] | None:
        """The values (y, x, sample) of a tile or strip; None if it is not in the file."""
        key = self.picture.key
        if index >= len(frame.dataoffsets) or index >= len(frame.databytecounts):
            raise ValueError(f"it has {len(frame.dataoffsets)} blocks, too few for its size")
        offset, count = int(frame.dataoffsets[index]), int(frame.databytecounts[index])
        if count == 0:
            return None
        values, _, shape = key.decode(self._bytes(offset, count), index, **_tables(frame))
        if values is None:
            return None
        found: NDArray[Any] = values[depth, : shape[1], : shape[2]]
        return found

    def _rows(
        self,
        page: int,
        depth: int,
        start: tuple[int, int],
        stop: tuple[int, int],
        samples: Sequence[int],
    ) -> Iterator[tuple[tuple[slice, ...], int, NDArray[Any] | None]]:
        """Rows of pages that lie one after the other, uncompressed."""
        planes, deep, height, width, inside = self.picture.key.shaped
        kind = np.dtype(self.picture.pages.dtype).newbyteorder(self.picture.series.parent.byteorder)
        for plane in range(planes):
            if planes > 1 and plane not in samples:
                continue
            row = ((page * planes + plane) * deep + depth) * height + start[0]
            length = width * inside * kind.itemsize
            data = self._bytes(
                self.picture.pages.dataoffset + row * length, (stop[0] - start[0]) * length
            )
            values = np.frombuffer(data, kind).reshape(-1, width, inside)[:, start[1] : stop[1]]
            yield (slice(None), slice(None)), plane, values

    def _bytes(self, offset: int, count: int) -> bytes:
        if offset < 0 or offset + count > self.size:
            raise ValueError(
                f"{count} bytes should lie at byte {offset}, beyond its end at {self.size}"
            )
        self.stream.seek(offset)
        data = bytes(self.stream.read(count))
        failures = getattr(self.stream, "failures", None)
        if failures:
            raise failures[0]
        if len(data) < count:
            raise ValueError("it ends early")
        return data


def _tables(frame: Any) -> Mapping[str, Any]:
    tables = frame.jpegtables
    return {} if tables is None else {"jpegtables": tables}
