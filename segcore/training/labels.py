"""Labels: what the values of a mask mean.

Masks hold class ids, other values or colours that stand for classes, or one number for each object.
All become class ids in 8 bits, by a table; `VOID` marks pixels that nobody labelled, which training
and measuring pass over, and `UNKNOWN` values that the recipe does not name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.registry import Registry

if TYPE_CHECKING:
    from numpy.typing import NDArray

VOID, UNKNOWN = 255, 254
_VALUES, _COLOURS = 2**16, 2**24
_HEXADECIMAL = re.compile(r"#?[0-9A-Fa-f]{6}")
Void = tuple[int, ...] | int | Literal["rest"]
LABELS: Registry[type[LabelKind]] = Registry("kind of labels")


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """Class ids by the values of a mask."""

    by: Literal["value", "colour"]
    """Whether the stored value of a pixel is looked up (of palette pictures its index), or its
    colour as 24 bits.
    """
    codes: NDArray[np.uint8]
    """Class id, `VOID` or `UNKNOWN` by value."""
    beyond: int = UNKNOWN
    """Of values that the table does not reach."""
    border: int | None = None
    """Class of the pixels where two objects nearly touch. None: they are as the table says."""
    reach: int = 0
    """How near, in pixels, both objects must be for a pixel to be border. 0: there is none, and no
    pixel asks for those around it.
    """
    numbered: bool = False
    """Whether values number objects."""

    def keys(self, raw: NDArray[np.generic]) -> NDArray[Any]:
        """What is looked up for pixels (y, x, band) of a mask: (y, x)."""
        if self.by == "value":
            return raw[..., 0]
        red, green, blue = (raw[..., i].astype(np.int32) for i in range(3))
        return red << 16 | green << 8 | blue

    def decode(self, raw: NDArray[np.generic], valid: NDArray[np.bool_]) -> NDArray[np.uint8]:
        """Class ids (y, x) of pixels (y, x, band) of a mask. The array belongs to the caller."""
        keys = self.keys(raw)
        if keys.dtype.kind == "u" and np.iinfo(keys.dtype).max < len(self.codes):
            classes: NDArray[np.uint8] = self.codes[keys]
        else:
            inside = (keys >= 0) & (keys < len(self.codes))
            classes = self.codes[np.where(inside, keys, 0)]
            # A negative number is no object, but it may be among the rest that nobody labelled.
            classes[~inside] = np.where(
                keys[~inside] < 0, VOID if self.beyond == VOID else UNKNOWN, self.beyond
            )
        if self.border is not None:
            classes[_near_two(keys, classes == self.beyond, self.reach) & (classes != VOID)] = (
                self.border
            )
        classes[~valid] = VOID
        return classes

    def name(self, key: int) -> str:
        """A looked-up value as people write it."""
        return f"#{key:06X}" if self.by == "colour" else str(key)


class LabelKind(Protocol):
    """What values mean, as users set it."""

    def table(self, classes: Sequence[str]) -> Table:
        """The table for these classes. Raises `RecipeError` where they do not suit."""
        ...


@LABELS.register("index")
@dataclass(frozen=True, slots=True)
class Index:
    """Values are class ids from 0 in the order of `classes`; of palette pictures, the index in the
    palette.
    """

    void: Void = (255,)
    """Values that mean "not labelled", or `rest`: all that are no class id."""

    def table(self, classes: Sequence[str]) -> Table:
        """The table for these classes."""
        return _table("value", {i: i for i in range(len(classes))}, self.void, _VALUES)


@LABELS.register("values")
@dataclass(frozen=True, slots=True)
class Values:
    """Some values stand for classes."""

    values: Mapping[int, str]
    """Class name by value; several values may mean one class."""
    void: Void = ()
    """Values that mean "not labelled", or `rest`: all that are not named."""

    def table(self, classes: Sequence[str]) -> Table:
        """The table for these classes."""
        return _table("value", _ids(self.values, classes, "values"), self.void, _VALUES)


@LABELS.register("colours")
@dataclass(frozen=True, slots=True)
class Colours:
    """Colours stand for classes."""

    colours: Mapping[str, str]
    """Colour by class name, as six hexadecimal digits: {building: "#3C1098"}."""
    void: tuple[str, ...] | str = ()
    """Colours that mean "not labelled", or `rest`: all that are not named."""

    def table(self, classes: Sequence[str]) -> Table:
        """The table for these classes."""
        names = {_colour(colour): name for name, colour in self.colours.items()}
        if len(names) < len(self.colours):
            raise RecipeError("labels.colours: two classes have one colour.")
        if self.void == "rest":
            return _table("colour", _ids(names, classes, "colours"), "rest", _COLOURS)
        void = (self.void,) if isinstance(self.void, str) else self.void
        return _table(
            "colour", _ids(names, classes, "colours"), tuple(map(_colour, void)), _COLOURS
        )


@LABELS.register("instances")
@dataclass(frozen=True, slots=True)
class Instances:
    """Values number the objects of one class from 1; 0 is the first class, the background."""

    of: str = ""
    """Class of the objects. Empty: the second class."""
    border: str | None = None
    """Class for the pixels where two objects nearly touch, so that a semantic network can keep them
    apart. None: there is none.
    """
    reach: int = 2
    """How near, in pixels, both objects must be for a pixel to be border."""
    void: tuple[int, ...] | int = ()
    """Values that mean "not labelled"."""

    def __post_init__(self) -> None:
        if not 1 <= self.reach <= 50:
            raise ValueError(f"reach: expected 1 to 50 pixels; got {self.reach}")
        if not all(0 <= value < _VALUES for value in _tuple(self.void)):
            raise ValueError(f"void: expected values from 0 to {_VALUES - 1}; got {self.void}")

    def table(self, classes: Sequence[str]) -> Table:
        """The table for these classes."""
        named = {1: self.of or classes[1]} | ({2: self.border} if self.border is not None else {})
        ids = _ids(
            named, classes, "of", [name for name in classes[1:] if name not in named.values()]
        )
        if classes[0] in named.values():
            raise RecipeError(
                f"labels: {classes[0]!r} is the first class, which is the background of objects. "
                "Put another first."
            )
        table = _table("value", {0: 0} | dict.fromkeys(range(1, _VALUES), ids[1]), (), _VALUES)
        table.codes[list(_tuple(self.void))] = VOID
        reach = self.reach if self.border is not None else 0
        return Table("value", table.codes, ids[1], ids.get(2), reach, numbered=True)


def _table(by: Literal["value", "colour"], ids: Mapping[int, int], void: Void, size: int) -> Table:
    codes = np.full(size, VOID if void == "rest" else UNKNOWN, np.uint8)
    for value in () if isinstance(void, str) else _tuple(void):
        if not 0 <= value < size:
            raise RecipeError(f"labels.void: expected values from 0 to {size - 1}; got {value}.")
        if value in ids:
            raise RecipeError(
                f"labels.void: the value {value} stands for a class too. Leave it out in one place."
            )
        codes[value] = VOID
    for value, number in ids.items():
        if not 0 <= value < size:
            raise RecipeError(f"labels: expected values from 0 to {size - 1}; got {value}.")
        codes[value] = number
    return Table(by, codes, VOID if void == "rest" else UNKNOWN)


def _ids(
    names: Mapping[int, str], classes: Sequence[str], key: str, missing: Sequence[str] | None = None
) -> dict[int, int]:
    unknown = sorted(set(names.values()) - set(classes))
    if unknown:
        raise RecipeError(
            f"labels.{key}: there is no class {unknown[0]!r}; `classes` are {', '.join(classes)}."
        )
    left = [name for name in classes if name not in names.values()] if missing is None else missing
    if left:
        raise RecipeError(
            f"labels.{key}: nothing stands for the class {left[0]!r}. Add it, or take it out of "
            "`classes`."
        )
    return {value: list(classes).index(name) for value, name in names.items()}


def _colour(text: str) -> int:
    if not _HEXADECIMAL.fullmatch(text):
        raise RecipeError(
            f'labels: expected a colour of six hexadecimal digits such as "#3C1098"; got {text!r}.'
        )
    return int(text.removeprefix("#"), 16)


def _tuple(values: tuple[int, ...] | int) -> tuple[int, ...]:
    return (values,) if isinstance(values, int) else values


def _near_two(ids: NDArray[Any], objects: NDArray[np.bool_], reach: int) -> NDArray[np.bool_]:
    """Pixels with two different objects within `reach` of them (in rows and columns)."""
    import cv2

    window = np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)
    # Ranks, since ids may be larger than what float32, in which OpenCV compares, tells apart.
    numbers, ranks = np.unique(np.where(objects, ids, 0), return_inverse=True)
    first = 0 if len(numbers) and numbers[0] == 0 else 1
    places: NDArray[np.float32] = (ranks.reshape(ids.shape) + first).astype(np.float32)
    last = np.float32(len(numbers) + 1)
    largest = cv2.dilate(places, window)
    smallest = last - cv2.dilate(np.where(places > 0, last - places, 0).astype(np.float32), window)
    near: NDArray[np.bool_] = (largest > 0) & (largest != smallest)
    return near
