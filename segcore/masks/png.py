"""Masks as PNG, for photos and similar pictures.

The value of a pixel is its class id. Masks of up to 255 classes are palette PNGs that any viewer
shows in the colours of the class table, with the entries that are used; masks of more classes, and
of objects, are 16-bit greyscale PNGs. The text chunk `classes` holds the names of the classes.

PNG has no blocks, so the labels are assembled in memory; readers of such pictures hold them in
memory too.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, cast

import numpy as np

from maskloom.segcore.errors import FormatError, RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks.protocol import (
    MASKS,
    EncodedBlock,
    PublishedMask,
    compressed_block,
    require_type_of_classes,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Sink, Store


@dataclass(frozen=True, slots=True)
class PngMasks:
    """Palette PNG, or 16-bit greyscale if the labels need more than 8 bits."""

    suffix: str = ".png"
    beside: tuple[str, ...] = ()
    most_objects: int = 2**16 - 1

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
        """Write one file with colours and names; see `MaskWriter.publish`."""
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
        """Write the file. Raises `RunError` and `FormatError` as `MaskWriter.publish`."""
        labels, dtype = _joined(blocks, spec, Grid(spec.shape, tile_shape))
        require_type_of_classes(dtype, classes, spec)
        _save(labels, None if dtype == "uint32" else classes, out)


MASKS.register("png")(PngMasks())


def _joined(
    blocks: Iterable[EncodedBlock], spec: RasterSpec, grid: Grid
) -> tuple[NDArray[np.integer], str]:
    """The labels of the whole image, with ids of objects as uint16, and the type of the encoded
    labels.
    """
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
    first = _decoded(payloads[grid[0].index], grid[0], spec)
    labels = np.empty(spec.shape, np.uint8 if first.dtype == np.uint8 else np.uint16)
    for tile in grid:
        core = _decoded(payloads.pop(tile.index), tile, spec)
        if core.max() > np.iinfo(labels.dtype).max:
            raise FormatError(
                f"The mask of {spec.location} has more objects than a 16-bit PNG can number "
                f"({core.max()}; at most 65535). Raise `min_size`, or convert the image to GeoTIFF."
            )
        labels[tile.core.slices] = core
    return labels, first.dtype.name


def _decoded(payload: bytes, tile: Tile, spec: RasterSpec) -> NDArray[np.integer]:
    values = zlib.decompress(payload)
    types = {
        tile.core.size * np.dtype(name).itemsize: name for name in ("uint8", "uint16", "uint32")
    }
    if len(values) not in types:
        raise RunError(
            f"Tile {tile.index} of the mask of {spec.location} has {len(values)} bytes; expected "
            f"one of {sorted(types)}."
        )
    return np.frombuffer(values, types[len(values)]).reshape(tile.core.shape)


def _save(labels: NDArray[np.integer], classes: ClassTable | None, out: Sink) -> None:
    """Write the picture; without classes the labels are ids of objects."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    options: dict[str, Any] = {}
    if classes is not None:
        options["pnginfo"] = PngInfo()
        options["pnginfo"].add_text(
            "classes", json.dumps({str(i): name for i, name in enumerate(classes.names)})
        )
        if labels.max() == classes.nodata:
            options["transparency"] = classes.nodata
    image = Image.fromarray(labels)
    if classes is not None and labels.dtype == np.uint8:
        # A palette has an entry for every value up to the greatest.
        palette = np.zeros((max(len(classes.colours), int(labels.max()) + 1), 3), np.uint8)
        palette[: len(classes.colours)] = np.array(classes.colours, np.uint8).reshape(-1, 3)
        image.putpalette(palette.tobytes())
    # Run lengths suit labels: about the size of zlib level 4 at the speed of level 1, also on noisy
    # masks.
    image.save(cast("IO[bytes]", out), "PNG", compress_type=zlib.Z_RLE, **options)
