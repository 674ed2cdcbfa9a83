"""COCO: instances as run lengths in pixels of full resolution."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import shapely

from maskloom.tasks.export.features import Features, Image
from maskloom.tasks.export.request import TARGETS, Exported, Request

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COCO_BITS = 5


@TARGETS.register("coco")
def coco(request: Request) -> Exported:
    """Write one file, or one per image; ids of images and categories are the same in all."""
    features = Features(request.output)
    categories = {name: i for i, name in enumerate(features.names, 1)}
    numbered = list(enumerate(features.images, 1))
    groups = [("coco.json", numbered)]
    if request.per_image:
        groups = [(f"coco/{image.image_id}.json", [(i, image)]) for i, image in numbered]
    count = 0
    for name, images in groups:
        with request.store.writing(request.folder + name) as file:
            described = [_described(i, image) for i, image in images]
            file.write(f'{{"images": {json.dumps(described)}, "annotations": [\n'.encode())
            first = count
            for said in _annotations(features, images, categories):
                count += 1
                separator = "" if count == first + 1 else ",\n"
                file.write(f"{separator}{json.dumps({'id': count, **said})}".encode())
            # Last: an object may have a class that no table of areas names.
            known = [{"id": i, "name": each} for each, i in categories.items()]
            file.write(f'\n], "categories": {json.dumps(known)}}}\n'.encode())
    where = request.store.uri(request.folder + ("coco" if request.per_image else "coco.json"))
    return features.exported(where, count)


def _described(number: int, image: Image) -> dict[str, Any]:
    width, height = image.size
    return {"id": number, "file_name": image.row["uri"], "width": width, "height": height}


def _annotations(
    features: Features, images: list[tuple[int, Image]], categories: dict[str, int]
) -> Iterator[dict[str, Any]]:
    for number, image in images:
        width, height = image.size
        for each in features.of(image, "pixels"):
            rings = _rings(each.geometry)
            counts = run_lengths(rings, height, width)
            corners = np.concatenate(rings)
            low, high = corners.min(axis=0), corners.max(axis=0)
            said = {
                "image_id": number,
                "category_id": categories.setdefault(each.class_name, len(categories) + 1),
                "iscrowd": 0,
                "area": int(counts[1::2].sum()),
                "bbox": [*low.tolist(), *(high - low).tolist()],
                "segmentation": {"size": [height, width], "counts": compressed(counts)},
            }
            score = each.measures.get("score")
            yield said if score is None else {**said, "score": round(score, 6)}


def _rings(geometry: Any) -> tuple[NDArray[np.int64], ...]:
    """The rings of all polygons, without the vertex that closes each, on whole pixels."""
    parts = shapely.get_parts(geometry)
    rings = shapely.get_rings(parts)
    return tuple(np.rint(shapely.get_coordinates(ring)[:-1]).astype(np.int64) for ring in rings)


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
