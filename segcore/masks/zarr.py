"""Masks as Zarr arrays of version 3: a folder with one file per chunk, of any number of axes.

Chunks are compressed on the workers and stored one by one, so a mask of any size needs the memory
of a chunk. The fill value is the nodata label, but all chunks are stored, so the digest of the
folder reveals a lost one. Names and colours of the classes are attributes of the array.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks.protocol import LABEL_TYPES, MASKS, EncodedBlock, PublishedMask

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Artefact, Store

_CHUNK_PIXELS = 2**18


@dataclass(frozen=True, slots=True)
class ZarrMasks:
    """Zarr 3 array with names and colours of the classes as attributes."""

    suffix: str = ".zarr"
    beside: tuple[str, ...] = ()
    most_objects: int = 2**32 - 1

    def encode(
        self, labels: NDArray[np.integer], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """The compressed chunks of a tile's core; see `MaskWriter.encode`."""
        if labels.dtype.name not in LABEL_TYPES:
            raise ValueError(
                f"Labels must be uint8, uint16 or uint32; tile {tile.index} of {spec.location} has "
                f"{labels.dtype}."
            )
        chunk = chunk_shape(tile_shape)
        first = [start // n for start, n in zip(tile.core.start, chunk, strict=True)]
        return [
            EncodedBlock(
                0,
                tuple(a + b for a, b in zip(first, part.index, strict=True)),
                _compress(labels[part.core.slices], chunk),
            )
            for part in Grid(labels.shape, chunk)
        ]

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
        chunk = chunk_shape(tile_shape)
        missing, dtype = {part.index for part in Grid(spec.shape, chunk)}, ""
        files: dict[str, Artefact] = {}
        for block in blocks:
            ending = "/c/" + "/".join(map(str, block.index))
            artefact = store.publish(name + ending, block.payload)
            if block.index not in missing and files.get(ending) != artefact:
                raise RunError(
                    f"Chunk {block.index} does not belong to the mask of {spec.location}, or came "
                    "twice with two contents."
                )
            files[ending] = artefact
            missing.discard(block.index)
            dtype = dtype or _dtype(block, spec, chunk)
        if missing:
            raise RunError(
                f"The mask of {spec.location} lacks {len(missing)} chunks, the first at "
                f"{min(missing)}. Run the same command again."
            )
        if dtype not in ("uint32", classes.dtype):
            raise RunError(
                f"The mask of {spec.location} came as {dtype}; its {len(classes.names)} classes "
                f"ask for {classes.dtype}."
            )
        about = json.dumps(_metadata(spec, chunk, dtype, classes), indent=1)
        files["/zarr.json"] = store.publish(f"{name}/zarr.json", about.encode())
        return PublishedMask(files)


MASKS.register("zarr")(ZarrMasks())


def chunk_shape(tile_shape: Shape) -> Shape:
    """Shape of the chunks: that of a tile, its longest side halved until the chunk is small."""
    chunk = list(tile_shape)
    while math.prod(chunk) > _CHUNK_PIXELS:
        longest = max(range(len(chunk)), key=chunk.__getitem__)
        if chunk[longest] % 2:
            break
        chunk[longest] //= 2
    return tuple(chunk)


def _compress(labels: NDArray[np.integer], chunk: Shape) -> bytes:
    """One compressed chunk, padded at the border. Blosc compresses labels three times better than
    Zstandard.
    """
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


def _dtype(block: EncodedBlock, spec: RasterSpec, chunk: Shape) -> str:
    """The type of a chunk's labels, from their size."""
    import imagecodecs

    size = len(imagecodecs.blosc_decode(block.payload))
    types = {math.prod(chunk) * np.dtype(name).itemsize: name for name in LABEL_TYPES}
    if size not in types:
        raise RunError(
            f"Chunk {block.index} of the mask of {spec.location} has {size} bytes; expected one of "
            f"{sorted(types)}."
        )
    return types[size]


def _filling(dtype: str) -> int:
    """The label of padding: background in object masks, otherwise no data."""
    return 0 if dtype == "uint32" else int(np.iinfo(dtype).max)


def _metadata(spec: RasterSpec, chunk: Shape, dtype: str, classes: ClassTable) -> dict[str, Any]:
    """The array's `zarr.json` (Zarr core specification, version 3)."""
    typesize = np.dtype(dtype).itemsize
    blosc = {
        "cname": "zstd",
        "clevel": 3,
        "shuffle": "bitshuffle",
        "typesize": typesize,
        "blocksize": 0,
    }
    colours = ["#{:02x}{:02x}{:02x}".format(*colour) for colour in classes.colours]
    named = {str(i): name for i, name in enumerate(classes.names)}
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": spec.shape,
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": _filling(dtype),
        "codecs": [
            {"name": "bytes", "configuration": {"endian": "little"}},
            {"name": "blosc", "configuration": blosc},
        ],
        "dimension_names": spec.space.axes,
        "attributes": {} if dtype == "uint32" else {"classes": named, "colours": colours},
    }
