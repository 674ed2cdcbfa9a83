"""Objects of an image: the one at a pixel, with its row and outline, and the class of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.ground.lonlat import from_lonlat, is_located, to_lonlat

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.tasks.output import Output

_HIDDEN_COLUMNS = ("geometry", "bbox", "run_id", "image_id", "fingerprint")
_MOST_VERTICES = 20_000


def class_by_object(output: Output, image_id: str) -> NDArray[np.int32]:
    """(largest id + 1,): the class of each object by its id; -1 where the table has none."""
    table = output.objects_of(image_id, ("object_id", "class_id"))
    if not len(table):
        return np.full(1, -1, np.int32)
    ids, classes = (table[name].to_numpy() for name in ("object_id", "class_id"))
    found = np.full(int(ids.max()) + 1, -1, np.int32)
    found[ids] = classes
    return found


def object_with_id(output: Output, image_id: str, number: int) -> dict[str, Any] | None:
    """The row of an object. None: the table lacks it."""
    rows = output.objects_of(image_id, None, [("object_id", "==", number)]).to_pylist()
    return rows[0] if rows else None


def object_around(
    output: Output, image_id: str, spec: RasterSpec, position: Sequence[int], class_id: int
) -> dict[str, Any] | None:
    """The row of the smallest object of a class whose outline contains a pixel (in array order).
    Without outlines: of the only one whose box does. None: there is none.
    """
    conditions: list[tuple[str, str, Any]] = [("class_id", "==", class_id)]
    for axis, at in zip("zyx"[-len(position) :], position, strict=True):
        conditions += [(f"bbox_{axis}0", "<=", at), (f"bbox_{axis}1", ">", at)]
    table = output.objects_of(image_id, None, conditions)
    if not len(table):
        return None
    return _containing(table.sort_by("pixel_count").to_pylist(), spec, position)


def shown_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says about an object, for people."""
    return {
        key: value for key, value in row.items() if key not in _HIDDEN_COLUMNS and value is not None
    }


def outline_of(spec: RasterSpec, geometry: bytes | None) -> list[list[list[float]]] | None:
    """The rings of an object in pixels of the image (x, y); simplified if they are long."""
    if geometry is None or len(spec.shape) > 2:
        return None
    import shapely

    shape = shapely.from_wkb(geometry)
    if is_located(spec.space):
        height, width = spec.shape
        shape = shapely.transform(
            shape,
            lambda points: np.stack(
                from_lonlat(spec.space, points[:, 0], points[:, 1], (height, width)), axis=1
            ),
        )
    if shapely.get_num_coordinates(shape) > _MOST_VERTICES:
        shape = shapely.simplify(shape, max(spec.shape) / 2048)
    # Pixels that touch at corners make an object of several polygons.
    rings = shapely.get_rings(shapely.get_parts(shape))
    return [np.round(shapely.get_coordinates(ring), 2).tolist() for ring in rings]


def _containing(
    rows: Sequence[dict[str, Any]], spec: RasterSpec, position: Sequence[int]
) -> dict[str, Any] | None:
    import shapely

    if not any(row.get("geometry") for row in rows):
        return rows[0] if len(rows) == 1 else None
    middle = [np.array([float(each) + 0.5]) for each in position[-1:-3:-1]]
    x, y = to_lonlat(spec.space, *middle)
    for row in rows:
        if row.get("geometry") and shapely.contains_xy(
            shapely.from_wkb(row["geometry"]), x[0], y[0]
        ):
            return row
    return None
