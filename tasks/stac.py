"""A static STAC collection of an output: an item for each image that is done.

Items are written one by one and the collection last, in one step, so that a reader finds only items
that are there. Memory does not grow with the number of images, but for their names.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formats import describe
from maskloom.segcore.formats.dicom.grouping import is_series
from maskloom.segcore.formats.stac.documents import SUFFIXES, is_feature
from maskloom.segcore.ground.lonlat import is_located
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.statistics.objects.antimeridian import polygon_of
from maskloom.segcore.storage.addresses import without_query
from maskloom.segcore.storage.store import Store
from maskloom.tasks.image_rows import crs_name

if TYPE_CHECKING:
    import pyarrow as pa

    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Listed, Publication
    from maskloom.tasks.output import Output

VERSION = "1.1.0"
FOLDER = "stac"
"""Below the output."""
_EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
}
_GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
_PARQUET = "application/vnd.apache.parquet"
_TYPES = {
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".dcm": "application/dicom",
    ".gz": "application/gzip",
    ".zarr": "application/vnd+zarr",
}
_FIRST = "1970-01-01T00:00:00Z"
"""Start of the time in which an image without a date may have been acquired."""
_SIDE = 16
"""Vertices along each side of a footprint, whose straight lines are curved on the planet."""
_DECIMALS = 7
"""Of degrees: a centimetre."""
_AT_ONCE = 8
_NAME = re.compile(r"[^0-9A-Za-z_-]+")


@dataclass(frozen=True, slots=True)
class Written:
    """A collection as written."""

    location: str
    items: int
    unplaced: int
    """Items without a geometry, since their images have no place on the planet."""
    left_out: int
    """Images without a mask."""


@dataclass(slots=True)
class _Extent:
    """What the items cover."""

    boxes: list[tuple[float, float]] = field(default_factory=list)
    """West and east of each."""
    south: float = 90.0
    north: float = -90.0
    times: list[str] = field(default_factory=list)
    """The first and the last."""

    def add(self, item: Mapping[str, Any]) -> None:
        """Extend by an item."""
        if "bbox" in item:
            west, south, east, north = item["bbox"]
            self.boxes.append((west, east if east >= west else east + 360))
            self.south, self.north = min(self.south, south), max(self.north, north)
        if (when := item["properties"]["datetime"]) is not None:
            self.times = sorted([*self.times, when])
            self.times = [self.times[0], self.times[-1]]

    @property
    def bbox(self) -> list[float]:
        """The smallest box around all, across the antimeridian if that is shorter."""
        if not self.boxes:
            return [-180.0, -90.0, 180.0, 90.0]
        west, ends = np.array(sorted(self.boxes)).T
        east = np.maximum.accumulate(ends)
        gaps = np.append(west[1:] - east[:-1], west[0] + 360 - east[-1])
        widest = int(gaps.argmax())
        if gaps[widest] <= 0:
            return [-180.0, self.south, 180.0, self.north]
        first, last = west[(widest + 1) % len(west)], max(east[widest], east[-1] - 360)
        last = last - 360 if last > 180 else last
        return [float(first), self.south, float(last), self.north]


@dataclass(frozen=True, slots=True)
class _Target:
    """Where the collection is written, and what it links to."""

    output: Output
    store: Store
    folder: str
    """Below the store; empty, or it ends with a slash."""
    previews: frozenset[str]
    masks: Mapping[str, Listed]
    collection_id: str

    def name_of(self, image_id: str) -> str:
        """Name of an item below the folder."""
        return f"items/{image_id}.json"

    def href(self, name: str, start: str) -> str:
        """The address of a file of the output in the document `start`."""
        if self.store.root != self.output.store.root:
            return self.output.store.uri(name)
        return quote(posixpath.relpath(name, posixpath.dirname(f"{self.folder}{start}")))


def write_stac(output: Output, target: str | None = None) -> Written:
    """Write the collection into a folder; None: `stac` below the output. Raises `RecipeError` if
    no image is done, `DamagedRecord`, `StoreError`.
    """
    store = output.store if target is None else Store(target)
    root = output.store.root.rstrip("/").rpartition("/")[2]
    to = _Target(
        output,
        store,
        f"{FOLDER}/" if target is None else "",
        frozenset(name for name, _ in output.store.scanned("previews")),
        output.store.listed("masks"),
        _NAME.sub("-", root).strip("-") or "masks",
    )
    extent, written, unplaced, left_out = _Extent(), set[str](), 0, 0
    before = set(store.names(f"{to.folder}items", ".json"))
    with ThreadPoolExecutor(_AT_ONCE, "stac") as pool, store.writing(_collection_name(to)) as file:
        links = _Links(file, to.collection_id)
        for tables in output.by_file(areas=None, pictures=("image_id", "thumbnail")):
            jobs, failed = _jobs(to, tables)
            left_out += failed
            for item in pool.map(lambda job: _publish(*job), jobs):
                extent.add(item)
                unplaced += item["geometry"] is None
                written.add(f"{to.folder}{to.name_of(item['id'])}")
                links.add(f"./{quote(to.name_of(item['id']))}", item["id"])
        if not written:
            raise RecipeError(f"{output.store.root} has no mask yet: no image is done.")
        links.end(_rest_of_collection(to, extent, _tables(to)))
    for name in before - written:
        # Its image is no longer in the tables.
        store.remove(name)
    return Written(store.uri(_collection_name(to)), len(written), unplaced, left_out)


_Job = tuple[_Target, Mapping[str, Any], Sequence[Mapping[str, Any]], bytes | None]


def _jobs(to: _Target, tables: Mapping[str, pa.Table]) -> tuple[list[_Job], int]:
    """What makes the items of the images in a file, and the number of those without a mask."""
    rows = tables["images"].to_pylist()
    areas: dict[str, list[dict[str, Any]]] = {}
    for row in tables["areas"].to_pylist():
        areas.setdefault(row["image_id"], []).append(row)
    pictures = {row["image_id"]: row["thumbnail"] for row in tables["pictures"].to_pylist()}
    jobs: list[_Job] = [
        (to, row, areas.get(row["image_id"], ()), pictures.get(row["image_id"]))
        for row in rows
        if row["status"] == "ok"
    ]
    return jobs, len(rows) - len(jobs)


def _collection_name(to: _Target) -> str:
    return f"{to.folder}collection.json"


class _Links:
    """A collection whose links are written as they are found."""

    def __init__(self, file: Publication, identity: str) -> None:
        self.file = file
        head = {"type": "Collection", "stac_version": VERSION, "id": identity}
        root = {"rel": "root", "href": "./collection.json", "type": "application/json"}
        file.write(f'{json.dumps(head)[:-1]}, "links": [\n{json.dumps(root)}'.encode())

    def add(self, href: str, title: str) -> None:
        """Add an item."""
        link = {"rel": "item", "href": href, "type": "application/geo+json", "title": title}
        self.file.write(f",\n{json.dumps(link)}".encode())

    def end(self, rest: Mapping[str, Any]) -> None:
        """Write the other fields."""
        self.file.write(f"\n],\n{json.dumps(rest, indent=1)[1:]}\n".encode())


def _rest_of_collection(to: _Target, extent: _Extent, tables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stac_extensions": [],
        "title": f"Masks of {to.collection_id}",
        "description": "Segmented images: a mask and the areas of its classes for each image.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [extent.bbox]},
            "temporal": {"interval": [extent.times or [_FIRST, None]]},
        },
        "assets": tables,
    }


def _tables(to: _Target) -> dict[str, Any]:
    """The tables of the output as assets."""
    said = {
        "images": "One row for each image",
        "areas": "One row for each image and class",
        "objects": "One row for each object",
    }
    return {
        name: {
            "href": f"{to.href(f'tables/{name}', 'collection.json')}/",
            "type": _PARQUET,
            "title": f"{title}, in all Parquet files of the folder",
            "roles": ["data"],
        }
        for name, title in said.items()
        if to.output.store.names(f"tables/{name}", ".parquet")
    }


def _publish(
    to: _Target,
    row: Mapping[str, Any],
    areas: Sequence[Mapping[str, Any]],
    thumbnail: bytes | None,
) -> dict[str, Any]:
    """Write the item of an image."""
    if thumbnail:
        to.store.publish(f"{to.folder}{_thumbnail(row['image_id'])}", thumbnail)
    item = _item(to, row, areas, bool(thumbnail))
    name = f"{to.folder}{to.name_of(row['image_id'])}"
    to.store.publish(name, json.dumps(item, indent=1, allow_nan=False).encode())
    return item


def _thumbnail(image_id: str) -> str:
    return f"thumbnails/{image_id}.webp"


def _item(
    to: _Target,
    row: Mapping[str, Any],
    areas: Sequence[Mapping[str, Any]],
    has_thumbnail: bool,
) -> dict[str, Any]:
    name = to.name_of(row["image_id"])
    spec = describe(to.output.store.uri(row["mask_uri"]))
    up = "../" * name.count("/")
    link = {"href": f"{up}collection.json", "type": "application/json"}
    place, properties = _place(spec)
    assets = {"mask": _mask(to, row, spec, areas)}
    used = {key.partition(":")[0] for key in (*assets["mask"], *properties)}
    if (preview := f"previews/{row['image_id']}.png") in to.previews:
        assets["preview"] = _picture(to.href(preview, name), "image/png", "overview", "Preview")
    if has_thumbnail:
        href = quote(f"{up}{_thumbnail(row['image_id'])}")
        assets["thumbnail"] = _picture(href, "image/webp", "thumbnail", "Thumbnail")
    assets |= _source(row["uri"])
    return {
        "type": "Feature",
        "stac_version": VERSION,
        "stac_extensions": [uri for prefix, uri in _EXTENSIONS.items() if prefix in used],
        "id": row["image_id"],
        **place,
        "properties": {
            "title": row["image_id"],
            **_when(row.get("acquired"), to.masks.get(row["mask_uri"])),
            **properties,
            **_summed(areas),
            "maskloom:run_id": row["run_id"],
            "maskloom:unprocessed_pixels": row["unprocessed_pixels"],
            "maskloom:nodata_pixels": row["nodata_pixels"],
        },
        "links": [
            {"rel": "root", **link},
            {"rel": "parent", **link},
            {"rel": "collection", **link},
            *_origin(row["uri"]),
        ],
        "assets": assets,
        "collection": to.collection_id,
    }


def _place(spec: RasterSpec) -> tuple[dict[str, Any], dict[str, Any]]:
    """Geometry and bounds of an image, and the properties of its grid."""
    import shapely

    space, (height, width) = spec.space, spec.shape[-2:]
    if not is_located(space) or space.affine is None:
        return {"geometry": None}, {}
    geometry, bounds = polygon_of([[_ring(height, width)]], space)
    code = crs_name(space.crs) or ""
    properties = {
        "proj:shape": [height, width],
        "proj:transform": list(space.affine),
        **({"proj:code": code} if _is_code(code) else {"proj:wkt2": space.crs}),
    }
    if geometry is None:
        return {"geometry": None}, properties
    rounded = shapely.transform(geometry, lambda points: np.round(points, _DECIMALS))
    box = [round(each, _DECIMALS) for each in bounds]
    return {"geometry": _geojson(rounded), "bbox": box}, properties


def _is_code(text: str) -> bool:
    return re.fullmatch(r"[A-Z]+:\w+", text) is not None


def _ring(height: int, width: int) -> Any:
    """The outline of an image in corners of pixels (column, row), with vertices along its sides."""
    across = np.unique(np.linspace(0, width, _SIDE + 1).astype(np.int64))
    down = np.unique(np.linspace(0, height, _SIDE + 1).astype(np.int64))
    top = np.stack([across, np.zeros_like(across)], axis=1)
    right = np.stack([np.full_like(down, width), down], axis=1)
    bottom = np.stack([across[::-1], np.full_like(across, height)], axis=1)
    left = np.stack([np.zeros_like(down), down[::-1]], axis=1)
    return np.concatenate([side[:-1] for side in (top, right, bottom, left)])


def _geojson(geometry: Any) -> dict[str, Any]:
    """A geometry as GeoJSON, with exteriors counterclockwise (RFC 7946)."""
    import shapely

    said: dict[str, Any] = json.loads(shapely.to_geojson(shapely.orient_polygons(geometry)))
    return said


def _when(acquired: datetime | None, mask: Listed | None) -> dict[str, Any]:
    """The date of an image, or the time in which it must have been acquired: before its mask was
    written.
    """
    if acquired is not None:
        return {"datetime": acquired.astimezone(UTC).replace(tzinfo=None).isoformat() + "Z"}
    written = datetime.now(UTC)
    if mask is not None and mask.modified is not None:
        written = datetime.fromtimestamp(mask.modified, UTC)
    return {
        "datetime": None,
        "start_datetime": _FIRST,
        "end_datetime": written.strftime("%Y-%m-%dT%H:%M:%SZ"),
    }


def _summed(areas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The areas of the classes, by name."""
    if not areas:
        return {}
    return {
        "maskloom:area": {each["class_name"]: each["area"] for each in areas},
        "maskloom:area_unit": areas[0]["area_unit"],
        "maskloom:fraction": {each["class_name"]: each["fraction"] for each in areas},
    }


