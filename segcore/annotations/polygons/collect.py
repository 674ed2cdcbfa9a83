"""From files of vectors to the polygons of each image, with counts of what was left out.

Which polygons belong to which image, in this order:

1. Where an attribute names the image, it decides.
2. Files that all have the name of an image belong to it (`segcore.annotations.pairing`).
3. Otherwise all files belong to all images, and the place decides: what lies in an image is its
   truth, and an image in which nothing lies has none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.annotations.label_mapping import UNKNOWN, VOID
from maskloom.segcore.annotations.pairing import NameSuffixes, pair
from maskloom.segcore.annotations.polygons.counts import SHOWN, Counts, notes
from maskloom.segcore.annotations.polygons.files import Layer, VectorFile
from maskloom.segcore.annotations.polygons.masks import Placing, PolygonMask, PolygonReader
from maskloom.segcore.annotations.polygons.repair import polygonal
from maskloom.segcore.annotations.polygons.rules import (
    USUAL_ATTRIBUTES,
    attribute_text,
    image_names,
)
from maskloom.segcore.annotations.polygons.store import Row, add_features, new_store
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.lonlat import is_located

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.polygons.rules import PolygonRules
    from maskloom.segcore.raster.spec import RasterSpec


@dataclass(frozen=True, slots=True)
class LabelledGrid:
    """An image, as far as its polygons need to know it."""

    image_id: str
    spec: RasterSpec


@dataclass(frozen=True, slots=True)
class Collected:
    """The polygons of all images."""

    masks: Mapping[str, PolygonMask]
    """By URI of the image; images without polygons are not among them."""
    notes: tuple[str, ...]
    """Sentences for users: what was left out and repaired, with counts."""


def collect(
    files: Mapping[str, str],
    images: Mapping[str, LabelledGrid],
    rules: PolygonRules,
    suffixes: NameSuffixes = NameSuffixes(),  # noqa: B008  frozen
) -> Collected:
    """Read all files (their paths below their common folder, by URI) for these images (by URI).

    Raises `RecipeError` if a file cannot be read or lacks an attribute, a polygon has a class that
    the rules do not name, no polygon lies in any image, or a file and its image do not have a CRS
    in common.
    """
    for uri, grid in images.items():
        if len(grid.spec.shape) != len("yx"):
            raise RecipeError(
                f"Polygons are labels of images; {uri} is a volume. Give it a mask of voxels."
            )
    collecting = _Collecting(images, rules)
    by_name = None if rules.image else _by_name(files, images, suffixes)
    for uri in sorted(files):
        collecting.add_file(uri, None if by_name is None else by_name.get(uri, ()))
    collecting.require_known()
    return collecting.finished(named=by_name is not None)


def _by_name(
    files: Mapping[str, str], images: Mapping[str, LabelledGrid], suffixes: NameSuffixes
) -> dict[str, tuple[str, ...]] | None:
    """The images of each file; None if the files do not all have the name of an image."""
    ids = {uri: grid.image_id for uri, grid in images.items()}
    try:
        found = pair(ids, files, suffixes)
    except RecipeError:
        return None
    if found.without_image and len(found.without_image) == len(files):
        return None
    if found.without_image and all(is_located(grid.spec.space) for grid in images.values()):
        return None
    return {file: (image,) for image, file in found.truth_of.items()}


class _Collecting:
    """The state while files are read."""

    def __init__(self, images: Mapping[str, LabelledGrid], rules: PolygonRules) -> None:
        self._images, self._rules, self._counts = images, rules, Counts()
        self._store, self._groups = new_store(), 0
        self._of: dict[str, list[tuple[int, str | None, str]]] = {uri: [] for uri in images}
        """Groups of each image, with their CRS and file."""
        self._bounds = np.array([np.inf, np.inf, -np.inf, -np.inf])
        self._names: dict[str, str] = {}
        owners = Counter(
            name for uri, grid in images.items() for name in image_names(uri, grid.image_id)
        )
        for uri, grid in images.items():
            for name in image_names(uri, grid.image_id):
                # A name that two images have means neither, unless it is the id of one.
                if owners[name] == 1 or name == grid.image_id:
                    self._names[name] = uri

    def add_file(self, uri: str, images: Sequence[str] | None) -> None:
        """Read a file that belongs to these images. None: to all, or to those that it names."""
        if images is not None and not images:
            return
        with VectorFile(uri, self._rules.layer) as file:
            layer = file.describe()
            try:
                attribute, rules = self._attributes(layer)
            except RecipeError:
                if any(len(shapes) for shapes, _ in file.features(())):
                    raise
                # A file without features often has no attributes either.
                attribute, rules = "", self._rules
            columns = [each for each in (attribute, rules.image) if each in layer.columns]
            reading = _Reading(self, uri, layer, rules, images)
            for shapes, values in file.features(tuple(dict.fromkeys(columns))):
                by_name = dict(zip(dict.fromkeys(columns), values, strict=True))
                add_features(self._store, reading.rows(shapes, attribute, by_name))

    def _attributes(self, layer: Layer) -> tuple[str, PolygonRules]:
        """As `_attribute`; the attribute that names the image is required too."""
        if self._rules.image:
            layer.require(self._rules.image, "image")
        return _attribute(layer, self._rules)

    def group(self, uri: str, layer: Layer, images: Sequence[str]) -> int:
        """A new group of the store, for these images."""
        self._groups += 1
        for image in images:
            crs = _common_crs(layer, self._images[image].spec, self._rules)
            self._of[image].append((self._groups, crs, uri))
        return self._groups

    def require_known(self) -> None:
        """Raise `RecipeError` if polygons have a value that means no class."""
        unknown = self._counts.unknown
        if not unknown:
            return
        listed = ", ".join(
            f"{name or '(empty)'} ({count})" for name, count in unknown.most_common(SHOWN)
        )
        more = f" and {len(unknown) - SHOWN} more" if len(unknown) > SHOWN else ""
        first = next(iter(unknown))
        raise RecipeError(
            f"Polygons have values that mean no class: {listed}{more}. Give their class, in a "
            f"training recipe labels: {{kind: polygons, values: {{{first or repr('')}: CLASS}}}}, "
            f"for `maskloom evaluate` --values '{first}=CLASS'; or leave them out with void: rest "
            f"(--void rest). Classes: {', '.join(self._rules.classes)}."
        )

    def finished(self, *, named: bool) -> Collected:
        """The masks and the notes. Raises `RecipeError` if no polygon lies in an image."""
        counts, seen = self._counts, np.zeros(self._counts.added + 1, np.bool_)
        masks, without = {}, []
        for uri, grid in self._images.items():
            groups = self._of[uri]
            mask = self._mask(grid, groups)
            found = _numbers(mask) if groups else np.zeros(0, np.int64)
            seen[found] = True
            if groups and (len(found) or (named and self._is_empty(mask))):
                masks[uri] = mask
            elif groups and named:
                raise RecipeError(self._elsewhere(mask, uri))
            else:
                without.append(uri)
        if not masks:
            raise RecipeError(self._no_image(without))
        return Collected(masks, tuple(notes(counts, int(counts.added - seen.sum()), without)))

    def _mask(self, grid: LabelledGrid, groups: Sequence[tuple[int, str | None, str]]) -> Any:
        files = tuple(dict.fromkeys(uri for *_, uri in groups))
        return PolygonMask(
            files[0] if len(files) == 1 else f"{len(files)} files of polygons",
            files,
            self._store,
            tuple((group, crs) for group, crs, _ in groups),
            grid.spec.shape,
            grid.spec.space,
            grid.spec.reduction,
            self._rules,
        )

    @staticmethod
    def _is_empty(mask: PolygonMask) -> bool:
        """Whether the files of an image have no polygon at all."""
        with mask.open() as reader:
            return not reader.any_at_all()

    def _elsewhere(self, mask: PolygonMask, uri: str) -> str:
        west, south, east, north = self._bounds
        crs = mask.groups[0][1]
        place = Placing(mask.space, mask.reduction, crs).bounds(Box.whole(mask.shape))
        here = (
            ""
            if place is None
            else f", the image from ({place[0]:.6g}, {place[1]:.6g}) to ({place[2]:.6g}, "
            f"{place[3]:.6g})"
        )
        system = "pixels" if crs is None else "the CRS of the polygons"
        return (
            f"No polygon of {mask.location} lies in {uri}. In {system} they reach from "
            f"({west:.6g}, {south:.6g}) to ({east:.6g}, {north:.6g}){here}. Check the CRS that "
            "both state, and whether coordinates are pixels."
        )

    def _no_image(self, without: Sequence[str]) -> str:
        counts = self._counts
        if not counts.added:
            return (
                f"The files of polygons hold none: {counts.features} features, "
                f"{counts.other} of them points or lines, {counts.empty} empty. Give others."
            )
        for uri in without:
            if self._of[uri]:
                return self._elsewhere(self._mask(self._images[uri], self._of[uri]), uri)
        named = ", ".join(name for name, _ in counts.nowhere.most_common(SHOWN))
        known = ", ".join(grid.image_id for grid in list(self._images.values())[:SHOWN])
        return (
            f"No polygon belongs to an image: the attribute {self._rules.image!r} names {named}; "
            f"images are {known}."
        )

    def image_named(self, value: Any) -> str | None:
        """The URI of the image that an attribute names."""
        text = attribute_text(value)
        uri = self._names.get(text)
        if uri is None:
            self._counts.nowhere[text] += 1
        return uri

    def located(self) -> list[str]:
        """All images."""
        return list(self._images)

    @property
    def counts(self) -> Counts:
        """What was found so far."""
        return self._counts

    def widen(self, bounds: NDArray[np.float64]) -> None:
        """Note the bounds (n, 4) of polygons."""
        if len(bounds):
            self._bounds[:2] = np.minimum(self._bounds[:2], bounds[:, :2].min(axis=0))
            self._bounds[2:] = np.maximum(self._bounds[2:], bounds[:, 2:].max(axis=0))


@dataclass(slots=True)
class _Reading:
    """The reading of one file."""

    into: _Collecting
    uri: str
    layer: Layer
    rules: PolygonRules
    images: Sequence[str] | None
    groups: dict[str, int] = field(default_factory=dict)
    """Group by image; of all images under an empty name."""

    def __post_init__(self) -> None:
        if not self.rules.image:
            images = self.into.located() if self.images is None else self.images
            self.groups[""] = self.into.group(self.uri, self.layer, images)

    def rows(
        self, encoded: Any, attribute: str, values: Mapping[str, Sequence[Any]]
    ) -> Iterator[Row]:
        """The features of a batch that are polygons with a class, for the store."""
        import shapely

        counts = self.into.counts
        counts.features += len(encoded)
        shapes = polygonal(shapely.from_wkb(encoded.to_pylist()), counts)
        bounds = shapely.bounds(shapes)
        kept = np.flatnonzero(~shapely.is_missing(shapes))
        self.into.widen(bounds[kept])
        binary = shapely.to_wkb(shapes)
        for i in kept.tolist():
            value = values[attribute][i] if attribute else None
            class_id = (
                self.rules.classes.index(self.rules.of) if self.rules.of else self._class(value)
            )
            group = self._group(values[self.rules.image][i] if self.rules.image else None)
            if class_id == UNKNOWN or group is None:
                continue
            counts.void += class_id == VOID
            counts.added += 1
            west, south, east, north = bounds[i].tolist()
            yield counts.added, (west, south, east, north), group, class_id, binary[i]

    def _class(self, value: Any) -> int:
        class_id = self.rules.class_of(value)
        if class_id == UNKNOWN:
            self.into.counts.unknown[attribute_text(value)] += 1
        return class_id

    def _group(self, name: Any) -> int | None:
        if not self.rules.image:
            return self.groups[""]
        uri = self.into.image_named(name)
        if uri is None:
            return None
        if uri not in self.groups:
            self.groups[uri] = self.into.group(self.uri, self.layer, [uri])
        return self.groups[uri]


def _attribute(layer: Layer, rules: PolygonRules) -> tuple[str, PolygonRules]:
    """The attribute that names the class, empty if all polygons have one class; and the rules."""
    if rules.of:
        return "", rules
    if rules.attribute:
        layer.require(rules.attribute, "attribute")
        return rules.attribute, rules
    usual = next((name for name in USUAL_ATTRIBUTES if name in layer.columns), "")
    if usual:
        return usual, rules
    if len(rules.classes) == 2 and not rules.values:
        return "", replace(rules, of=rules.classes[1])
    named = ", ".join(layer.columns[:SHOWN]) or "none"
    raise RecipeError(
        f"{layer.location} has no attribute of the name {', '.join(USUAL_ATTRIBUTES)}; its "
        f"attributes: {named}. Say which one names the class with `attribute`, or give all "
        "polygons one class with `of`."
    )


def _common_crs(layer: Layer, image: RasterSpec, rules: PolygonRules) -> str | None:
    """The CRS of polygons from which they get to the image; None if they are pixels."""
    if rules.pixels:
        return None
    if not is_located(image.space):
        if layer.crs is None or layer.assumed:
            return None
        raise RecipeError(
            f"{layer.location} has coordinates in a CRS, but {image.location} states none. Give "
            "the image its CRS; or, if the coordinates are pixels, say so: coordinates: pixels in "
            "`labels` of a training recipe, --pixels for `maskloom evaluate`."
        )
    if layer.crs is None:
        raise RecipeError(
            f"{layer.location} states no CRS, but {image.location} has one. Give the file its CRS; "
            "or, if its coordinates are pixels, say so: coordinates: pixels in `labels` of a "
            "training recipe, --pixels for `maskloom evaluate`."
        )
    return layer.crs


def _numbers(mask: PolygonMask) -> NDArray[np.int64]:
    with PolygonReader(mask) as reader:
        return reader.numbers_near(Box.whole(mask.shape))
