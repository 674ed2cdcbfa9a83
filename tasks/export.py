"""Objects and class masks of an output as vectors for other programs.

Images are taken one after the other and features are written as they are made, so memory grows with
the outlines of one image. Outlines follow the edges of pixels exactly.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.ground.lonlat import is_located, to_lonlat, vertex_spacing
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.statistics.objects.outlines import Outlines, find_rings, trace_outlines
from maskloom.segcore.storage.store import Store

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.tasks.output import Layer, Output

Kind = Literal["geojson", "qupath", "coco"]
KINDS: tuple[Kind, ...] = ("geojson", "qupath", "coco")
_TILE = 2048
_RING = 2
_COCO_BITS = 5


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of a class."""

    class_id: int
    class_name: str
    colour: tuple[int, int, int]
    rings: tuple[NDArray[np.int64], ...]
    """Exterior and holes: (vertices, 2) columns and rows of corners of pixels."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    location: str
    images: int
    features: int
    passed_over: tuple[str, ...]
    """Images that have no outlines: volumes, failed ones, and masks of objects."""


def export(output: Output, kind: Kind, target: str | None) -> Exported:
    """Write the regions of all class masks. Raises `RecipeError` if the images do not go into one
    file, `StoreError`.
    """
    rows = output.images().to_pylist()
    done = [row for row in rows if row["status"] == "ok"]
    flat: list[dict[str, Any]] = []
    passed_over = [row["image_id"] for row in rows if row["status"] != "ok"]
    for row in done:
        spec = output.mask_spec(row["image_id"])
        usable = len(spec.shape) == len("yx") and not holds_object_ids(spec)
        (flat if usable else passed_over).append(row if usable else row["image_id"])
    if not flat:
        raise RecipeError(
            f"{output.store.root} has no class mask of an image; outlines of objects are in the "
            "column geometry of tables/objects, as GeoParquet."
        )
    if kind == "geojson":
        located = {row["crs"] is not None for row in flat}
        if len(located) > 1:
            raise RecipeError(
                "Some images have a CRS and others none: longitudes and pixels do not go into one "
                "file. Export with --to qupath, which writes a file per image, in pixels."
            )
    write = {"geojson": _geojson, "qupath": _qupath, "coco": _coco}[kind]
    store = output.store if target is None else Store(target)
    name, features = write(output, flat, store, "" if target else "export/")
    return Exported(store.uri(name), len(flat), features, tuple(passed_over))


def regions(output: Output, image_id: str, spacing: int | None = None) -> Iterator[Region]:
    """The connected parts (by sides of pixels) of the classes of an image's mask."""
    areas = output.areas(["class_id", "class_name", "colour"], of=[image_id]).to_pylist()
    names = {row["class_id"]: row["class_name"] for row in areas}
    known = {row["class_id"]: row.get("colour") for row in areas}
    ids = sorted(names)
    table = ClassTable.recorded([names[i] for i in ids], [known[i] for i in ids])
    with output.mask(image_id) as mask:
        step = spacing or vertex_spacing(mask.spec.space, mask.spec.shape)
        outlines = _traced(mask, max(names) + 1, step)
    drawn = np.flatnonzero(outlines.chains > 0)
    if not len(drawn):
        return
    rings = find_rings(outlines.take(drawn))
    parts = np.split(rings.corners, rings.offsets[1:-1])
    starts = [*np.flatnonzero(rings.exterior).tolist(), len(parts)]
    for start, stop in pairwise(starts):
        class_id = int(drawn[rings.owner[start]]) - 1
        yield Region(
            class_id,
            names[class_id],
            table.colours[ids.index(class_id)],
            tuple(parts[start:stop]),
        )


def _traced(mask: Layer, classes: int, spacing: int) -> Outlines:
    """The outlines of each class, row class_id + 1."""
    shape, found = mask.spec.shape, []
    for tile in Grid(shape, (_TILE, _TILE)):
        around = tile.core.grow((_RING, _RING))
        inside = around & Box.whole(shape)
        values, known = mask.read(inside)
        labels = np.zeros(around.shape, np.uint32)
        valid = known & (values < classes)
        labels[inside.relative_to(around).slices] = np.where(valid, values.astype(np.uint32) + 1, 0)
        found.append(trace_outlines(labels, classes + 1, tile.core.start, spacing))
    rows = classes + 1
    joined = Outlines.concatenate(found)
    order = np.arange(rows * len(found)).reshape(len(found), rows).T.ravel()
    return joined.take(order).grouped(np.arange(0, len(order), len(found)))


def _closed(points: NDArray[Any]) -> list[list[float]]:
    closed: list[list[float]] = np.concatenate([points, points[:1]]).tolist()
    return closed


