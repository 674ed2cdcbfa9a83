"""A static STAC collection of an output: an item for each image that is done.

Items are written one by one and the collection last, in one step, so that a reader finds only items
that are there. Memory does not grow with the number of images, but for their names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.storage.store import Store
from maskloom.tasks.stac_items import FIRST, NAME, VERSION, Target, item_of

if TYPE_CHECKING:
    import pyarrow as pa

    from maskloom.segcore.storage.store import Publication
    from maskloom.tasks.output import Output

FOLDER = "stac"
"""Below the output."""
_PARQUET = "application/vnd.apache.parquet"
_AT_ONCE = 8


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


def write_stac(output: Output, target: str | None = None) -> Written:
    """Write the collection into a folder; None: `stac` below the output. Raises `RecipeError` if
    no image is done, `DamagedRecord`, `StoreError`.
    """
    store = output.store if target is None else Store(target)
    root = output.store.root.rstrip("/").rpartition("/")[2]
    to = Target(
        output,
        store,
        f"{FOLDER}/" if target is None else "",
        frozenset(name for name, _ in output.store.scanned("previews")),
        output.store.listed("masks"),
        NAME.sub("-", root).strip("-") or "masks",
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


_Job = tuple[Target, Mapping[str, Any], Sequence[Mapping[str, Any]], bytes | None]


def _jobs(to: Target, tables: Mapping[str, pa.Table]) -> tuple[list[_Job], int]:
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


def _collection_name(to: Target) -> str:
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


def _rest_of_collection(to: Target, extent: _Extent, tables: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "stac_extensions": [],
        "title": f"Masks of {to.collection_id}",
        "description": "Segmented images: a mask and the areas of its classes for each image.",
        "license": "other",
        "extent": {
            "spatial": {"bbox": [extent.bbox]},
            "temporal": {"interval": [extent.times or [FIRST, None]]},
        },
        "assets": tables,
    }


def _tables(to: Target) -> dict[str, Any]:
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
    to: Target,
    row: Mapping[str, Any],
    areas: Sequence[Mapping[str, Any]],
    thumbnail: bytes | None,
) -> dict[str, Any]:
    """Write the item of an image."""
    if thumbnail:
        to.store.publish(f"{to.folder}{to.thumbnail_of(row['image_id'])}", thumbnail)
    item = item_of(to, row, areas, bool(thumbnail))
    name = f"{to.folder}{to.name_of(row['image_id'])}"
    to.store.publish(name, json.dumps(item, indent=1, allow_nan=False).encode())
    return item
