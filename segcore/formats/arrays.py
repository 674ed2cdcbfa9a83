"""NumPy arrays: images (y, x) and volumes (z, y, x).

A `.npy` has one band: two axes are an image, three a volume, never bands, because the file has no
names of axes. A `.npz` (`numpy.savez`) has an array called `pixels`, and may also contain

    axes       text: yx or zyx, as for `.npy`, or yxb or zyxb, where b are bands
    spacing    distances between neighbours along z, y and x (of an image along y and x)
    unit       text, the unit of the spacing: m, cm, mm, um or nm

Without `spacing` and `unit`, sizes are in px. Numbers that are not finite are no data; booleans are
read as 0 and 1.

A box of a `.npy` is read from the file row by row. A `.npz` may be compressed and has no random
access: a reader loads it completely, so `chunks` is the whole shape.
"""

from __future__ import annotations

import contextlib
import io
import zipfile
import zlib
from dataclasses import dataclass, replace
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.formats.content import require_kind
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.ground.space import MILLIMETRES, Metric, Space
from maskloom.segcore.raster.readers import NothingToClose
from maskloom.segcore.raster.spec import FORMATS, FileKind, RasterSpec

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box, Shape
    from maskloom.segcore.raster.spec import Reader

_ARCHIVE = "a NumPy archive (.npz)"
_AXES = ("yx", "zyx", "yxb", "zyxb")
_LARGEST_NUMBER = 8
"""Bytes."""
_LARGEST_NOTE = 2**16
"""Bytes of `axes`, `spacing` or `unit`."""


@dataclass(frozen=True, slots=True)
class Arrays:
    """NumPy arrays: an image or a volume of one band, or of several bands in an archive."""

    kinds: tuple[FileKind, ...] = (
        FileKind("NumPy", (".npy",), ((0, b"\x93NUMPY"),)),
        FileKind(_ARCHIVE, (".npz",)),
    )
    mask: str = "npy"

    def describe(self, location: str, version: str) -> RasterSpec:
        """Read the header; see `segcore.raster.spec.Format.describe`."""
        source = StoredFile.of(location)
        if require_kind(location, source.head(), "array") == _ARCHIVE:
            return _describe_archive(source, version)
        with source.stream() as stream:
            stored = _Stored.of(location, stream, source.size())
        if len(stored.shape) not in (2, 3):
            raise FormatError(
                f"{location}: expected an array (y, x) or (z, y, x), got the shape {stored.shape}. "
                "Bands and other axes need a .npz with `axes`: "
                "numpy.savez(FILE, pixels=..., axes='yxb')."
            )
        return _spec(location, version, stored, _space_of(stored.shape), stored.least)

    def open(self, spec: RasterSpec) -> Reader:
        """Open the file for reading by rows, or read an archive; see `Format.open`."""
        source = StoredFile.of(spec.location)
        if require_kind(spec.location, source.head(), "array") == _ARCHIVE:
            reader: Reader = _read_archive(source, spec)
            return reader
        with source.stream() as stream:
            stored = _Stored.of(spec.location, stream, source.size())
        _require_shape(spec, stored.shape)
        return RowReader(source, stored, spec.bands)


FORMATS.register("array")(Arrays())


