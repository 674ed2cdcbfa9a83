"""Numbers with units, and what may be done with them."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass

from maskloom.segcore.formulas import FormulaError

_SIZES = {
    "m2": (1.0, 2),
    "ha": (1e4, 2),
    "km2": (1e6, 2),
    "cm2": (1e-4, 2),
    "mm2": (1e-6, 2),
    "um2": (1e-12, 2),
    "l": (1e-3, 3),
    "ml": (1e-6, 3),
    "mm3": (1e-9, 3),
}
"""Units of area and volume: size in powers of the metre, and that power."""
_DAYS = {"hour": 1 / 24, "day": 1.0, "week": 7.0, "year": 365.25}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in metres, pixels and days, to the power of `dimension`."""

    value: float
    dimension: tuple[int, int, int] = (0, 0, 0)

    @property
    def kind(self) -> str:
        """The dimension in words."""
        metres, pixels, days = self.dimension
        parts = {2: "an area", 3: "a volume"}
        what = parts.get(metres, f"m**{metres}") if metres else "pixels" if pixels else "a number"
        return f"{what} per day" if days == -1 else what


def _units() -> dict[str, Quantity]:
    sizes = {name: Quantity(size, (power, 0, 0)) for name, (size, power) in _SIZES.items()}
    sizes["px"] = Quantity(1.0, (0, 1, 0))
    rates = {
        f"{name}/{time}": Quantity(size.value / days, (*size.dimension[:2], -1))
        for name, size in sizes.items()
        for time, days in _DAYS.items()
    }
    times = {name: Quantity(days, (0, 0, 1)) for name, days in _DAYS.items()}
    return {**sizes, **rates, **times, "days": times["day"]}


UNITS = _units()
"""What may follow a number."""

_COMPARED: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}


def compared(sign: str, a: Quantity, b: Quantity) -> bool:
    """The comparison. Raises `FormulaError` if the units do not agree."""
    _require_same(sign, a, b)
    return _COMPARED[sign](a.value, b.value)


def combined(sign: str, a: Quantity, b: Quantity) -> Quantity:
    """The result of `+ - * / **`. Raises `FormulaError` if the units do not agree or the result is
    undefined.
    """
    if sign in "+-":
        _require_same(sign, a, b)
        return Quantity(a.value + (b.value if sign == "+" else -b.value), a.dimension)
    if sign == "**":
        power = round(b.value) if math.isfinite(b.value) else 0
        if any(b.dimension) or (any(a.dimension) and power != b.value):
            raise FormulaError(f"{a.kind} to the power of {b.kind} has no unit")
        try:
            value = math.pow(a.value, b.value)
        except (OverflowError, ValueError) as error:
            raise FormulaError(f"{a.value:g} ** {b.value:g} is undefined") from error
        return Quantity(value, _times(a.dimension, power))
    if sign == "/" and b.value == 0:
        raise FormulaError("a division by zero")
    if sign == "/":
        return Quantity(a.value / b.value, _sum(a.dimension, _times(b.dimension, -1)))
    return Quantity(a.value * b.value, _sum(a.dimension, b.dimension))


def _require_same(sign: str, a: Quantity, b: Quantity) -> None:
    if a.dimension != b.dimension:
        raise FormulaError(f"the units do not agree: {a.kind} {sign} {b.kind}")
    if math.isnan(a.value) or math.isnan(b.value):
        raise FormulaError("a value is not known")


def _times(dimension: tuple[int, int, int], factor: int) -> tuple[int, int, int]:
    metres, pixels, days = dimension
    return metres * factor, pixels * factor, days * factor


def _sum(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
