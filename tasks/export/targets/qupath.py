"""GeoJSON as QuPath reads it: a file per image, in pixels of full resolution."""

from __future__ import annotations

import uuid
from typing import Any

from maskloom.tasks.export.features import Features
from maskloom.tasks.export.request import TARGETS, Exported, Request
from maskloom.tasks.export.text import feature_collection, plain


@TARGETS.register("qupath")
def qupath(request: Request) -> Exported:
    """Write annotations for classes, and detections with measurements for objects."""
    features, count = Features(request.output), 0
    for image in features.images:
        name = f"{request.folder}qupath/{image.image_id}.geojson"
        with feature_collection(request.store, name) as add:
            for number, each in enumerate(features.of(image, "pixels")):
                said: dict[str, Any] = {
                    "objectType": "detection" if image.holds_objects else "annotation",
                    "classification": {"name": each.class_name, "color": list(each.colour)},
                }
                if each.measures:
                    said["measurements"] = {
                        key: value
                        for key, value in plain(each.measures).items()
                        if isinstance(value, int | float) and not isinstance(value, bool)
                    }
                key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{image.image_id}#{number}"))
                add(each.geometry, {"id": key, "properties": said})
                count += 1
    where = request.store.uri(f"{request.folder}qupath")
    return features.exported(where, count)
