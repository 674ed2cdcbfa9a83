"""Planes of tiles, for masks that are written from front to back.

In such a file a plane of the volume belongs to many tiles. So a block is one plane of one tile; all
blocks go to a temporary file, and come back in the order of the mask, one row of tiles at a time.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RunError, StoreError
from maskloom.segcore.masks.protocol import (
    LABEL_TYPES,
    EncodedBlock,
    require_label_type,
    require_type_of_classes,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec

_IN_MEMORY = 2**24
"""Bytes of blocks that are kept in memory instead of a temporary file."""


def plane_blocks(labels: NDArray[np.integer], tile: Tile, spec: RasterSpec) -> list[EncodedBlock]:
    """The planes of a tile's core, compressed; see `MaskWriter.encode`."""
    import imagecodecs

    require_label_type(labels, tile, spec)
    *above, _, _ = tile.core.start
    first = above[0] if above else 0
    return [
        EncodedBlock(
            0,
            (first + i, *tile.index[-2:]),
            bytes(imagecodecs.zstd_encode(plane.tobytes(), level=1)),
        )
        for i, plane in enumerate(labels.reshape(-1, *labels.shape[-2:]))
    ]


@contextlib.contextmanager
def collected(
    blocks: Iterable[EncodedBlock], spec: RasterSpec, classes: ClassTable, tile_shape: Shape
) -> Iterator[Planes]:
    """The planes of all tiles. Blocks that do not fit into `_IN_MEMORY` bytes need room in the
    temporary folder of the machine. Raises as `MaskWriter.publish`.
    """
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
        planes = Planes.collect(blocks, file, spec, tile_shape)
        dtype = planes.dtype
        require_type_of_classes(dtype.name, classes, spec)
        yield planes


@dataclass(frozen=True, slots=True)
class Planes:
    """The planes of all tiles of a mask, in a temporary file."""

    file: IO[bytes]
    places: NDArray[np.int64]
    """(z, row of tiles, column of tiles, 2): start and stop of each block in the file."""
    spec: RasterSpec
    tile: Shape
    """(y, x)"""

    @classmethod
    def collect(
        cls, blocks: Iterable[EncodedBlock], file: IO[bytes], spec: RasterSpec, tile_shape: Shape
    ) -> Planes:
        """Put the blocks into the file. Raises as `MaskWriter.publish`."""
        *above, height, width = spec.shape
        *_, rows, columns = tile_shape
        counts = (math.prod(above), -(-height // rows), -(-width // columns))
        planes = cls(file, np.zeros((*counts, 2), np.int64), spec, (rows, columns))
        end = 0
        for block in blocks:
            if planes.is_new(block):
                planes.places[block.index] = end, end + len(block.payload)
                end += planes.append(end, block.payload)
        lost = np.argwhere(planes.places[..., 1] == 0)
        if len(lost):
            raise RunError(
                f"The mask of {spec.location} lacks {len(lost)} of {planes.places[..., 0].size} "
                f"planes of tiles, the first at {tuple(lost[0].tolist())}. Run the same command "
                "again."
            )
        return planes

    def append(self, end: int, payload: bytes) -> int:
        """Write at the end of the file; return the number of bytes. Raises `StoreError`."""
        try:
            self.file.seek(end)
            return self.file.write(payload)
        except OSError as error:
            raise StoreError(
                f"Cannot write the mask of {self.spec.location} to {tempfile.gettempdir()}: "
                f"{error}. Make room there, or name another folder by the variable TMPDIR, then "
                "run the same command."
            ) from error

    def is_new(self, block: EncodedBlock) -> bool:
        """Whether the block is not in the file yet. Raises `RunError` if it does not belong to the
        mask, or comes with other content than before.
        """
        counts = self.places.shape[:-1]
        inside = len(block.index) == len(counts) and all(
            0 <= i < n for i, n in zip(block.index, counts, strict=True)
        )
        if not inside:
            raise RunError(
                f"The plane of a tile at {block.index} does not belong to the mask of "
                f"{self.spec.location}. Run the same command again."
            )
        if not self.places[block.index][1]:
            return True
        if self._payload(block.index) != block.payload:
            raise RunError(
                f"The plane of a tile at {block.index} of the mask of {self.spec.location} came "
                "with two contents."
            )
        return False

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the labels, from the size of the first plane."""
        size, pixels = len(_decoded(self._payload((0, 0, 0)))), math.prod(self._shape(0, 0))
        types = {pixels * np.dtype(name).itemsize: np.dtype(name) for name in LABEL_TYPES}
        if size not in types:
            raise RunError(
                f"A plane of a tile of the mask of {self.spec.location} has {size} bytes; expected "
                f"one of {sorted(types)}."
            )
        return types[size]

    def rows(self, dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
        """The labels (y, x) of one row of tiles after the other, in the order of the mask."""
        depth, rows, columns, _ = self.places.shape
        stored = dtype.newbyteorder("<")
        for z, row in np.ndindex(depth, rows):
            parts = []
            for column in range(columns):
                values = np.frombuffer(_decoded(self._payload((z, row, column))), dtype)
                shape = self._shape(row, column)
                if values.size != math.prod(shape):
                    raise RunError(
                        f"The plane of a tile at {(z, row, column)} of the mask of "
                        f"{self.spec.location} is not of {dtype}."
                    )
                parts.append(values.reshape(shape))
            yield np.ascontiguousarray(np.concatenate(parts, axis=1), stored)

    def _shape(self, row: int, column: int) -> Shape:
        """(y, x) of the planes of a tile."""
        at = (row, column)
        sizes = zip(at, self.tile, self.spec.shape[-2:], strict=True)
        return tuple(min(side, whole - i * side) for i, side, whole in sizes)

    def _payload(self, index: Shape) -> bytes:
        start, stop = self.places[index].tolist()
        self.file.seek(start)
        return self.file.read(stop - start)


def _decoded(payload: bytes) -> bytes:
    import imagecodecs

    return bytes(imagecodecs.zstd_decode(payload))
