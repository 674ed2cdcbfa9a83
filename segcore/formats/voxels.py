"""Numbers of volumes in files where x varies fastest, as scans are stored: NIfTI, Analyze, MGH,
NRRD and MetaImage.

A format of them is a `VoxelFormat`: it reads a `Header`, whose `Voxels` say where the numbers are.
`VoxelReader` reads them plane by plane, from the file itself or from its unpacked copy
(`segcore.formats.unpacking`). Memory is bounded by a few planes of the box that is read.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.errors import FormatError, Incomplete, ReadError, SourceChanged
from maskloom.segcore.formats.pixels import drop_not_finite
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.unpacking import (
    MOST_RATIO,
    ByteRanges,
    FileBytes,
    Packing,
    StoredBytes,
    unpacked,
)
from maskloom.segcore.ground.space import Frame, Metric, Space, is_plausible
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage, uri_of_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box, Shape

_AT_ONCE = 2**23
"""Bytes that are read at once, if one plane of a box does not need more."""
_FARTHEST = 1e9
"""Millimetres from the origin that can be true."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The order of the numbers of a file: how many numbers lie between neighbours."""

    shape: Shape
    """(y, x) or (z, y, x) of one volume."""
    steps: Shape
    """Along each axis of `shape`."""
    bands: int = 1
    band_step: int = 1
    times: int = 1
    """Volumes over time, or along any other axis that is neither in space nor bands."""
    time_step: int = 0

    @property
    def numbers(self) -> int:
        """Numbers from the first to the last, both included."""
        sizes = (*self.shape, self.bands, self.times)
        steps = (*self.steps, self.band_step, self.time_step)
        return 1 + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))


