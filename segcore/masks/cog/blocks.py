"""The blocks of a TIFF at all levels: compressed, kept in a temporary file, and halved."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.masks.protocol import EncodedBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec

SPOOL_MEMORY = 8 << 20


def block_size(tile_shape: Shape) -> int:
    """Side of the file's square blocks in pixels: the largest up to 512 that divides the tile.

    Raises `ValueError` if TIFF allows no such block.
    """
    side = tile_shape[0]
    if tile_shape != (side, side):
        raise ValueError(f"A TIFF mask needs square tiles, not {tile_shape}. Change `tiling.tile`.")
    if side < 16 or (side & (side - 1) if side < 256 else side % 256):
        raise ValueError(
            f"The tile size must be 16, 32, 64, 128 or a multiple of 256, not {side}. Change "
            "`tiling.tile`."
        )
    return 512 if side % 512 == 0 else min(side, 256)


@dataclass(frozen=True, slots=True)
class Spool:
    """The compressed blocks of all levels: their bytes in a temporary file, their offsets in
    memory.
    """

    spec: RasterSpec
    block: int
    file: IO[bytes]
    bands: int | None = None
    """Number of bands, each in blocks of its own. None: one, whose blocks have no band in their
    index.
    """
    offsets: list[NDArray[np.int64]] = field(default_factory=list)
    """Offset of each block in `file`, per level an array (row, column) or (band, row, column)."""
    sizes: list[NDArray[np.int64]] = field(default_factory=list)
    """Bytes of each block; 0: not yet added."""

    @classmethod
    def empty(
        cls, spec: RasterSpec, block: int, file: IO[bytes], bands: int | None = None
    ) -> Spool:
        """A spool without blocks; `block` is the side of a block in pixels."""
        spool, before = cls(spec, block, file, bands), () if bands is None else (bands,)
        for level in range(_level_count(spec.shape, block)):
            counts = (*before, *(-(-n // block) for n in level_shape(spec.shape, level)))
            spool.offsets.append(np.zeros(counts, np.int64))
            spool.sizes.append(np.zeros(counts, np.int64))
        return spool

    def add(self, block: EncodedBlock) -> None:
        """Append a block. Raises `RunError` if it is outside or differs from an earlier one."""
        level, index = block.level, block.index
        known = (
            0 <= level < len(self.sizes)
            and len(index) == self.sizes[level].ndim
            and all(0 <= i < n for i, n in zip(index, self.sizes[level].shape, strict=True))
        )
        if not known or not block.payload:
            raise RunError(
                f"Block {index} of level {level} does not belong to the mask of "
                f"{self.spec.location}."
            )
        if self.sizes[level][index]:
            if self.payload(level, index) != block.payload:
                raise RunError(
                    f"Block {index} of level {level} of the mask of {self.spec.location} came "
                    "twice, unequal."
                )
            return
        self.offsets[level][index] = self.file.seek(0, 2)
        self.sizes[level][index] = self.file.write(block.payload)

    def payload(self, level: int, index: Shape) -> bytes:
        """The compressed bytes of a block."""
        self.file.seek(int(self.offsets[level][index]))
        return self.file.read(int(self.sizes[level][index]))

    def require(self, level: int) -> None:
        """Raise `RunError` if a block of this level is missing."""
        missing = np.argwhere(self.sizes[level] == 0)
        if len(missing):
            raise RunError(
                f"The mask of {self.spec.location} lacks {len(missing)} of "
                f"{self.sizes[level].size} blocks of level {level}, "
                f"the first at row {missing[0][-2]}, column {missing[0][-1]}. Run the same command "
                "again."
            )

    def dtype(self) -> str:
        """The type of the labels, from the size of the first block. Raises `RunError`."""
        size = len(zlib.decompress(self.payload(0, (0, 0))))
        kinds = {
            np.dtype(name).itemsize * self.block**2: name for name in ("uint8", "uint16", "uint32")
        }
        if size not in kinds:
            raise RunError(
                f"Block (0, 0) of the mask of {self.spec.location} has {size} bytes; expected one "
                f"of {sorted(kinds)}."
            )
        return kinds[size]

    def labels(self, level: int, index: Shape, dtype: str) -> NDArray[Any]:
        """The labels (y, x) of the part of a block that is inside the image."""
        import imagecodecs

        height, width = (
            min(self.block, n - i * self.block)
            for n, i in zip(level_shape(self.spec.shape, level), index[-2:], strict=True)
        )
        size = self.block**2 * np.dtype(dtype).itemsize
        values = np.frombuffer(
            imagecodecs.deflate_decode(self.payload(level, index), raw=False, out=size), dtype
        )
        return values.reshape(self.block, self.block)[:height, :width]


def level_shape(shape: Shape, level: int) -> Shape:
    """Shape of a level of an image."""
    return tuple(-(-n >> level) for n in shape)


def _level_count(shape: Shape, block: int) -> int:
    """Number of levels down to the first that fits into one block."""
    return 1 + (-(-max(shape) // block) - 1).bit_length()


def encoded_levels(shape: Shape, tile_shape: Shape) -> int:
    """Number of levels whose blocks are each inside one tile."""
    block = block_size(tile_shape)
    blocks_per_tile = tile_shape[0] // block
    powers_of_two = (blocks_per_tile & -blocks_per_tile).bit_length()
    return min(powers_of_two, _level_count(shape, block))


def encode_level(
    labels: NDArray[np.integer], level: int, first: tuple[int, ...], block: int
) -> Iterator[EncodedBlock]:
    """The blocks of an array (y, x) whose first block has the index `first`."""
    *band, row, column = first
    for y in range(0, labels.shape[0], block):
        for x in range(0, labels.shape[1], block):
            payload = compress(labels[y : y + block, x : x + block], block)
            yield EncodedBlock(level, (*band, row + y // block, column + x // block), payload)


def compress(labels: NDArray[np.integer], block: int) -> bytes:
    """One compressed block of labels (y, x), padded at the border to `block` pixels a side."""
    import imagecodecs

    if labels.shape != (block, block):
        filling = 0 if labels.dtype == np.uint32 else np.iinfo(labels.dtype).max
        below, right = (block - n for n in labels.shape)
        labels = np.pad(labels, ((0, below), (0, right)), constant_values=filling)
    return bytes(imagecodecs.deflate_encode(labels.tobytes(), level=1, raw=False))


def build_level(
    spool: Spool, level: int, dtype: str, halve: Callable[[NDArray[Any]], NDArray[Any]]
) -> None:
    """Build each block of a level from the up to four blocks below it."""
    *_, rows, columns = spool.sizes[level - 1].shape
    for *band, row, column in np.ndindex(spool.sizes[level].shape):
        below = [
            [
                spool.labels(level - 1, (*band, y, x), dtype)
                for x in range(2 * column, min(2 * column + 2, columns))
            ]
            for y in range(2 * row, min(2 * row + 2, rows))
        ]
        spool.add(
            EncodedBlock(level, (*band, row, column), compress(halve(np.block(below)), spool.block))
        )
