"""Masks as NIfTI in gzip, on the grid of their source: the same affine, with the same codes.

The value of a voxel is its class id, or the id of its object. A mask (z, y, x) is stored with x
fastest, so that voxel (i, j, k) of NIfTI is label (k, j, i). The names and colours of the classes
are in a label description of ITK-SNAP beside the mask.

A file in gzip is written from front to back, and a plane of the volume belongs to many tiles. So a
block is one plane of one tile; all blocks go to a temporary file, and come back in the order of the
mask, one row of tiles at a time.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.masks.nifti.header import header
from maskloom.segcore.masks.planes import collected, plane_blocks
from maskloom.segcore.masks.protocol import MASKS, EncodedBlock, PublishedMask

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Store

_LEVEL = 4
"""Of gzip: on labels half the size of level 1 at half its speed; level 6 is five times slower on
noisy ones.
"""
_GZIP = 31
"""zlib's number for a file of gzip; its header has no time and no name."""
_IN_MEMORY = 2**24
"""Bytes of blocks that are kept in memory instead of a temporary file."""


@dataclass(frozen=True, slots=True)
class NiftiMasks:
    """NIfTI in gzip with the affine of the source, and a label description of ITK-SNAP."""

    suffix: str = ".nii.gz"
    beside: tuple[str, ...] = (".txt",)
    most_objects: int = 2**32 - 1

    def encode(
        self,
        labels: NDArray[np.integer],
        tile: Tile,
        spec: RasterSpec,
        tile_shape: Shape,  # noqa: ARG002  the protocol has it
    ) -> list[EncodedBlock]:
        """The planes of a tile's core, compressed; see `MaskWriter.encode`."""
        return plane_blocks(labels, tile, spec)

    def publish(
        self,
        store: Store,
        name: str,
        blocks: Iterable[EncodedBlock],
        spec: RasterSpec,
        classes: ClassTable,
        tile_shape: Shape,
    ) -> PublishedMask:
        """Write the volume plane by plane; see `MaskWriter.publish` and `collected`."""
        with collected(blocks, spec, classes, tile_shape) as planes:
            dtype = planes.dtype
            greatest = 0 if dtype == np.uint32 else len(classes.names) - 1
            packer = zlib.compressobj(_LEVEL, wbits=_GZIP)
            with store.writing(name) as out:
                out.write(packer.compress(header(spec.shape, dtype.name, spec.space, greatest)))
                for rows in planes.rows(dtype):
                    out.write(packer.compress(rows.data))
                out.write(packer.flush())
        files = {"": out.artefact}
        if dtype != np.uint32:
            [ending] = self.beside
            files[ending] = store.publish(name + ending, _label_description(classes).encode())
        return PublishedMask(files)


MASKS.register("nifti")(NiftiMasks())


def _label_description(classes: ClassTable) -> str:
    """A label description of ITK-SNAP: number, red, green, blue, opacity, shown in slices, shown in
    3-D, name. The background of viewers, label 0, is transparent, and so is no data.
    """
    lines = ["# IDX -R- -G- -B- -A- VIS MSH LABEL"]
    for number, (name, colour) in enumerate(zip(classes.names, classes.colours, strict=True)):
        shown = int(number > 0)
        text = name.replace('"', "'").replace("\n", " ")
        lines.append(f'{number} {" ".join(map(str, colour))} {shown} {shown} {shown} "{text}"')
    lines.append(f'{classes.nodata} 0 0 0 0 0 0 "no data"')
    return "\n".join([*lines, ""])
