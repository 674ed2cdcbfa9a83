"""Labels: the meaning of mask values in a training recipe.

Masks hold class ids, other values or colours that mean classes, or one number per object. Each kind
becomes a `LabelMapping`, which evaluation uses too; a `LabelDecoder` turns the values of a mask
into class ids of 8 bits. `VOID` marks pixels without a label, which training and validation ignore,
and `UNKNOWN` values that the recipe does not name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np

from maskloom.segcore.annotations import label_mapping
from maskloom.segcore.annotations.label_mapping import LAST_VALUE, LabelMapping, ValueRule
from maskloom.segcore.annotations.polygons.rules import PolygonRules
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.registry import Registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.label_mapping import By

VOID, UNKNOWN = 255, 254
"""`label_mapping.VOID` and `UNKNOWN`, -1 and -2, in 8 bits."""
_HEXADECIMAL = re.compile(r"#?[0-9A-Fa-f]{6}")
Void = tuple[int, ...] | int | Literal["rest"]
Target = Literal["classes", "flow"]
LABELS: Registry[type[LabelKind]] = Registry("kind of labels")


@dataclass(frozen=True, slots=True, eq=False)
class LabelDecoder:
    """Turns the values of masks into class ids."""

    mapping: LabelMapping
    border: int | None = None
    """Class of pixels where two objects nearly touch. None: no such class."""
    near: int = 0
    """Largest distance in pixels of a border pixel to both objects."""
    outline: int = 0
    """Width in pixels of the border all around each object, inside it."""

    @property
    def reach(self) -> int:
        """Pixels around a pixel that decide its class. 0: it alone does."""
        return max(self.near, self.outline)

    @property
    def numbered(self) -> bool:
        """Whether values are ids of objects."""
        return bool(self.mapping.numbered)

    def decode(self, values: NDArray[np.integer], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Class ids (y, x), `VOID` or `UNKNOWN`, from the values (y, x) of a mask. The array
        belongs to the caller.
        """
        ids = self.mapping.classify(values)
        classes: NDArray[np.uint8] = ids.astype(np.uint8)
        if self.border is not None:
            objects = np.isin(ids, list(self.mapping.numbered))
            border = _near_two(values, objects, self.near)
            if self.outline:
                border |= objects & _at_edge(values, objects, self.outline)
            classes[border & (classes != VOID)] = self.border
        classes[~known] = VOID
        return classes

    def name(self, value: int) -> str:
        """A value as users write it."""
        return f"#{value:06X}" if self.mapping.by == "colour" else str(value)


class LabelKind(Protocol):
    """The meaning of values, as set by users."""

    def decoder(self, classes: Sequence[str]) -> LabelDecoder:
        """The decoder for these classes. Raises `RecipeError` if the labels do not fit them."""
        ...


@LABELS.register("index")
@dataclass(frozen=True, slots=True)
class Index:
    """Values are class ids from 0 in the order of `classes`; of palette pictures, the index in the
    palette.
    """

    void: Void = (255,)
    """Values that mean "not labelled", or `rest`: all that are no class id."""

    def decoder(self, classes: Sequence[str]) -> LabelDecoder:
        """The decoder for these classes."""
        return _decoder("index", dict(enumerate(classes)), self.void, classes)


@LABELS.register("values")
@dataclass(frozen=True, slots=True)
class Values:
    """Some values stand for classes."""

    values: Mapping[int, str]
    """Class name by value; several values may mean one class."""
    void: Void = ()
    """Values that mean "not labelled", or `rest`: all that are not named."""

    def decoder(self, classes: Sequence[str]) -> LabelDecoder:
        """The decoder for these classes."""
        _require_all(self.values.values(), classes, "values")
        return _decoder("index", self.values, self.void, classes)


@LABELS.register("colours")
@dataclass(frozen=True, slots=True)
class Colours:
    """Colours stand for classes."""

    colours: Mapping[str, str]
    """Colour by class name, as six hexadecimal digits: {building: "#3C1098"}."""
    void: tuple[str, ...] | str = ()
    """Colours that mean "not labelled", or `rest`: all that are not named."""

    def decoder(self, classes: Sequence[str]) -> LabelDecoder:
        """The decoder for these classes."""
        names = {_colour(colour): name for name, colour in self.colours.items()}
        if len(names) < len(self.colours):
            raise RecipeError("labels.colours: two classes have one colour.")
        _require_all(self.colours, classes, "colours")
        given = (self.void,) if isinstance(self.void, str) else self.void
        void: Void = "rest" if self.void == "rest" else tuple(map(_colour, given))
        return _decoder("colour", names, void, classes)


