"""Colours of classes that a model, or its parameters, state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskloom.segcore.raster.colours import Colour

_WITHIN = ("inner", "recipe", "model")
"""Fields in which models keep the model or the parameters that name their classes."""


def stated_colours(model: Any) -> dict[str, Colour]:
    """Colours by class name that the card of a network states."""
    card = _first(model, "card")
    found: Mapping[str, Colour] | None = getattr(card, "colours", None)
    return dict(found or {})


def reference_colours(model: Any) -> dict[str, Colour]:
    """Reference colours by class name: of `classes: {name: "#rrggbb"}`, not of other numbers."""
    from maskloom.segcore.raster.colours import parse_colour

    classes = _first(model, "classes")
    if not isinstance(classes, Mapping):
        return {}
    return {
        name: parse_colour("#" + given.removeprefix("#"))
        for name, given in classes.items()
        if isinstance(given, str)
    }


def _first(model: Any, field: str) -> Any:
    """The field of the model, or of the one within it."""
    while model is not None:
        found = getattr(model, field, None)
        if found is not None:
            return found
        model = next((getattr(model, name) for name in _WITHIN if hasattr(model, name)), None)
    return None
