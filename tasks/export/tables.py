"""Features as Arrow tables in the CRS of their images, some thousands at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.colours import hexadecimal
from maskloom.tasks.export.features import Features, Image
from maskloom.tasks.export.request import Exported, Request

Write = Callable[[str, "str | None", pa.Schema, Iterator[pa.Table]], None]
"""Writes a file of this name, CRS (WKT) and schema, with the geometry in the column `geometry`."""
_ROWS = 8192
_OWN = (
    pa.field("image_id", pa.string()),
    pa.field("class_id", pa.int32()),
    pa.field("class_name", pa.string()),
    pa.field("colour", pa.string()),
)


def write_tables(request: Request, folder: str, suffix: str, write: Write) -> Exported:
    """Write a file for all images, or one per image into `folder`. Raises `RecipeError` if images
    of several CRS would share one.
    """
    features = Features(request.output)
    groups: list[tuple[str, list[Image]]] = [(f"classes{suffix}", features.images)]
    if request.per_image:
        groups = [(f"{folder}/{each.image_id}{suffix}", [each]) for each in features.images]
    elif len({image.crs for image in features.images}) > 1:
        raise RecipeError(
            "Images have several CRS, or some have none, and one file has one CRS. Give "
            "--per-image, or export with --to geojson, which is in longitude and latitude."
        )
    schema = _schema(features)
    counts = [0]
    for name, images in groups:
        rows = _tables(features, images, schema, counts)
        write(request.folder + name, images[0].crs, schema, rows)
    where = request.store.uri(request.folder + (folder if request.per_image else groups[0][0]))
    return features.exported(where, counts[0])


def _schema(features: Features) -> pa.Schema:
    own = {each.name for each in _OWN}
    measures = [each.with_nullable(True) for each in features.measures if each.name not in own]
    return pa.schema([*_OWN, *measures, pa.field("geometry", pa.binary())])


def _tables(
    features: Features, images: Sequence[Image], schema: pa.Schema, counts: list[int]
) -> Iterator[pa.Table]:
    for image in images:
        for some in _batches(features, image):
            counts[0] += len(some)
            yield pa.Table.from_pylist(some, schema)


def _batches(features: Features, image: Image) -> Iterator[list[dict[str, Any]]]:
    import shapely

    rows: list[dict[str, Any]] = []
    for each in features.of(image, "map"):
        rows.append(
            {
                **each.measures,
                "image_id": image.image_id,
                "class_id": each.class_id,
                "class_name": each.class_name,
                "colour": hexadecimal(each.colour),
                "geometry": None if each.geometry is None else shapely.to_wkb(each.geometry),
            }
        )
        if len(rows) == _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows
