"""Items of STAC: an image that is done, with its mask, pictures and areas."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from maskloom.segcore.annotations.masks import holds_object_ids
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
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Listed
    from maskloom.tasks.output import Output

VERSION = "1.1.0"
_EXTENSIONS = {
    "proj": "https://stac-extensions.github.io/projection/v2.0.0/schema.json",
    "classification": "https://stac-extensions.github.io/classification/v2.0.0/schema.json",
    "file": "https://stac-extensions.github.io/file/v2.1.0/schema.json",
}
_GEOTIFF = "image/tiff; application=geotiff; profile=cloud-optimized"
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
FIRST = "1970-01-01T00:00:00Z"
"""Start of the time in which an image without a date may have been acquired."""
_SIDE = 16
"""Vertices along each side of a footprint, whose straight lines are curved on the planet."""
_DECIMALS = 7
"""Of degrees: a centimetre."""
NAME = re.compile(r"[^0-9A-Za-z_-]+")
"""What ids of collections and names of classes may not contain."""


@dataclass(frozen=True, slots=True)
class Target:
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

    def thumbnail_of(self, image_id: str) -> str:
        """Name of an item's thumbnail below the folder."""
        return f"thumbnails/{image_id}.webp"

    def href(self, name: str, start: str) -> str:
        """The address of a file of the output in the document `start`."""
        if self.store.root != self.output.store.root:
            return self.output.store.uri(name)
        return quote(posixpath.relpath(name, posixpath.dirname(f"{self.folder}{start}")))


def item_of(
    to: Target,
    row: Mapping[str, Any],
    areas: Sequence[Mapping[str, Any]],
    has_thumbnail: bool,
) -> dict[str, Any]:
    """The item of an image, from its row in the table `images` and its rows in `areas`."""
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
        href = quote(f"{up}{to.thumbnail_of(row['image_id'])}")
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
        "start_datetime": FIRST,
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
    to: Target,
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
            "name": NAME.sub("_", row["class_name"]).strip("_") or f"class_{row['class_id']}",
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
