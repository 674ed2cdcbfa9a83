"""MetaImage of ITK: `.mha` with its numbers, and `.mhd` with the numbers in a file beside it.

A header is lines of text `Key = Value`; the last one, `ElementDataFile`, is followed by the numbers
or names their file. The position is that of ITK: x, y and z point left, posterior and superior, in
mm. Without `ElementSpacing` (or `ElementSize`), sizes are in px.

Source of the meaning of the keys: the documentation of MetaIO (itk.org/Wiki/MetaIO), and for the
order of `TransformMatrix` ITK's reader: its rows are the directions of x, y and z.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from maskloom.segcore.errors import FormatError
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
from maskloom.segcore.ground.space import AXES, Frame
from maskloom.segcore.raster.spec import FORMATS, FileKind

_LONGEST_HEADER = 2**16
_TYPES = {
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    # Of 4 bytes, whatever the machine.
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}


@dataclass(frozen=True, slots=True)
class MetaImage(VoxelFormat):
    """MetaImage of ITK, attached or detached."""

    name: ClassVar[str] = "metaimage"
    kinds: tuple[FileKind, ...] = (
        FileKind("MetaImage", (".mha", ".mhd"), ((0, b"ObjectType"), (0, b"NDims"))),
    )

    def header(self, location: str) -> Header:
        """Read the header of a file; see `VoxelFormat.header`."""
        lines = _lines(location)
        voxels = _voxels(location, lines)
        space, notes = placed(_frame(lines), AXES[-len(voxels.layout.shape) :])
        return Header(voxels, space, notes, voxels.bands == 3 and voxels.dtype == np.uint8)


FORMATS.register("metaimage")(MetaImage())


@dataclass(frozen=True, slots=True)
class _Lines:
    """The lines of a header."""

    location: str
    fields: Mapping[str, str]
    """Values by key, in lower case."""
    end: int
    """Number of bytes."""

    def text(self, *keys: str, otherwise: str = "") -> str:
        """The value of the first of these keys that the header has."""
        return next((self.fields[key] for key in keys if key in self.fields), otherwise)

    def numbers(self, *keys: str) -> list[float]:
        """The numbers of the first of these keys; none if the header has none of them. Raises
        `FormatError`.
        """
        text = self.text(*keys)
        try:
            return [float(word) for word in text.split()]
        except ValueError as error:
            raise self.wrong(keys[0], "numbers") from error

    def whole_numbers(self, *keys: str) -> list[int]:
        """As `numbers`, whole ones."""
        found = self.numbers(*keys)
        if not all(each.is_integer() for each in found):
            raise self.wrong(keys[0], "whole numbers")
        return [int(each) for each in found]

    def is_true(self, *keys: str) -> bool:
        """Whether the first of these keys is true."""
        return self.text(*keys).lower() in ("true", "t", "1", "yes", "y")

    def wrong(self, key: str, expected: str) -> FormatError:
        """The error for the value of a key."""
        return FormatError(
            f"{self.location}: expected {expected} for {key}, got "
            f"{self.fields.get(key)!r}. Save it again with the program that made it."
        )


def _lines(location: str) -> _Lines:
    """The header of a file. Raises `FormatError` and `Unavailable`."""
    source = StoredFile.of(location)
    require_kind(location, source.head(), "metaimage")
    content = source.read(0, min(source.size(), _LONGEST_HEADER))
    fields: dict[str, str] = {}
    end = 0
    for line in content.splitlines(keepends=True):
        end += len(line)
        key, _, value = line.decode("latin-1").partition("=")
        fields[key.strip().lower()] = value.strip()
        if key.strip().lower() == "elementdatafile":
            return _Lines(location, fields, end)
    raise FormatError(
        f"{location} has no line `ElementDataFile` in its header, so its numbers cannot be found. "
        "Copy it again."
    )


def _voxels(location: str, header: _Lines) -> Voxels:
    """Where the numbers are. Raises `FormatError` and `Unavailable`."""
    sizes, axes = header.whole_numbers("dimsize"), header.whole_numbers("ndims")
    if axes != [len(sizes)] or not 2 <= len(sizes) <= 4:
        raise FormatError(
            f"{location} has NDims {header.text('ndims')!r} and DimSize "
            f"{header.text('dimsize')!r}; expected two, three or four numbers: x, y, z and time."
        )
    kind = header.text("elementtype").upper().removesuffix("_ARRAY")
    if kind not in _TYPES:
        raise header.wrong("elementtype", f"one of {', '.join(_TYPES)}")
    if header.text("binarydata", otherwise="True").lower() == "false":
        raise FormatError(f"{location} has its numbers as text. Save it again as binary data.")
    dtype = np.dtype(_TYPES[kind])
    is_big = header.is_true("binarydatabyteordermsb", "elementbyteordermsb")
    dtype = dtype.newbyteorder(">" if is_big else "<")
    bands = (header.whole_numbers("elementnumberofchannels") or [1])[0]
    steps = [bands]
    for size in sizes:
        steps.append(steps[-1] * size)
    shape = tuple(sizes[:3][::-1])
    layout = Layout(
        shape,
        tuple(steps[: len(shape)][::-1]),
        bands=bands,
        times=sizes[3] if len(sizes) == 4 else 1,
        time_step=steps[3] if len(sizes) == 4 else 0,
    )
    data, start = _data(location, header)
    packing: Packing = "deflate" if header.is_true("compresseddata") else ""
    skip = (header.whole_numbers("headersize") or [0])[0]
    if skip == -1 and not packing:
        start, skip = StoredFile.of(data).size() - layout.numbers * dtype.itemsize, 0
    if skip < 0 or start < 0:
        raise header.wrong("headersize", "a number of bytes that the file has")
    return Voxels(
        data, layout, dtype, 0 if packing else start + skip, packing, start + skip if packing else 0
    )


def _data(location: str, header: _Lines) -> tuple[str, int]:
    """The URI of the file with the numbers, and its bytes before them."""
    name = header.text("elementdatafile")
    if name.upper() == "LOCAL":
        return location, header.end
    if not name or name.upper().startswith("LIST") or "%" in name:
        raise FormatError(
            f"{location} has its numbers in several files ({name}), which is not read. Save it "
            "again as one .mha."
        )
    return file_below(StoredFile.of(location), name), 0


def _frame(header: _Lines) -> Frame | None:
    """The position; None if not even the distances between voxels are known."""
    count = len(header.whole_numbers("dimsize"))
    spacing = header.numbers("elementspacing", "elementsize")
    turn = header.numbers("transformmatrix", "rotation", "orientation")
    place = header.numbers("offset", "position", "origin")
    wanted = {"elementspacing": (spacing, count), "transformmatrix": (turn, count * count)}
    for key, (found, length) in {**wanted, "offset": (place, count)}.items():
        if found and len(found) != length:
            raise header.wrong(key, f"{length} numbers")
    if not spacing:
        return None
    inside = min(count, 3)
    directions, steps, origin = np.eye(3), np.ones(3), np.zeros(3)
    if turn:
        rows = np.array(turn).reshape(count, count)[:inside, :inside]
        directions[:inside, :inside] = rows.T
    steps[:inside], origin[: len(place[:3])] = spacing[:3], place[:3]
    affine = np.column_stack([directions * steps, origin]) * [[-1.0], [-1.0], [1.0]]
    return Frame(tuple(affine.ravel().tolist()))
