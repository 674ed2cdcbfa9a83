"""Mask writers: how labels of tiles become the files of a mask.

A mask is written in two steps so that many processes can work on one. `MaskWriter.encode` turns the
labels of one tile into compressed `EncodedBlock`s, on the worker that segmented it;
`MaskWriter.publish` writes the blocks of all tiles to a store without holding the whole image: as
one file, with small ones beside it, or as a folder.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

from maskloom.segcore.errors import RunError
from maskloom.segcore.registry import Registry
from maskloom.segcore.storage.store import combined_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Artefact, Store

LABEL_TYPES = ("uint8", "uint16", "uint32")
"""Types of labels that masks take."""


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """A finished part of a mask and its position."""

    level: int
    """0: full resolution; each further level halves it."""
    index: Shape
    """Position among the blocks of its level, along each axis."""
    payload: bytes
    """Compressed labels, as they are in the file."""


@dataclass(frozen=True, slots=True)
class PublishedMask:
    """The files of a mask."""

    files: Mapping[str, Artefact]
    """By the ending of its name, as `name_of` reads it: empty for a mask of one file, `/zarr.json`
    for a file of a folder, `.aux.xml` or `*.qml` for files beside the mask.
    """

    @property
    def sha256(self) -> str:
        """Digest of the mask without the files beside it; see `combined_digest`."""
        return combined_digest(
            {
                ending.removeprefix("/"): artefact.sha256
                for ending, artefact in self.files.items()
                if ending == "" or ending.startswith("/")
            }
        )


class MaskWriter(Protocol):
    """A format of masks: one file in `segcore/masks`, registered in `MASKS`."""

    @property
    def suffix(self) -> str:
        """Suffix of the masks' names, with its dot."""
        ...

    @property
    def beside(self) -> tuple[str, ...]:
        """Endings of the names of files beside a mask, as `name_of` reads them."""
        ...

    @property
    def most_objects(self) -> int:
        """Largest number of objects in a mask."""
        ...

    def encode(
        self, labels: NDArray[np.integer], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """The finished blocks of the mask in the core of one tile.

        `labels` (y, x) or (z, y, x) covers the core; `uint32` is for ids of objects only. Cores
        start at multiples of `tile_shape`, so no block belongs to two tiles. Raises `ValueError` if
        masks cannot be cut into such tiles.
        """
        ...

    def publish(
        self,
        store: Store,
        name: str,
        blocks: Iterable[EncodedBlock],
        spec: RasterSpec,
        classes: ClassTable,
        tile_shape: Shape,
    ) -> PublishedMask:
        """Write the mask of a whole image from the blocks of all its tiles, given in any order.

        Each file is called `name_of(name, ending)` (`PublishedMask.files`). Memory does not grow
        with the image, unless its reader holds it in memory too. Raises `RunError` if a block is
        missing or does not belong to the image, and `FormatError` if the image has more than
        `most_objects` objects.
        """
        ...


MASKS: Registry[MaskWriter] = Registry("mask writer", __package__)


def name_of(mask: str, ending: str) -> str:
    """The name of a file of a mask. The ending follows the name of the mask; if it begins with `*`,
    it is in place of the last suffix.

    >>> name_of("masks/a.ome.tif", ".aux.xml"), name_of("masks/a.ome.tif", "*.qml")
    ('masks/a.ome.tif.aux.xml', 'masks/a.ome.qml')
    """
    if ending.startswith("*"):
        return str(PurePosixPath(mask).with_suffix(ending[1:]))
    return mask + ending


def require_label_type(labels: NDArray[np.integer], tile: Tile, spec: RasterSpec) -> None:
    """Raise `ValueError` for labels of another type than `LABEL_TYPES`."""
    if labels.dtype.name not in LABEL_TYPES:
        raise ValueError(
            f"Labels must be {', '.join(LABEL_TYPES)}; tile {tile.index} of {spec.location} has "
            f"{labels.dtype}."
        )


def require_type_of_classes(dtype: str, classes: ClassTable, spec: RasterSpec) -> None:
    """Raise `RunError` unless all blocks of a mask are ids of objects, or of the type that its
    classes need.
    """
    if dtype not in ("uint32", classes.dtype):
        raise RunError(
            f"The mask of {spec.location} came as {dtype}; its {len(classes.names)} classes ask "
            f"for {classes.dtype}."
        )


def compressed_block(labels: NDArray[np.integer], tile: Tile, spec: RasterSpec) -> EncodedBlock:
    """The labels of a tile's core as one block compressed by zlib, for writers that hold the whole
    mask. Raises `ValueError` for labels of another type than `LABEL_TYPES`.
    """
    require_label_type(labels, tile, spec)
    return EncodedBlock(0, tile.index, zlib.compress(labels.tobytes(), 1))
