"""Masks as labels of OME-Zarr: a folder with a pyramid of arrays, for images of one or more planes.

The mask of a Zarr 3 image is OME-Zarr 0.5, that of a Zarr 2 image OME-Zarr 0.4, since programs read
the mask with what reads the image. The group has the axes, the scale and the translation of its
source, so both lie on each other, and names and colours of the classes (`image-label`).

Workers compress the chunks of their tile at full resolution and at every level whose chunks are
inside one tile; `publish` builds the other levels chunk by chunk. A chunk is written once and as a
whole, so a mask of any size needs the memory of a few chunks. The fill value is the nodata label,
but all chunks are stored, so the digest of the folder reveals a lost one.

A level has half the resolution of the one before along y and x, and along z unless slices are
farther apart than pixels. Its pixels have the most frequent label of those that they cover, and the
coordinate of their centre.
"""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.ground.space import MILLIMETRES, Lattice
from maskloom.segcore.masks.protocol import LABEL_TYPES, MASKS, EncodedBlock, PublishedMask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Artefact, Store

_CHUNK_PIXELS = 2**20
"""Labels compress well: of smaller chunks, a store would hold mostly names of files."""
AT_ONCE = 16
"""Files that are written at the same time."""
SPOOL_MEMORY = 8 << 20
_FLAT = 1.5
"""Slices that are farther apart than this many pixels are not halved."""
_UNITS = {
    "m": "meter",
    "cm": "centimeter",
    "mm": "millimeter",
    "um": "micrometer",
    "nm": "nanometer",
}
_BLOSC = {"cname": "zstd", "clevel": 3, "blocksize": 0}
"""Blosc with bits shuffled compresses labels three times better than Zstandard alone."""


