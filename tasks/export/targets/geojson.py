"""GeoJSON (RFC 7946): longitude and latitude; pixels where images have no CRS."""

from __future__ import annotations

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.colours import hexadecimal
from maskloom.tasks.export.features import Features, Image
from maskloom.tasks.export.request import TARGETS, Exported, Request
from maskloom.tasks.export.text import feature_collection, plain


@TARGETS.register("geojson")
def geojson(request: Request) -> Exported:
    """Write one file, or one per image. Raises `RecipeError` if images with and without a CRS would
    share one.
    """
    features = Features(request.output)
    if not request.per_image and len({image.crs is None for image in features.images}) > 1:
        raise RecipeError(
            "Some images have a CRS and others none: longitudes and pixels do not go into one "
            "file. Give --per-image, or export with --to qupath, which is in pixels."
        )
    groups: list[tuple[str, list[Image]]] = [("classes.geojson", features.images)]
    if request.per_image:
        groups = [(f"geojson/{each.image_id}.geojson", [each]) for each in features.images]
    count = 0
    for name, images in groups:
        with feature_collection(request.store, request.folder + name) as add:
            for image in images:
                for each in features.of(image, "degrees"):
                    said = {
                        "image_id": image.image_id,
                        **plain(each.measures),
                        "class_id": each.class_id,
                        "class_name": each.class_name,
                        "fill": hexadecimal(each.colour),
                    }
                    add(each.geometry, {"properties": said})
                    count += 1
    where = request.store.uri(request.folder + ("geojson" if request.per_image else groups[0][0]))
    return features.exported(where, count)
