"""Images and volumes of objects in memory, measured under any tiling as the pipeline does it."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import shapely

from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.ground.space import Space
from maskloom.segcore.models.fragments import TileBoundary
from maskloom.segcore.objects.faces import Faces
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.statistics.objects.bands import BandSums, observe_bands
from maskloom.segcore.statistics.objects.measures import Measures
from maskloom.segcore.statistics.objects.table import TileObjects, finish, measure
from maskloom.segcore.storage.packing import pack, unpack


def boundary_bytes(boundary: TileBoundary) -> int:
    """Bytes of the arrays of a boundary, its faces included."""
    faces = boundary["faces"].slabs if "faces" in boundary else ()
    arrays = [np.asarray(each) for each in boundary.values() if not isinstance(each, Faces | list)]
    lists = [array for each in boundary.values() if isinstance(each, list) for array in each]
    return sum(array.nbytes for array in (*arrays, *lists, *faces))


@dataclass(frozen=True)
class ObjectImage:
    ids: np.ndarray
    """Final id of each pixel, 0 background."""
    pixels: np.ndarray
    """(y, x, band), or (z, y, x, band)"""
    space: Space = field(default_factory=Space)

    @property
    def spec(self) -> RasterSpec:
        channels = self.pixels.shape[-1]
        bands = tuple(range(1, channels + 1))
        return RasterSpec(
            "memory://objects",
            "memory",
            self.ids.shape,
            bands,
            str(self.pixels.dtype),
            self.ids.shape,
            "1",
            channels,
            space=self.space,
        )

    def tile_objects(self, tile: Tile, numbers: np.random.Generator | None = None) -> TileObjects:
        """What is known of a tile in the end; bands come by way of fragments, of which an object
        may have several.
        """
        core = self.ids[tile.core.slices]
        ring = np.pad(self.ids, 2)[
            Box(tile.core.start, tuple(n + 4 for n in tile.core.stop)).slices
        ]
        present = np.unique(ring[ring > 0])
        if numbers is not None:
            present = numbers.permutation(present)
        object_id = np.concatenate([[0], present]).astype(np.int64)
        local = np.zeros(int(self.ids.max(initial=0)) + 1, np.uint32)
        local[object_id] = np.arange(len(object_id))
        # Fragments: an object's pixels of even and odd rows, to have several of one object.
        rows = np.indices(core.shape)[0]
        fragments = np.where(core > 0, local[core] * 2 - rows % 2, 0).astype(np.uint32)
        sums = observe_bands(fragments, self.pixels[tile.core.slices], 2 * len(present))
        of_fragment = np.concatenate([[0], np.repeat(np.arange(1, len(object_id)), 2)])
        sums = unpack(BandSums, pack(sums)).sum_by(of_fragment, len(object_id))
        here = np.bincount(core.ravel(), minlength=len(local))
        everywhere = np.bincount(self.ids.ravel(), minlength=len(local))
        whole = (here == everywhere)[object_id]
        return TileObjects(
            local[ring], object_id, (object_id % 3).astype(np.int32), whole, sums, tile, self.spec
        )

    def table(
        self, tile: tuple[int, ...] | None = None, geometry: bool = True, seed: int | None = None
    ) -> pa.Table:
        """The table under a tiling: whole objects finished tile by tile, the others merged, through
        bytes and in any order.
        """
        names, bands = ("zero", "one", "two"), self.pixels.shape[-1]
        numbers = None if seed is None else np.random.default_rng(seed)
        finished, rest = [], []
        for each in Grid(self.ids.shape, tile or self.ids.shape):
            whole, part = _split(measure(self.tile_objects(each, numbers), geometry))
            finished.append(finish(whole, self.spec, names, bands))
            rest.append(unpack(Measures, pack(part)))
        if numbers is not None:
            rest = [rest[i] for i in numbers.permutation(len(rest))]
        half = len(rest) // 2
        merged = Measures.concatenate(rest[half:])
        if half:
            merged = Measures.concatenate(rest[:half]).merge(merged)
        return (
            pa.concat_tables([*finished, finish(merged, self.spec, names, bands)])
            .sort_by("object_id")
            .combine_chunks()
        )


def random_ids(
    shape: tuple[int, int], objects: int, coarse: int, generator: np.random.Generator
) -> np.ndarray:
    """Objects of random pixels, in blocks of `coarse`: torn, with holes, with corners that touch,
    and nested in one another.
    """
    blocks = generator.integers(0, objects + 1, [-(-n // coarse) for n in shape])
    return np.kron(blocks, np.ones((coarse, coarse), int))[: shape[0], : shape[1]]


def image_of(ids: np.ndarray, space: Space | None = None) -> ObjectImage:
    return ObjectImage(np.asarray(ids), np.zeros((*np.shape(ids), 0), np.uint8), space or Space())


def geometries(table: object) -> np.ndarray:
    return shapely.from_wkb(np.array(table.column("geometry").to_pylist(), object))


def parts(geometry: shapely.Geometry) -> list[shapely.Polygon]:
    return list(shapely.get_parts(geometry))


def check_rings(geometry: shapely.Geometry) -> None:
    assert shapely.is_valid(geometry), shapely.is_valid_reason(geometry)
    for polygon in parts(geometry):
        assert polygon.exterior.is_ccw
        assert not any(hole.is_ccw for hole in polygon.interiors)


def _split(measures: Measures) -> tuple[Measures, Measures]:
    return measures.split(measures.whole)
