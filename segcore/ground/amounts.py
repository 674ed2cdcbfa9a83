"""Areas and volumes as people of a field write them: µm², cm², ha, ml.

Tables have one unit for each kind of raster (`Space.unit`), so that their numbers can be added;
lines and pictures for people use this module.
"""

from __future__ import annotations

import math

_UNITS = {
    "m2": ((1e6, "km²"), (1e4, "ha"), (1.0, "m²"), (1e-4, "cm²")),
    "mm2": ((1e6, "m²"), (1e2, "cm²"), (1.0, "mm²"), (1e-6, "µm²")),
    "mm3": ((1e6, "l"), (1e3, "ml"), (1.0, "mm³"), (1e-9, "µm³")),
    "px": ((1.0, "px"),),
}
"""Larger and smaller units by the unit of a table, each with its size in that unit."""
_DIGITS = 4
_LEAST = {"ml": 0.1, "mm²": 0.01, "mm³": 0.001}
"""Amounts from which a unit is used. Other units: from 1 on."""


def amount(size: float, unit: str) -> str:
    """A size with four digits, in the unit among those of its kind that suits it.

    >>> amount(0.0001234, "mm2"), amount(1234, "mm3"), amount(2.5e7, "m2")
    ('123.4 µm²', '1.234 ml', '25 km²')
    >>> amount(12345, "px"), amount(0, "mm3")
    ('12,345 px', '0 mm³')
    """
    units = _UNITS[unit]
    plain = next((factor, name) for factor, name in units if factor == 1)
    factor, name = next(
        (each for each in units if size >= each[0] * _LEAST.get(each[1], 1.0)),
        units[-1] if size else plain,
    )
    return f"{_rounded(size / factor)} {name}"


def _rounded(number: float) -> str:
    """A number with so many digits, or all of those before the point."""
    places = 0 if number == 0 else _DIGITS - 1 - math.floor(math.log10(number))
    text = f"{number:,.{max(places, 0)}f}"
    return text.rstrip("0").rstrip(".") if places > 0 else text
