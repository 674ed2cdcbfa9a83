"""Colours of classes that a model, or its parameters, state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maskloom.segcore.raster.colours import parse_colour

if TYPE_CHECKING:
    from maskloom.segcore.raster.colours import Colour

_WITHIN = ("inner", "recipe", "model", "segmenter")
"""Fields in which models keep the model or the parameters that name their classes."""


def stated_colours(model: Any) -> dict[str, Colour]:
    """Colours by class name that the card of a network states; of an ensemble, the card of the
    first member that states any.
    """
    card = getattr(model, "card", None)
    if card is not None:
        found = {name: parse_colour(text) for name, text in card.colours.items()}
        return _renamed(found, card, model)
    for inner in (getattr(model, name) for name in _WITHIN if hasattr(model, name)):
        if found := stated_colours(inner):
            return found
    for member in getattr(model, "members", ()):
        if found := stated_colours(member):
            return _renamed(found, member, model)
    return {}


def reference_colours(model: Any) -> dict[str, Colour]:
    """Reference colours by class name: of `classes: {name: "#rrggbb"}`, not of other numbers."""
    classes = _classes(model)
    if not isinstance(classes, Mapping):
        return {}
    return {
        name: parse_colour("#" + given.removeprefix("#"))
        for name, given in classes.items()
        if isinstance(given, str)
    }


def _renamed(colours: dict[str, Colour], one: Any, other: Any) -> dict[str, Colour]:
    """The colours of one's classes for the classes of the other, which may have other names."""
    names = dict(zip(one.classes, getattr(other, "classes", None) or (), strict=False))
    return {names.get(name, name): colour for name, colour in colours.items()}


def _classes(model: Any) -> Any:
    """The classes of the model, or of the one within it."""
    while model is not None:
        found = getattr(model, "classes", None)
        if found is not None:
            return found
        model = next((getattr(model, name) for name in _WITHIN if hasattr(model, name)), None)
    return None
