"""Stratified random samples of the pixels of an output's masks.

The pixels of a class, over all images in the order of their ids and row by row within an image, are
numbered; the numbers of a sample are drawn. So a sample depends on the masks and the seed alone.
Only masks that hold a drawn pixel are read, by strips of rows.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.annotations.masks import holds_object_ids
from maskloom.segcore.errors import ReadError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import from_lonlat, is_located
from maskloom.segcore.raster.classes import BACKGROUND_NAMES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.tasks.output import Layer, Output

_STRIP = 2**22
"""Pixels of a mask that are read together."""


@dataclass(frozen=True, slots=True)
class Place:
    """A pixel of an image."""

    image_id: str
    index: Shape
    """(y, x), or (z, y, x)."""


@dataclass(frozen=True, slots=True)
class Spot:
    """A point on the globe, or the polygon around it."""

    longitude: float
    latitude: float
    polygon: Any = None
    """A shapely geometry in degrees. None: the point alone."""


@dataclass(frozen=True, slots=True, order=True)
class DrawnPixel:
    """A pixel of a sample."""

    image_id: str
    index: Shape
    stratum: str
    """The class of the map there."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a map says of a pixel."""

    name: str
    """Its class. Empty: see `reason`."""
    area: float = 0.0
    """Of the pixel, in the unit of the image's areas."""
    reason: str = ""
    """Why it has no class."""


def pixels_by_class(output: Output) -> dict[str, dict[str, int]]:
    """Pixels of each class in each image, by class and image, both in order."""
    found: dict[str, dict[str, int]] = {}
    table = output.areas(["image_id", "class_id", "class_name", "pixel_count"])
    for row in table.sort_by([("class_id", "ascending"), ("image_id", "ascending")]).to_pylist():
        found.setdefault(row["class_name"], {})[row["image_id"]] = row["pixel_count"]
    return found


def draw(
    output: Output,
    pixels: Mapping[str, Mapping[str, int]],
    numbers: Mapping[str, int],
    seed: int,
) -> list[DrawnPixel]:
    """`numbers` pixels of each class, in the order of images and pixels; `pixels` as
    `pixels_by_class` gives them.

    Raises `ReadError` if a mask cannot be read or holds other numbers of pixels.
    """
    wanted: dict[str, dict[str, NDArray[np.int64]]] = {}
    for name, number in numbers.items():
        ends = np.cumsum(list(pixels[name].values()))
        # A class of its own seed: other classes do not change its sample.
        word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8])
        drawn = np.sort(
            np.random.default_rng([seed, word]).choice(int(ends[-1]), number, replace=False)
        )
        images = np.searchsorted(ends, drawn, side="right")
        for image in np.unique(images).tolist():
            before = int(ends[image - 1]) if image else 0
            image_id = list(pixels[name])[image]
            wanted.setdefault(image_id, {})[name] = drawn[images == image] - before
    return sorted(
        pixel
        for image_id in sorted(wanted)
        for pixel in _located(output, image_id, wanted[image_id])
    )


def _located(
    output: Output, image_id: str, ranks: Mapping[str, NDArray[np.int64]]
) -> Iterator[DrawnPixel]:
    """The pixels of an image with these ranks among those of their class."""
    classes = _ClassesOf.image(output, image_id)
    passed = dict.fromkeys(ranks, 0)
    with output.mask(image_id) as mask:
        for box in strips(mask.spec.shape):
            names = classes.of(mask, box)
            for name, wanted in ranks.items():
                inside = np.flatnonzero(names == classes.number(name))
                here = wanted[(wanted >= passed[name]) & (wanted < passed[name] + len(inside))]
                for place in inside[here - passed[name]].tolist():
                    index = np.unravel_index(place, box.shape)
                    yield DrawnPixel(
                        image_id,
                        tuple(
                            int(start + step) for start, step in zip(box.start, index, strict=True)
                        ),
                        name,
                    )
                passed[name] += len(inside)
    for name, wanted in ranks.items():
        if wanted[-1] >= passed[name]:
            raise ReadError(
                f"the mask of {image_id} has {passed[name]} pixels of {name}, fewer than the table "
                "of areas says: it was changed. Run the recipe again."
            )


