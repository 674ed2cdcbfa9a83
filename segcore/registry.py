"""Registries: names to the things that can be added by one file and one decorator (segmenters,
formats, statistics, networks, clusters).

A registry belongs to a package. When it is first asked, it imports all modules of the package, so a
file dropped into the folder is known by its decorator alone. Other distributions add to it by an
entry point, whose group is `maskloom.` and the name of the package:

    [project.entry-points."maskloom.segmenters"]
    my_method = "my_package.my_method"
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from maskloom.segcore.errors import RecipeError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Names and what they stand for.

    `package` is the package whose modules register themselves. None: they are registered elsewhere.

    >>> colours = Registry("colour")
    >>> colours.register("red")("#ff0000")
    '#ff0000'
    >>> colours["rad"]
    Traceback (most recent call last):
    KeyError: "There is no colour 'rad'. Did you mean 'red'? Known: red."
    """

    def __init__(self, noun: str, package: str | None = None) -> None:
        self.noun = noun
        self._package = package
        self._own: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that files its argument under `name`. A name taken twice is a
        `ValueError`.
        """

        def file_under_name(item: T) -> T:
            if name in self._own:
                raise ValueError(f"the {self.noun} {name!r} is registered twice")
            self._own[name] = item
            return item

        return file_under_name

    def name_of(self, item: object) -> str | None:
        """The name that this item is registered under; None where it is not."""
        return next((name for name, own in self._items.items() if own is item), None)

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

    @property
    def _items(self) -> Mapping[str, T]:
        if self._package is not None:
            # Emptied first: modules of the package may ask while they are imported.
            package, self._package = self._package, None
            import_modules(package)
            # In the order of modules: some may have been imported before, in any order.
            modules = {name: getattr(item, "__module__", "") for name, item in self._own.items()}
            self._own = {name: self._own[name] for name in sorted(modules, key=modules.__getitem__)}
        return self._own


def import_modules(package: str) -> None:
    """Import all modules directly inside a package, then the plug-ins for it, so that they register
    what they add.

    Raises `RecipeError` where a plug-in cannot be imported.
    """
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    group = f"maskloom.{package.rpartition('.')[2]}"
    for plugin in entry_points(group=group):
        try:
            plugin.load()
        except Exception as error:
            raise RecipeError(
                f"The plug-in {plugin.name!r} ({plugin.value}, group {group}) cannot be imported: "
                f"{type(error).__name__}: {error}. Update or uninstall its distribution."
            ) from error
