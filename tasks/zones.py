"""Zones of a run: the user's file of polygons is looked at before any work, and prepared once for
all workers, as a file with a spatial index in the output.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import shapely

from maskloom.segcore.annotations.polygons.files import VectorFile
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.statistics.zones import NUMBER, TYPES, Zones
from maskloom.segcore.storage.filesystems import filesystem, store_errors
from maskloom.segcore.storage.local_copies import local_copy
from maskloom.segcore.storage.records import read_table

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.storage.store import Store

FOLDER = "runs/zones"
_WIDEST = 180.0
_CHUNK = 2**24


@dataclass(frozen=True, slots=True)
class ZonesFile:
    """What a recipe says about zones."""

    file: str
    layer: str = ""
    """Layer of a file with several."""
    attributes: tuple[str, ...] | None = None
    """Attributes that the table carries. None: all."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What was found while zones were prepared."""

    zones: int
    repaired: int
    """Invalid polygons that were made valid."""
    empty: int
    """Features without an area, which are left out."""

    @property
    def notes(self) -> list[str]:
        """Lines for users."""
        found = []
        if self.repaired:
            found.append(f"zones: {self.repaired} of {self.zones} polygons are invalid; repaired")
        if self.empty:
            found.append(f"zones: {self.empty} of {self.zones} features have no area; left out")
        return found


def described(wanted: ZonesFile, output: str) -> Zones:
    """The statistic for a file of zones. Raises `RecipeError` if the file is no file of polygons,
    has no CRS or lacks an attribute, and `StoreError`.
    """
    from pyproj import CRS

    _require_exactextract()
    with VectorFile(wanted.file, wanted.layer) as file:
        layer = file.describe()
        if layer.crs is None:
            raise RecipeError(
                f"zones: {layer.location} states no CRS, so the place of its polygons is unknown. "
                "Write it with one (ogr2ogr -a_srs)."
            )
        for name in wanted.attributes or ():
            layer.require(name, "zones.attributes")
        names = layer.columns if wanted.attributes is None else wanted.attributes
    kind_of = dict(zip(layer.columns, layer.kinds, strict=True))
    digest = _sha256(wanted.file)
    name = f"{output.rstrip('/')}/{FOLDER}/{digest[:16]}.fgb"
    carried = tuple((each, kind_of[each]) for each in names)
    return Zones(name, digest, CRS.from_user_input(layer.crs).to_wkt(), carried)


def prepare(zones: Zones, wanted: ZonesFile, store: Store) -> Prepared | None:
    """Write the prepared file into the output. None: it is there. Raises as `described`."""
    import pyogrio

    name = f"{FOLDER}/{zones.file.rpartition('/')[2]}"
    if store.exists(name):
        return None
    with tempfile.TemporaryDirectory(prefix="maskloom-") as folder:
        path = Path(folder) / "zones.fgb"
        batches = _Batches(zones, wanted)
        pyogrio.write_arrow(
            pa.RecordBatchReader.from_batches(batches.schema, batches.read()),
            path,
            driver="FlatGeobuf",
            geometry_name="geometry",
            geometry_type="Unknown",
            crs=zones.crs,
            SPATIAL_INDEX="YES",
        )
        if not batches.kept:
            raise RecipeError(f"zones: {wanted.file} has no polygon.")
        with path.open("rb") as source, store.writing(name) as out:
            while chunk := source.read(_CHUNK):
                out.write(chunk)
    return Prepared(batches.kept, batches.repaired, batches.empty)


def outside(zones: Zones, store: Store) -> tuple[int, int]:
    """How many of the zones have no row in the output, and how many there are. Raises
    `StoreError`.
    """
    import pyogrio

    path = local_copy(zones.file, zones.sha256)
    number = int(pyogrio.read_info(path)["features"])
    seen = set[int]()
    for name in store.names(f"tables/{zones.table}", ".parquet"):
        seen.update(read_table(store, name, ["zone"])["zone"].unique().to_pylist())
    return number - len(seen), number


