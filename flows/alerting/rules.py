"""The conditions of alerts: read, checked before any work, and evaluated.

A name is a class, with what is meant of it after a dot: `burned.area` (or `burned` alone),
`burned.share`, `burned.pixels`, `burned.objects`, `burned.largest`, `burned.growth`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

from maskloom.flows.alerting.quantities import UNITS, Quantity, combined, compared
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formulas import (
    Binary,
    Call,
    Formula,
    FormulaError,
    Name,
    Number,
    Unary,
    names_in,
    parse,
    parts_of,
)

Subject = Literal["image", "zone", "collection"]
MEASURES = ("area", "share", "pixels", "objects", "largest", "growth")
_BOOLEAN = ("and", "or", "not", "<", "<=", ">", ">=", "==", "!=")
_KINDS = ((2, 0, 0), (3, 0, 0), (0, 1, 0))
"""Dimensions that sizes of classes may have: it is known with the images only."""

_parsed = lru_cache(256)(partial(parse, units=UNITS))

Measured = Mapping[tuple[str, str], Quantity]
"""Values by class and measure."""


@dataclass(frozen=True, slots=True)
class Rule:
    """An alert."""

    name: str
    when: str
    """The condition that raises it."""
    until: str = ""
    """The condition that ends it. Empty: that `when` does not hold."""
    of: Subject = "image"
    """What it is about: each image, each zone, or all images together."""

    def check(self, classes: Collection[str]) -> None:
        """Raise `RecipeError` for conditions that can never be evaluated; `classes` are those of
        the masks (empty: not known yet).
        """
        for key, text in (("when", self.when), ("until", self.until)):
            try:
                if text:
                    self._check(_parsed(text), classes)
            except FormulaError as error:
                raise RecipeError(f"alerts.{self.name}.{key}: {error}.") from error

    def needs(self) -> set[tuple[str, str]]:
        """Classes and measures that its conditions name."""
        texts = filter(None, (self.when, self.until))
        return {_measure(name) for text in texts for name in names_in(_parsed(text))}

    def holds(self, text: str, values: Measured) -> bool:
        """Whether a condition holds. Raises `FormulaError` where that is undefined."""
        found = _value(_parsed(text), values)
        assert isinstance(found, bool), "checked"
        return found

    def _check(self, formula: Formula, classes: Collection[str]) -> None:
        if not _is_condition(formula):
            raise FormulaError("expected a condition, such as water > 5 ha; got a number")
        measures = list(map(_measure, names_in(formula)))
        if not measures:
            raise FormulaError("expected a condition on classes; got none")
        for name, measure in measures:
            if classes and name not in classes:
                raise FormulaError(
                    f"the masks have no class {name!r}. Their classes are {', '.join(classes)}"
                )
            if measure == "growth" and self.of == "image":
                raise FormulaError("growth is known of zones and the collection: set `of`")
            if measure in ("objects", "largest") and self.of == "zone":
                raise FormulaError(f"{measure} is known of images and the collection: set `of`")
        faults = [_fault(formula, measures, dimension) for dimension in _KINDS]
        if None not in faults:
            raise FormulaError(str(faults[0]))


def _fault(
    formula: Formula, measures: list[tuple[str, str]], dimension: tuple[int, int, int]
) -> str | None:
    """What is wrong for a kind of size, whatever the values are; None: nothing."""
    faults = []
    # Some values make a division by zero; not all of these do unless it always is one.
    for value in (3.0, 7.1, 0.37):
        values = {
            each: Quantity(value + i, _dimension(each[1], dimension))
            for i, each in enumerate(measures)
        }
        try:
            _value(formula, values)
        except FormulaError as error:
            faults.append(str(error))
        else:
            return None
    return faults[0]


def _dimension(measure: str, size: tuple[int, int, int]) -> tuple[int, int, int]:
    if measure in ("area", "largest"):
        return size
    return (*size[:2], -1) if measure == "growth" else (0, 0, 0)


def _measure(name: str) -> tuple[str, str]:
    """The class and the measure that a name means. Raises `FormulaError`."""
    first, *rest = parts_of(name)
    measure = rest[0] if rest else "area"
    if len(rest) > 1 or measure not in MEASURES:
        raise FormulaError(
            f"{name!r}: expected a class, alone or with one of {', '.join(MEASURES)} after a dot"
        )
    return first, measure


def _is_condition(formula: Formula) -> bool:
    match formula:
        case Binary(sign) | Unary(sign):
            return sign in _BOOLEAN
        case _:
            return False


def _value(formula: Formula, values: Measured) -> Quantity | bool:
    match formula:
        case Number(value, unit):
            return Quantity(value) if not unit else _scaled(value, UNITS[unit])
        case Name(name):
            return values[_measure(name)]
        case Unary(sign, operand):
            negated = sign == "not"
            return (
                not _condition(operand, values)
                if negated
                else _scaled(-1.0, _number(operand, values))
            )
        case Binary(sign, left, right):
            return _pair(sign, left, right, values)
        case Call(name):
            raise FormulaError(f"there is no function {name!r} in conditions")


def _pair(sign: str, left: Formula, right: Formula, values: Measured) -> Quantity | bool:
    if sign in ("and", "or"):
        # Both, so that a fault on the right is not hidden by what is on the left.
        first, second = _condition(left, values), _condition(right, values)
        return (first and second) if sign == "and" else (first or second)
    first_number, second_number = _number(left, values), _number(right, values)
    if sign in _BOOLEAN:
        return compared(sign, first_number, second_number)
    return combined(sign, first_number, second_number)


def _condition(formula: Formula, values: Measured) -> bool:
    found = _value(formula, values)
    if not isinstance(found, bool):
        raise FormulaError("expected conditions around and, or, not; got a number")
    return found


def _number(formula: Formula, values: Measured) -> Quantity:
    found = _value(formula, values)
    if isinstance(found, bool):
        raise FormulaError("expected numbers around + - * / and comparisons; got a condition")
    return found


def _scaled(factor: float, quantity: Quantity) -> Quantity:
    return Quantity(factor * quantity.value, quantity.dimension)
