"""What polygons mean: the class of each by an attribute, and of the pixels that none covers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from maskloom.segcore.annotations.label_mapping import UNKNOWN, VOID, VOID_NAME, ValueRule
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.classes import BACKGROUND_NAMES

Overlap = Literal["last", "class"]
USUAL_ATTRIBUTES = ("class_name", "class", "classification", "label")
"""Attributes that name the class, where the user names none: those of maskloom's own tables, of
QuPath and of other programs.
"""
_BITS = 32
"""Low bits of a value, which hold the number of the object; the class is in those above."""


@dataclass(frozen=True, slots=True)
class PolygonRules:
    """The meaning of polygons, as checked values."""

    classes: tuple[str, ...]
    attribute: str = ""
    """Attribute that names the class. Empty: the first of `USUAL_ATTRIBUTES` that there is."""
    values: Mapping[str, str] = field(default_factory=dict)
    """Class name, or `void`, by value of the attribute. Empty: values are names or ids of
    classes.
    """
    of: str = ""
    """Class of all polygons, whatever their attributes. Empty: the attribute names it."""
    outside: str = ""
    """Class of pixels that no polygon covers, or `void`. Empty: the first class if its name means
    background, otherwise `void`.
    """
    rest_is_void: bool = False
    """Whether polygons with other values are void, rather than an error."""
    overlap: Overlap = "last"
    """Which polygon covers others: the `last` in the file, or that of the last `class`."""
    all_touched: bool = False
    """Whether a polygon has all pixels that it touches, rather than those whose centre it has."""
    numbered: frozenset[int] = frozenset()
    """Ids of the classes in which each polygon is an object of its own."""
    layer: str = ""
    """Layer of files that have several."""
    image: str = ""
    """Attribute that names the image of each polygon. Empty: place or file name tell it."""
    pixels: bool = False
    """Whether coordinates are pixels in images with a CRS too."""

    def __post_init__(self) -> None:
        wanted = [*self.values.values(), *filter(None, (self.of, self.outside))]
        for name in wanted:
            if name not in self.classes and name != VOID_NAME:
                raise RecipeError(
                    f"labels: there is no class {name!r}. Classes: {', '.join(self.classes)}."
                )
        if self.of and (self.attribute or self.values):
            raise RecipeError(
                "labels: `of` gives all polygons one class, `attribute` and `values` give each its "
                "own. Leave one out."
            )

    @property
    def outside_id(self) -> int:
        """Class id of pixels that no polygon covers, or `VOID`."""
        if self.outside:
            return VOID if self.outside == VOID_NAME else self.classes.index(self.outside)
        of_objects = bool(self.numbered) and 0 not in self.numbered
        return 0 if of_objects or self.classes[0].lower() in BACKGROUND_NAMES else VOID

    def class_of(self, value: Any) -> int:
        """Class id of a polygon by its attribute, `VOID` or `UNKNOWN`."""
        text = attribute_text(value)
        name = self.values.get(text)
        if name is None and not self.values:
            name = self._own_name(text)
        if name is None:
            return VOID if self.rest_is_void or text == VOID_NAME else UNKNOWN
        return VOID if name == VOID_NAME else self.classes.index(name)

    def _own_name(self, text: str) -> str | None:
        """The class that a value names without a rule: by its name or its id."""
        if text in self.classes:
            return text
        folded = [name for name in self.classes if name.casefold() == text.casefold()]
        if len(folded) == 1:
            return folded[0]
        if text.isdecimal() and int(text) < len(self.classes):
            return self.classes[int(text)]
        return None

    def value(self, class_id: int, number: int) -> int:
        """The value of a pixel of polygon `number` (from 1) of a class: its class id or, where
        classes have objects, the class and the object in one number.
        """
        if not self.numbered:
            return class_id
        return class_id << _BITS | (number if class_id in self.numbered else 0)

    def value_rules(self) -> list[ValueRule]:
        """The meaning of these values, for `LabelMapping`."""
        rules = []
        for i, name in enumerate(self.classes):
            low, high = self.value(i, 1), self.value(i, 2**_BITS - 1)
            rules.append(ValueRule(low, high, name))
        if self.numbered and 0 in self.numbered and self.outside_id == 0:
            rules.append(ValueRule(0, 0, self.classes[0]))
        return rules


def attribute_text(value: Any) -> str:
    """The value of an attribute as users write it; of QuPath's classification the name, and of
    classes of two levels (`Tumor: Positive`) the names with `: ` between them.

    >>> attribute_text('{"name": "Tumor", "color": [200, 0, 0]}'), attribute_text(3.0)
    ('Tumor', '3')
    """
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    if not text.startswith("{"):
        return text
    try:
        said = json.loads(text)
    except ValueError:
        return text
    names = said.get("names", said.get("name")) if isinstance(said, dict) else None
    if names is None:
        return text
    return str(names) if not isinstance(names, list) else ": ".join(map(str, names))


def image_names(uri: str, image_id: str) -> Sequence[str]:
    """The names by which an attribute may mean an image."""
    last = uri.rpartition("/")[2]
    return tuple(dict.fromkeys((image_id, image_id.rpartition("/")[2], last, uri)))