@dataclass(frozen=True, slots=True)
class _Stored:
    """A stored array, as described by its header."""

    shape: Shape
    dtype: np.dtype[Any]
    """As stored, possibly in the other byte order."""
    by_columns: bool
    """Whether the first axis varies fastest."""
    offset: int
    """Number of bytes before the numbers."""

    @classmethod
    def of(cls, location: str, stream: IO[bytes], size: int) -> _Stored:
        """The array in a stream of `size` bytes; leaves the stream at the first number."""
        formats = np.lib.format
        try:
            version = formats.read_magic(stream)
            read = {(1, 0): formats.read_array_header_1_0, (2, 0): formats.read_array_header_2_0}
            shape, by_columns, dtype = read[version](stream)
        except Exception as error:
            # NumPy parses the header as Python; what hostile text makes of that is open-ended.
            raise FormatError(
                f"{location} has no header of a NumPy array that can be read ({error}). Save it "
                "again with numpy.save."
            ) from error
        if any(type(length) is not int or length < 0 for length in shape):
            raise FormatError(
                f"{location}: its header has the shape {shape}; expected whole numbers from 1 on. "
                "Save it again with numpy.save."
            )
        if dtype.kind not in "biuf" or dtype.itemsize > _LARGEST_NUMBER or 0 in shape or not shape:
            raise FormatError(
                f"{location}: expected pixels that are whole numbers or floats of at most 64 bits, "
                f"got {dtype} in the shape {shape}. Convert the array with `astype`."
            )
        stored = cls(shape, dtype, by_columns, stream.tell())
        if size < stored.offset + stored.bytes:
            raise FormatError(
                f"{location} ends early: it has {size} bytes, its header promises "
                f"{stored.offset + stored.bytes}. Copy it again."
            )
        return stored

    @property
    def bytes(self) -> int:
        """Number of bytes of the numbers."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    @property
    def delivered(self) -> np.dtype[Any]:
        """Type of the pixels that a reader delivers."""
        return np.dtype(np.uint8) if self.dtype.kind == "b" else self.dtype.newbyteorder("=")

    @property
    def least(self) -> Shape:
        """The smallest box that can be read without reading more: a row."""
        axis = 0 if self.by_columns else len(self.shape) - 1
        return tuple(n if i == axis else 1 for i, n in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class RowReader(NothingToClose):
    """An open `.npy`; each box is read on request."""

    source: StoredFile
    stored: _Stored
    bands: tuple[int, ...]

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        stored = self.stored
        turn = -1 if stored.by_columns else 1
        whole, start, sides = (each[::turn] for each in (stored.shape, box.start, box.shape))
        # Trailing axes that the box covers completely form, with the axis before them, one run of
        # bytes.
        axis = len(sides) - 1
        while axis > 0 and sides[axis] == whole[axis]:
            axis -= 1
        values = np.empty(sides, stored.dtype)
        with self.source.stream() as stream:
            for index in np.ndindex(sides[:axis]):
                place = (*(a + i for a, i in zip(start, index, strict=False)), *start[axis:])
                first = int(np.ravel_multi_index(place, whole))
                stream.seek(stored.offset + first * stored.dtype.itemsize)
                part = values[index]
                content = stream.read(part.nbytes)
                if len(content) < part.nbytes:
                    raise ReadError(f"{self.source.location} ends early. Copy it again.")
                part[...] = np.frombuffer(content, stored.dtype).reshape(part.shape)
        pixels = values.transpose()[...] if stored.by_columns else values
        return _delivered(pixels[..., np.newaxis], self.stored.delivered, self.bands)


@dataclass(frozen=True, slots=True)
class HeldReader(NothingToClose):
    """An array in memory."""

    pixels: NDArray[Any]
    """(y, x, band), or (z, y, x, band)."""
    delivered: np.dtype[Any]
    bands: tuple[int, ...]

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        return _delivered(self.pixels[box.slices], self.delivered, self.bands)


def _delivered(
    stored: NDArray[Any], kind: np.dtype[Any], bands: tuple[int, ...]
) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
    """The delivered pixels of these bands, from the stored pixels, and where they are data."""
    pixels = np.array(stored[..., [band - 1 for band in bands]], kind, order="C")
    valid = np.ones(pixels.shape[:-1], np.bool_)
    if kind.kind == "f":
        finite = np.isfinite(pixels)
        pixels[~finite] = 0
        valid &= finite.all(axis=-1)
    return pixels, valid


def _space_of(shape: Shape) -> Space:
    return Space(axes=tuple("zyx"[-len(shape) :]))


def _spec(location: str, version: str, stored: _Stored, space: Space, chunks: Shape) -> RasterSpec:
    """The metadata of a stored array whose first axes are those of `space`; a further axis
    holds the bands.
    """
    shape = stored.shape[: len(space.axes)]
    bands = 1 if len(stored.shape) == len(shape) else stored.shape[-1]
    return RasterSpec(
        location=location,
        format="array",
        shape=shape,
        bands=tuple(range(1, bands + 1)),
        dtype=stored.delivered.name,
        chunks=chunks,
        version=version,
        file_bands=bands,
        space=space,
    )


def _require_shape(spec: RasterSpec, shape: Shape) -> None:
    if shape[: len(spec.shape)] != spec.shape:
        raise SourceChanged(
            f"{spec.location} has changed since its header was read. Run the same command again."
        )


# ---- archives
# --------------------------------------------------------------------------------------------------


def _describe_archive(source: StoredFile, version: str) -> RasterSpec:
    location = source.location
    with _opened(source) as archive:
        with _member(archive, location) as (member, size):
            stored = _Stored.of(location, member, size)
        axes = _axes(archive, location, stored.shape)
        metric, notes = _metric(archive, location, axes.rstrip("b"))
    space = Space(metric=metric, axes=tuple(axes.rstrip("b")))
    spec = _spec(location, version, stored, space, stored.shape[: len(space.axes)])
    return replace(spec, notes=notes)


def _read_archive(source: StoredFile, spec: RasterSpec) -> HeldReader:
    with _opened(source) as archive, _member(archive, spec.location) as (member, size):
        stored = _Stored.of(spec.location, member, size)
        _require_shape(spec, stored.shape)
        content = member.read(stored.bytes)
    if len(content) < stored.bytes:
        raise ReadError(f"{spec.location} ends early. Copy it again.")
    values = np.frombuffer(content, stored.dtype)
    pixels = values.reshape(stored.shape, order="F" if stored.by_columns else "C")
    return HeldReader(pixels.reshape(*spec.shape, spec.file_bands), stored.delivered, spec.bands)


@contextlib.contextmanager
def _opened(source: StoredFile) -> Iterator[zipfile.ZipFile]:
    try:
        path = source.local_path
        with zipfile.ZipFile(io.BytesIO(source.read()) if path is None else path) as archive:
            yield archive
    # Encryption is a RuntimeError, an unknown compression a NotImplementedError.
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise FormatError(
            f"{source.location} is no archive of NumPy that can be read, or is damaged: {error}. "
            "Save it again with numpy.savez."
        ) from error


@contextlib.contextmanager
def _member(archive: zipfile.ZipFile, location: str) -> Iterator[tuple[IO[bytes], int]]:
    """The array `pixels`, and its bytes with the header."""
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    if "pixels" not in names:
        raise FormatError(
            f"{location}: expected an array called `pixels`, got {', '.join(names[:9]) or 'none'}. "
            "Save it so: numpy.savez(FILE, pixels=...)."
        )
    with archive.open("pixels.npy") as member:
        yield member, archive.getinfo("pixels.npy").file_size


def _note(archive: zipfile.ZipFile, location: str, name: str) -> Any:
    """A small array of the archive; None if absent."""
    if f"{name}.npy" not in archive.namelist():
        return None
    if archive.getinfo(f"{name}.npy").file_size > _LARGEST_NOTE:
        raise FormatError(f"{location}: `{name}` is too large for what it should say.")
    try:
        with archive.open(f"{name}.npy") as member:
            return np.lib.format.read_array(member, allow_pickle=False)
    except ValueError as error:
        raise FormatError(f"{location}: `{name}` cannot be read: {error}.") from error


def _axes(archive: zipfile.ZipFile, location: str, shape: Shape) -> str:
    said = _note(archive, location, "axes")
    known = {2: "yx", 3: "zyx"}.get(len(shape)) if said is None else str(said)
    if known in _AXES and len(known) == len(shape):
        return known
    got = "no `axes`" if said is None else f"`axes` {str(said)!r}"
    raise FormatError(
        f"{location}: expected `axes` among {', '.join(_AXES)} (b: bands), one letter per axis; "
        f"got {got} for the shape {shape}."
    )


def _metric(
    archive: zipfile.ZipFile, location: str, axes: str
) -> tuple[Metric | None, tuple[str, ...]]:
    """The size of a pixel, and a note if that of the archive is not usable."""
    spacing, unit = (_note(archive, location, name) for name in ("spacing", "unit"))
    if spacing is None:
        return None, ()
    numbers = np.ravel(spacing).tolist()
    usable = np.issubdtype(spacing.dtype, np.number) and len(numbers) == len(axes)
    if usable and unit is not None:
        # `Metric` refuses strings that are not units, and distances of 0 or less.
        with contextlib.suppress(ValueError):
            return Metric(tuple(map(float, numbers)), str(unit)), ()
    wanted = f"a `spacing` above 0 for each of {', '.join(axes)}"
    note = (
        f"its spacing is not used, and sizes are in px: expected {wanted} and a `unit` among "
        f"{', '.join(MILLIMETRES)}; got {numbers[:9]} and {None if unit is None else str(unit)!r}"
    )
    return None, (note,)
