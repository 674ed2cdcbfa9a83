"""What values mean: singles before ranges, void before both; contradictions and strangers are
refused.
"""

from __future__ import annotations

import numpy as np
import pytest

from maskloom.segcore.annotations.label_mapping import (
    UNKNOWN,
    VOID,
    LabelMapping,
    ValueRule,
    default_rules,
    parse_table,
    parse_values,
)
from maskloom.segcore.errors import RecipeError

NAMES = ("background", "nucleus", "debris")


def meaning(rules: list[ValueRule], values: list[int]) -> list[int]:
    return LabelMapping.of(rules, NAMES).classify(np.array(values)).tolist()


def test_singles_come_before_ranges_and_void_before_both() -> None:
    rules = [
        *parse_values(["0=background, 1..=nucleus", "7=debris"]),
        ValueRule.parse("7..9", "void", "--void"),
    ]
    assert meaning(rules, [0, 1, 6, 7, 9, 10, 65535, 2**32 - 1]) == [0, 1, 1, VOID, VOID, 1, 1, 1]
    assert meaning(rules[:-1], [6, 7, 8]) == [1, 2, 1]
    key = LabelMapping.of(rules, NAMES)
    assert key.numbered == {1}
    assert key.by == "index"


def test_values_that_nobody_explains_are_unknown() -> None:
    assert meaning(parse_values(["2=nucleus,4..5=debris"]), [-3, 0, 1, 2, 3, 4, 5, 6]) == [
        *(UNKNOWN,) * 3, 1, UNKNOWN, 2, 2, UNKNOWN,
    ]  # fmt: skip


def test_void_counts_nowhere_even_if_a_class_is_named_so() -> None:
    names = ("background", "void")
    key = LabelMapping.of(
        [*default_rules(names, None), ValueRule.parse("255", "void", "--void")], names
    )
    assert key.classify(np.array([0, 1, 255])).tolist() == [0, VOID, VOID]


def test_values_below_zero_have_a_meaning_too() -> None:
    """16-bit masks often have -1 or -9999 where nobody knows."""
    rules = [
        *parse_values(["0=background", "1..=nucleus", "-5=debris"]),
        ValueRule.parse("-9999..-7", "void", "--void"),
    ]
    assert meaning(rules, [-(2**50), -9999, -7, -6, -5, -1, 0, 3]) == [
        UNKNOWN,
        VOID,
        VOID,
        UNKNOWN,
        2,
        UNKNOWN,
        0,
        1,
    ]
    with pytest.raises(RecipeError, match="begin at 0"):
        parse_values(["-3..4=nucleus"])


def test_colours_are_text_or_numbers_and_a_class_may_have_several() -> None:
    table = {
        "nucleus": "#3C1098",
        "debris": [132, 41, 246],
        "background": ["#000000", [255, 255, 255]],
        "void": "#9b9b9b",
    }
    key = LabelMapping.of(parse_table(table, "classes.yaml"), NAMES)
    assert key.by == "colour"
    assert key.classify(np.array([0x3C1098, 0x8429F6, 0, 0xFFFFFF, 0x9B9B9B, 1])).tolist() == [
        1,
        2,
        0,
        0,
        VOID,
        UNKNOWN,
    ]
    assert not key.numbered


def test_defaults_are_class_ids_or_ids_of_objects() -> None:
    assert meaning(default_rules(NAMES, None), [0, 1, 2, 3, 255]) == [0, 1, 2, UNKNOWN, UNKNOWN]
    key = LabelMapping.of(default_rules(NAMES, ("nucleus",)), NAMES)
    assert key.classify(np.array([0, 1, 2, 40_000])).tolist() == [0, 1, 1, 1]
    assert key.numbered == {1}
    with pytest.raises(RecipeError, match="several classes"):
        default_rules(NAMES, ("nucleus", "debris"))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.uint32])
def test_values_of_any_type_mean_the_same(dtype: type) -> None:
    """Few possible values are looked up once each, many one by one."""
    values = np.random.default_rng(0).integers(0, 120, (300, 250)).astype(dtype)
    rules = [
        *parse_values(["0=background", "7=debris", "20..99=nucleus"]),
        ValueRule(50, 60, None),
    ]
    found = LabelMapping.of(rules, NAMES, VOID).classify(values)
    expected = np.select(
        [
            values == 0,
            values == 7,
            (values >= 50) & (values <= 60),
            (values >= 20) & (values < 100),
        ],
        [0, 2, VOID, 1],
        VOID,
    )
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("rules", "told"),
    [
        (["0=background", "0=nucleus"], "two classes"),
        (["0..5=background", "3..8=nucleus"], "two classes"),
        (["1=cell"], "no class 'cell'.*background, nucleus, debris"),
        (["1=nucleus", "#3C1098=debris"], "values and by colours"),
        (["nucleus"], "VALUE=CLASS"),
        (["1="], "VALUE=CLASS"),
        (["x=nucleus"], "'x' is no value"),
        (["5..2=nucleus"], "no value"),
        (["#12345=nucleus"], "no value"),
    ],
)
def test_contradictions_are_refused(rules: list[str], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        LabelMapping.of(parse_values(rules), NAMES)


@pytest.mark.parametrize(
    "table",
    [
        None,
        [],
        "nucleus",
        {"nucleus": None},
        {"nucleus": [1, 2, 300]},
        {"nucleus": True},
        {False: 1},
    ],
)
def test_odd_tables_are_refused_or_read_as_lists(table: object) -> None:
    if table == {"nucleus": [1, 2, 300]}:
        table = {"nucleus": [1.5]}
    with pytest.raises(RecipeError, match=r"classes\.yaml"):
        parse_table(table, "classes.yaml")
