"""Choices: what models leave to the machine that runs them, found and filled in wherever they are
inside a model.

A model may hold others (an ensemble its members, a watershed the segmenter whose masks it splits).
All are frozen dataclasses whose fields are their whole state, so a chooser inside is found by
walking through fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

from maskloom.segcore.geometry import Box, Shape, middle
from maskloom.segcore.models.protocols import Chooser

T = TypeVar("T")

PROBE_PIXELS = 2**20
"""Pixels that choices are tried on."""

Choices = Mapping[str, Mapping[str, Any]]
"""What was chosen, by what was to be chosen (`Chooser.open_choice`)."""


def probe_box(shape: Shape) -> Box:
    """What choices are tried on: the middle of an image, or of the middle plane of a volume."""
    plane, across = middle(shape[-2:], PROBE_PIXELS), tuple(n // 2 for n in shape[:-2])
    return Box(across + plane.start, tuple(n + 1 for n in across) + plane.stop)


def open_choices(model: Any) -> dict[str, Chooser]:
    """One model for each choice that is open inside a model or fitter."""
    return {
        chooser.open_choice: chooser
        for chooser in _choosers(model)
        if chooser.open_choice is not None
    }


def with_choices(model: T, choices: Choices) -> T:
    """The model or fitter with these choices made; others stay open."""

    def made(chooser: Chooser) -> Chooser:
        wanted = chooser.open_choice
        return (
            chooser.chosen(choices[wanted]) if wanted is not None and wanted in choices else chooser
        )

    return cast("T", _replaced(model, made))


def _choosers(value: Any) -> Iterator[Chooser]:
    if isinstance(value, Chooser):
        yield value
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            yield from _choosers(getattr(value, field.name))
    elif isinstance(value, tuple):
        for item in value:
            yield from _choosers(item)


def _replaced(value: Any, made: Callable[[Chooser], Chooser]) -> Any:
    if isinstance(value, Chooser):
        return made(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        before = {
            field.name: getattr(value, field.name)
            for field in dataclasses.fields(value)
            if field.init
        }
        after = {name: _replaced(item, made) for name, item in before.items()}
        changed = {name: item for name, item in after.items() if item is not before[name]}
        return dataclasses.replace(value, **changed) if changed else value
    if isinstance(value, tuple):
        items = [_replaced(item, made) for item in value]
        return tuple(items) if any(a is not b for a, b in zip(items, value, strict=True)) else value
    return value