@LABELS.register("instances")
@dataclass(frozen=True, slots=True)
class Instances:
    """Values number the objects of one class from 1; 0 is the first class, the background."""

    of: str = ""
    """Class of the objects. Empty: the second class."""
    border: str | None = None
    """Class for the pixels where two objects nearly touch, so that a semantic network can keep them
    apart. None: no such class.
    """
    reach: int = 2
    """Largest distance in pixels of a border pixel to both objects."""
    outline: int = 0
    """Pixels of the border class all around each object, inside it, besides those where two nearly
    touch. 1 keeps objects apart better than 0.
    """
    void: tuple[int, ...] | int = ()
    """Values that mean "not labelled"."""
    target: Target = "classes"
    """What networks for pixels learn. `classes`: the class of each pixel. `flow`: also its offset
    from the middle of its object, by which the segmenter `instances` keeps touching objects apart.
    """

    def __post_init__(self) -> None:
        _require_reach(self.reach, self.outline, self.border)
        _require_one_way(self.target, self.border)

    def decoder(self, classes: Sequence[str]) -> LabelDecoder:
        """The decoder for these classes."""
        name = self.of or classes[1]
        named = (name, *((self.border,) if self.border is not None else ()))
        _require_all((classes[0], *named), classes, "of")
        if classes[0] in named:
            raise RecipeError(
                f"labels: {classes[0]!r} is the first class, which is the background of objects. "
                "Put another first."
            )
        rules = [
            ValueRule(0, 0, classes[0]),
            ValueRule(1, LAST_VALUE, name),
            *(ValueRule(value, value, None) for value in _tuple(self.void)),
        ]
        mapping = LabelMapping.of(rules, tuple(classes))
        if self.border is None:
            return LabelDecoder(mapping)
        return LabelDecoder(mapping, list(classes).index(self.border), self.reach, self.outline)


@LABELS.register("polygons")
@dataclass(frozen=True, slots=True)
class Polygons:
    """Polygons in files of vectors: GeoJSON (of QuPath too), GeoPackage, GeoParquet and others.
    `masks` names the files. In any CRS; pixels for images without one.
    """

    attribute: str = ""
    """Attribute that names the class of a polygon. Default: class_name, class, classification or
    label, if there is one; without it, and with two classes, all polygons are of the second.
    """
    values: Mapping[str | int, str] = field(default_factory=dict)
    """Class name by value of the attribute, or `void` for polygons whose pixels are not labelled.
    Default: the values are names or ids of classes.
    """
    void: Literal["", "rest"] = ""
    """`rest`: polygons with other values are not labelled, rather than an error."""
    of: str = ""
    """Class of all polygons, whatever their attributes."""
    outside: str = ""
    """Class of the pixels that no polygon covers, or `void`. Default: the first class if its name
    means background, otherwise `void`.
    """
    overlap: Literal["last", "class"] = "last"
    """Which polygon covers others: the last in the file, or that of the last in `classes`. Void
    ones cover all.
    """
    all_touched: bool = False
    """Whether a polygon has all pixels that it touches, rather than those whose centre it has."""
    objects: bool = False
    """Whether each polygon is an object; the first class is the background."""
    border: str | None = None
    """Class for the pixels where two objects nearly touch, as in `instances`."""
    reach: int = 2
    """Largest distance in pixels of a border pixel to both objects."""
    outline: int = 0
    """Pixels of the border class all around each object, as in `instances`."""
    target: Target = "classes"
    """What networks for pixels learn: `classes` or, if polygons are objects, `flow`, as in
    `instances`.
    """
    image: str = ""
    """Attribute that names the image of a polygon. Default: a file with the name of an image
    belongs to it, any other to all images, by place.
    """
    layer: str = ""
    """Layer of files that have several."""
    coordinates: Literal["auto", "pixels"] = "auto"
    """`pixels`: coordinates are pixels in images with a CRS too."""

    def __post_init__(self) -> None:
        _require_reach(self.reach, self.outline, self.border)
        if self.border is not None and not self.objects:
            raise ValueError("border: borders are those of objects; set objects: true")
        if self.target == "flow" and not self.objects:
            raise ValueError("target: flow leads to the middles of objects; set objects: true")
        _require_one_way(self.target, self.border)

    def rules(self, classes: Sequence[str]) -> PolygonRules:
        """What the polygons mean for these classes. Raises `RecipeError`."""
        drawn = [name for name in classes if name != self.border]
        if self.border is not None and (len(drawn) == len(classes) or self.border == classes[0]):
            raise RecipeError(
                f"labels.border: expected one of {', '.join(classes[1:])}; got {self.border!r}."
            )
        numbered = range(1, len(classes)) if self.objects else ()
        return PolygonRules(
            tuple(classes),
            self.attribute,
            {str(value): name for value, name in self.values.items()},
            self.of,
            self.outside,
            self.void == "rest",
            self.overlap,
            self.all_touched,
            frozenset(numbered),
            self.layer,
            self.image,
            self.coordinates == "pixels",
        )

    def decoder(self, classes: Sequence[str]) -> LabelDecoder:
        """The decoder for these classes."""
        mapping = LabelMapping.of(self.rules(classes).value_rules(), tuple(classes))
        if self.border is None:
            return LabelDecoder(mapping)
        return LabelDecoder(mapping, list(classes).index(self.border), self.reach, self.outline)


