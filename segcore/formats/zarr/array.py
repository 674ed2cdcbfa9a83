"""One image in a Zarr folder: an array with names of its axes, at one time."""

from __future__ import annotations

import gzip
import itertools
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.source import MAX_BANDS, MAX_PICTURE_PIXELS, MAX_PIXELS
from maskloom.segcore.formats.zarr import ome
from maskloom.segcore.ground.space import AXES, Lattice, Metric, Space
from maskloom.segcore.storage.filesystems import filesystem

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box

CHANNEL = ("c", "band", "bands", "channel", "channels")
TIME = ("t", "time")
DAMAGE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    zlib.error,
    gzip.BadGzipFile,
)
"""The errors of Zarr and its codecs for broken metadata and chunks; other errors come from the
store.
"""
_CREDIBLE = (1e-6, 1e3)
"""Least and greatest size of a pixel in mm: 1 nm and 1 m."""
T = TypeVar("T")
_DELIVERED = {"bool": "uint8", "float16": "float32"}


@dataclass(frozen=True, slots=True)
class ZarrArray:
    """One image of a folder: a Zarr array with its axes, at one time."""

    location: str
    values: Any
    """The array of the package `zarr`."""
    axes: tuple[str, ...]
    time: int = 0
    """Index along its axis of time."""
    level: int = 0
    image: ome.Multiscale | None = None
    """The metadata around it. None: a plain array."""
    full: tuple[int, ...] = ()
    """The shape of full resolution along all axes. Empty: its own."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the delivered values: booleans are 0 and 1, half floats are floats."""
        stored: np.dtype[Any] = np.dtype(self.values.dtype).newbyteorder("=")
        return np.dtype(_DELIVERED.get(stored.name, stored))

    @property
    def bands(self) -> int:
        """Number of channels; 1 without a channel axis."""
        return self._length(CHANNEL)

    @property
    def times(self) -> int:
        """Number of images along the axis of time."""
        return self._length(TIME)

    def check(self) -> None:
        """Raise `FormatError` for values, sizes and chunks that cannot be read."""
        values = self.values
        if self.dtype.kind not in "uif" or self.dtype.itemsize > 8:
            raise FormatError(
                f"{self.location} holds {values.dtype}; expected whole numbers or floats of at "
                "most 64 bits. Convert it."
            )
        if 0 in values.shape:
            raise FormatError(f"{self.location} is empty: its shape is {values.shape}.")
        pixels = math.prod(self.spatial(values.shape))
        if pixels > MAX_PIXELS or self.bands > MAX_BANDS:
            raise FormatError(
                f"{self.location} claims {pixels} pixels in {self.bands} channels; the limits are "
                f"{MAX_PIXELS} and {MAX_BANDS}. Its metadata are damaged, or cut it into parts."
            )
        chunk = math.prod(values.chunks)
        if chunk > MAX_PICTURE_PIXELS:
            raise FormatError(
                f"{self.location} has chunks of {chunk} values, which must be decoded at once; the "
                f"limit is {MAX_PICTURE_PIXELS}. Write it again with smaller chunks."
            )

    def spatial(self, sizes: Sequence[T]) -> tuple[T, ...]:
        """The numbers of (y, x) or (z, y, x) among those of all axes; a single slice is no
        volume.
        """
        of_axis = dict(zip(self.axes, sizes, strict=True))
        return tuple(of_axis[name] for name in self._spatial_axes())

    def space(self) -> tuple[Space, tuple[str, ...]]:
        """The axes, the coordinates of pixels and their size, with a note if that is unknown."""
        axes, lattice = self._spatial_axes(), self.lattice(self.level)
        sizes = () if lattice is None else sizes_of(lattice)
        metric = Metric(sizes, "mm") if sizes else None
        if lattice is None or metric is not None or all(each == 1 for each in lattice.scale):
            return Space(axes=axes, metric=metric, lattice=lattice), ()
        stated = ", ".join(
            f"{name}: {scale:g} {unit or '(no unit)'}"
            for name, scale, unit in zip(axes, lattice.scale, lattice.units, strict=True)
        )
        note = (
            f"sizes are in px, since its axes ({stated}) do not all have a size between 1 nm and "
            "1 m. Set `pixel_size` to state one"
        )
        return Space(axes=axes, lattice=lattice), (note,)

    def reduction(self) -> tuple[float, ...]:
        """See `RasterSpec.reduction`."""
        if self.level == 0:
            return ()
        first, own = self.lattice(0), self.lattice(self.level)
        if first is not None and own is not None and min(*first.scale, *own.scale) > 0:
            return tuple(a / b for a, b in zip(own.scale, first.scale, strict=True))
        shapes = (self.spatial(self.full), self.spatial(self.values.shape))
        return tuple(a / b for a, b in zip(*shapes, strict=True))

    def read(self, box: Box, bands: slice) -> NDArray[Any]:
        """Values of a box, the bands last: (y, x, band) or (z, y, x, band)."""
        place = self._place(box, bands)
        values = np.asarray(self.values[tuple(place)])
        kept = [
            name for name, each in zip(self.axes, place, strict=True) if isinstance(each, slice)
        ]
        order = [kept.index(name) for name in kept if name in CHANNEL]
        values = values.transpose([*(kept.index(name) for name in self._spatial_axes()), *order])
        return values if order else values[..., np.newaxis]

    def drop_absent(
        self, box: Box, bands: Sequence[int], pixels: NDArray[Any], valid: NDArray[np.bool_]
    ) -> None:
        """Mark as no data, and set to 0, what no chunk holds if the array has no fill value."""
        if self.values.metadata.zarr_format != 2 or self.values.fill_value is not None:
            return
        fs, folder = filesystem(self.location)
        folder = "/".join(filter(None, (folder.rstrip("/"), self.values.path)))
        place = self._place(box, slice(bands[0] - 1, bands[-1]))
        ranges = [
            range(each.start // chunk, -(-each.stop // chunk))
            if isinstance(each, slice)
            else range(each // chunk, each // chunk + 1)
            for each, chunk in zip(place, self.values.chunks, strict=True)
        ]
        for index in itertools.product(*ranges):
            if fs.exists(f"{folder}/{self.values.metadata.encode_chunk_key(index)}"):
                continue
            first = [i * chunk for i, chunk in zip(index, self.values.chunks, strict=True)]
            last = [a + chunk for a, chunk in zip(first, self.values.chunks, strict=True)]
            lost = tuple(
                slice(max(0, a - s), max(0, b - s))
                for a, b, s in zip(self.spatial(first), self.spatial(last), box.start, strict=True)
            )
            valid[lost] = False
            pixels[lost] = 0

    def _place(self, box: Box, bands: slice) -> list[Any]:
        places: dict[str, Any] = dict(zip(self._spatial_axes(), box.slices, strict=True))
        places |= {name: bands for name in self.axes if name in CHANNEL}
        places |= {name: self.time for name in self.axes if name in TIME}
        # Other axes have length 1.
        return [places.get(name, 0) for name in self.axes]

    def lattice(self, number: int) -> Lattice | None:
        """The coordinates of the pixels of a level; None if not stated."""
        if self.image is None or not self.image.axes or not self.image.levels[number].scale:
            return None
        level = self.image.levels[number]
        return Lattice(
            self.spatial(level.scale),
            self.spatial(level.translation),
            self.spatial(self.image.units),
        )

    def _length(self, names: tuple[str, ...]) -> int:
        sizes = zip(self.axes, self.values.shape, strict=True)
        return next((int(size) for name, size in sizes if name in names), 1)

    def _spatial_axes(self) -> tuple[str, ...]:
        sizes = dict(zip(self.axes, self.values.shape, strict=True))
        return tuple(name for name in AXES if sizes.get(name, 1) > 1 or name in ("y", "x"))


def sizes_of(lattice: Lattice) -> tuple[float, ...]:
    """The size of a pixel in mm along each axis; empty if it is not known or not credible."""
    sizes = tuple(
        scale * ome.UNITS.get(unit, 0.0)
        for scale, unit in zip(lattice.scale, lattice.units, strict=True)
    )
    least, greatest = _CREDIBLE
    return sizes if all(least <= size <= greatest for size in sizes) else ()