def strips(shape: Shape) -> Iterator[Box]:
    """Boxes of whole rows (of one plane of a volume) in the order of the pixels."""
    *before, height, width = shape
    rows = max(1, _STRIP // max(1, width))
    for plane in np.ndindex(*before):
        for top in range(0, height, rows):
            bottom = min(top + rows, height)
            yield Box((*plane, top, 0), (*(each + 1 for each in plane), bottom, width))


def looked_up(output: Output, places: Sequence[Place | Spot]) -> list[Found]:
    """What the map says of each place: of a polygon the class that most of its pixels have.

    A spot is looked for in the images in the order of their ids, and belongs to the first one that
    contains it. Raises `ReadError` if a mask cannot be read.
    """
    columns = ["image_id", "status", "error"]
    rows = {row["image_id"]: row for row in output.images(columns).to_pylist()}
    done = sorted(image_id for image_id, row in rows.items() if row["status"] == "ok")
    found: dict[int, Found] = {}
    boxes: dict[str, dict[int, tuple[Box, Any]]] = {}
    for number, place in enumerate(places):
        if not isinstance(place, Place):
            continue
        row = rows.get(place.image_id)
        if row is None:
            found[number] = Found("", reason=f"the output has no image {place.image_id!r}")
        elif row["status"] != "ok":
            found[number] = Found("", reason=f"the image failed: {row['error']}")
        else:
            box = Box(place.index, tuple(each + 1 for each in place.index))
            boxes.setdefault(place.image_id, {})[number] = box, None
    spots = {number: spot for number, spot in enumerate(places) if isinstance(spot, Spot)}
    for image_id in done if spots else ():
        inside = _inside(output.mask_spec(image_id), spots)
        boxes.setdefault(image_id, {}).update(inside)
        spots = {number: spot for number, spot in spots.items() if number not in inside}
    found.update((number, Found("", reason="outside all images")) for number in spots)
    for image_id, of_image in sorted(boxes.items()):
        classes = _ClassesOf.image(output, image_id) if of_image else None
        with output.mask(image_id) as mask:
            for number, (box, polygon) in of_image.items():
                assert classes is not None
                found[number] = _found(classes, mask, box, polygon)
    return [found[number] for number in range(len(places))]


def _inside(spec: RasterSpec, spots: Mapping[int, Spot]) -> dict[int, tuple[Box, Any]]:
    """The pixels, by number, of those spots that are in an image; and the polygons, if any, with
    columns and rows as coordinates.
    """
    if not spots or not is_located(spec.space) or len(spec.shape) != len("yx"):
        return {}
    lonlat = np.array([(spot.longitude, spot.latitude) for spot in spots.values()])
    places = from_lonlat(spec.space, lonlat[:, 0], lonlat[:, 1], spec.shape)
    found: dict[int, tuple[Box, Any]] = {}
    whole = Box.whole(spec.shape)
    for (number, spot), column, row in zip(spots.items(), *places, strict=True):
        height, width = spec.shape
        if not (0 <= row < height and 0 <= column < width):
            continue
        pixel = Box((int(row), int(column)), (int(row) + 1, int(column) + 1))
        found[number] = pixel, None
        if spot.polygon is not None:
            found[number] = _on_image(spot.polygon, spec, whole, pixel)
    return found


def _on_image(polygon: Any, spec: RasterSpec, whole: Box, pixel: Box) -> tuple[Box, Any]:
    import shapely

    def placed(longitude: NDArray[Any], latitude: NDArray[Any]) -> NDArray[Any]:
        return np.stack(from_lonlat(spec.space, longitude, latitude, spec.shape))

    on_image = shapely.transform(polygon, placed, interleaved=False)
    left, top, right, bottom = on_image.bounds
    around = Box((math.floor(top), math.floor(left)), (math.ceil(bottom), math.ceil(right))) & whole
    return (around if around.size else pixel), on_image


def _found(classes: _ClassesOf, mask: Layer, box: Box, polygon: Any) -> Found:
    shape = mask.spec.shape
    if len(box.start) != len(shape):
        return Found("", reason=f"expected {len(shape)} numbers as place, got {len(box.start)}")
    if (box & Box.whole(shape)) != box:
        return Found("", reason=f"outside the image of {' x '.join(map(str, shape))} pixels")
    numbers = classes.of(mask, box)
    if polygon is not None:
        numbers = np.where(_covered(polygon, box), numbers, -1)
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    if not counts.sum():
        return Found("", reason="no data there")
    area = np.asarray(mask.spec.space.cell_size(box, shape)).mean()
    return Found(classes.names[int(counts.argmax())], float(area))


def _covered(polygon: Any, box: Box) -> NDArray[np.bool_]:
    """The pixels of a box whose centre is in a polygon; without any, those that it touches."""
    from affine import Affine
    from rasterio.features import rasterize

    moved = Affine.translation(box.start[1], box.start[0])
    inside: NDArray[np.bool_] = np.zeros(box.shape, np.bool_)
    for touched in (False, True):
        inside = rasterize(
            [polygon], out_shape=box.shape, transform=moved, all_touched=touched
        ).astype(bool)
        if inside.any():
            break
    return inside


@dataclass(frozen=True, slots=True, eq=False)
class _ClassesOf:
    """The classes of one mask."""

    names: tuple[str, ...]
    of_label: NDArray[np.int64]
    """Class of each label; -1: none."""

    @classmethod
    def image(cls, output: Output, image_id: str) -> _ClassesOf:
        """Those of an image."""
        areas = output.areas(["class_id", "class_name"], of=[image_id])
        names = dict(sorted(zip(*areas.to_pydict().values(), strict=True)))
        classes = tuple(names.values())
        if not holds_object_ids(output.mask_spec(image_id)):
            return cls(classes, np.array([*range(len(classes))]))
        objects = output.objects(["object_id", "class_name"], of=[image_id]).to_pydict()
        largest = max(objects["object_id"], default=0)
        # Objects that are too small for the table have the only class of objects.
        background = next(
            (i for i, name in enumerate(classes) if name.lower() in BACKGROUND_NAMES), 0
        )
        others = [i for i in range(len(classes)) if i != background]
        of_label = np.full(largest + 1, others[0] if len(others) == 1 else -1)
        of_label[0] = background
        of_label[objects["object_id"]] = [classes.index(name) for name in objects["class_name"]]
        return cls(classes, of_label)

    def number(self, name: str) -> int:
        """The number of a class."""
        return self.names.index(name)

    def of(self, mask: Layer, box: Box) -> NDArray[np.int64]:
        """The number of the class of each pixel; -1: no data."""
        labels, known = mask.read(box)
        inside = known & (labels < len(self.of_label))
        return np.where(inside, self.of_label[np.where(inside, labels, 0)], -1)