class _Batches:
    """The features of a file as they are prepared, in batches; counts them on the way."""

    def __init__(self, zones: Zones, wanted: ZonesFile) -> None:
        from pyproj import CRS

        self.zones, self.wanted = zones, wanted
        self.degrees = CRS.from_user_input(zones.crs).is_geographic
        self.kept = self.repaired = self.empty = 0
        self.schema = pa.schema(
            [
                pa.field(NUMBER, pa.int64()),
                *(pa.field(name, TYPES[kind]) for name, kind in zones.attributes),
                pa.field("geometry", pa.binary(), metadata={"ARROW:extension:name": "ogc.wkb"}),
            ]
        )

    def read(self) -> Iterator[pa.RecordBatch]:
        """Batches of the zones with an area; what was repaired or left out is counted."""
        names = tuple(name for name, _ in self.zones.attributes)
        number = 0
        with VectorFile(self.wanted.file, self.wanted.layer) as file:
            for geometries, columns in file.features(names):
                polygons = self._polygons(geometries)
                numbers = np.arange(number, number + len(polygons))
                number += len(polygons)
                chosen = np.flatnonzero([each is not None for each in polygons])
                self.kept += len(chosen)
                self.empty += len(polygons) - len(chosen)
                held = [pa.array(numbers[chosen])]
                for (_, kind), column in zip(self.zones.attributes, columns, strict=True):
                    values = [column[i] for i in chosen]
                    if kind == "string":
                        values = [None if each is None else str(each) for each in values]
                    held.append(pa.array(values, TYPES[kind]))
                held.append(pa.array([shapely.to_wkb(polygons[i]) for i in chosen], pa.binary()))
                yield pa.record_batch(held, schema=self.schema)

    def _polygons(self, geometries: pa.Array) -> list[Any]:
        """The polygons, valid; None for what has no area."""
        found: list[Any] = []
        for content in geometries.to_pylist():
            shape = None if content is None else shapely.from_wkb(content)
            if shape is not None and self.degrees:
                shape = _unrolled(shape)
            if shape is not None and not shape.is_valid:
                shape = _areas(shapely.make_valid(shape))
                self.repaired += 1
            found.append(shape if shape is not None and shape.area else None)
        return found


def _areas(shape: Any) -> Any:
    """The polygons of a geometry that may hold lines and points too."""
    parts = [each for each in shapely.get_parts(shape) if each.area]
    return shapely.union_all(parts)


def _unrolled(shape: Any) -> Any:
    """A polygon across the antimeridian whose longitudes jump from one end to the other, with
    longitudes beyond 180 instead. Polygons that are cut there (RFC 7946) have no such jump.
    """
    left, _, right, _ = shape.bounds or (0, 0, 0, 0)
    if right - left <= _WIDEST or right - left >= 2 * _WIDEST:
        return shape

    def unrolled(ring: Any) -> NDArray[np.float64]:
        xy = shapely.get_coordinates(ring)
        return np.column_stack([np.unwrap(xy[:, 0], period=2 * _WIDEST), xy[:, 1]])

    parts = [
        shapely.Polygon(unrolled(part.exterior), [unrolled(hole) for hole in part.interiors])
        for part in shapely.get_parts(shape)
        if part.geom_type == "Polygon"
    ]
    return shapely.MultiPolygon(parts) if len(parts) > 1 else parts[0] if parts else shape


def _sha256(address: str) -> str:
    fs, path = filesystem(address)
    found = hashlib.sha256()
    with store_errors(f"read {address}"), fs.open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            found.update(chunk)
    return found.hexdigest()


def _require_exactextract() -> None:
    try:
        import exactextract  # noqa: F401
        import pyogrio  # noqa: F401
    except ImportError as error:
        raise RecipeError(
            "zones: they need the extra 'vectors': pip install 'maskloom[vectors]'."
        ) from error