@dataclass(frozen=True, slots=True)
class OmeZarrMasks:
    """OME-Zarr labels, with names and colours of the classes: version 0.5 for Zarr 3, version 0.4
    for Zarr 2.
    """

    zarr_format: int = 3
    suffix: str = ".zarr"
    beside: tuple[str, ...] = ()
    most_objects: int = 2**32 - 1

    def encode(
        self, labels: NDArray[np.integer], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """The compressed chunks of a tile's core; see `MaskWriter.encode`."""
        if labels.dtype.name not in LABEL_TYPES:
            raise ValueError(
                f"Labels must be {', '.join(LABEL_TYPES)}; tile {tile.index} of {spec.location} "
                f"has {labels.dtype}."
            )
        pyramid = Pyramid.of(spec, tile_shape)
        blocks = []
        for level in range(pyramid.in_tiles(tile_shape)):
            labels = pyramid.reduced(labels) if level else labels
            steps = zip(tile.core.start, pyramid.chunk, pyramid.factors, strict=True)
            first = [start // (chunk * factor**level) for start, chunk, factor in steps]
            blocks += [
                EncodedBlock(
                    level,
                    tuple(a + b for a, b in zip(first, part.index, strict=True)),
                    compress(labels[part.core.slices], pyramid.chunk),
                )
                for part in Grid(labels.shape, pyramid.chunk)
            ]
        return blocks

    def publish(
        self,
        store: Store,
        name: str,
        blocks: Iterable[EncodedBlock],
        spec: RasterSpec,
        classes: ClassTable,
        tile_shape: Shape,
    ) -> PublishedMask:
        """Write a folder of chunks; see `MaskWriter.publish`."""
        pyramid = Pyramid.of(spec, tile_shape)
        encoded = pyramid.in_tiles(tile_shape)
        with (
            tempfile.SpooledTemporaryFile(SPOOL_MEMORY) as file,
            ThreadPoolExecutor(AT_ONCE, "chunk") as pool,
        ):
            spool = Spool(file)
            folder = Folder(store, name, spec, pyramid, self.zarr_format, spool, encoded, pool)
            for block in blocks:
                folder.add(block)
            for level in range(encoded):
                folder.require(level)
            if folder.dtype not in ("uint32", classes.dtype):
                raise RunError(
                    f"The mask of {spec.location} came as {folder.dtype}; its "
                    f"{len(classes.names)} classes ask for {classes.dtype}."
                )
            for level in range(encoded, len(pyramid.shapes)):
                folder.build(level)
            about = _metadata(pyramid, folder.dtype, classes, spec, self.zarr_format)
            for ending, content in about.items():
                folder.publish(ending, json.dumps(content, indent=1).encode())
            return PublishedMask(folder.files())


MASKS.register("ome_zarr")(OmeZarrMasks())
MASKS.register("ome_zarr_2")(OmeZarrMasks(zarr_format=2))


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of a mask."""

    chunk: Shape
    """Shape of the chunks of all levels."""
    factors: Shape
    """How many times smaller each level is than the one before, along each axis: 1 or 2."""
    shapes: tuple[Shape, ...]
    """Shape of each level, full resolution first; the last fits into one chunk along all axes that
    become smaller.
    """

    @classmethod
    def of(cls, spec: RasterSpec, tile_shape: Shape) -> Pyramid:
        """The levels of the mask of an image in tiles of this shape."""
        chunk, factors = chunk_shape(tile_shape), _factors(spec)
        shapes = [spec.shape]
        while any(
            factor == 2 and n > side
            for n, side, factor in zip(shapes[-1], chunk, factors, strict=True)
        ):
            shapes.append(tuple(-(-n // f) for n, f in zip(shapes[-1], factors, strict=True)))
        return cls(chunk, factors, tuple(shapes))

    def in_tiles(self, tile_shape: Shape) -> int:
        """Number of levels whose chunks are each inside one tile."""
        levels = 1
        while levels < len(self.shapes) and all(
            side % (chunk * factor**levels) == 0
            for side, chunk, factor in zip(tile_shape, self.chunk, self.factors, strict=True)
        ):
            levels += 1
        return levels

    def reduced(self, labels: NDArray[np.integer]) -> NDArray[np.integer]:
        """Labels at the resolution of the next level."""
        from maskloom.segcore.kernels.overviews import halve, halve_volume

        if labels.ndim == 2:
            return halve(labels)
        if self.factors[0] == 2:
            return halve_volume(labels)
        return np.stack([halve(plane) for plane in labels])


def chunk_shape(tile_shape: Shape) -> Shape:
    """Shape of the chunks: that of a tile, its longest side halved until the chunk is small."""
    chunk = list(tile_shape)
    while math.prod(chunk) > _CHUNK_PIXELS:
        longest = max(range(len(chunk)), key=chunk.__getitem__)
        if chunk[longest] % 2:
            break
        chunk[longest] //= 2
    return tuple(chunk)


def _factors(spec: RasterSpec) -> Shape:
    """The factors between levels. Slices count as close if nothing is known of their distance."""
    spacing = spec.space.metric.spacing if spec.space.metric else _lattice(spec).scale
    flat = spacing[0] > _FLAT * max(spacing[-2:])
    return (1, 2, 2) if len(spec.shape) > 2 and flat else (2,) * len(spec.shape)


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
    """One compressed chunk, padded at the border."""
    import imagecodecs

    if labels.shape != chunk:
        rest = [(0, n - m) for n, m in zip(chunk, labels.shape, strict=True)]
        labels = np.pad(labels, rest, constant_values=_filling(labels.dtype.name))
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


def _filling(dtype: str) -> int:
    """The label of padding: background in object masks, otherwise no data."""
    return 0 if dtype == "uint32" else int(np.iinfo(dtype).max)


# ---- metadata
# --------------------------------------------------------------------------------------------------


def _metadata(
    pyramid: Pyramid, dtype: str, classes: ClassTable, spec: RasterSpec, zarr_format: int
) -> dict[str, Any]:
    """The metadata files of the group and its arrays, by their endings."""
    version = "0.5" if zarr_format == 3 else "0.4"
    image = multiscale(pyramid, spec)
    label = {"version": version} | ({} if dtype == "uint32" else _legend(classes))
    if zarr_format == 3:
        ome = {"version": version, "multiscales": [image], "image-label": label}
        group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
        return {"/zarr.json": group} | {
            f"/{level}/zarr.json": array_3(shape, pyramid.chunk, dtype, spec)
            for level, shape in enumerate(pyramid.shapes)
        }
    attributes = {"multiscales": [{"version": version, **image}], "image-label": label}
    return {"/.zgroup": {"zarr_format": 2}, "/.zattrs": attributes} | {
        f"/{level}/.zarray": _array_2(shape, pyramid.chunk, dtype)
        for level, shape in enumerate(pyramid.shapes)
    }


def multiscale(pyramid: Pyramid, spec: RasterSpec) -> dict[str, Any]:
    """The axes and levels of a pyramid, as OME-Zarr describes an image."""
    lattice = _lattice(spec)
    axes = [
        {"name": name, "type": "space"} | ({"unit": unit} if unit else {})
        for name, unit in zip(spec.space.axes, lattice.units, strict=True)
    ]
    datasets = []
    for level in range(len(pyramid.shapes)):
        sizes = [factor**level for factor in pyramid.factors]
        scale = [a * n for a, n in zip(lattice.scale, sizes, strict=True)]
        # The centre of the first pixel is that of the pixels that it covers.
        begin = [
            t + (n - 1) / 2 * a
            for t, a, n in zip(lattice.translation, lattice.scale, sizes, strict=True)
        ]
        steps = [
            {"type": "scale", "scale": scale},
            {"type": "translation", "translation": begin},
        ]
        datasets.append({"path": str(level), "coordinateTransformations": steps})
    return {"name": "maskloom", "type": "mode", "axes": axes, "datasets": datasets}


def _lattice(spec: RasterSpec) -> Lattice:
    """The coordinates of the mask: those of the source, or else the size of its pixels."""
    axes, metric = len(spec.shape), spec.space.metric
    if spec.space.lattice is not None:
        return spec.space.lattice
    if metric is None:
        return Lattice((1.0,) * axes, (0.0,) * axes, ("",) * axes)
    assert metric.unit in MILLIMETRES
    return Lattice(metric.spacing, (0.0,) * axes, (_UNITS[metric.unit],) * axes)


def _legend(classes: ClassTable) -> dict[str, Any]:
    """Names and colours of the classes, and of the label that means no data."""
    legend: Iterator[tuple[int, str, tuple[int, ...]]] = (
        (value, name, (*colour, 255))
        for value, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True))
    )
    entries = [*legend, (classes.nodata, "no data", (0, 0, 0, 0))]
    return {
        "colors": [{"label-value": value, "rgba": list(rgba)} for value, _, rgba in entries],
        "properties": [{"label-value": value, "name": name} for value, name, _ in entries],
    }


def array_3(shape: Shape, chunk: Shape, dtype: str, spec: RasterSpec) -> Mapping[str, Any]:
    """The `zarr.json` of an array (Zarr core specification, version 3)."""
    blosc = {**_BLOSC, "shuffle": "bitshuffle", "typesize": np.dtype(dtype).itemsize}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _filling(dtype),
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
        ],
        "dimension_names": spec.space.axes,
        "attributes": {},
    }


def _array_2(shape: Shape, chunk: Shape, dtype: str) -> Mapping[str, Any]:
    """The `.zarray` of an array (Zarr storage specification, version 2)."""
    return {
        "zarr_format": 2,
        "shape": shape,
        "chunks": chunk,
        "dtype": np.dtype(dtype).newbyteorder("<").str,
        "compressor": {"id": "blosc", "shuffle": 2, **_BLOSC},
        "fill_value": _filling(dtype),
        "filters": None,
        "order": "C",
        "dimension_separator": "/",
    }