@dataclass(frozen=True, slots=True)
class Voxels:
    """The numbers of an image, or of several over time, in a file."""

    location: str
    """URI of the file with the numbers."""
    layout: Layout
    dtype: np.dtype[Any]
    """As stored, with its byte order."""
    start: int
    """Bytes before the first number, in the unpacked content."""
    packing: Packing = ""
    packed_from: int = 0
    """Bytes before the compressed content."""
    slope: float = 1.0
    intercept: float = 0.0
    has_alpha: bool = False
    """Whether the last band says which pixels are data."""

    @property
    def size(self) -> int:
        """Bytes of the unpacked content."""
        return self.start + self.layout.numbers * self.dtype.itemsize

    @property
    def delivered(self) -> np.dtype[Any]:
        """Type of the pixels that a reader delivers: as stored, unless they are scaled."""
        if not self.is_scaled:
            return self.dtype.newbyteorder("=")
        exact = self.dtype.itemsize <= 2 or self.dtype == np.float32
        return np.dtype(np.float32 if exact else np.float64)

    @property
    def is_scaled(self) -> bool:
        """Whether the numbers in the file are not yet the values."""
        return (self.slope, self.intercept) != (1.0, 0.0)

    @property
    def bands(self) -> int:
        """Number of bands without alpha."""
        return self.layout.bands - self.has_alpha


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a file says."""

    voxels: Voxels
    space: Space
    notes: tuple[str, ...] = ()
    rgb: bool = False
    """Whether the bands are red, green and blue."""


class VoxelFormat(ABC):
    """A format of such files."""

    __slots__ = ()
    name: ClassVar[str]
    """In `FORMATS`."""
    mask: ClassVar[str] = "nifti"

    @abstractmethod
    def header(self, location: str) -> Header:
        """Read the header of a file. Raises `FormatError`, and `Unavailable`."""

    def parts(self, image: StoredImage, options: ReadOptions) -> Sequence[str]:  # noqa: ARG002
        """Names of the images over time; see `OptionsFormat.parts`."""
        return parts_of(self._header_of(image.location, image.version, "").voxels)

    def describe(self, location: str, version: str) -> RasterSpec:
        """Read the header; see `Format.describe`."""
        return self.describe_image(StoredImage(location, version), ReadOptions())

    def describe_image(self, image: StoredImage, options: ReadOptions) -> RasterSpec:  # noqa: ARG002
        """Read the header of an image; see `OptionsFormat.describe_image`."""
        header = self._header_of(image.location, image.version, image.part)
        voxels, shape = header.voxels, header.voxels.layout.shape
        _time_of(voxels, image.location, image.part)
        return RasterSpec(
            location=image.location,
            format=self.name,
            shape=shape,
            bands=tuple(range(1, voxels.bands + 1)),
            dtype=voxels.delivered.name,
            chunks=(*(1 for _ in shape[1:]), shape[-1]),
            version=image.version,
            file_bands=voxels.bands,
            interpretation="rgb" if header.rgb else "bands",
            space=header.space,
            notes=header.notes,
            part=image.part,
        )

    def open(self, spec: RasterSpec) -> VoxelReader:
        """Open an image; packed numbers are unpacked here. See `Format.open`; raises
        `SourceChanged` if the file is another one now.
        """
        voxels = self._header_of(spec.location, spec.version, spec.part).voxels
        same = (voxels.layout.shape, voxels.bands, voxels.delivered.name)
        if same != (spec.shape, spec.file_bands, spec.dtype):
            raise SourceChanged(
                f"{spec.location} has changed since its header was read. Run the same command "
                "again."
            )
        time = _time_of(voxels, spec.location, spec.part)
        return VoxelReader(voxels, spec.bands, time, _content(voxels, spec.version))

    def _header_of(self, location: str, version: str, part: str) -> Header:
        # A series over time may have a thousand parts.
        return _header_of_parts(self, location, version) if part else _sound(self, location)


@lru_cache(maxsize=2)
def _header_of_parts(image_format: VoxelFormat, location: str, version: str) -> Header:  # noqa: ARG001  part of the key
    return _sound(image_format, location)


def _sound(image_format: VoxelFormat, location: str) -> Header:
    """The header of a file that can hold its numbers. Raises as `VoxelFormat.header`."""
    header = image_format.header(location)
    _require_sound(header.voxels, location)
    return header


def parts_of(voxels: Voxels) -> tuple[str, ...]:
    """Names of the images over time in a file; empty if it holds one."""
    count = voxels.layout.times
    return () if count == 1 else tuple(f"t{number:04d}" for number in range(1, count + 1))


def placed(
    frame: Frame | None, axes: tuple[str, ...], *, sized: bool = True
) -> tuple[Space, tuple[str, ...]]:
    """The position and the size of the pixels of an image with this frame, and notes on what of it
    cannot be used. `sized`: whether the affine is known to be in mm.
    """
    if frame is None:
        return Space(axes=axes), ()
    numbers, spacing = (*frame.affine, *(frame.qform or ())), frame.spacing
    if not all(abs(each) < _FARTHEST for each in numbers) or not all(
        is_plausible(each) for each in spacing[-len(axes) :]
    ):
        note = (
            "its header does not place it: expected distances between voxels from 1 nm to 1 m, "
            f"got {', '.join(f'{each:.6g}' for each in reversed(spacing))} mm along x, y, z; sizes "
            "are in px"
        )
        return Space(axes=axes), (note,)
    metric = Metric(spacing[-len(axes) :], "mm") if sized else None
    return Space(metric=metric, frame=frame, axes=axes), ()


def file_below(source: StoredFile, name: str) -> str:
    """The URI of a file that a header names, in its folder or below. Raises `FormatError` for any
    other place, and if there is no such file.
    """
    folder, slash, _ = source.location.rpartition("/")
    around, _, _ = source.path.rpartition("/")
    path = f"{around}/{name}"
    steps = name.split("/")
    is_outside = name.startswith(("/", "~")) or ".." in steps or "\\" in name or ":" in name
    if source.local_path is not None and not is_outside:
        # A link may lead elsewhere.
        is_outside = not Path(path).resolve().is_relative_to(Path(around).resolve())
    if is_outside:
        raise FormatError(
            f"{source.location} names the file {name} for its voxels, which is not in its folder. "
            "Put that file beside the header, and its bare name into the header."
        )
    if source.beside(path) is None:
        raise Incomplete(
            f"{source.location} is a header, and the file with its voxels is missing: {name}. Put "
            "it beside the header."
        )
    return folder + slash + name


@dataclass(frozen=True, slots=True)
class VoxelReader(NothingToClose):
    """An open image; each box is read on request."""

    voxels: Voxels
    bands: tuple[int, ...]
    time: int
    content: ByteRanges

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        pixels = np.empty((*box.shape, len(self.bands)), self.voxels.delivered)
        valid = np.ones(box.shape, np.bool_)
        planes = pixels.reshape(-1, *pixels.shape[-3:])
        for position, band in enumerate(self.bands):
            self._fill(planes[..., position], box, band - 1)
        if self.voxels.has_alpha:
            alpha = np.empty(planes.shape[:-1], self.voxels.delivered)
            self._fill(alpha, box, self.voxels.bands)
            valid &= (alpha > 0).reshape(box.shape)
        drop_not_finite(pixels, valid)
        return pixels, valid

    def _fill(self, planes: NDArray[Any], box: Box, band: int) -> None:
        """Read one band of a box into `planes` (z, y, x)."""
        voxels, layout = self.voxels, self.voxels.layout
        item = voxels.dtype.itemsize
        *above, top, left = box.start
        *over, down, right = layout.steps
        depth, height, width = planes.shape
        first = band * layout.band_step + self.time * layout.time_step + top * down + left * right
        first += sum(place * step for place, step in zip(above, over, strict=True))
        size = item * ((height - 1) * down + (width - 1) * right + 1)
        at_once = max(1, _AT_ONCE // size)
        for begin in range(0, depth, at_once):
            places = [
                voxels.start + item * (first + z * sum(over))
                for z in range(begin, min(begin + at_once, depth))
            ]
            contents = self.content.get_byte_ranges(places, [size] * len(places))
            for plane, content in zip(planes[begin:], contents, strict=False):
                if len(content) < size:
                    raise ReadError(f"{voxels.location} ends early. Copy it again.")
                strides = (down * item, right * item)
                stored = np.ndarray((height, width), voxels.dtype, content, strides=strides)
                plane[...] = _scaled(stored, voxels) if voxels.is_scaled else stored


def _content(voxels: Voxels, version: str) -> ByteRanges:
    """The bytes with the numbers. Raises `ReadError`, and `Unavailable`."""
    source = StoredFile.of(voxels.location)
    if voxels.packing:
        return unpacked(source, version, voxels.packing, voxels.size, voxels.packed_from)
    path = source.local_path
    return StoredBytes(source) if path is None else FileBytes(path)


def _scaled(stored: NDArray[Any], voxels: Voxels) -> NDArray[Any]:
    with np.errstate(over="ignore", invalid="ignore"):
        values = stored.astype(np.float64) * voxels.slope + voxels.intercept
        return values.astype(voxels.delivered)


def _time_of(voxels: Voxels, location: str, part: str) -> int:
    """Number of the volume over time that `part` names, from 0."""
    names = parts_of(voxels)
    if not names and not part:
        return 0
    if part in names:
        return names.index(part)
    if not part:
        raise FormatError(
            f"{location} holds {len(names)} images over time. Name one of them, for example "
            f"{uri_of_part(location, names[0], len(names))}."
        )
    raise FormatError(f"{location} has no image {part}; it holds {max(1, len(names))}.")


def _require_sound(voxels: Voxels, location: str) -> None:
    """Raise `FormatError` if the file cannot hold the numbers that its header promises."""
    layout = voxels.layout
    if min(*layout.shape, layout.bands, layout.times) < 1:
        raise FormatError(
            f"{location} is empty: its header says {_sides(layout)}. Save it again with the "
            "program that made it."
        )
    held = StoredFile.of(voxels.location).size() - voxels.packed_from
    held *= MOST_RATIO[voxels.packing]
    if held < voxels.size:
        most = "can have at most" if voxels.packing else "has"
        raise FormatError(
            f"{voxels.location} ends early: for {_sides(layout)} of {voxels.dtype} its header "
            f"promises {voxels.size} bytes, and it {most} {max(held, 0)}. Copy it again."
        )


def _sides(layout: Layout) -> str:
    """The size of an image in the order x, y, z.

    >>> _sides(Layout((3, 4, 5), (20, 5, 1), times=7))
    '5 x 4 x 3 voxels, 7 times'
    """
    sides = " x ".join(map(str, reversed(layout.shape))) + " voxels"
    bands = f" of {layout.bands} numbers" if layout.bands != 1 else ""
    return sides + bands + (f", {layout.times} times" if layout.times != 1 else "")
