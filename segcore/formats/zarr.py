"""Zarr arrays of version 2 and 3, and the full resolution of OME-Zarr: a folder is one image.

The axes of an array come from `dimension_names` (version 3), `_ARRAY_DIMENSIONS` (xarray) or the
axes of its multiscales (OME-Zarr); without these they are (y, x) or (z, y, x). A channel axis
becomes the bands. Other axes must have length 1. Chunks that are not stored have the fill value,
which is data; NaN and infinity are not data.

OME-Zarr states the size of a pixel if each of its spatial axes has a scale and a unit of length.
Without units, sizes are in px.

The package `zarr` is an extra. It is imported when needed, which takes a second.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.formats.pixels import drop_not_finite
from maskloom.segcore.formats.source import MAX_PICTURE_PIXELS, store_failures
from maskloom.segcore.ground.space import AXES, MILLIMETRES, Metric, Space
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec
from maskloom.segcore.storage.filesystems import filesystem

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box

_SPATIAL = AXES
_UNITS = {
    "nanometer": "nm",
    "micrometer": "um",
    "millimeter": "mm",
    "centimeter": "cm",
    "meter": "m",
}
"""Units of length in OME-Zarr, and the units of `Metric`."""
_CHANNEL = ("c", "band", "bands", "channel", "channels")


_DAMAGE = (
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


@dataclass(frozen=True, slots=True)
class Zarr:
    """Zarr 2 and 3, and the full resolution of OME-Zarr (extra `zarr`)."""

    kinds: tuple[FileKind, ...] = (
        FileKind("Zarr", (".zarr",), markers=("zarr.json", ".zarray", ".zgroup")),
    )
    mask: str = "zarr"

    def describe(self, location: str, version: str) -> RasterSpec:
        """Read the metadata; see `Format.describe`."""
        array = _Array.open(location)
        if array.dtype.kind not in "uif" or array.dtype == np.float16:
            raise FormatError(
                f"{location} holds {array.dtype}; expected whole numbers, float32 or float64. "
                "Convert it."
            )
        chunk = math.prod(array.values.chunks)
        if chunk > MAX_PICTURE_PIXELS:
            raise FormatError(
                f"{location} has chunks of {chunk} values, which must be decoded at once; the "
                f"limit is {MAX_PICTURE_PIXELS}. Write it again with smaller chunks."
            )
        shape, chunks = (
            array.spatial(sizes) for sizes in (array.values.shape, array.values.chunks)
        )
        if 0 in array.values.shape:
            raise FormatError(f"{location} is empty: its shape is {array.values.shape}.")
        return RasterSpec(
            location=location,
            format="zarr",
            shape=shape,
            bands=tuple(range(1, array.bands + 1)),
            dtype=array.dtype.name,
            chunks=tuple(map(min, chunks, shape)),
            version=version,
            file_bands=array.bands,
            space=array.space(),
        )

    def open(self, spec: RasterSpec) -> ZarrReader:
        """Open the array; see `Format.open`."""
        array = _Array.open(spec.location)
        if (array.spatial(array.values.shape), array.bands) != (spec.shape, spec.file_bands):
            raise SourceChanged(
                f"{spec.location} has changed since its header was read. Run the same command "
                "again."
            )
        return ZarrReader(array, spec)


FORMATS.register("zarr")(Zarr())


@dataclass(frozen=True, slots=True)
class ZarrReader(NothingToClose):
    """An open array."""

    array: _Array
    spec: RasterSpec

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `Reader.read`."""
        lowest, highest = min(self.spec.bands), max(self.spec.bands)
        with store_failures(self.spec.location):
            try:
                stored = self.array.read(box, slice(lowest - 1, highest))
            except _DAMAGE as error:
                raise ReadError(
                    f"{self.spec.location}: the chunks from {box.start} to {box.stop} cannot be "
                    f"read: {error}. The array is damaged or incomplete; copy or write it again."
                ) from error
        chosen = [band - lowest for band in self.spec.bands]
        pixels = np.ascontiguousarray(stored[..., chosen], np.dtype(self.spec.dtype))
        valid = np.ones(box.shape, np.bool_)
        drop_not_finite(pixels, valid)
        return pixels, valid


