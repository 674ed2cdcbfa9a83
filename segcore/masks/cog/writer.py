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

import json
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, ClassVar
from xml.sax.saxutils import escape

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.ground.space import MILLIMETRES
from maskloom.segcore.masks.cog.beside import gdal_metadata, qgis_style
from maskloom.segcore.masks.cog.ome import OME_TAGS, ome_tags, xml_text
from maskloom.segcore.masks.cog.structure import (
    LONG,
    SHORT,
    Tag,
    framed,
    pack_cog_head,
    read_first_directory,
)
from maskloom.segcore.masks.protocol import MASKS, EncodedBlock, PublishedMask, name_of

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.ground.space import Space
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Sink, Store

LARGEST_CLASSIC_FILE = 2**31
"""In bytes. Some readers treat the 32-bit offsets of classic TIFF as signed, so larger files become
BigTIFF.
"""

SPOOL_MEMORY = 8 << 20
DEFLATE = 8
_CENTIMETRE = 3
"""ResolutionUnit."""
_RESOLUTION_TAGS = frozenset({282, 283, 296})
_GEO_TAGS = frozenset({33550, 33922, 34264, 34735, 34736, 34737, 50844})
_OF_FULL_RESOLUTION = _GEO_TAGS | _RESOLUTION_TAGS | OME_TAGS | {42112}


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

        if labels.dtype.name not in ("uint8", "uint16", "uint32"):
            raise ValueError(
                f"Labels must be uint8, uint16 or uint32; tile {tile.index} of {spec.location} has "
                f"{labels.dtype}."
            )
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
            if dtype not in ("uint32", classes.dtype):
                raise RunError(
                    f"The mask of {spec.location} came as {dtype}; its {len(classes.names)} "
                    f"classes ask for {classes.dtype}."
                )
            for level in range(encoded, len(spool.sizes)):
                build_level(spool, level, dtype, halve)
            tags = _tags(spec, classes, dtype)
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
        """The part of a block that is inside the image."""
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
    """One compressed block, padded at the border."""
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


def _tags(spec: RasterSpec, classes: ClassTable, dtype: str) -> list[Tag]:
    """The tags of the full resolution that do not depend on sizes and offsets."""
    tags = [
        Tag.of(258, SHORT, np.dtype(dtype).itemsize * 8),
        Tag.of(259, SHORT, DEFLATE),
        Tag.of(262, SHORT, 3 if dtype == "uint8" else 1),
        Tag.of(277, SHORT, 1),
        Tag.of(284, SHORT, 1),
        Tag.of(339, SHORT, 1),
        *geo_tags(spec.space),
        *resolution_tags(spec.space),
    ]
    if dtype == "uint8":
        palette = np.zeros((3, 256), np.uint16)
        palette[:, : len(classes.colours)] = (
            np.array(classes.colours, np.uint16).reshape(-1, 3).T * 257
        )
        tags.append(Tag.of(320, SHORT, palette.ravel()))
    if dtype != "uint32":
        tags += [Tag.text(42112, _class_metadata(classes)), Tag.text(42113, str(classes.nodata))]
    return tags


def geo_tags(space: Space) -> list[Tag]:
    """The georeferencing tags, as GDAL writes them for any coordinate system that it supports."""
    import rasterio
    from rasterio.control import GroundControlPoint

    if not space.placed and space.crs is None:
        return []
    profile: dict[str, Any] = {
        "driver": "GTiff",
        "width": 1,
        "height": 1,
        "count": 1,
        "dtype": "uint8",
        "crs": space.crs,
    }
    if space.affine is not None:
        profile["transform"] = rasterio.Affine(*space.affine)
    elif space.gcps:
        profile["gcps"] = [
            GroundControlPoint(row=row, col=column, x=x, y=y, z=z)
            for column, row, x, y, z in space.gcps
        ]
        profile["crs"] = space.gcp_crs
    with rasterio.MemoryFile() as memory:
        with memory.open(**profile) as file:
            if space.rpcs:
                file.update_tags(ns="RPC", **dict(space.rpcs))
        memory.seek(0)
        return [tag for tag in read_first_directory(memory.read()) if tag.code in _GEO_TAGS]


def resolution_tags(space: Space) -> list[Tag]:
    """Pixels per centimetre, which QuPath and ImageJ read; none if they are not known, or too many
    or too few for a tag.
    """
    if space.metric is None:
        return []
    down, across = (
        10 / (distance * MILLIMETRES[space.metric.unit]) for distance in space.metric.spacing
    )
    if not all(2**-15 < each < 2**31 for each in (down, across)):
        return []
    return [Tag.ratio(282, across), Tag.ratio(283, down), Tag.of(296, SHORT, _CENTIMETRE)]


def _class_metadata(classes: ClassTable) -> str:
    """GDAL's metadata XML: all names as JSON for programs, and each name separately for people."""
    names = json.dumps({str(i): name for i, name in enumerate(classes.names)}, ensure_ascii=False)
    # GDAL undoes the escapes of this tag's values twice.
    items = [f'<Item name="CLASSES">{escape(xml_text(names))}</Item>']
    items += [
        f'<Item name="CLASS_{i}" sample="0">{escape(xml_text(name))}</Item>'
        for i, name in enumerate(classes.names)
    ]
    return f"<GDALMetadata>{''.join(items)}</GDALMetadata>"


def directories_of(spool: Spool, tags: list[Tag]) -> list[list[Tag]]:
    """The directories of all levels; `tags` are those of full resolution."""
    directories = []
    for level in range(len(spool.sizes)):
        height, width = level_shape(spool.spec.shape, level)
        directories.append(
            [
                Tag.of(254, LONG, int(level > 0)),
                Tag.of(256, LONG, width),
                Tag.of(257, LONG, height),
                Tag.of(322, SHORT, spool.block),
                Tag.of(323, SHORT, spool.block),
                *(tag for tag in tags if level == 0 or tag.code not in _OF_FULL_RESOLUTION),
            ]
        )
    return directories
