"""Folds: the common interface of model fitting and statistics.

Observe one item, merge two observations, finish the total. An observation must hold exact state
that does not depend on order (integer counts, extremes, the smallest hashes of a sample). Then
every partition of the items gives the same total, and one worker gives the same result as a
hundred.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from typing import Protocol, TypeVar

Item = TypeVar("Item", contravariant=True)
State = TypeVar("State")
Result = TypeVar("Result", covariant=True)


class Fold(Protocol[Item, State, Result]):
    """A reduction over items that gives the same result for every grouping of the items."""

    def observe(self, item: Item, /) -> State:
        """The state of one item."""
        ...

    def merge(self, a: State, b: State, /) -> State:
        """The state of two observations together. Associative; the arguments must not be used
        afterwards.
        """
        ...

    def finish(self, total: State, /) -> Result:
        """The result of all observations."""
        ...


def observe_all(fold: Fold[Item, State, Result], items: Iterable[Item]) -> State | None:
    """Merge the observations of all items in order. None: no items."""
    states = map(fold.observe, items)
    first = next(states, None)
    return None if first is None else reduce(fold.merge, states, first)