@dataclass(frozen=True, slots=True)
class _Array:
    """A Zarr array with its axes."""

    values: Any
    """The array of the package `zarr`."""
    axes: tuple[str, ...]
    sizes: Mapping[str, float]
    """Distance in mm between neighbours, for axes with a scale and a unit."""

    @classmethod
    def open(cls, location: str) -> _Array:
        """The array at a location. Raises `FormatError` if its axes are not supported."""
        node, image = _opened(location), _Multiscale((), {})
        if not hasattr(node, "chunks"):
            node, image = _full_resolution(location, node)
        axes = image.axes or _axes(node)
        names = [name for name in axes if name in _SPATIAL]
        others = [
            f"{name} of length {size}"
            for name, size in zip(axes, node.shape, strict=False)
            if name not in (*_SPATIAL, *_CHANNEL) and size != 1
        ]
        if (
            len(axes) != node.ndim
            or len(set(axes)) != len(axes)
            or not {"y", "x"} <= set(names)
            or sum(name in _CHANNEL for name in axes) > 1
            or others
        ):
            shown = ", ".join(others) or f"{axes} for {node.ndim} axes"
            raise FormatError(
                f"{location} is no image with the axes y and x, and z and channels if any: it has "
                f"{shown}. Name its axes in `dimension_names`, and write other axes to arrays "
                "apart."
            )
        return cls(node, axes, image.sizes)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the values, in the byte order of this machine."""
        dtype: np.dtype[Any] = np.dtype(self.values.dtype).newbyteorder("=")
        return dtype

    @property
    def bands(self) -> int:
        """Number of channels; 1 without a channel axis."""
        sizes = dict(zip(self.axes, self.values.shape, strict=True))
        return next((int(sizes[name]) for name in self.axes if name in _CHANNEL), 1)

    def spatial(self, sizes: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes along (y, x) or (z, y, x); a single slice is no volume."""
        of_axis = dict(zip(self.axes, sizes, strict=True))
        return tuple(int(of_axis[name]) for name in self._spatial_axes())

    def space(self) -> Space:
        """The axes, and the size of a pixel if all axes state it."""
        axes = self._spatial_axes()
        sizes = tuple(self.sizes[name] for name in axes if name in self.sizes)
        return Space(axes=axes, metric=Metric(sizes, "mm") if len(sizes) == len(axes) else None)

    def read(self, box: Box, bands: slice) -> NDArray[Any]:
        """Values of a box, the bands last: (y, x, band) or (z, y, x, band)."""
        places: dict[str, Any] = dict(zip(self._spatial_axes(), box.slices, strict=True))
        places |= {name: bands for name in self.axes if name in _CHANNEL}
        # Other axes have length 1.
        values = np.asarray(self.values[tuple(places.get(name, 0) for name in self.axes)])
        kept = [name for name in self.axes if name in places]
        order = [kept.index(name) for name in kept if name in _CHANNEL]
        values = values.transpose([*(kept.index(name) for name in self._spatial_axes()), *order])
        return values if order else values[..., np.newaxis]

    def _spatial_axes(self) -> tuple[str, ...]:
        sizes = dict(zip(self.axes, self.values.shape, strict=True))
        return tuple(name for name in _SPATIAL if sizes.get(name, 1) > 1 or name in ("y", "x"))


def _opened(location: str) -> Any:
    """The array or group at a location. Raises `FormatError` if it is missing or broken."""
    try:
        import zarr
    except ImportError as error:
        raise FormatError(
            f"{location} is Zarr, which needs the extra 'zarr': pip install 'maskloom[zarr]'."
        ) from error
    fs, path = filesystem(location)
    with store_failures(location):
        try:
            store = zarr.storage.FsspecStore.from_mapper(fs.get_mapper(path), read_only=True)
            return zarr.open(store, mode="r")
        except (*_DAMAGE, FileNotFoundError) as error:
            raise FormatError(
                f"The metadata of {location} cannot be read as Zarr: {error}. Write it again."
            ) from error


@dataclass(frozen=True, slots=True)
class _Multiscale:
    """The metadata of the full resolution of an OME-Zarr."""

    axes: tuple[str, ...]
    """Empty if not stated."""
    sizes: Mapping[str, float]
    """See `_Array.sizes`."""


def _full_resolution(location: str, group: Any) -> tuple[Any, _Multiscale]:
    """The first array of the first multiscale image of an OME-Zarr group."""
    attributes = dict(group.attrs)
    try:
        image = dict(attributes.get("ome", attributes))["multiscales"][0]
        dataset = image["datasets"][0]
        array = group[dataset["path"]]
        axes = [
            axis if isinstance(axis, dict) else {"name": axis} for axis in image.get("axes", ())
        ]
        scales = [
            step["scale"]
            for part in (image, dataset)
            for step in part.get("coordinateTransformations", ())
            if step["type"] == "scale"
        ]
        names = tuple(str(axis["name"]) for axis in axes)
        distances = [math.prod(of_axis) for of_axis in zip(*scales, strict=True)]
        sizes = {
            name: distance * MILLIMETRES[_UNITS[axis["unit"]]]
            for name, axis, distance in zip(names, axes, distances, strict=False)
            if axis.get("unit") in _UNITS and 0 < distance < math.inf
        }
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        raise FormatError(
            f"{location} is a group of arrays without `multiscales` that can be read. Name one of "
            "the arrays in it."
        ) from error
    return array, _Multiscale(names, sizes)


def _axes(array: Any) -> tuple[str, ...]:
    """The names of an array's axes: as stated, or (y, x) and (z, y, x)."""
    named = getattr(array.metadata, "dimension_names", None)
    named = named or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(map(str, named)) if named else _SPATIAL[-array.ndim :]
