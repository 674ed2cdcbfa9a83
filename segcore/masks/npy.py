"""Masks as NumPy arrays, for images and volumes that were read from such arrays.

The value of a pixel is its class id, or the id of its object. The names of the classes are in a
JSON file beside the mask.
"""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks.protocol import (
    LABEL_TYPES,
    MASKS,
    EncodedBlock,
    PublishedMask,
    compressed_block,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Store


@dataclass(frozen=True, slots=True)
class NpyMasks:
    """NumPy arrays, (y, x) or (z, y, x) like the image: uint8 or uint16 with the nodata label of
    the class table, or ids of objects as uint32.
    """

    suffix: str = ".npy"
    beside: tuple[str, ...] = (".json",)
    most_objects: int = 2**32 - 1

    def encode(
        self,
        labels: NDArray[np.integer],
        tile: Tile,
        spec: RasterSpec,
        tile_shape: Shape,  # noqa: ARG002  the protocol has it
    ) -> list[EncodedBlock]:
        """The compressed labels of a tile's core; see `MaskWriter.encode`."""
        return [compressed_block(labels, tile, spec)]

    def publish(
        self,
        store: Store,
        name: str,
        blocks: Iterable[EncodedBlock],
        spec: RasterSpec,
        classes: ClassTable,
        tile_shape: Shape,
    ) -> PublishedMask:
        """Write the array slab by slab, and beside a mask of classes their names; see
        `MaskWriter.publish`. The compressed blocks are held in memory.
        """
        grid = Grid(spec.shape, tile_shape)
        payloads = _collected(blocks, spec, grid)
        dtype = _dtype(payloads[grid[0].index], grid[0], spec)
        if dtype.name not in ("uint32", classes.dtype):
            raise RunError(
                f"The mask of {spec.location} came as {dtype}; its {len(classes.names)} classes "
                f"ask for {classes.dtype}."
            )
        with store.writing(name) as out:
            np.lib.format.write_array_header_1_0(
                out, {"descr": dtype.str, "fortran_order": False, "shape": spec.shape}
            )
            for slab in _slabs(payloads, spec, grid, dtype):
                out.write(slab.tobytes())
        files = {"": out.artefact}
        if dtype != np.uint32:
            [ending] = self.beside
            names = {str(i): each for i, each in enumerate(classes.names)}
            said = {"classes": names, "nodata": classes.nodata}
            files[ending] = store.publish(name + ending, json.dumps(said, indent=1).encode())
        return PublishedMask(files)


MASKS.register("npy")(NpyMasks())


def _collected(blocks: Iterable[EncodedBlock], spec: RasterSpec, grid: Grid) -> dict[Shape, bytes]:
    """The payloads of all tiles by index."""
    payloads: dict[Shape, bytes] = {}
    for block in blocks:
        if payloads.setdefault(block.index, block.payload) != block.payload:
            raise RunError(
                f"Tile {block.index} of the mask of {spec.location} came with two contents."
            )
    expected = {tile.index for tile in grid}
    if payloads.keys() != expected:
        wrong = min(payloads.keys() ^ expected)
        raise RunError(
            f"The mask of {spec.location} has {len(payloads)} of {len(expected)} tiles; tile "
            f"{wrong} is missing or does not belong to it. Run the same command again."
        )
    return payloads


def _dtype(payload: bytes, tile: Tile, spec: RasterSpec) -> np.dtype[Any]:
    """The type of the labels in a payload, from its size."""
    size = len(zlib.decompress(payload))
    types = {tile.core.size * np.dtype(name).itemsize: np.dtype(name) for name in LABEL_TYPES}
    if size not in types:
        raise RunError(
            f"Tile {tile.index} of the mask of {spec.location} has {size} bytes; expected one of "
            f"{sorted(types)}."
        )
    return types[size]


def _slabs(
    payloads: dict[Shape, bytes], spec: RasterSpec, grid: Grid, dtype: np.dtype[Any]
) -> Iterator[NDArray[Any]]:
    """The labels of all tiles with the same index along the first axis, in order."""
    for _, tiles in groupby(grid, lambda tile: tile.index[0]):
        slab = np.empty(0, dtype)
        for tile in tiles:
            if not slab.size:
                slab = np.empty((tile.core.shape[0], *spec.shape[1:]), dtype)
            values = np.frombuffer(zlib.decompress(payloads.pop(tile.index)), dtype)
            if values.size != tile.core.size:
                raise RunError(
                    f"Tile {tile.index} of the mask of {spec.location} is not of {dtype}."
                )
            slab[:, *tile.core.slices[1:]] = values.reshape(tile.core.shape)
        yield slab
