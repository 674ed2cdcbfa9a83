"""Engine selections: found and filled in anywhere inside a model.

A model may hold others (an ensemble its members, a watershed the segmenter whose masks it splits).
All are frozen dataclasses whose fields are their whole state, so an `EngineSelector` inside is
found by walking through fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from maskloom.segcore.geometry import Box, Shape, middle
from maskloom.segcore.models.protocols import EngineSelector

T = TypeVar("T")

PROBE_PIXELS = 2**20
"""Number of pixels on which engines are compared."""

Selections = Mapping[str, Mapping[str, Any]]
"""Results of selections by their keys (`EngineSelector.pending_selection`)."""


def probe_box(shape: Shape) -> Box:
    """The box on which engines are compared: the middle of an image, or of the middle plane of a
    volume.
    """
    plane, across = middle(shape[-2:], PROBE_PIXELS), tuple(n // 2 for n in shape[:-2])
    return Box(across + plane.start, tuple(n + 1 for n in across) + plane.stop)


def pending_selections(model: Any) -> dict[str, EngineSelector]:
    """Return one model for each pending selection inside a model or fitter, by key."""
    return {
        selector.pending_selection: selector
        for selector in _selectors(model)
        if selector.pending_selection is not None
    }


def with_selections(model: T, selections: Selections) -> T:
    """Return the model or fitter with these selections made; others stay pending."""

    def made(selector: EngineSelector) -> EngineSelector:
        wanted = selector.pending_selection
        return (
            selector.with_selection(selections[wanted])
            if wanted is not None and wanted in selections
            else selector
        )

    return replaced_inside(model, EngineSelector, made)


def replaced_inside(model: T, kind: type, made: Callable[[Any], Any]) -> T:
    """Return the model or fitter in which `made` has changed every part of this kind."""
    return cast("T", _replaced(model, kind, made))


def _selectors(value: Any) -> Iterator[EngineSelector]:
    if isinstance(value, EngineSelector):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _selectors(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _selectors(item)


def _replaced(value: Any, kind: type, made: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return made(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.init
        }
        after = {name: _replaced(item, kind, made) for name, item in before.items()}
        changed = {name: item for name, item in after.items() if item is not before[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, tuple):
        items = [_replaced(item, kind, made) for item in value]
        return tuple(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value
