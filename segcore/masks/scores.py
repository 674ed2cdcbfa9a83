"""Files with the score of each class, below `scores/`: a Cloud Optimized GeoTIFF for an image, an
OME-Zarr for a volume, whatever their formats.

They are written as masks are: tiles are encoded on the workers, and the blocks of all tiles put
together without holding the image.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks.cog.scores import CogScores
from maskloom.segcore.masks.ome_zarr.chunks import AT_ONCE, Folder, Spool, compress
from maskloom.segcore.masks.ome_zarr.metadata import array_3, multiscale
from maskloom.segcore.masks.ome_zarr.pyramid import Pyramid, chunk_shape
from maskloom.segcore.masks.protocol import EncodedBlock, PublishedMask
from maskloom.segcore.masks.quantised import MOST, NODATA
from maskloom.segcore.raster.colours import hexadecimal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.classes import ClassTable
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Store

FOLDER = "scores"
"""The folder of the files below an output."""


class ScoreWriter(Protocol):
    """A format of scores."""

    @property
    def suffix(self) -> str:
        """Suffix of the files' names, with its dot."""
        ...

    def encode(
        self, values: NDArray[np.uint8], tile: Tile, spec: RasterSpec, tile_shape: Shape
    ) -> list[EncodedBlock]:
        """The finished blocks of one tile; see `MaskWriter.encode`. `values` (class, y, x) or
        (class, z, y, x) covers its core.
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
        """Write the scores of a whole image; see `MaskWriter.publish`."""
        ...


@dataclass(frozen=True, slots=True)
class ZarrScores:
    """OME-Zarr 0.5 of one level with the channels of a volume: each class in chunks of its own."""

    suffix: str = ".zarr"

    def encode(
        self,
        values: NDArray[np.uint8],
        tile: Tile,
        spec: RasterSpec,  # noqa: ARG002
        tile_shape: Shape,
    ) -> list[EncodedBlock]:
        """See `ScoreWriter.encode`."""
        chunk = chunk_shape(tile_shape)
        first = [start // n for start, n in zip(tile.core.start, chunk, strict=True)]
        return [
            EncodedBlock(
                0,
                (number, *(a + b for a, b in zip(first, part.index, strict=True))),
                compress(of_class[part.core.slices], chunk),
            )
            for number, of_class in enumerate(values)
            for part in Grid(of_class.shape, chunk)
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
        """A folder of chunks; see `ScoreWriter.publish`."""
        chunk = (1, *chunk_shape(tile_shape))
        pyramid = Pyramid(chunk, (1,) * len(chunk), ((len(classes.names), *spec.shape),))
        with tempfile.TemporaryFile() as file, ThreadPoolExecutor(AT_ONCE, "chunk") as pool:
            folder = Folder(store, name, spec, pyramid, 3, Spool(file), 1, pool)
            for block in blocks:
                folder.add(block)
            folder.require(0)
            for ending, content in _metadata(pyramid, classes, spec).items():
                folder.publish(ending, json.dumps(content, indent=1).encode())
            return PublishedMask(folder.files())


_COG, _ZARR = CogScores(), ZarrScores()


def score_writer(spec: RasterSpec) -> ScoreWriter:
    """The writer for an image or a volume."""
    return _COG if len(spec.shape) == len("yx") else _ZARR


def score_names(image_id: str) -> tuple[str, ...]:
    """Names under which any writer writes the scores of an image."""
    return tuple(f"{FOLDER}/{image_id}{writer.suffix}" for writer in (_COG, _ZARR))


def _metadata(pyramid: Pyramid, classes: ClassTable, spec: RasterSpec) -> dict[str, Any]:
    """The metadata files of the group and its array, by their endings."""
    spatial = Pyramid(pyramid.chunk[1:], pyramid.factors[1:], (spec.shape,))
    image = multiscale(spatial, spec)
    (level,) = image["datasets"]
    scale, translation = level["coordinateTransformations"]
    level["coordinateTransformations"] = [
        {**scale, "scale": [1.0, *scale["scale"]]},
        {**translation, "translation": [0.0, *translation["translation"]]},
    ]
    image |= {"type": "probability", "axes": [{"name": "c", "type": "channel"}, *image["axes"]]}
    window = {"min": 0, "max": MOST, "start": 0, "end": MOST}
    channels = [
        {"label": name, "color": hexadecimal(colour)[1:], "active": True, "window": window}
        for name, colour in zip(classes.names, classes.colours, strict=True)
    ]
    ome = {"version": "0.5", "multiscales": [image], "omero": {"channels": channels}}
    array = {
        **array_3(pyramid.shapes[0], pyramid.chunk, "uint8", spec),
        "dimension_names": ["c", *spec.space.axes],
        # With the conventions of CF, by which xarray and others read probabilities.
        "attributes": {"classes": classes.names, "scale_factor": 1 / MOST, "_FillValue": NODATA},
    }
    return {
        "/zarr.json": {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}},
        "/0/zarr.json": array,
    }