def _decoder(by: By, names: Mapping[int, str], void: Void, classes: Sequence[str]) -> LabelDecoder:
    """The decoder of masks in which each value has one class."""
    ignored = () if isinstance(void, str) else _tuple(void)
    both = [value for value in ignored if value in names]
    if both:
        raise RecipeError(
            f"labels.void: the value {both[0]} means a class too. Leave it out in one place."
        )
    rules = [
        *(ValueRule(value, value, name, by) for value, name in names.items()),
        *(ValueRule(value, value, None, by) for value in ignored),
    ]
    others = label_mapping.VOID if void == "rest" else label_mapping.UNKNOWN
    return LabelDecoder(LabelMapping.of(rules, tuple(classes), others))


def _require_all(named: Iterable[str], classes: Sequence[str], key: str) -> None:
    """Raise `RecipeError` if the labels name another class, or not all."""
    known = list(named)
    unknown = sorted(set(known) - set(classes))
    if unknown:
        raise RecipeError(
            f"labels.{key}: there is no class {unknown[0]!r}; `classes` are {', '.join(classes)}."
        )
    missing = [name for name in classes if name not in known]
    if missing:
        raise RecipeError(
            f"labels.{key}: no value means the class {missing[0]!r}. Add one, or remove the class "
            "from `classes`."
        )


def _require_reach(reach: int, outline: int, border: str | None) -> None:
    if not 1 <= reach <= 50:
        raise ValueError(f"reach: expected 1 to 50 pixels; got {reach}")
    if not 0 <= outline <= 50:
        raise ValueError(f"outline: expected 0 to 50 pixels; got {outline}")
    if outline and border is None:
        raise ValueError("outline: it is of the class `border`; name that class too")


def _require_one_way(target: Target, border: str | None) -> None:
    if target not in get_args(Target):
        raise ValueError(f"target: expected {' or '.join(get_args(Target))}; got {target!r}")
    if target == "flow" and border is not None:
        raise ValueError("border: the target flow keeps objects apart without it; remove one")


def _colour(text: str) -> int:
    if not _HEXADECIMAL.fullmatch(text):
        raise RecipeError(
            'labels: expected a colour of six hexadecimal digits, for example "#3C1098"; got '
            f"{text!r}."
        )
    return int(text.removeprefix("#"), 16)


def _tuple(values: tuple[int, ...] | int) -> tuple[int, ...]:
    return (values,) if isinstance(values, int) else values


def _near_two(ids: NDArray[Any], objects: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Pixels with two different objects within `reach` of them (in rows and columns)."""
    import cv2

    places, last = _ranks(ids, objects)
    largest = cv2.dilate(places, _window(reach))
    smallest = last - cv2.dilate(
        np.where(places > 0, last - places, 0).astype(np.float32), _window(reach)
    )
    near: NDArray[np.bool_] = (largest > 0) & (largest != smallest)
    return near


def _at_edge(ids: NDArray[Any], objects: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Pixels within `width` (in rows and columns) of one of another object or of none."""
    import cv2

    places, _ = _ranks(ids, objects)
    edge: NDArray[np.bool_] = cv2.dilate(places, _window(width)) != cv2.erode(
        places, _window(width)
    )
    return edge


def _ranks(ids: NDArray[Any], objects: NDArray[np.bool_]) -> tuple[NDArray[np.float32], np.float32]:
    """Ids as numbers from 1 without gaps, 0 outside objects, and one more than the largest: ids may
    exceed the integers that float32, in which OpenCV compares, represents.
    """
    numbers, ranks = np.unique(np.where(objects, ids, 0), return_inverse=True)
    first = 0 if len(numbers) and numbers[0] == 0 else 1
    return (ranks.reshape(ids.shape) + first).astype(np.float32), np.float32(len(numbers) + 1)


def _window(reach: int) -> NDArray[np.uint8]:
    return np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
