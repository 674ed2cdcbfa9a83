"""What the values of truth masks mean.

A `LabelMapping` cuts all whole numbers into intervals, each of one class or void. A rule for a
single value comes before one for a range, and void before both, so that `1..=nucleus` and void 255
go together. A class that is given by a range has objects that are numbered by the values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.annotations.masks import By

VOID, UNKNOWN = -1, -2
"""In place of a class id: a pixel that does not count, and a value that the key does not tell."""
VOID_NAME = "void"
_LAST = 2**40
_NUMBER = re.compile(r"(-?\d+)(\.\.(-?\d+)?)?")
_COLOUR = re.compile(r"#([0-9a-fA-F]{6})")


@dataclass(frozen=True, slots=True)
class ValueRule:
    """Values that mean one class."""

    low: int
    high: int
    """Inclusive."""
    name: str
    """Of the class; `void` for pixels that do not count."""
    by: By = "index"

    @classmethod
    def parse(cls, value: Any, name: str, where: str) -> ValueRule:
        """From a value (7), a range (7..9, 7..) or a colour (#3C1098, or three numbers). Raises
        `RecipeError`.

        >>> ValueRule.parse("1..", "nucleus", "--values").low
        1
        """
        if (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(isinstance(n, int) and 0 <= n <= 255 for n in value)
        ):
            packed = value[0] << 16 | value[1] << 8 | value[2]
            return cls(packed, packed, name, "colour")
        text = str(value).strip()
        if colour := _COLOUR.fullmatch(text):
            return cls(int(colour[1], 16), int(colour[1], 16), name, "colour")
        if (number := _NUMBER.fullmatch(text)) and not isinstance(value, bool):
            low = int(number[1])
            high = low if number[2] is None else int(number[3] or _LAST)
            if low < 0 and low < high and name != VOID_NAME:
                raise RecipeError(
                    f"{where}: a range numbers objects, and numbers begin at 0. Name negative "
                    "values one by one."
                )
            if low <= high:
                return cls(low, high, name)
        raise RecipeError(
            f"{where}: {value!r} is no value of a mask. Expected one such as 7, 7..9, 7.. (7 and "
            "above) or #3C1098."
        )


@dataclass(frozen=True, slots=True, eq=False)
class LabelMapping:
    """Values of truth masks and the classes that they mean."""

    classes: tuple[str, ...]
    lows: NDArray[np.int64]
    """First value of each interval, ascending; it ends before the next."""
    meaning: NDArray[np.int64]
    """Class id of each interval, `VOID` or `UNKNOWN`."""
    numbered: frozenset[int]
    """Ids of the classes whose values are ids of objects."""
    by: By

    @classmethod
    def of(cls, rules: Sequence[ValueRule], classes: tuple[str, ...]) -> LabelMapping:
        """The key of these rules. Raises `RecipeError` for a class that there is not and for rules
        that contradict one another.
        """
        kinds = {rule.by for rule in rules}
        if len(kinds) > 1:
            raise RecipeError(
                "The truth is told by values and by colours. Use one of both, for --void as well."
            )
        for rule in rules:
            if rule.name not in (*classes, VOID_NAME):
                raise RecipeError(
                    f"The run has no class {rule.name!r} for the truth's {shown(rule)}. Its "
                    f"classes: {', '.join(classes)}."
                )
        lows = np.unique([-_LAST, *(end for rule in rules for end in (rule.low, rule.high + 1))])
        meaning, strength = np.full(len(lows), UNKNOWN), np.full(len(lows), -1)
        for rule in sorted(rules, key=_strength):
            inside = (lows >= rule.low) & (lows <= rule.high)
            wanted = _class_id(rule.name, classes)
            if ((strength[inside] == _strength(rule)) & (meaning[inside] != wanted)).any():
                raise RecipeError(
                    f"The truth's {shown(rule)} is given to two classes, one of them {rule.name!r}."
                )
            meaning[inside], strength[inside] = wanted, _strength(rule)
        numbered = frozenset(
            _class_id(rule.name, classes) for rule in rules if rule.high > rule.low
        ) - {VOID}
        return cls(classes, lows, meaning, numbered, kinds.pop() if kinds else "index")

    def classify(self, values: NDArray[np.int64]) -> NDArray[np.int64]:
        """The class id of each value, `VOID` or `UNKNOWN`."""
        # What lies before the first interval takes the last one, which no rule reaches either.
        return np.asarray(self.meaning[np.searchsorted(self.lows, values, side="right") - 1])


def default_rules(classes: tuple[str, ...], foreground: tuple[str, ...] | None) -> list[ValueRule]:
    """What values mean where nobody says: class ids, or ids of objects where a run has objects
    (`foreground`: their classes).

    Raises `RecipeError` where objects may be of several classes.
    """
    if foreground is None:
        return [ValueRule(i, i, name) for i, name in enumerate(classes)]
    if len(foreground) != 1:
        raise RecipeError(
            f"The run has objects of several classes ({', '.join(foreground)}). Say which ids of "
            "the truth are which: "
            f"--values 0={classes[0]} --values 1..999={foreground[0]} and so on; or, where the "
            "truth has classes, which value is which: "
            f"--values 0={classes[0]} --values 1={foreground[0]} and so on."
        )
    return [ValueRule(0, 0, classes[0]), ValueRule(1, _LAST, foreground[0])]


def parse_values(texts: Iterable[str]) -> list[ValueRule]:
    """Rules from VALUE=CLASS, several of them separated by commas. Raises `RecipeError`."""
    rules = []
    for part in (part for text in texts for part in text.split(",")):
        value, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise RecipeError(
                f"--values {part!r}: expected VALUE=CLASS, such as 255=inside or 1..=nucleus."
            )
        rules.append(ValueRule.parse(value, name, f"--values {part!r}"))
    return rules


def parse_table(table: Any, where: str) -> list[ValueRule]:
    """Rules from a mapping of class names to a value, a range or a colour, or to a list of such.
    Raises `RecipeError`.
    """
    if not isinstance(table, Mapping) or not table:
        raise RecipeError(
            f"{where}: expected class names with their values, such as 'building: \"#3C1098\"', a "
            "line each."
        )
    rules = []
    for name, given in table.items():
        if isinstance(name, bool):
            raise RecipeError(
                f"{where}: YAML reads no, off and false (yes, on and true) as a truth value. Put "
                "quotes around such names of classes."
            )
        several = isinstance(given, list) and not (
            len(given) == 3 and all(isinstance(n, int) for n in given)
        )
        rules += [
            ValueRule.parse(value, str(name), f"{where}: {name}")
            for value in (given if several else [given])
        ]
    return rules


def shown(rule: ValueRule) -> str:
    """A rule's values in words."""
    if rule.by == "colour":
        return f"colour #{rule.low:06X}"
    return (
        f"value {rule.low}"
        if rule.low == rule.high
        else f"values {rule.low}..{'' if rule.high == _LAST else rule.high}"
    )


def _strength(rule: ValueRule) -> int:
    return 2 if rule.name == VOID_NAME else int(rule.low == rule.high)


def _class_id(name: str, classes: tuple[str, ...]) -> int:
    # Void is left out, even if the run has a class of that name.
    return VOID if name == VOID_NAME else classes.index(name)
