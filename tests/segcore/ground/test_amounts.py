"""Areas and volumes in the units of a field."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.ground.amounts import amount

SIZES = {
    "km²": 1e6,
    "ha": 1e4,
    "m²": 1.0,
    "cm²": 1e-4,
    "mm²": 1e-6,
    "µm²": 1e-12,
    "l": 1e-3,
    "ml": 1e-6,
    "mm³": 1e-9,
    "µm³": 1e-18,
    "px": 1.0,
}
"""In m², m³ and pixels."""
OF_TABLES = {"m2": 1.0, "mm2": 1e-6, "mm3": 1e-9, "px": 1.0}


@pytest.mark.parametrize(
    ("size", "unit", "text"),
    [
        (0.0, "m2", "0 m²"),
        (0.5, "m2", "5,000 cm²"),
        (999.94, "m2", "999.9 m²"),
        (10_000, "m2", "1 ha"),
        (1.5e6, "m2", "1.5 km²"),
        (1.23456e9, "m2", "1,235 km²"),
        (42e-6, "mm2", "42 µm²"),
        (0.25, "mm2", "0.25 mm²"),
        (1234.0, "mm2", "12.34 cm²"),
        (4e-9, "mm3", "4 µm³"),
        (0.02, "mm3", "0.02 mm³"),
        (99.0, "mm3", "99 mm³"),
        (100.0, "mm3", "0.1 ml"),
        (1886.539, "mm3", "1.887 ml"),
        (1.9e6, "mm3", "1.9 l"),
        (7.0, "px", "7 px"),
        (1234567.0, "px", "1,234,567 px"),
    ],
)
def test_amounts(size: float, unit: str, text: str) -> None:
    assert amount(size, unit) == text


@given(st.floats(1e-15, 1e18), st.sampled_from(sorted(OF_TABLES)))
def test_the_text_is_the_size(size: float, unit: str) -> None:
    number, shown = amount(size, unit).split()
    assert re.fullmatch(r"[\d,]+(\.\d+)?", number)
    found = float(number.replace(",", "")) * SIZES[shown] / OF_TABLES[unit]
    assert found == pytest.approx(size, rel=5.1e-4)
