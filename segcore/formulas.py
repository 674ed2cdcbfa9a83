"""Formulas as users write them: a small grammar, read into a tree. Nothing is ever executed.

    formula     either ("or" either)*
    either      denied ("and" denied)*
    denied      "not" denied | compared
    compared    sum (("<" | "<=" | ">" | ">=" | "==" | "!=") sum)?
    sum         product (("+" | "-") product)*
    product     signed (("*" | "/") signed)*
    signed      ("-" | "+") signed | power
    power       atom ("**" signed)?
    atom        number unit? | name | name "(" formula ("," formula)* ")" | "(" formula ")"

Names with other characters stand in backquotes: `bare soil`.area. The bounds on length and nesting
keep hostile formulas harmless.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import NamedTuple, NoReturn

LONGEST = 1000
"""Greatest number of characters."""
DEEPEST = 50
"""Greatest nesting."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>(?:`[^`]+`|[^\W\d]\w*)(?:\.[^\W\d]\w*)*)"
    r"|(?P<sign>\*\*|<=|>=|==|!=|[-+*/(),<>]))"
)
_COMPARISONS = ("<", "<=", ">", ">=", "==", "!=")


class FormulaError(ValueError):
    """A formula that does not follow the grammar; the message shows where."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number, with its unit where one is written."""

    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Name:
    """A name, which may have parts: `burned.area`; see `parts_of`."""

    text: str


@dataclass(frozen=True, slots=True)
class Call:
    """A function of other formulas."""

    function: str
    arguments: tuple[Formula, ...]


@dataclass(frozen=True, slots=True)
class Unary:
    """`-x`, `+x` or `not x`."""

    operator: str
    operand: Formula


@dataclass(frozen=True, slots=True)
class Binary:
    """Two formulas and the operator between them."""

    operator: str
    left: Formula
    right: Formula


Formula = Number | Name | Call | Unary | Binary


def parse(text: str, units: Collection[str] = ()) -> Formula:
    """The tree of a formula; `units` are the words that may follow a number. Raises
    `FormulaError`.

    >>> parse("b5 / 2")
    Binary(operator='/', left=Name(text='b5'), right=Number(value=2.0, unit=''))
    >>> parse("growth > 1 ha/day", units=["ha", "ha/day"]).right
    Number(value=1.0, unit='ha/day')
    """
    if len(text) > LONGEST:
        raise FormulaError(f"expected at most {LONGEST} characters; got {len(text)}")
    return _Parser(text, frozenset(units)).whole()


def parts_of(name: str) -> tuple[str, ...]:
    """The parts of a name, without backquotes.

    >>> parts_of("burned.area"), parts_of("`bare soil`.area"), parts_of("water")
    (('burned', 'area'), ('bare soil', 'area'), ('water',))
    """
    if not name.startswith("`"):
        return tuple(name.split("."))
    quoted, _, rest = name[1:].partition("`")
    return (quoted, *rest.removeprefix(".").split(".")) if rest else (quoted,)


def names_in(formula: Formula) -> Iterator[str]:
    """The names in a formula from left to right, again for each use; not those of functions."""
    match formula:
        case Name(text):
            yield text
        case Call(_, arguments):
            for argument in arguments:
                yield from names_in(argument)
        case Unary(_, operand):
            yield from names_in(operand)
        case Binary(_, left, right):
            yield from names_in(left)
            yield from names_in(right)


def write(formula: Formula) -> str:
    """The formula as text, which `parse` reads as the same tree.

    >>> write(parse("a-b*2/gaussian(c, 1.5)"))
    '(a - ((b * 2) / gaussian(c, 1.5)))'
    """
    match formula:
        case Number(value, unit):
            return f"{value:.17g} {unit}".strip()
        case Name(text):
            return text
        case Call(function, arguments):
            return f"{function}({', '.join(map(write, arguments))})"
        case Unary(operator, operand):
            return f"({operator} {write(operand)})" if operator == "not" else f"(-{write(operand)})"
        case Binary(operator, left, right):
            return f"({write(left)} {operator} {write(right)})"


class _Token(NamedTuple):
    kind: str
    """number, name, sign or end."""
    text: str
    place: int


