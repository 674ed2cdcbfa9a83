"""Sizes of pixels in the words of users."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.ground.space import AXES, MILLIMETRES, Metric, PixelSize


@pytest.mark.parametrize(
    ("text", "spacing", "unit"),
    [
        ("0.25 um", (0.25,), "um"),
        ("0.25um", (0.25,), "um"),
        (".25 µm", (0.25,), "um"),  # micro sign
        ("0.25 μm", (0.25,), "um"),  # Greek letter
        ("0.25 Micron", (0.25,), "um"),
        ("2 micrometres", (2.0,), "um"),
        ("250 nm", (250.0,), "nm"),
        ("2.5e-1 um", (0.25,), "um"),
        ("0.25 um/px", (0.25,), "um"),
        ("0.25 um per pixel", (0.25,), "um"),
        ("1 MM", (1.0,), "mm"),
        ("0.5 m", (0.5,), "m"),
        ("3 centimeters", (3.0,), "cm"),
        ("0.7 0.8 mm", (0.7, 0.8), "mm"),
        ("2.5 0.7 0.7 mm", (2.5, 0.7, 0.7), "mm"),
        ("2.5 x 0.7 x 0.7 mm", (2.5, 0.7, 0.7), "mm"),
        ("2.5×0.7×0.7 mm", (2.5, 0.7, 0.7), "mm"),
        ("2.5, 0.7, 0.7 mm", (2.5, 0.7, 0.7), "mm"),
        ("[2.5, 0.7, 0.7] mm", (2.5, 0.7, 0.7), "mm"),
        ("2.5 mm, 0.7 mm, 0.7 mm", (2.5, 0.7, 0.7), "mm"),
        ("  1   um ", (1.0,), "um"),
    ],
)
def test_every_spelling(text: str, spacing: tuple[float, ...], unit: str) -> None:
    assert PixelSize.parse(text) == PixelSize(spacing, unit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected one number, or one for each axis"),
        ("um", "expected one number"),
        ("0.25", "and a unit, e.g. '0.25 um'"),
        ("0.25 px", "unit: expected one of m, cm, mm, um, nm; got 'px'"),
        ("72 dpi", "got 'dpi'"),
        ("0,25 um", "write decimals with a point: '0.25 um'"),
        ("2,5 0,7 0,7 mm", "write decimals with a point: '2.5 0.7 0.7 mm'"),
        ("1 um 2 mm", "one unit for all axes; got um and mm"),
        ("1 2 3 4 mm", "at most 3 numbers"),
        ("0 um", "from 1 nm to 1 m"),
        ("-1 um", "from 1 nm to 1 m"),
        ("nan um", "expected one number"),
        ("inf um", "expected one number"),
        ("1e999 um", "from 1 nm to 1 m"),
        ("0.9 nm", "from 1 nm to 1 m"),
        ("1.1 m", "from 1 nm to 1 m"),
        ("1 1 0 mm", "from 1 nm to 1 m"),
        ("about 1 um", "expected one number"),
        ("1 um; rm", "expected one number"),
    ],
)
def test_what_is_no_size_says_why(text: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011  the message is compared
        PixelSize.parse(text)
    assert message in str(raised.value)


@given(st.text(max_size=20))
def test_any_other_text_is_refused_with_a_message(text: str) -> None:
    try:
        size = PixelSize.parse(text)
    except ValueError as error:
        assert str(error)
    else:
        assert Metric(size.spacing, size.unit).is_plausible


@given(
    st.lists(st.floats(1e-3, 1e3, allow_subnormal=False), min_size=1, max_size=3),
    st.sampled_from([unit for unit in MILLIMETRES if unit in ("mm", "um")]),
)
def test_what_is_written_is_read(numbers: list[float], unit: str) -> None:
    size = PixelSize(tuple(numbers), unit)
    assert PixelSize.parse(f"{' '.join(map(repr, numbers))} {unit}") == size


def test_axes() -> None:
    assert PixelSize.parse("0.5 um").metric(AXES).spacing == (0.5, 0.5, 0.5)
    assert PixelSize.parse("0.5 um").metric(AXES[1:]).spacing == (0.5, 0.5)
    assert PixelSize.parse("2 1 1 mm").metric(AXES).spacing == (2.0, 1.0, 1.0)
    for text, axes in (("2 1 1 mm", AXES[1:]), ("1 1 mm", AXES)):
        with pytest.raises(ValueError, match="give one number, or one for each axis"):
            PixelSize.parse(text).metric(axes)


@pytest.mark.parametrize(
    ("spacing", "unit", "plausible"),
    [
        ((1.0, 1.0), "nm", True),
        ((1.0, 1.0), "m", True),
        ((0.1, 1.0), "nm", False),
        ((1.0, 1001.0), "mm", False),
        ((1e300, 1e300), "mm", False),
    ],
)
def test_sizes_beyond_what_instruments_have(
    spacing: tuple[float, ...], unit: str, plausible: bool
) -> None:
    assert Metric(spacing, unit).is_plausible == plausible
