"""Registries: mappings from names to extensions that take one file and one decorator to add
(segmenters, formats, statistics, networks, clusters).

A registry belongs to a package. On its first lookup it imports all modules of the package, so a
file placed in the folder registers itself by its decorator. Other distributions add to it by an
entry point. The group is `maskloom.` followed by the name of the package:

    [project.entry-points."maskloom.segmenters"]
    my_method = "my_package.my_method"
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import threading
from collections.abc import Callable, ItemsView, Iterator, Mapping
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from maskloom.segcore.errors import RecipeError

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """A mapping from names to registered items.

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
        self._registered: dict[str, T] = {}
        self._filling = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """A decorator that registers its argument under `name`. Raises `ValueError` if the name is
        taken.
        """

        def file_under_name(item: T) -> T:
            if name in self._registered:
                raise ValueError(f"the {self.noun} {name!r} is registered twice")
            self._registered[name] = item
            return item

        return file_under_name

    def name_of(self, item: object) -> str | None:
        """The name under which this item is registered. None: it is not registered."""
        return next((name for name, own in self._loaded.items() if own is item), None)

    def __getitem__(self, name: str) -> T:
        try:
            return self._loaded[name]
        except KeyError:
            close = difflib.get_close_matches(str(name), self._loaded, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise KeyError(
                f"There is no {self.noun} {name!r}.{hint} Known: {', '.join(self._loaded)}."
            ) from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def items(self) -> ItemsView[str, T]:
        """Names and items."""
        return self._loaded.items()

    def __len__(self) -> int:
        return len(self._loaded)

    @property
    def _loaded(self) -> Mapping[str, T]:
        # Another thread waits until all is there; in this one, modules of the package may ask while
        # they are imported.
        with self._filling:
            if self._package is not None:
                package, self._package = self._package, None
                import_modules(package)
                # In the order of modules: some may have been imported before, in any order.
                modules = {
                    name: getattr(item, "__module__", "") for name, item in self._registered.items()
                }
                self._registered = {
                    name: self._registered[name]
                    for name in sorted(modules, key=modules.__getitem__)
                }
        return self._registered


def import_modules(package: str) -> None:
    """Import all modules directly inside a package, then its plug-ins, so that they register their
    items.

    Raises `RecipeError` if a plug-in cannot be imported.
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
