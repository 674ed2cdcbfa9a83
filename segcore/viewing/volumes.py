"""Volumes as planes: the three planes through a voxel, as radiologists look at them.

The patient's right is on the left, the front or the head at the top. Blocks of a volume are read
when a plane touches them, and then kept: in memory, or in a temporary file if the volume is large.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.viewing.readers import Readers, open_layer, room

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.viewing.readers import Kind, Pixels

_BLOCK = 2**18
"""Voxels of a block that is read at once, unless the file's own are larger."""
_SLAB = 2**23
"""Most voxels of neighbouring blocks that are read together."""
_LETTERS = (("L", "R"), ("P", "A"), ("I", "S"))
"""The two ends of each direction of a patient: x to the right, y to the front, z to the head."""
_NAMES = {0: "sagittal", 1: "coronal", 2: "axial"}
"""Name of a plane by the direction of the patient across it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction on the screen, along an axis of the array."""

    axis: int
    """Of the array: z, y, x are 0, 1, 2."""
    flipped: bool
    """Whether the last voxel comes first."""
    first: str
    """Letter at the left or upper end; empty where the orientation is unknown."""
    last: str


@dataclass(frozen=True, slots=True)
class Plane:
    """One of the three planes."""

    name: str
    across: int
    """The axis of the array across the plane."""
    rows: Axis
    columns: Axis


def planes_of(spec: RasterSpec) -> tuple[Plane, ...]:
    """The planes of a volume: axial, sagittal, coronal if its orientation is known, otherwise those
    across z, x and y.
    """
    frame = spec.space.frame
    if frame is None:
        plain = [Axis(axis, False, "", "") for axis in range(3)]
        return (
            Plane("across z", 0, plain[1], plain[2]),
            Plane("across x", 2, plain[0], plain[1]),
            Plane("across y", 1, plain[0], plain[2]),
        )
    affine = np.array(frame.affine).reshape(3, 4)[:, 2::-1]
    directions = _directions(affine)
    of = {direction: axis for axis, direction in enumerate(directions)}
    axes = {}
    for direction, axis in of.items():
        rising = affine[direction, axis] > 0
        low, high = _LETTERS[direction]
        # Right, front and head come first.
        axes[direction] = Axis(axis, bool(rising), high, low)
    return (
        Plane(_NAMES[2], of[2], axes[1], axes[0]),
        Plane(_NAMES[0], of[0], axes[2], axes[1]),
        Plane(_NAMES[1], of[1], axes[2], axes[0]),
    )


def _directions(affine: NDArray[np.float64]) -> list[int]:
    """The direction of the patient that each axis of the array is closest to, each once."""
    lengths = np.linalg.norm(affine, axis=0)
    sizes = np.abs(affine / np.where(lengths > 0, lengths, 1))
    found = [-1] * 3
    for _ in range(3):
        direction, axis = np.unravel_index(int(np.argmax(sizes)), (3, 3))
        found[int(axis)] = int(direction)
        sizes[direction, :] = sizes[:, axis] = -1
    return found


@dataclass(slots=True)
class Volume:
    """A volume of which the blocks that were looked at are kept."""

    spec: RasterSpec
    readers: Readers
    block: Shape
    known: NDArray[np.bool_]
    """Which blocks were read."""
    voxels: NDArray[Any] | None = None
    """(z, y, x, band) of a source, (z, y, x) of a mask; None before the first block is read."""
    valid: NDArray[np.bool_] | None = None
    """(z, y, x)."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def open(cls, spec: RasterSpec, kind: Kind) -> Volume:
        """Open a source or a mask. Raises `ReadError`."""
        block = _block(spec.shape, spec.chunks)
        blocks = tuple(-(-n // m) for n, m in zip(spec.shape, block, strict=True))
        # One reader: some formats unpack the whole file to open it.
        return cls(spec, Readers(lambda: open_layer(spec, kind), 1), block, np.zeros(blocks, bool))

    def read(self, box: Box, report: Callable[[float], None] = lambda _: None) -> Pixels:
        """Voxels and `valid` of a box. `report` is called with the done share of the blocks that
        must be read. Raises `ReadError`.
        """
        with self.lock:
            self._fill(box, report)
            assert self.voxels is not None
            assert self.valid is not None
            return np.array(self.voxels[box.slices]), np.array(self.valid[box.slices])

    def plane(
        self, plane: Plane, index: int, report: Callable[[float], None] = lambda _: None
    ) -> Pixels:
        """Pixels and `valid` of a plane as it is shown. Raises `ReadError`."""
        start, stop = [0, 0, 0], list(self.spec.shape)
        start[plane.across], stop[plane.across] = index, index + 1
        voxels, valid = self.read(Box(tuple(start), tuple(stop)), report)
        return (
            _as_shown(voxels.squeeze(plane.across), plane),
            _as_shown(valid.squeeze(plane.across), plane),
        )

    def close(self) -> None:
        """Close the file."""
        self.readers.close()

    def _fill(self, box: Box, report: Callable[[float], None]) -> None:
        first = [a // n for a, n in zip(box.start, self.block, strict=True)]
        last = [-(-b // n) for b, n in zip(box.stop, self.block, strict=True)]
        around = tuple(slice(a, b) for a, b in zip(first, last, strict=True))
        missing = np.argwhere(~self.known[around]) + first
        runs = _runs(missing, max(1, _SLAB // math.prod(self.block)))
        for number, (place, count) in enumerate(runs):
            start = tuple(int(i) * n for i, n in zip(place, self.block, strict=True))
            ends = (*place[:-1] + 1, place[-1] + count)
            stop = tuple(
                min(int(i) * n, m)
                for i, n, m in zip(ends, self.block, self.spec.shape, strict=True)
            )
            part = Box(start, stop)
            voxels, valid = self.readers.read(part)
            if self.voxels is None or self.valid is None:
                self.voxels = room((*self.spec.shape, *voxels.shape[3:]), voxels.dtype)
                self.valid = room(self.spec.shape, np.dtype(bool))
            self.voxels[part.slices], self.valid[part.slices] = voxels, valid
            self.known[(*place[:-1], slice(place[-1], place[-1] + count))] = True
            report((number + 1) / len(runs))


def _block(shape: Shape, chunks: Shape) -> Shape:
    """Some neighbouring chunks of a file, as even as they can be."""
    block = [min(a, b) for a, b in zip(chunks, shape, strict=True)]
    while math.prod(block) < _BLOCK:
        growing = [i for i in range(3) if block[i] < shape[i]]
        if not growing:
            break
        shortest = min(growing, key=lambda i: block[i])
        block[shortest] = min(2 * block[shortest], shape[shortest])
    return tuple(block)


def _runs(places: NDArray[np.intp], most: int) -> Sequence[tuple[NDArray[np.intp], int]]:
    """Blocks in their order, as the first of those that follow each other along x, and how many."""
    runs: list[tuple[NDArray[np.intp], int]] = []
    for place in places:
        if runs:
            begin, count = runs[-1]
            if count < most and (place == (*begin[:-1], begin[-1] + count)).all():
                runs[-1] = (begin, count + 1)
                continue
        runs.append((place, 1))
    return runs


def _as_shown(array: NDArray[Any], plane: Plane) -> NDArray[Any]:
    if plane.rows.axis > plane.columns.axis:
        array = array.swapaxes(0, 1)
    if plane.rows.flipped:
        array = array[::-1]
    if plane.columns.flipped:
        array = array[:, ::-1]
    return np.ascontiguousarray(array)
