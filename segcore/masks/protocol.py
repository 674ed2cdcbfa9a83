"""Mask writers: how labels of tiles become the files of a mask.

A mask is written in two steps so that many processes can work on one. `MaskWriter.encode` turns the
labels of one tile into finished, compressed `EncodedBlock`s, wherever the tile was segmented;
`MaskWriter.publish` puts the blocks of all tiles into a store without seeing a whole image: as one
file, with small ones beside it, or as a folder.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from maskloom.segcore.registry import Registry
from maskloom.segcore.storage.store import combined_digest

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Artefact, Store


@dataclass(frozen=True, slots=True)
class EncodedBlock:
    """A finished part of a mask, and its place."""

    level: int
    """0: full resolution; each further level halves it."""
    index: Shape
    """Position among the blocks of its level, along each axis."""
    payload: bytes
    """Compressed labels, as the writer puts them into its file."""


@dataclass(frozen=True, slots=True)
class PublishedMask:
    """The files of a mask."""

    files: Mapping[str, Artefact]
    """By what their names add to the mask's name: nothing for a mask of one file, `/zarr.json` for
    a file of a folder, `.aux.xml` for a file beside the mask.
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
        """What names of files beside a mask add to its name."""
        ...

    @property
    def most_objects(self) -> int:
        """Number of objects that a mask can tell apart."""
        ...

    def encode(
        self, labels: NDArray[np.integer], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """The finished blocks of the mask that the core of one tile holds.

        `labels` covers the core; `uint32` is for ids of objects alone. Cores start at multiples of
        `tile_shape`, so no block ever belongs to two tiles. Raises `ValueError` where masks cannot
        be cut into such tiles.
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

        Each file is called `name` and what it adds to it (`PublishedMask.files`). Memory does not
        grow with the image, unless its reader holds it whole too. Raises `RunError` where a block
        is missing or does not belong to the image, and `FormatError` where the image has more
        objects than such a mask can tell apart.
        """
        ...


MASKS: Registry[MaskWriter] = Registry("mask writer", __package__)