def _geojson(
    output: Output, rows: list[dict[str, Any]], store: Store, folder: str
) -> tuple[str, int]:
    name = f"{folder}classes.geojson"
    with _collection(store, name) as add:
        count = 0
        for row in rows:
            space = output.mask_spec(row["image_id"]).space
            for region in regions(output, row["image_id"]):
                rings = [
                    _closed(np.stack(to_lonlat(space, *ring.T.astype(np.float64)), axis=1))
                    if is_located(space)
                    else _closed(ring)
                    for ring in region.rings
                ]
                said = {
                    "image_id": row["image_id"],
                    "class_id": region.class_id,
                    "class_name": region.class_name,
                }
                add({"type": "Feature", "geometry": _polygon(rings), "properties": said})
                count += 1
    return name, count


def _qupath(
    output: Output, rows: list[dict[str, Any]], store: Store, folder: str
) -> tuple[str, int]:
    total = 0
    for row in rows:
        image = row["image_id"]
        with _collection(store, f"{folder}qupath/{image}.geojson") as add:
            for number, region in enumerate(regions(output, image, 2**30)):
                kind = {"name": region.class_name, "color": list(region.colour)}
                add(
                    {
                        "type": "Feature",
                        "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{image}#{number}")),
                        "geometry": _polygon([_closed(ring) for ring in region.rings]),
                        "properties": {"objectType": "annotation", "classification": kind},
                    }
                )
                total += 1
    return f"{folder}qupath", total


def _coco(output: Output, rows: list[dict[str, Any]], store: Store, folder: str) -> tuple[str, int]:
    name, number = f"{folder}coco.json", 0
    names = sorted(
        set(
            zip(
                *(
                    output.areas(["class_id", "class_name"])[column].to_pylist()
                    for column in ("class_id", "class_name")
                ),
                strict=True,
            )
        )
    )
    ids = {each: i + 1 for i, each in enumerate(dict.fromkeys(each for _, each in names))}
    with store.writing(name) as file:
        images = [
            {"id": i, "file_name": row["uri"], "width": row["width"], "height": row["height"]}
            for i, row in enumerate(rows, 1)
        ]
        kinds = [{"id": i, "name": each} for each, i in ids.items()]
        head = {"images": images, "categories": kinds}
        file.write(f'{json.dumps(head)[:-1]}, "annotations": ['.encode())
        for image, row in enumerate(rows, 1):
            for region in regions(output, row["image_id"], 2**30):
                counts = run_lengths(region.rings, row["height"], row["width"])
                low, high = region.rings[0].min(axis=0), region.rings[0].max(axis=0)
                number += 1
                said = {
                    "id": number,
                    "image_id": image,
                    "category_id": ids[region.class_name],
                    "iscrowd": 0,
                    "area": int(counts[1::2].sum()),
                    "bbox": [*low.tolist(), *(high - low).tolist()],
                    "segmentation": {
                        "size": [row["height"], row["width"]],
                        "counts": compressed(counts),
                    },
                }
                file.write(("," if number > 1 else "").encode() + json.dumps(said).encode())
        file.write(b"]}")
    return name, number


def run_lengths(rings: tuple[NDArray[np.int64], ...], height: int, width: int) -> NDArray[np.int64]:
    """The lengths of runs outside and inside of a region, column by column, outside first."""
    places = []
    for ring in rings:
        x, y = ring.T
        after = np.roll(x, -1)
        level = np.flatnonzero(after != x)
        low, steps = np.minimum(x, after)[level], np.abs(after - x)[level]
        columns = np.repeat(low, steps) + _counted(steps)
        places.append(columns * height + np.repeat(y[level], steps))
    found, counts = np.unique(np.concatenate(places), return_counts=True)
    # Where one run ends and the next begins, nothing changes.
    changes = found[counts % 2 == 1]
    return np.diff(np.concatenate([[0], changes, [height * width]]))


def _counted(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1, ... for each of these numbers."""
    return np.asarray(np.arange(steps.sum()) - np.repeat(np.cumsum(steps) - steps, steps))


def compressed(counts: NDArray[np.int64]) -> str:
    """Run lengths as COCO writes them: from the fourth on the difference to the one before the
    last, in groups of five bits.
    """
    differences = counts.copy()
    differences[3:] -= counts[1:-2]
    letters = []
    for value in differences.tolist():
        more = True
        while more:
            low = value & 31
            value >>= _COCO_BITS  # noqa: PLW2901
            more = value != (-1 if low & 16 else 0)
            letters.append(chr((low | 32 if more else low) + 48))
    return "".join(letters)


def _polygon(rings: list[list[list[float]]]) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": rings}


@contextlib.contextmanager
def _collection(store: Store, name: str) -> Iterator[Callable[[dict[str, Any]], None]]:
    """A GeoJSON file; the function adds a feature."""
    with store.writing(name) as file:
        file.write(b'{"type": "FeatureCollection", "features": [')
        first = [True]

        def add(feature: dict[str, Any]) -> None:
            file.write((b"" if first[0] else b",\n") + json.dumps(feature).encode())
            first[0] = False

        yield add
        file.write(b"]}\n")