class _Parser:
    """Recursive descent: a method for each rule of the grammar."""

    def __init__(self, text: str, units: frozenset[str]) -> None:
        self.text = text
        self.units = units
        self.tokens = list(_tokens(text))
        self.place = 0
        self.depth = 0

    def whole(self) -> Formula:
        found = self.formula()
        if self.next.kind != "end":
            self.fail("expected an operator or the end")
        return found

    @property
    def next(self) -> _Token:
        return self.tokens[self.place]

    def take(self, *texts: str) -> str:
        """The next token's text if it is one of these, which is then passed; else empty."""
        token = self.next
        if token.kind in ("sign", "name") and token.text in texts:
            self.place += 1
            return token.text
        return ""

    def fail(self, expected: str) -> NoReturn:
        token = self.next
        came = repr(token.text) if token.text else "the end"
        place = token.place + 1
        raise FormulaError(f"{expected} at character {place} of {self.text!r}; got {came}")

    def formula(self) -> Formula:
        self.depth += 1
        if self.depth > DEEPEST:
            raise FormulaError(f"expected at most {DEEPEST} levels of nesting in {self.text!r}")
        found = self.either()
        while operator := self.take("or"):
            found = Binary(operator, found, self.either())
        self.depth -= 1
        return found

    def either(self) -> Formula:
        found = self.denied()
        while operator := self.take("and"):
            found = Binary(operator, found, self.denied())
        return found

    def denied(self) -> Formula:
        denials = 0
        while self.take("not"):
            denials += 1
        found = self.compared()
        for _ in range(denials % 2):
            found = Unary("not", found)
        return found

    def compared(self) -> Formula:
        left = self.sum()
        operator = self.take(*_COMPARISONS)
        return Binary(operator, left, self.sum()) if operator else left

    def sum(self) -> Formula:
        found = self.product()
        while operator := self.take("+", "-"):
            found = Binary(operator, found, self.product())
        return found

    def product(self) -> Formula:
        found = self.signed()
        while operator := self.take("*", "/"):
            found = Binary(operator, found, self.signed())
        return found

    def signed(self) -> Formula:
        signs = []
        while sign := self.take("-", "+"):
            signs.append(sign)
        found = self.power()
        return Unary("-", found) if signs.count("-") % 2 else found

    def power(self) -> Formula:
        base = self.atom()
        if not self.take("**"):
            return base
        self.depth += 1
        if self.depth > DEEPEST:
            raise FormulaError(f"expected at most {DEEPEST} powers in {self.text!r}")
        found = Binary("**", base, self.signed())
        self.depth -= 1
        return found

    def atom(self) -> Formula:
        token = self.next
        if token.kind == "number":
            self.place += 1
            return Number(float(token.text), self.unit())
        if token.kind == "name" and token.text not in ("and", "or", "not"):
            self.place += 1
            return Call(token.text, self.arguments()) if self.take("(") else Name(token.text)
        if not self.take("("):
            self.fail("expected a number, a name or '('")
        found = self.formula()
        self.close()
        return found

    def arguments(self) -> tuple[Formula, ...]:
        found = [self.formula()]
        while self.take(","):
            found.append(self.formula())
        self.close()
        return tuple(found)

    def close(self) -> None:
        if not self.take(")"):
            self.fail("expected ')'")

    def unit(self) -> str:
        """The longest unit that follows: `ha/day` rather than `ha` divided by something."""
        words = [token.text for token in self.tokens[self.place : self.place + 3]]
        for count in (3, 1):
            unit = "".join(words[:count])
            if unit in self.units and all(words[:count]):
                self.place += count
                return unit
        return ""


def _tokens(text: str) -> Iterator[_Token]:
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            place += len(text[place:]) - len(text[place:].lstrip())
            raise FormulaError(
                f"unexpected {text[place]!r} at character {place + 1} of {text!r}. A formula has "
                "numbers, names, functions, + - * / ** and parentheses"
            )
        kind = str(found.lastgroup)
        yield _Token(kind, found[kind], found.start(kind))
        place = found.end()
    yield _Token("end", "", len(text))
