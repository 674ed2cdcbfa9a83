"""What the metadata of OME-Zarr say: the images in a group, their axes, levels and coordinates.

Versions 0.1 to 0.5 of the specification (OME-NGFF, https://ngff.openmicroscopy.org). Version 0.5
keeps the metadata under the key `ome`. Before version 0.4 axes have no units and levels no scales;
before 0.3 they are t, c, z, y, x.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

UNITS = {
    "angstrom": 1e-7,
    "nanometer": 1e-6,
    "micrometer": 1e-3,
    "millimeter": 1.0,
    "centimeter": 10.0,
    "decimeter": 100.0,
    "meter": 1e3,
    "inch": 25.4,
}
"""Millimetres in each unit of length that axes may have and that an image may be as large as."""
IMPLIED = ("t", "c", "z", "y", "x")
"""The axes of versions in which they have no names."""
_KINDS = {"time": "t", "channel": "c"}
_NAME = re.compile(r"[A-Za-z0-9]+", re.ASCII)
_TIME = re.compile(r"(?:(.*)_)?t(\d{4,9})", re.ASCII)

Attributes = Mapping[str, Any]


class Malformed(ValueError):
    """Metadata that do not follow the specification; the text says how."""


@dataclass(frozen=True, slots=True)
class Level:
    """One resolution of an image."""

    path: str
    """Of its array in the group."""
    scale: tuple[float, ...]
    """Distance between neighbours along each axis of the array; empty if not stated."""
    translation: tuple[float, ...]
    """Coordinate of the first pixel along each axis of the array; empty if not stated."""


@dataclass(frozen=True, slots=True)
class Multiscale:
    """An image in several resolutions."""

    axes: tuple[str, ...]
    """Names of the axes of its arrays, `t` and `c` for those of time and channels; empty if not
    stated.
    """
    units: tuple[str, ...]
    """Unit of each axis, empty if not stated."""
    levels: tuple[Level, ...]
    """Full resolution first."""

    @classmethod
    def of(cls, attributes: Attributes) -> Multiscale:
        """The first image in the attributes of a group. Raises `Malformed`."""
        image = _first(attributes, "multiscales")
        axes = [
            each if isinstance(each, Mapping) else {"name": each} for each in _list(image, "axes")
        ]
        names = tuple(_KINDS.get(str(each.get("type")), str(each.get("name"))) for each in axes)
        units = tuple(str(each.get("unit") or "").lower() for each in axes)
        levels = tuple(
            _level(each, image, len(axes) or len(IMPLIED))
            for each in _list(image, "datasets")
            if isinstance(each, Mapping)
        )
        if not levels:
            raise Malformed("its `multiscales` have no `datasets`")
        return cls(tuple(name.lower() for name in names), units, levels)


@dataclass(frozen=True, slots=True)
class Group:
    """A group that holds images: itself, or those of a plate, a well or a converted file."""

    kind: str
    """`image`, `plate`, `well` or `series`."""
    paths: tuple[str, ...]
    """Of its images in the group, if they are known from its attributes."""

    @classmethod
    def of(cls, attributes: Attributes) -> Group | None:
        """The images that attributes speak of; None if they speak of none. Raises `Malformed`."""
        if attributes.get("multiscales"):
            return cls("image", ("",))
        if isinstance(plate := attributes.get("plate"), Mapping):
            return cls("plate", _paths(plate, "wells"))
        if isinstance(well := attributes.get("well"), Mapping):
            return cls("well", _paths(well, "images"))
        # The layout of bioformats2raw: one image for each series of the converted file.
        return cls("series", ()) if "bioformats2raw.layout" in attributes else None


def ome_attributes(attributes: Attributes) -> Attributes:
    """The metadata of OME-Zarr among the attributes of a group, of any version."""
    inner = attributes.get("ome")
    return inner if isinstance(inner, Mapping) else attributes


def name_of_part(path: str, time: int | None) -> str:
    """The name of an image by its path in the group, and of one of its times, counted from 0.

    >>> name_of_part("B/3/0", None), name_of_part("B/3/0", 11), name_of_part("", 0)
    ('B_3_0', 'B_3_0_t0012', 't0001')
    """
    names = [path.replace("/", "_")] if path else []
    return "_".join([*names, *([] if time is None else [f"t{time + 1:04}"])])


def path_of_part(part: str) -> tuple[str, int | None]:
    """The path of an image in the group and its time, from the name of the part.

    >>> path_of_part("B_3_0"), path_of_part("B_3_0_t0012"), path_of_part("t0001")
    (('B/3/0', None), ('B/3/0', 11), ('', 0))
    """
    found = _TIME.fullmatch(part)
    path, time = (found[1] or "", int(found[2]) - 1) if found else (part, None)
    return path.replace("_", "/"), time


def _level(dataset: Attributes, image: Attributes, axes: int) -> Level:
    path = dataset.get("path")
    if not isinstance(path, str) or ".." in path.split("/") or path.startswith("/"):
        raise Malformed(f"a level has the path {path!r}, which is none in its folder")
    scale, translation = [1.0] * axes, [0.0] * axes
    # Those of the level come first, then those of the image.
    steps = [
        *_list(dataset, "coordinateTransformations"),
        *_list(image, "coordinateTransformations"),
    ]
    for step in steps:
        kind = step.get("type") if isinstance(step, Mapping) else None
        numbers: Any = step.get(kind) if isinstance(step, Mapping) else None
        if kind == "identity":
            continue
        if kind not in ("scale", "translation") or not _numbers(numbers, axes):
            raise Malformed(
                f"level {path!r} has the transformation {str(step)[:99]}; expected a scale or a "
                f"translation of {axes} numbers, for the axes that it has"
            )
        if kind == "scale":
            scale = [a * b for a, b in zip(scale, numbers, strict=True)]
            translation = [a * b for a, b in zip(translation, numbers, strict=True)]
        else:
            translation = [a + b for a, b in zip(translation, numbers, strict=True)]
    return Level(path, tuple(scale), tuple(translation)) if steps else Level(path, (), ())


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list | tuple)
        and len(values) == count
        and all(
            isinstance(each, int | float) and not isinstance(each, bool) and math.isfinite(each)
            for each in values
        )
    )


def _first(attributes: Attributes, key: str) -> Attributes:
    found = next(iter(_list(attributes, key)), None)
    if not isinstance(found, Mapping):
        raise Malformed(f"its `{key}` hold no image")
    return found


def _list(attributes: Attributes, key: str) -> Sequence[Any]:
    found = attributes.get(key) or ()
    if not isinstance(found, list | tuple):
        raise Malformed(f"`{key}` is {str(found)[:99]}, not a list")
    return found


def _paths(attributes: Attributes, key: str) -> tuple[str, ...]:
    """The paths in a list of wells or images, whose parts are letters and digits."""
    paths = [
        each.get("path") if isinstance(each, Mapping) else each for each in _list(attributes, key)
    ]
    for path in paths:
        if not all(map(_NAME.fullmatch, str(path).split("/"))):
            raise Malformed(f"`{key}` has the path {str(path)[:99]!r}; expected letters and digits")
    if not paths:
        raise Malformed(f"`{key}` is empty")
    return tuple(dict.fromkeys(map(str, paths)))
