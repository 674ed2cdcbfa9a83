"""NRRD: `.nrrd` with its numbers, and `.nhdr` with the numbers in a file beside it.

Axes in space become (z, y, x); the first of them in the file varies fastest and is x. An axis of
vectors or colours becomes the bands; an axis of time, or a list, gives one image each.

The position is known where `space` names the directions of the body: left-posterior-superior, as in
DICOM, right-anterior-superior or left-anterior-superior; its unit is the millimetre unless `space
units` says another. Without it, sizes need `units` for the axes in space; otherwise they are in px.

The package `pynrrd` (extra `medical`) reads the header; the numbers are read here, raw ones by
planes.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from maskloom.segcore.errors import FormatError, NotInstalled
from maskloom.segcore.formats.content import require_kind
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.unpacking import Packing
from maskloom.segcore.formats.voxels import (
    Header,
    Layout,
    VoxelFormat,
    Voxels,
    file_below,
    placed,
)
from maskloom.segcore.ground.space import AXES, MILLIMETRES, Frame, PixelSize
from maskloom.segcore.raster.spec import FORMATS, FileKind

if TYPE_CHECKING:
    from collections.abc import Mapping


_INSTALL = "pip install 'maskloom[medical]'"
_LONGEST_HEADER = 2**20
_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": (
        *("longlong", "long long", "long long int", "signed long long"),
        *("signed long long int", "int64", "int64_t"),
    ),
    "u8": (*("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),),
    "f4": ("float",),
    "f8": ("double",),
}
_PACKINGS: dict[str, Packing] = {
    "raw": "",
    "gz": "deflate",
    "gzip": "deflate",
    "bz2": "bzip2",
    "bzip2": "bzip2",
}
_SPACES = {
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
}
"""Signs that turn each space into that of `Frame`."""
_IN_SPACE = ("domain", "space")
_SEVERAL = ("time", "list")
_COLOURS = ("rgb-color", "3-color", "rgba-color", "4-color")


@dataclass(frozen=True, slots=True)
class Nrrd(VoxelFormat):
    """NRRD, attached or detached (extra `medical`)."""

    name: ClassVar[str] = "nrrd"
    kinds: tuple[FileKind, ...] = (FileKind("NRRD", (".nrrd", ".nhdr"), ((0, b"NRRD0"),)),)

    def header(self, location: str) -> Header:
        """Read the header of a file; see `VoxelFormat.header`."""
        return _described(location)


FORMATS.register("nrrd")(Nrrd())


@dataclass(frozen=True, slots=True)
class _Axes:
    """The meaning of the axes of a file, by their numbers there."""

    spatial: tuple[int, ...]
    """x, y and z."""
    bands: int | None
    times: int | None
    kinds: tuple[str, ...]


def _described(location: str) -> Header:
    """What the header of a file says. Raises `FormatError` and `Unavailable`."""
    source = StoredFile.of(location)
    require_kind(location, source.head(), "nrrd")
    try:
        header, end = _header(source)
        sizes = [int(each) for each in header["sizes"]]
        if len(sizes) != header["dimension"]:
            raise ValueError(f"dimension {header['dimension']} and sizes {sizes}")
        axes = _axes(location, header, len(sizes))
        voxels, rgb = _voxels(source, header, end, axes, sizes)
        frame, notes = _frame(header, axes)
        space, more = placed(frame, AXES[-len(axes.spatial) :])
        return Header(voxels, space, (*notes, *more), rgb)
    except KeyError as error:
        raise FormatError(
            f"{location} has a header without {error}. Save it again with the program that made it."
        ) from error
    # FormatError is a ValueError.
    except (ValueError, TypeError, IndexError, OverflowError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"{location} has a header that cannot be right: {error}. Save it again with the "
            "program that made it."
        ) from error


def _header(source: StoredFile) -> tuple[Mapping[str, Any], int]:
    """The fields of a header, and the number of its bytes."""
    try:
        import nrrd
    except ImportError as error:
        raise NotInstalled(
            f"{source.location} needs the package pynrrd, which is not installed. Install it where "
            f"maskloom and its workers run: {_INSTALL}"
        ) from error
    content = source.read(0, min(source.size(), _LONGEST_HEADER))
    lines, end = [], 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        if not line.strip():
            break
        lines.append(line)
    else:
        if end == _LONGEST_HEADER:
            raise FormatError(f"{source.location} has no end of its header in its first 1 MiB.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return nrrd.read_header(lines), end
        except nrrd.NRRDError as error:
            raise ValueError(str(error)) from error


def _axes(location: str, header: Mapping[str, Any], count: int) -> _Axes:
    kinds = [str(each).lower() for each in header.get("kinds", ["???"] * count)]
    directions = header.get("space directions")
    if len(kinds) != count or (directions is not None and len(directions) != count):
        raise ValueError(f"{count} sizes, but another number of kinds or directions")
    if directions is not None:
        spatial = [i for i in range(count) if np.isfinite(directions[i]).all()]
    elif "kinds" in header:
        spatial = [i for i, kind in enumerate(kinds) if kind in _IN_SPACE]
    else:
        spatial = list(range(count))
    others = [i for i in range(count) if i not in spatial]
    times = [i for i in others if kinds[i] in _SEVERAL]
    bands = [i for i in others if i not in times]
    if len(spatial) not in (2, 3) or len(times) > 1 or len(bands) > 1:
        raise FormatError(
            f"{location}: expected two or three axes in space, and at most one of vectors or "
            f"colours and one of time; got the kinds {', '.join(kinds)} and {len(spatial)} axes "
            "with a direction. Split it."
        )
    if bands and "complex" in kinds[bands[0]]:
        raise FormatError(
            f"{location} holds complex numbers. Save their magnitude, or their phase, as a file of "
            "its own."
        )
    return _Axes(tuple(spatial), next(iter(bands), None), next(iter(times), None), tuple(kinds))


def _voxels(
    source: StoredFile, header: Mapping[str, Any], end: int, axes: _Axes, sizes: list[int]
) -> tuple[Voxels, bool]:
    """Where the numbers are, and whether they are colours."""
    kind = str(header["type"]).lower()
    code = next((code for code, names in _TYPES.items() if kind in names), None)
    encoding = str(header["encoding"]).lower()
    if code is None or encoding not in _PACKINGS:
        raise FormatError(
            f"{source.location} holds {kind!r} in the encoding {encoding!r}; expected numbers in "
            f"one of {', '.join(_PACKINGS)}. Save it again in one of these."
        )
    dtype = np.dtype(code)
    if dtype.itemsize > 1:
        order = str(header["endian"]).lower()
        if order not in ("little", "big"):
            raise ValueError(f"endian is {order!r}")
        dtype = dtype.newbyteorder("<" if order == "little" else ">")
    steps = [1]
    for size in sizes:
        steps.append(steps[-1] * size)
    spatial = axes.spatial[::-1]
    one = {None: 1}
    size_of, step_of = ({**one, **dict(enumerate(each))} for each in (sizes, steps))
    layout = Layout(
        tuple(sizes[axis] for axis in spatial),
        tuple(steps[axis] for axis in spatial),
        bands=size_of[axes.bands],
        band_step=step_of[axes.bands],
        times=size_of[axes.times],
        time_step=step_of[axes.times],
    )
    coloured = axes.bands is not None and axes.kinds[axes.bands] in _COLOURS
    location, start = _data(source, header, end)
    skip = int(header.get("byte skip", header.get("byteskip", 0)))
    packing = _PACKINGS[encoding]
    if (
        int(header.get("line skip", header.get("lineskip", 0)))
        or skip < -1
        or (packing and skip < 0)
    ):
        raise FormatError(
            f"{source.location} skips lines, or {skip} bytes, before its numbers, which is not "
            "read. Save it again."
        )
    if skip == -1:
        start, skip = StoredFile.of(location).size() - layout.numbers * dtype.itemsize, 0
    voxels = Voxels(
        location,
        layout,
        dtype,
        skip if packing else start + skip,
        packing,
        packed_from=start if packing else 0,
        has_alpha=coloured and layout.bands == 4,
    )
    return voxels, coloured and layout.bands in (3, 4)


def _data(source: StoredFile, header: Mapping[str, Any], end: int) -> tuple[str, int]:
    """The URI of the file with the numbers, and its bytes before them."""
    name = header.get("data file", header.get("datafile"))
    if name is None:
        return source.location, end
    words = str(name).split()
    if not words or words[0] == "LIST" or "%" in str(name):
        raise FormatError(
            f"{source.location} has its numbers in several files ({name}), which is not read. Save "
            "it again as one .nrrd."
        )
    return file_below(source, str(name)), 0


def _frame(header: Mapping[str, Any], axes: _Axes) -> tuple[Frame | None, tuple[str, ...]]:
    """The position, as far as it is known in mm, and notes."""
    signs = _SPACES.get(str(header.get("space", "")).lower())
    if header.get("space directions") is None:
        return _of_spacings(header, axes)
    vectors = np.array([header["space directions"][axis] for axis in axes.spatial], float).T
    scales = {_millimetres(each) for each in header.get("space units", [])}
    if len(scales) > 1:
        raise ValueError("the directions of its space have different units")
    stated = next(iter(scales), None)
    if signs is None or len(vectors) != 3:
        note = f"its space {header.get('space', '')!r} is none of the body"
        if stated is None:
            return None, (f"{note} and has no unit of length: sizes are in px",)
        lengths = stated * np.linalg.norm(vectors, axis=0)
        return _of_lengths(lengths.tolist()), (f"{note}: its sizes are known, its place is not",)
    scale = 1.0 if stated is None else stated
    vectors = scale * vectors
    if vectors.shape[1] == 2:
        # A slice: the third direction is its normal, of 1 mm.
        normal = np.cross(vectors[:, 0], vectors[:, 1])
        vectors = np.column_stack([vectors, normal / (np.linalg.norm(normal) or 1.0)])
    origin = header.get("space origin")
    place = np.zeros(3) if origin is None else scale * np.array(origin, float)
    affine = np.column_stack([vectors, place]) * np.array(signs)[:, None]
    notes = ("its header says no origin; it is taken to be 0",) if origin is None else ()
    return Frame(tuple(affine.ravel().tolist())), notes


def _of_spacings(header: Mapping[str, Any], axes: _Axes) -> tuple[Frame | None, tuple[str, ...]]:
    """The position of an image whose header has distances without directions."""
    spacings, units = header.get("spacings"), header.get("units", [])
    if spacings is None:
        return None, ()
    scales = {_millimetres(units[axis]) for axis in axes.spatial if axis < len(units)}
    scale = next(iter(scales), None)
    if scale is None or len(scales) > 1:
        return None, ("its distances between voxels have no unit of length: sizes are in px",)
    return _of_lengths([scale * float(spacings[axis]) for axis in axes.spatial]), ()


def _of_lengths(lengths: list[float]) -> Frame:
    """A frame of which only the distances along x, y and z are known; its directions are those that
    ITK assumes.
    """
    x, y, z = (*lengths, *(1.0,) * (3 - len(lengths)))
    affine = np.diag([-x, -y, z, 1.0])[:3]
    return Frame(tuple(affine.ravel().tolist()), sform_code=2)


def _millimetres(unit: Any) -> float | None:
    """Millimetres in a unit; None if it is no unit of length."""
    try:
        return MILLIMETRES[PixelSize.parse(f"1 {unit}").unit]
    except ValueError:
        return None
