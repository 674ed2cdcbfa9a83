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

import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks.ome_zarr.chunks import AT_ONCE, Folder, Spool, compress
from maskloom.segcore.masks.ome_zarr.metadata import metadata_files
from maskloom.segcore.masks.ome_zarr.pyramid import Pyramid
from maskloom.segcore.masks.protocol import (
    MASKS,
    EncodedBlock,
    PublishedMask,
    require_label_type,
    require_type_of_classes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Store

SPOOL_MEMORY = 8 << 20


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
        require_label_type(labels, tile, spec)
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
            require_type_of_classes(folder.dtype, classes, spec)
            for level in range(encoded, len(pyramid.shapes)):
                folder.build(level)
            about = metadata_files(pyramid, folder.dtype, classes, spec, self.zarr_format)
            for ending, content in about.items():
                folder.publish(ending, json.dumps(content, indent=1).encode())
            return PublishedMask(folder.files())


MASKS.register("ome_zarr")(OmeZarrMasks())
MASKS.register("ome_zarr_2")(OmeZarrMasks(zarr_format=2))
