"""Masks of volumes as stacks of TIFF pages, for volumes that were read from such stacks.

The file is OME-TIFF: one page for each slice, with the size of a pixel and the names of the classes
in its description. Pages are deflated strips, which Fiji, QuPath, napari and ImageJ itself open;
classes have their colours as a palette.

Workers compress the parts of their tile in each slice. `publish` joins them into strips of the full
width, so a mask of any size needs the memory of a strip.
"""

from __future__ import annotations

import itertools
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from maskloom.segcore.errors import RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.ground.space import MILLIMETRES
from maskloom.segcore.masks.protocol import (
    LABEL_TYPES,
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

_ROWS = 64
"""Rows of a strip, where they divide the rows of a tile."""
_LARGEST_CLASSIC_FILE = 2**31
"""In bytes. Some readers treat the 32-bit offsets of classic TIFF as signed."""
_SPOOL_MEMORY = 8 << 20
_COPY_BYTES = 1 << 22
_OME = "http://www.openmicroscopy.org/Schemas/OME/2016-06"


@dataclass(frozen=True, slots=True)
class TiffStackMasks:
    """OME-TIFF of one page for each slice: uint8 with a palette, uint16, or ids of objects as
    uint32.
    """

    suffix: str = ".tif"
    beside: tuple[str, ...] = ()
    most_objects: int = 2**32 - 1

    def encode(
        self, labels: NDArray[np.integer], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """The compressed parts of a tile's core, one for each slice and strip; see
        `MaskWriter.encode`.
        """
        require_label_type(labels, tile, spec)
        part = _part(tile_shape)
        first = [start // n for start, n in zip(tile.core.start, part, strict=True)]
        return [
            EncodedBlock(
                0,
                tuple(a + b for a, b in zip(first, each.index, strict=True)),
                zlib.compress(labels[each.core.slices].tobytes(), 1),
            )
            for each in Grid(labels.shape, part)
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
        """Write one file; see `MaskWriter.publish`."""
        with (
            tempfile.SpooledTemporaryFile(_SPOOL_MEMORY) as parts,
            tempfile.NamedTemporaryFile() as stack,
        ):
            spool = _Spool(Grid(spec.shape, _part(tile_shape)), spec, parts)
            for block in blocks:
                spool.add(block)
            spool.require()
            dtype = spool.dtype()
            require_type_of_classes(dtype.name, classes, spec)
            _write(stack, spool, dtype, classes)
            stack.seek(0)
            with store.writing(name) as out:
                while content := stack.read(_COPY_BYTES):
                    out.write(content)
        return PublishedMask({"": out.artefact})


MASKS.register("tiff_stack")(TiffStackMasks())


def _part(tile_shape: Shape) -> Shape:
    """Shape of a compressed part of a tile: some rows of one slice."""
    rows = tile_shape[-2]
    return (1, _ROWS if rows % _ROWS == 0 else rows, tile_shape[-1])


@dataclass(frozen=True, slots=True)
class _Spool:
    """The compressed parts of a mask: their bytes in a temporary file, their places in memory."""

    grid: Grid
    spec: RasterSpec
    file: IO[bytes]
    places: dict[Shape, tuple[int, int]] = field(default_factory=dict)

    def add(self, block: EncodedBlock) -> None:
        """Append a part. Raises `RunError` if it is outside or differs from an earlier one."""
        index = block.index
        if (
            block.level
            or len(index) != len(self.grid.counts)
            or not all(0 <= i < n for i, n in zip(index, self.grid.counts, strict=True))
        ):
            raise RunError(
                f"Part {index} of level {block.level} does not belong to the mask of "
                f"{self.spec.location}."
            )
        if index in self.places:
            if self._payload(index) != block.payload:
                raise RunError(
                    f"Part {index} of the mask of {self.spec.location} came with two contents."
                )
            return
        self.places[index] = (self.file.seek(0, 2), len(block.payload))
        self.file.write(block.payload)

    def require(self) -> None:
        """Raise `RunError` if a part is missing."""
        if len(self.places) < len(self.grid):
            first = next(i for i in np.ndindex(self.grid.counts) if i not in self.places)
            raise RunError(
                f"The mask of {self.spec.location} lacks {len(self.grid) - len(self.places)} "
                f"parts, the first at {first}. Run the same command again."
            )

    def dtype(self) -> np.dtype[Any]:
        """The type of the labels, from the size of the first part. Raises `RunError`."""
        first = self.grid[0]
        size = len(zlib.decompress(self._payload(first.index)))
        kinds = {first.core.size * np.dtype(name).itemsize: np.dtype(name) for name in LABEL_TYPES}
        if size not in kinds:
            raise RunError(
                f"Part {first.index} of the mask of {self.spec.location} has {size} bytes; "
                f"expected one of {sorted(kinds)}."
            )
        return kinds[size]

    def strips(self, dtype: np.dtype[Any]) -> Iterator[bytes]:
        """The deflated strips of all slices in order."""
        slices, rows, columns = self.grid.counts
        for z, y in itertools.product(range(slices), range(rows)):
            tiles = [self.grid[(z * rows + y) * columns + x] for x in range(columns)]
            strip = [
                np.frombuffer(zlib.decompress(self._payload(each.index)), dtype).reshape(
                    each.core.shape[1:]
                )
                for each in tiles
            ]
            yield zlib.compress(np.concatenate(strip, axis=1).tobytes(), 6)

    @property
    def size(self) -> int:
        """Number of compressed bytes."""
        return sum(size for _, size in self.places.values())

    def _payload(self, index: Shape) -> bytes:
        offset, size = self.places[index]
        self.file.seek(offset)
        return self.file.read(size)


def _write(out: Any, spool: _Spool, dtype: np.dtype[Any], classes: ClassTable) -> None:
    """Write the file to a seekable stream."""
    import tifffile

    shape = spool.spec.shape
    # Strips are compressed better than the parts of tiles, and a page needs 1 kB besides.
    expected = spool.size + shape[0] * 1024 + 16 * len(spool.grid)
    with tifffile.TiffWriter(out, bigtiff=expected > _LARGEST_CLASSIC_FILE, byteorder="<") as file:
        file.write(
            spool.strips(dtype),
            shape=shape,
            dtype=dtype,
            photometric="palette" if dtype == np.uint8 else "minisblack",
            colormap=_palette(classes) if dtype == np.uint8 else None,
            compression="zlib",
            rowsperstrip=min(spool.grid.tile[1], shape[1]),
            description=_description(spool.spec, dtype, classes),
            metadata=None,
            software="maskloom",
        )


def _palette(classes: ClassTable) -> NDArray[np.uint16]:
    palette = np.zeros((3, 256), np.uint16)
    palette[:, : len(classes.colours)] = np.array(classes.colours, np.uint16).reshape(-1, 3).T * 257
    return palette


def _description(spec: RasterSpec, dtype: np.dtype[Any], classes: ClassTable) -> bytes:
    """OME-XML of one image (schema 2016-06), with the names of the classes as a map."""
    sizes, metric = "", spec.space.metric
    if metric is not None:
        for axis, distance in zip("ZYX", metric.spacing, strict=True):
            micrometres = distance * MILLIMETRES[metric.unit] * 1e3
            sizes += f' PhysicalSize{axis}="{micrometres:.12g}" PhysicalSize{axis}Unit="&#181;m"'
    depth, height, width = spec.shape
    names = (
        ""
        if dtype == np.uint32
        else "".join(
            f'<M K="{value}">{escape(_printable(name))}</M>'
            for value, name in [*enumerate(classes.names), (classes.nodata, "no data")]
        )
    )
    notes = (
        f'<StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace={quoteattr("classes")}>'
        f"<Value>{names}</Value></MapAnnotation></StructuredAnnotations>"
        if names
        else ""
    )
    reference = '<AnnotationRef ID="Annotation:0"/>' if names else ""
    text = (
        f'<?xml version="1.0" encoding="UTF-8"?><OME xmlns="{_OME}"><Image ID="Image:0" '
        'Name="mask"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        f'Type="{dtype.name}" SizeX="{width}" SizeY="{height}" SizeZ="{depth}" SizeC="1" '
        f'SizeT="1"{sizes}><Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        f'<TiffData IFD="0" PlaneCount="{depth}"/></Pixels>{reference}</Image>{notes}</OME>'
    )
    return text.encode("ascii", "xmlcharrefreplace")


def _printable(text: str) -> str:
    # XML cannot represent most control characters and halves of surrogate pairs.
    return "".join(
        c if c.isprintable() and not "\ud800" <= c <= "\udfff" else "\ufffd" for c in text
    )
