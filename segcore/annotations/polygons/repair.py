"""Valid polygons from the shapes of a file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.polygons.counts import Counts


def polygonal(shapes: NDArray[Any], counts: Counts) -> NDArray[Any]:
    """Shapes (n,) as polygons and multipolygons, valid and flat; None for everything else. Adds to
    `counts` what was repaired and left out.
    """
    import shapely

    shapes = shapely.force_2d(np.array(shapes, object))
    empty = shapely.is_missing(shapes) | shapely.is_empty(shapes)
    areal = np.isin(shapely.get_type_id(shapes), (3, 6, 7)) & ~empty
    counts.empty += int(empty.sum())
    counts.other += int((~areal & ~empty).sum())
    shapes[~areal] = None
    invalid = areal & ~shapely.is_valid(shapes)
    collections = areal & (shapely.get_type_id(shapes) == shapely.GeometryType.GEOMETRYCOLLECTION)
    for i in np.flatnonzero(invalid | collections).tolist():
        repaired = shapely.make_valid(shapes[i], method="structure", keep_collapsed=False)
        parts = shapely.get_parts(shapely.get_parts(repaired))
        parts = parts[shapely.get_type_id(parts) == shapely.GeometryType.POLYGON]
        parts = parts[np.isfinite(shapely.bounds(parts)).all(axis=1)]
        shapes[i] = shapely.multipolygons(parts) if len(parts) else None
        counts.repaired += bool(len(parts)) and bool(invalid[i])
        counts.broken += not len(parts)
    return shapes
