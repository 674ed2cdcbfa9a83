"""Folds: the one algebra of fitting and of statistics.

Observe one item, merge two observations, finish the total. An observation must hold exact,
order-free state (integer counts, extremes, the smallest hashes of a sample): then any cut of the
items into parts gives the same total, and one worker equals a hundred.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
State = TypeVar("State")
Result = TypeVar("Result", covariant=True)


class Fold(Protocol[Item, State, Result]):
    """Anything that learns from items one at a time and in any grouping."""

    def observe(self, item: Item, /) -> State:
        """What one item says."""
        ...

    def merge(self, a: State, b: State, /) -> State:
        """What two observations say together. Associative; neither argument may be used
        afterwards.
        """
        ...

    def finish(self, total: State, /) -> Result:
        """The result of all observations."""
        ...


def observe_all(fold: Fold[Item, State, Result], items: Iterable[Item]) -> State | None:
    """Merge the observations of all items in their order; None where there are no items."""
    states = map(fold.observe, items)
    first = next(states, None)
    return None if first is None else reduce(fold.merge, states, first)
