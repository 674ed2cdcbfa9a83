"""Scores as Cloud Optimized GeoTIFFs: one band a class, each in blocks of its own.

The blocks come and go as those of a mask (`cog.writer`). Overviews hold means, of the pixels that
have scores.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.masks.cog.blocks import (
    SPOOL_MEMORY,
    Spool,
    block_size,
    build_level,
    encode_level,
    encoded_levels,
)
from maskloom.segcore.masks.cog.ome import xml_text
from maskloom.segcore.masks.cog.structure import SHORT, Tag, framed, pack_cog_head
from maskloom.segcore.masks.cog.tags import DEFLATE, directories_of, geo_tags, resolution_tags
from maskloom.segcore.masks.cog.writer import LARGEST_CLASSIC_FILE
from maskloom.segcore.masks.protocol import EncodedBlock, PublishedMask
from maskloom.segcore.masks.quantised import MOST, NODATA

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Sink, Store

_SEPARATE = 2
"""PlanarConfiguration: a band after the other, so that a reader of one class reads one class."""


@dataclass(frozen=True, slots=True)
class CogScores:
    """Bands of uint8 with names of classes, scale, nodata, and the grid of the source."""

    suffix: str = ".tif"

    def encode(
        self, values: NDArray[np.uint8], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """See `ScoreWriter.encode`."""
        block = block_size(tile_shape)
        blocks: list[EncodedBlock] = []
        for band, of_class in enumerate(values):
            for level in range(encoded_levels(spec.shape, tile_shape)):
                of_class = _halve(of_class) if level else of_class  # noqa: PLW2901
                first = (start // (block << level) for start in tile.core.start)
                blocks += encode_level(of_class, level, (band, *first), block)
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
        """One file; see `ScoreWriter.publish`."""
        with store.writing(name) as out:
            self.write(blocks, spec, classes, out, tile_shape)
        return PublishedMask({"": out.artefact})

    def write(
        self,
        blocks: Iterable[EncodedBlock],
        spec: RasterSpec,
        classes: ClassTable,
        out: Sink,
        tile_shape: Shape,
    ) -> None:
        """Write the file sequentially. Raises `RunError` as `CogMasks.write`."""
        encoded = encoded_levels(spec.shape, tile_shape)
        with tempfile.SpooledTemporaryFile(SPOOL_MEMORY) as file:
            spool = Spool.empty(spec, block_size(tile_shape), file, len(classes.names))
            for each in blocks:
                spool.add(each)
            for level in range(encoded):
                spool.require(level)
            for level in range(encoded, len(spool.sizes)):
                build_level(spool, level, "uint8", _halve)
            directories = directories_of(spool, _tags(spec, classes.names))
            out.write(pack_cog_head(directories, spool.sizes, LARGEST_CLASSIC_FILE))
            for level in reversed(range(len(spool.sizes))):
                for index in np.ndindex(spool.sizes[level].shape):
                    out.write(framed(spool.payload(level, index)))


def _halve(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The means at half the resolution, shape (ceil(y / 2), ceil(x / 2))."""
    from maskloom.segcore.kernels.scores import halve_means

    halved = np.empty([-(-n // 2) for n in values.shape], np.uint8)
    halve_means(np.ascontiguousarray(values), NODATA, halved)
    return halved


def _tags(spec: RasterSpec, names: tuple[str, ...]) -> list[Tag]:
    """The tags that do not depend on sizes and offsets."""
    bands = len(names)
    items = "".join(
        f'<Item name="DESCRIPTION" sample="{i}" role="description">{xml_text(name)}</Item>'
        f'<Item name="OFFSET" sample="{i}" role="offset">0</Item>'
        f'<Item name="SCALE" sample="{i}" role="scale">{1 / MOST!r}</Item>'
        for i, name in enumerate(names)
    )
    tags = [
        Tag.of(258, SHORT, [8] * bands),
        Tag.of(259, SHORT, DEFLATE),
        Tag.of(262, SHORT, 1),
        Tag.of(277, SHORT, bands),
        Tag.of(284, SHORT, _SEPARATE),
        Tag.of(339, SHORT, [1] * bands),
        *geo_tags(spec.space),
        *resolution_tags(spec.space),
        Tag.text(42112, f"<GDALMetadata>{items}</GDALMetadata>"),
        Tag.text(42113, str(NODATA)),
    ]
    if bands > 1:
        # Of no special meaning, such as transparency.
        tags.append(Tag.of(338, SHORT, [0] * (bands - 1)))
    return tags
