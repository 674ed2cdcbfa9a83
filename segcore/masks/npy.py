"""Masks as NumPy arrays, for images and volumes that were read from such arrays.

The value of a pixel is its class id, or the id of its object. The names of the classes are in a
JSON file beside the mask.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.masks.planes import collected, plane_blocks
from maskloom.segcore.masks.protocol import (
    MASKS,
    EncodedBlock,
    PublishedMask,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

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
        """Write the array plane by plane, and beside a mask of classes their names; see
        `MaskWriter.publish` and `collected`.
        """
        with collected(blocks, spec, classes, tile_shape) as planes, store.writing(name) as out:
            dtype = planes.dtype
            np.lib.format.write_array_header_1_0(
                out, {"descr": dtype.str, "fortran_order": False, "shape": spec.shape}
            )
            for rows in planes.rows(dtype):
                out.write(rows.data)
        files = {"": out.artefact}
        if dtype != np.uint32:
            [ending] = self.beside
            names = {str(i): each for i, each in enumerate(classes.names)}
            said = {"classes": names, "nodata": classes.nodata}
            files[ending] = store.publish(name + ending, json.dumps(said, indent=1).encode())
        return PublishedMask(files)


MASKS.register("npy")(NpyMasks())
