"""Registries: names to the things that can be added by one file and one decorator (segmenters,
formats, statistics).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from typing import Generic, TypeVar

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names and what they stand for.

    >>> colours = Registry("colour")
    >>> colours.register("red")("#ff0000")
    '#ff0000'
    >>> colours["rad"]
    Traceback (most recent call last):
    KeyError: "There is no colour 'rad'. Did you mean 'red'? Known: red."
    """

    def __init__(self, noun: str) -> None:
        self.noun = noun
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files its argument under `name`. A name taken twice is a
        `ValueError`.
        """

        def file_under_name(item: T) -> T:
            if name in self._items:
                raise ValueError(f"the {self.noun} {name!r} is registered twice")
            self._items[name] = item
            return item

        return file_under_name

    def name_of(self, kind: object) -> str | None:
        """The name that this item is registered under; None where it is not."""
        return next((name for name, item in self._items.items() if item is kind), None)

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except KeyError:
            close = difflib.get_close_matches(str(name), self._items, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise KeyError(
                f"There is no {self.noun} {name!r}.{hint} Known: {', '.join(self._items)}."
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)