def _mask(
    to: _Target,
    row: Mapping[str, Any],
    spec: RasterSpec,
    areas: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    name, is_objects = row["mask_uri"], holds_object_ids(spec)
    found: dict[str, Any] = {
        "href": to.href(name, to.name_of(row["image_id"])),
        "type": _type_of(name, spec),
        "title": "Ids of objects" if is_objects else "Classes",
        "roles": ["data"],
    }
    if name in to.masks:
        found["file:size"] = to.masks[name].size
        # A multihash: SHA-256, of 32 bytes.
        found["file:checksum"] = f"1220{row['mask_sha256']}"
    if spec.nodata is not None and not is_objects:
        found["nodata"] = int(spec.nodata)
    if not is_objects and areas:
        found["classification:classes"] = _classes(areas)
    return found


def _classes(areas: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    ordered = sorted(areas, key=lambda row: int(row["class_id"]))
    table = ClassTable.of(tuple(row["class_name"] for row in ordered))
    return [
        {
            "value": row["class_id"],
            "name": _NAME.sub("_", row["class_name"]).strip("_") or f"class_{row['class_id']}",
            "title": row["class_name"],
            "color_hint": (row.get("colour") or "#{:02x}{:02x}{:02x}".format(*own))[1:].upper(),
        }
        for row, own in zip(ordered, table.colours, strict=False)
    ]


def _type_of(name: str, spec: RasterSpec | None = None) -> str:
    """The media type of a file."""
    suffix = posixpath.splitext(without_query(name).lower())[1]
    if suffix == ".tif" and spec is not None and is_located(spec.space):
        return _GEOTIFF
    return _TYPES.get(suffix, "application/octet-stream")


def _picture(href: str, kind: str, role: str, title: str) -> dict[str, Any]:
    return {"href": href, "type": kind, "title": title, "roles": [role]}


def _source(uri: str) -> dict[str, Any]:
    """The image itself as an asset, where it is one file."""
    place = split_part(uri)[0]
    if is_series(uri) or is_feature(uri) or place.lower().endswith(SUFFIXES):
        return {}
    kind = _type_of(place)
    said = {} if kind == "application/octet-stream" else {"type": kind}
    return {"source": {"href": place, "title": "Image", "roles": ["source"], **said}}


def _origin(uri: str) -> list[dict[str, str]]:
    """The item from which an image was read."""
    if is_feature(uri) or not uri.lower().endswith(SUFFIXES):
        return []
    return [{"rel": "derived_from", "href": uri, "type": "application/geo+json"}]
