"""Formulas: what is read is what Python reads, and nothing else is."""

from __future__ import annotations

import ast
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.formulas import (
    DEEPEST,
    LONGEST,
    Binary,
    Formula,
    FormulaError,
    Name,
    Number,
    Unary,
    names_in,
    parse,
    write,
)

NAMES = {"a": 3.5, "b2": -2.0, "burned.area": 0.25}
OPERATORS: dict[str, Any] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.truediv,
    "**": operator.pow,
    "<": operator.lt,
    ">=": operator.ge,
    "==": operator.eq,
    "and": lambda a, b: a and b,
    "or": lambda a, b: a or b,
}


def value(formula: Formula) -> Any:
    match formula:
        case Number(number):
            return number
        case Name(name):
            return NAMES[name]
        case Unary("not", operand):
            return not value(operand)
        case Unary(_, operand):
            return -value(operand)
        case Binary(sign, left, right):
            return OPERATORS[sign](value(left), value(right))
    raise AssertionError(formula)


TERMS = st.recursive(
    st.sampled_from(["1", "2.5", "1e-3", ".5", *NAMES]),
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("{} {} {}".format, inner, st.sampled_from("+-*/"), inner),
        st.builds("-{}".format, inner),
        st.builds("{} ** 2".format, st.sampled_from([*NAMES, "3"])),
    ),
    max_leaves=8,
)
FORMULAS = st.one_of(
    TERMS,
    st.builds("{} < {} and not {} >= {} or {} == {}".format, *[TERMS] * 6),
)


def in_python(text: str) -> Any:
    tree = ast.parse(text.replace("burned.area", "burned_area"), mode="eval")
    names = {name.replace(".", "_"): number for name, number in NAMES.items()}
    return eval(compile(tree, "formula", "eval"), {"__builtins__": {}}, names)


@given(FORMULAS)
def test_it_means_what_it_means_in_python(text: str) -> None:
    try:
        wanted = in_python(text)
    except ZeroDivisionError:
        return
    assert value(parse(text)) == wanted


@given(FORMULAS)
def test_what_is_written_is_read_as_the_same_tree(text: str) -> None:
    assert parse(write(parse(text))) == parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a number, a name or '\\(' at character 1 of ''; got the end"),
        ("a b", "expected an operator or the end at character 3"),
        ("(a", "expected '\\)'"),
        ("f()", "expected a number, a name"),
        ("1 < 2 < 3", "expected an operator or the end at character 7"),
        ("a; b", "unexpected ';' at character 2"),
        ("__import__('os')", "unexpected"),
        ("a[0]", "unexpected '\\['"),
        ("and", "expected a number, a name"),
        ("a.", "unexpected '\\.'"),
        ("1" * (LONGEST + 1), f"at most {LONGEST} characters"),
        ("(" * (DEEPEST + 1) + "a" + ")" * (DEEPEST + 1), f"at most {DEEPEST} levels"),
        ("2" + " ** 2" * (DEEPEST + 1), f"at most {DEEPEST} powers"),
    ],
)
def test_anything_else_is_refused_and_says_where(text: str, message: str) -> None:
    with pytest.raises(FormulaError, match=message):
        parse(text)


def test_units_belong_to_their_numbers() -> None:
    found = parse("area > 5 ha and growth / 2 > 1 ha/day", ["ha", "ha/day"])
    assert isinstance(found, Binary)
    assert found.left == Binary(">", Name("area"), Number(5.0, "ha"))
    assert found.right == Binary(
        ">", Binary("/", Name("growth"), Number(2.0)), Number(1.0, "ha/day")
    )
    assert list(names_in(found)) == ["area", "growth"]
    assert parse("2 ha", ["ha"]) == Number(2.0, "ha")
    with pytest.raises(FormulaError, match="got 'ha'"):
        parse("area > 5 ha")
