"""The chunks of a mask: compressed, kept until the next level is built, and written to a folder."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.masks.ome_zarr.pyramid import Pyramid
from maskloom.segcore.masks.protocol import LABEL_TYPES, EncodedBlock

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Artefact, Store

AT_ONCE = 16
"""Files that are written at the same time."""


@dataclass(frozen=True, slots=True)
class Spool:
    """Compressed chunks in a temporary file."""

    file: IO[bytes]
    places: dict[Shape, tuple[int, int]] = field(default_factory=dict)
    """Offset and size by the index of the chunk."""

    def add(self, index: Shape, payload: bytes) -> None:
        """Append a chunk."""
        self.places[index] = (self.file.seek(0, 2), len(payload))
        self.file.write(payload)

    def read(self, index: Shape) -> bytes:
        """The bytes of a chunk."""
        offset, size = self.places[index]
        self.file.seek(offset)
        return self.file.read(size)


@dataclass(slots=True)
class Folder:
    """A mask while its chunks are written."""

    store: Store
    name: str
    spec: RasterSpec
    pyramid: Pyramid
    zarr_format: int
    spool: Spool
    """The chunks of the level from which the next one is built."""
    encoded: int
    """Number of levels that come from the tiles."""
    pool: ThreadPoolExecutor
    written: dict[str, Artefact] = field(default_factory=dict)
    """By ending."""
    digests: dict[str, bytes] = field(default_factory=dict)
    """Of the chunks that came from tiles, by ending."""
    pending: deque[tuple[str, Future[Artefact]]] = field(default_factory=deque)
    """Files that are being written."""
    dtype: str = ""
    """Type of the labels; empty until the first chunk."""

    def add(self, block: EncodedBlock) -> None:
        """Write a chunk. Raises `RunError` if it is outside, or came before with other content."""
        level, index = block.level, block.index
        known = 0 <= level < self.encoded and len(index) == len(self.pyramid.chunk)
        if not known or not all(
            0 <= i < n for i, n in zip(index, self._counts(level), strict=True)
        ):
            raise RunError(
                f"Chunk {index} of level {level} does not belong to the mask of "
                f"{self.spec.location}."
            )
        ending, digest = self._ending(level, index), hashlib.sha256(block.payload).digest()
        if ending in self.digests:
            if self.digests[ending] != digest:
                raise RunError(
                    f"Chunk {index} of level {level} of the mask of {self.spec.location} came with "
                    "two contents."
                )
            return
        self.digests[ending] = digest
        self.publish(ending, block.payload)
        self.dtype = self.dtype or self._type(block)
        if level == self.encoded - 1 < len(self.pyramid.shapes) - 1:
            self.spool.add(index, block.payload)

    def require(self, level: int) -> None:
        """Raise `RunError` if a chunk of a level is missing."""
        missing = [
            index
            for index in np.ndindex(self._counts(level))
            if self._ending(level, index) not in self.digests
        ]
        if missing:
            raise RunError(
                f"The mask of {self.spec.location} lacks {len(missing)} chunks of level {level}, "
                f"the first at {missing[0]}. Run the same command again."
            )

    def build(self, level: int) -> None:
        """Write a level, each chunk from the up to eight below it."""
        # The chunks below are only needed for this level.
        below, self.spool = self.spool, Spool(self.spool.file)
        for index in np.ndindex(self._counts(level)):
            labels = self.pyramid.reduced(self._below(below, level, index))
            payload = compress(labels, self.pyramid.chunk)
            self.publish(self._ending(level, index), payload)
            self.spool.add(index, payload)

    def publish(self, ending: str, content: bytes) -> None:
        """Write a file of the folder, while others are being written."""
        if len(self.pending) >= 2 * AT_ONCE:
            self._settle()
        name = self.name + ending
        self.pending.append((ending, self.pool.submit(self.store.publish, name, content)))

    def files(self) -> dict[str, Artefact]:
        """All files by their endings, when they are written."""
        while self.pending:
            self._settle()
        return self.written

    def _settle(self) -> None:
        ending, future = self.pending.popleft()
        self.written[ending] = future.result()

    def _below(self, spool: Spool, level: int, index: Shape) -> NDArray[np.integer]:
        """The labels of the level below that a chunk covers."""
        shape, chunk, factors = (
            self.pyramid.shapes[level - 1],
            self.pyramid.chunk,
            self.pyramid.factors,
        )
        start = tuple(i * n * f for i, n, f in zip(index, chunk, factors, strict=True))
        stop = tuple(a + n * f for a, n, f in zip(start, chunk, factors, strict=True))
        box = Box(start, stop) & Box.whole(shape)
        labels = np.empty(box.shape, self.dtype)
        for part in Grid(box.shape, chunk):
            number = tuple(a // n + i for a, n, i in zip(start, chunk, part.index, strict=True))
            values = _decompressed(spool.read(number), chunk, self.dtype)
            inside = tuple(slice(0, n) for n in part.core.shape)
            labels[part.core.slices] = values[inside]
        return labels

    def _counts(self, level: int) -> Shape:
        return Grid(self.pyramid.shapes[level], self.pyramid.chunk).counts

    def _ending(self, level: int, index: Shape) -> str:
        key = "/".join(map(str, index))
        return f"/{level}/c/{key}" if self.zarr_format == 3 else f"/{level}/{key}"

    def _type(self, block: EncodedBlock) -> str:
        """The type of a chunk's labels, from their size."""
        import imagecodecs

        size = len(imagecodecs.blosc_decode(block.payload))
        values = math.prod(self.pyramid.chunk)
        types = {values * np.dtype(name).itemsize: name for name in LABEL_TYPES}
        if size not in types:
            raise RunError(
                f"Chunk {block.index} of the mask of {self.spec.location} has {size} bytes; "
                f"expected one of {sorted(types)}."
            )
        return types[size]


def compress(labels: NDArray[np.integer], chunk: Shape) -> bytes:
    """One compressed chunk of labels, padded at the border to the shape `chunk`."""
    import imagecodecs

    if labels.shape != chunk:
        rest = [(0, n - m) for n, m in zip(chunk, labels.shape, strict=True)]
        labels = np.pad(labels, rest, constant_values=filling(labels.dtype.name))
    values = np.ascontiguousarray(labels, labels.dtype.newbyteorder("<"))
    return bytes(
        imagecodecs.blosc_encode(
            values.tobytes(), level=3, compressor="zstd", shuffle=2, typesize=labels.itemsize
        )
    )


def _decompressed(payload: bytes, chunk: Shape, dtype: str) -> NDArray[Any]:
    import imagecodecs

    stored = np.dtype(dtype).newbyteorder("<")
    return np.frombuffer(imagecodecs.blosc_decode(payload), stored).reshape(chunk)


def filling(dtype: str) -> int:
    """The label of padding: background in object masks, otherwise no data."""
    return 0 if dtype == "uint32" else int(np.iinfo(dtype).max)
