"""Masks as Cloud Optimized GeoTIFFs, for GeoTIFFs and slides.

Workers compress the blocks of their tile at full resolution and at every overview level whose
blocks are inside one tile. `CogMasks.write` spools these blocks to a temporary file, builds the
remaining levels block by block, and writes header, directories and data in one sequential pass, the
smallest overview first. So a mask of any size needs the memory of a few blocks, and its sink may be
a pipe or an upload.

Overviews hold the most frequent label (`segcore.kernels.overviews.halve`), so they invent no
classes and are the same for any tiling.

Masks of slides are OME-TIFFs with the same blocks (`cog.ome`): programs of microscopy find the
levels as sub-directories of the first one, as GDAL does too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from maskloom.segcore.masks.cog.beside import gdal_metadata, qgis_style
from maskloom.segcore.masks.cog.blocks import (
    SPOOL_MEMORY,
    Spool,
    block_size,
    build_level,
    encode_level,
    encoded_levels,
)
from maskloom.segcore.masks.cog.ome import ome_tags
from maskloom.segcore.masks.cog.structure import framed, pack_cog_head
from maskloom.segcore.masks.cog.tags import directories_of, mask_tags
from maskloom.segcore.masks.protocol import (
    MASKS,
    EncodedBlock,
    PublishedMask,
    name_of,
    require_label_type,
    require_type_of_classes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Sink, Store

LARGEST_CLASSIC_FILE = 2**31
"""In bytes. Some readers treat the 32-bit offsets of classic TIFF as signed, so larger files become
BigTIFF.
"""


@dataclass(frozen=True, slots=True)
class CogMasks:
    """Cloud Optimized GeoTIFF with palette, nodata, class names, and the grid of the source.

    Class masks are uint8 or uint16 with the nodata label of the class table. Object masks are
    uint32, without palette or nodata: their 0 is background, which is data.
    """

    suffix: str = ".tif"
    beside: tuple[str, ...] = (".aux.xml", "*.qml")
    most_objects: int = 2**32 - 1

    ome: ClassVar[bool] = False
    """Whether the file is an OME-TIFF, with its overviews as sub-directories, as programs of
    microscopy want them, instead of a chain, as a COG has them.
    """

    def encode(
        self, labels: NDArray[np.integer], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """The compressed blocks of a tile's core; see `MaskWriter.encode`."""
        from maskloom.segcore.kernels.overviews import halve

        require_label_type(labels, tile, spec)
        block = block_size(tile_shape)
        blocks: list[EncodedBlock] = []
        for level in range(encoded_levels(spec.shape, tile_shape)):
            labels = halve(labels) if level else labels
            row, column = (start // (block << level) for start in tile.core.start)
            blocks += encode_level(labels, level, (row, column), block)
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
        """One file, and beside that of classes their names and colours for GDAL and QGIS
        (`cog.beside`); see `MaskWriter.publish`.
        """
        with store.writing(name) as out:
            dtype = self.write(blocks, spec, classes, out, tile_shape)
        files = {"": out.artefact}
        if dtype != "uint32":
            for ending, content in zip(
                self.beside, (gdal_metadata(classes), qgis_style(classes)), strict=True
            ):
                files[ending] = store.publish(name_of(name, ending), content)
        return PublishedMask(files)

    def write(
        self,
        blocks: Iterable[EncodedBlock],
        spec: RasterSpec,
        classes: ClassTable,
        out: Sink,
        tile_shape: Shape,
    ) -> str:
        """Write the file sequentially, without seeking; return the type of its labels.

        Raises `RunError` if a block is missing, outside the image or given twice with different
        content.
        """
        from maskloom.segcore.kernels.overviews import halve

        block, encoded = block_size(tile_shape), encoded_levels(spec.shape, tile_shape)
        with tempfile.SpooledTemporaryFile(SPOOL_MEMORY) as file:
            spool = Spool.empty(spec, block, file)
            for each in blocks:
                spool.add(each)
            for level in range(encoded):
                spool.require(level)
            dtype = spool.dtype()
            require_type_of_classes(dtype, classes, spec)
            for level in range(encoded, len(spool.sizes)):
                build_level(spool, level, dtype, halve)
            tags = mask_tags(spec, classes, dtype)
            if self.ome:
                tags += ome_tags(spec, () if dtype == "uint32" else classes.names, dtype)
            directories = directories_of(spool, tags)
            out.write(pack_cog_head(directories, spool.sizes, LARGEST_CLASSIC_FILE, self.ome))
            for level in reversed(range(len(spool.sizes))):
                for index in np.ndindex(spool.sizes[level].shape):
                    out.write(framed(spool.payload(level, index)))
            return dtype


@dataclass(frozen=True, slots=True)
class OmeMasks(CogMasks):
    """OME-TIFF with its pyramid as sub-resolutions, palette, class names and the size of a pixel.

    The labels, their types and nodata are those of `CogMasks`.
    """

    suffix: str = ".ome.tif"

    ome: ClassVar[bool] = True


MASKS.register("cog")(CogMasks())
MASKS.register("ome")(OmeMasks())
