"""What the stored values of truth masks mean, for training and evaluation.

A `LabelMapping` cuts all whole numbers into intervals, each with one meaning: a class, void or
unknown. A rule for a single value takes precedence over one for a range, and void over both, so
that `1..=nucleus` and void 255 can be combined. The values of a class given by a range are ids of
objects.

Recipes and command lines give the meaning in several ways, each a list of `ValueRule`: class ids
(`default_rules`), values, ranges or colours (`parse_values`, `parse_table`), and the `labels` of a
training recipe (`segcore.training.labels`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.errors import RecipeError

if TYPE_CHECKING:
    from numpy.typing import NDArray

By = Literal["index", "colour"]
"""Whether a pixel is looked up by its stored value (the index into a palette, if it has one) or by
its colour, packed into 24 bits.
"""
VOID, UNKNOWN = -1, -2
"""In place of a class id: a pixel that does not count, and a value that has no meaning."""
VOID_NAME = "void"
LAST_VALUE = 2**40
"""End of ranges without an upper bound, above all values of masks."""
_NUMBER = re.compile(r"(-?\d+)(\.\.(-?\d+)?)?")
_COLOUR = re.compile(r"#([0-9a-fA-F]{6})")


@dataclass(frozen=True, slots=True)
class ValueRule:
    """Values that have one meaning."""

    low: int
    high: int
    """Inclusive."""
    name: str | None
    """Name of the class. None: void."""
    by: By = "index"

    @classmethod
    def parse(cls, value: Any, name: str, where: str) -> ValueRule:
        """From a value (7), a range (7..9, 7..) or a colour (#3C1098, or three numbers), and the
        name of a class or `void`. Raises `RecipeError`.

        >>> ValueRule.parse("1..", "nucleus", "--values").low
        1
        """
        meaning = None if name == VOID_NAME else name
        if (
            isinstance(value, list | tuple)
            and len(value) == 3
            and all(isinstance(n, int) and 0 <= n <= 255 for n in value)
        ):
            packed = value[0] << 16 | value[1] << 8 | value[2]
            return cls(packed, packed, meaning, "colour")
        text = str(value).strip()
        if colour := _COLOUR.fullmatch(text):
            return cls(int(colour[1], 16), int(colour[1], 16), meaning, "colour")
        if (number := _NUMBER.fullmatch(text)) and not isinstance(value, bool):
            low = int(number[1])
            high = low if number[2] is None else int(number[3] or LAST_VALUE)
            if low < 0 and low < high and meaning is not None:
                raise RecipeError(
                    f"{where}: a range numbers objects, and numbers begin at 0. Name negative "
                    "values one by one."
                )
            if low <= high:
                return cls(low, high, meaning)
        raise RecipeError(
            f"{where}: {value!r} is no value of a mask. Expected 7, 7..9, 7.. (7 and above) or "
            "#3C1098, for example."
        )


@dataclass(frozen=True, slots=True, eq=False)
class LabelMapping:
    """Values of truth masks and the classes that they mean."""

    classes: tuple[str, ...]
    lows: NDArray[np.int64]
    """First value of each interval, ascending; an interval ends before the next."""
    meaning: NDArray[np.int64]
    """Class id of each interval, `VOID` or `UNKNOWN`."""
    numbered: frozenset[int]
    """Ids of the classes whose values are ids of objects."""
    by: By

    @classmethod
    def of(
        cls, rules: Sequence[ValueRule], classes: tuple[str, ...], others: int = UNKNOWN
    ) -> LabelMapping:
        """The mapping of these rules; `others` is the meaning of all other values.

        Raises `RecipeError` if a rule names no class of `classes`, or rules contradict each other.
        """
        kinds = {rule.by for rule in rules}
        if len(kinds) > 1:
            raise RecipeError(
                "The truth is given by values and by colours. Use one of both, for void as well."
            )
        for rule in rules:
            if rule.name is not None and rule.name not in classes:
                raise RecipeError(
                    f"There is no class {rule.name!r} for {shown(rule)} of the truth. Classes: "
                    f"{', '.join(classes)}."
                )
        ends = (end for rule in rules for end in (rule.low, rule.high + 1))
        lows = np.unique([-LAST_VALUE, *ends])
        meaning, precedence = np.full(len(lows), others), np.full(len(lows), -1)
        for rule in sorted(rules, key=_precedence):
            inside = (lows >= rule.low) & (lows <= rule.high)
            wanted = VOID if rule.name is None else classes.index(rule.name)
            if ((precedence[inside] == _precedence(rule)) & (meaning[inside] != wanted)).any():
                raise RecipeError(
                    f"The truth has two classes for {shown(rule)}, one of them {rule.name!r}. "
                    "Leave one out."
                )
            meaning[inside], precedence[inside] = wanted, _precedence(rule)
        numbered = frozenset(
            classes.index(rule.name)
            for rule in rules
            if rule.high > rule.low and rule.name is not None
        )
        return cls(classes, lows, meaning, numbered, kinds.pop() if kinds else "index")

    def classify(self, values: NDArray[np.integer]) -> NDArray[np.int64]:
        """The class id of each value, `VOID` or `UNKNOWN`, in an array of the same shape."""
        if values.dtype.kind == "u" and values.size > 2 ** (8 * values.dtype.itemsize):
            # Fewer values are possible than there are: look each up once.
            every = np.arange(2 ** (8 * values.dtype.itemsize))
            return np.asarray(self.classify(every)[values])
        # Values below the first interval take the last one, which no rule reaches either.
        return np.asarray(self.meaning[np.searchsorted(self.lows, values, side="right") - 1])


def default_rules(classes: tuple[str, ...], foreground: tuple[str, ...] | None) -> list[ValueRule]:
    """The meaning of values by default: class ids, or ids of objects if a run has objects
    (`foreground`: their classes).

    Raises `RecipeError` if objects may be of several classes.
    """
    if foreground is None:
        return [
            ValueRule(i, i, None if name == VOID_NAME else name) for i, name in enumerate(classes)
        ]
    if len(foreground) != 1:
        raise RecipeError(
            f"The run has objects of several classes ({', '.join(foreground)}). Give the class "
            f"of the truth's ids: --values 0={classes[0]} --values 1..999={foreground[0]} and so "
            "on; or, if the truth has classes, of its values: "
            f"--values 0={classes[0]} --values 1={foreground[0]} and so on."
        )
    return [ValueRule(0, 0, classes[0]), ValueRule(1, LAST_VALUE, foreground[0])]


def parse_values(texts: Iterable[str]) -> list[ValueRule]:
    """Rules from VALUE=CLASS, several of them separated by commas. Raises `RecipeError`."""
    rules = []
    for part in (part for text in texts for part in text.split(",")):
        value, equals, name = (piece.strip() for piece in part.partition("="))
        if not equals or not name:
            raise RecipeError(
                f"--values {part!r}: expected VALUE=CLASS, for example 255=inside or 1..=nucleus."
            )
        rules.append(ValueRule.parse(value, name, f"--values {part!r}"))
    return rules


def parse_table(table: Any, where: str) -> list[ValueRule]:
    """Rules from a mapping of class names to a value, a range or a colour, or to a list of these.
    Raises `RecipeError`.
    """
    if not isinstance(table, Mapping) or not table:
        raise RecipeError(
            f"{where}: expected one line per class with its value, for example "
            "'building: \"#3C1098\"'."
        )
    rules = []
    for name, given in table.items():
        if isinstance(name, bool):
            raise RecipeError(
                f"{where}: YAML reads no, off and false (yes, on and true) as truth values. Put "
                "quotes around class names like these."
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
        else f"values {rule.low}..{'' if rule.high == LAST_VALUE else rule.high}"
    )


def _precedence(rule: ValueRule) -> int:
    return 2 if rule.name is None else int(rule.low == rule.high)
