"""Conditions of alerts: what is refused before any work, and what units mean."""

from __future__ import annotations

import pytest

from maskloom.flows.alerting.quantities import UNITS, Quantity
from maskloom.flows.alerting.rules import Rule
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.formulas import FormulaError

CLASSES = ("soil", "weed", "crop", "bare soil")


def values(**sizes: float) -> dict[tuple[str, str], Quantity]:
    """Areas of classes in hectares."""
    return {(name, "area"): Quantity(size * 1e4, (2, 0, 0)) for name, size in sizes.items()}


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("weed / (weed + crop) > 0.3", True),
        ("weed / (weed + crop) > 0.5", False),
        ("weed > 5 ha", False),
        ("weed >= 40000 m2", True),
        ("weed > 0.03 km2 and crop > 5 ha", True),
        ("weed > 5 ha or crop > 5 ha", True),
        ("not weed > 5 ha", True),
        ("crop - weed == 2 ha", True),
        ("weed ** 2 > 3 ha * 5 ha", True),
        ("2 * weed > crop", True),
        ("-weed < crop", True),
    ],
)
def test_conditions_mean_what_they_say(text: str, holds: bool) -> None:
    rule = Rule("a", text)
    rule.check(CLASSES)
    assert rule.holds(text, values(weed=4, crop=6)) is holds


def test_backquotes_and_measures() -> None:
    rule = Rule("a", "`bare soil`.share > 0.5 and weed.growth > 1 ha/week", of="collection")
    rule.check(CLASSES)
    assert rule.needs() == {("bare soil", "share"), ("weed", "growth")}
    known = {
        ("bare soil", "share"): Quantity(0.6),
        ("weed", "growth"): Quantity(2e4 / 7, (2, 0, -1)),
    }
    assert rule.holds(rule.when, known)
    known["weed", "growth"] = Quantity(0.9e4 / 7, (2, 0, -1))
    assert not rule.holds(rule.when, known)
    assert UNITS["ha/day"] == Quantity(1e4, (2, 0, -1))


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Rule("a", "wheat > 1 ha"), "no class 'wheat'. Their classes are soil, weed"),
        (Rule("a", "weed"), "expected a condition, such as water > 5 ha; got a number"),
        (Rule("a", "1 > 2"), "expected a condition on classes; got none"),
        (Rule("a", "weed > 5"), "the units do not agree: an area > a number"),
        (Rule("a", "weed > 5 days"), "the units do not agree"),
        (Rule("a", "weed + weed.share > 1 ha"), "the units do not agree"),
        (Rule("a", "weed.growth > 1 ha/day"), "growth is known of zones and the collection"),
        (Rule("a", "weed.growth > 1 ha", of="zone"), "an area per day > an area"),
        (Rule("a", "weed.objects > 3", of="zone"), "objects is known of images"),
        (Rule("a", "weed.size > 3"), "expected a class, alone or with one of area"),
        (Rule("a", "weed.area.max > 3"), "expected a class, alone or with"),
        (Rule("a", "max(weed, crop) > 1 ha"), "no function 'max'"),
        (Rule("a", "weed > 1 acre"), "expected an operator or the end"),
        (Rule("a", "(weed > 1 ha) + 1 > 2"), "got a condition"),
        (Rule("a", "weed and crop > 1 ha"), "expected conditions around and"),
        (Rule("a", "weed > 1 ha", until="weed < 1"), "alerts.a.until: the units do not agree"),
    ],
)
def test_what_can_never_be_said_is_refused(rule: Rule, message: str) -> None:
    with pytest.raises(RecipeError, match=message.replace("(", "\\(").replace("+", "\\+")):
        rule.check(CLASSES)


def test_sizes_in_other_units_are_possible_until_the_images_are_known() -> None:
    for text in ("weed > 5 ha", "weed > 5 px", "weed > 5 ml"):
        Rule("a", text).check(())
    with pytest.raises(FormulaError, match="units do not agree: pixels > an area"):
        Rule("a", "weed > 5 ha").holds("weed > 5 ha", {("weed", "area"): Quantity(9, (0, 1, 0))})


def test_a_division_by_zero_is_no_answer() -> None:
    with pytest.raises(FormulaError, match="a division by zero"):
        Rule("a", "").holds("weed / crop > 1", values(weed=1, crop=0))
