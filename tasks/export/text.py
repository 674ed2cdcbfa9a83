"""Files of JSON that are written feature by feature."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskloom.segcore.storage.store import Store

Add = Callable[[Any, Mapping[str, Any]], None]


@contextlib.contextmanager
def feature_collection(store: Store, name: str) -> Iterator[Add]:
    """A GeoJSON file, published when the block ends. The function adds a geometry of shapely (None:
    null) and the other members of its feature.
    """
    import shapely

    with store.writing(name) as file:
        file.write(b'{"type": "FeatureCollection", "features": [\n')
        separator = [""]

        def add(geometry: Any, members: Mapping[str, Any]) -> None:
            shape = "null" if geometry is None else shapely.to_geojson(geometry)
            rest = json.dumps({"type": "Feature", **members})
            file.write(f'{separator[0]}{rest[:-1]}, "geometry": {shape}}}'.encode())
            separator[0] = ",\n"

        yield add
        file.write(b"\n]}\n")


def plain(measures: Mapping[str, Any]) -> dict[str, Any]:
    """Measures that JSON can hold: it has no NaN."""
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in measures.items()
    }
