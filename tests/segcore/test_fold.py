"""Folds: observations are made one at a time, in order, and any cut of the items gives the same
total.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.fold import observe_all


@dataclass(frozen=True)
class Letters:
    """How often each letter occurs: a fold whose merge may destroy its arguments."""

    seen: list[str] = field(default_factory=list)

    def observe(self, word: str, /) -> Counter[str]:
        self.seen.append(word)
        return Counter(word)

    def merge(self, a: Counter[str], b: Counter[str], /) -> Counter[str]:
        a.update(b)
        b.clear()
        return a

    def finish(self, total: Counter[str], /) -> list[tuple[str, int]]:
        return sorted(total.items())


class Concatenation:
    """Not commutative: tells the order of merging."""

    def observe(self, item: str, /) -> str:
        return item

    def merge(self, a: str, b: str, /) -> str:
        return a + b

    def finish(self, total: str, /) -> str:
        return total


WORDS = st.lists(st.text("abc", max_size=5), max_size=8)


@given(WORDS)
def test_all_items_are_observed_once_and_in_order(words: list[str]) -> None:
    letters = Letters()

    total = observe_all(letters, words)

    assert letters.seen == words
    assert total == (Counter("".join(words)) if words else None)
    assert observe_all(Concatenation(), words) == ("".join(words) if words else None)


@given(WORDS, WORDS)
def test_parts_can_be_observed_apart_and_merged(first: list[str], second: list[str]) -> None:
    totals = [observe_all(Letters(), part) for part in (first, second)]
    known = [total for total in totals if total is not None]
    merged = known[0] if len(known) == 1 else Letters().merge(*known) if known else None

    assert merged == observe_all(Letters(), first + second)


def test_items_are_drawn_only_when_the_one_before_was_merged() -> None:
    """So memory holds one item at a time, whatever their number."""
    events: list[str] = []

    class Watched(Concatenation):
        def observe(self, item: str, /) -> str:
            events.append(f"observe {item}")
            return item

        def merge(self, a: str, b: str, /) -> str:
            events.append(f"merge {b}")
            return a + b

    def items() -> Iterator[str]:
        for item in "abc":
            events.append(f"draw {item}")
            yield item

    observe_all(Watched(), items())

    assert events == [
        "draw a",
        "observe a",
        "draw b",
        "observe b",
        "merge b",
        "draw c",
        "observe c",
        "merge c",
    ]
