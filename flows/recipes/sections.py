"""Sections of recipes whose `kind` names a class of a registry: their values.

A section is an instance of the dataclass that it configures, without a second class for the recipe
(`flows.recipes.schemas` checks it).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic

from maskloom.flows.recipes.messages import explain, quotes_hint
from maskloom.flows.recipes.schemas import dataclasses_of, model_of
from maskloom.flows.recipes.yaml_files import below, shown
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.models.protocols import SEGMENTERS, SegmenterRecipe
from maskloom.segcore.storage.addresses import RelativeToRecipe


def build(registry: Mapping[str, Any], value: Any, path: str, folder: Path | None = None) -> Any:
    """A section's value: an instance of the class that its `kind` names. Raises `RecipeError` with
    the `path` in the recipe.

    Relative paths of files are below `folder`. None: paths stay unchanged.
    """
    kind, given = _kind_and_fields(registry, value, path)
    try:
        checked = model_of(kind).model_validate(given)
    except pydantic.ValidationError as error:
        raise RecipeError(
            explain(
                error, path, [field.name for field in dataclasses.fields(kind)], _sections(kind)
            )
        ) from None
    try:
        return kind(
            **{
                name: _inner(kind, name, getattr(checked, name), f"{path}.{name}", folder)
                for name in checked.model_fields_set
            }
        )
    except ValueError as error:
        # Most messages begin with the key at fault.
        of_a_key = str(error).partition(":")[0] in model_of(kind).model_fields
        raise RecipeError(f"{path}{'.' if of_a_key else ': '}{error}") from error


def _kind_and_fields(
    registry: Mapping[str, Any], value: Any, path: str
) -> tuple[type, dict[str, Any]]:
    """The class that a section names, and its other keys."""
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise RecipeError(
            f"{path}: expected a mapping with the key `kind` ({', '.join(registry)}), got "
            f"{shown(value)}."
        )
    if not isinstance(value["kind"], str):
        raise RecipeError(
            f"{path}.kind: expected a name, got {shown(value['kind'])}.{quotes_hint(value['kind'])}"
        )
    try:
        kind = registry[value["kind"]]
    except KeyError as error:
        raise RecipeError(f"{path}.kind: {error.args[0]}") from None
    return kind, {name: item for name, item in value.items() if name != "kind"}


def _inner(kind: type, name: str, value: Any, path: str, folder: Path | None) -> Any:
    """The value of a field. Segmenters inside it are built from their sections, and relative paths
    of files, also in a section of its own, are put below the folder.
    """
    hint = typing.get_type_hints(kind)[name]
    if hint is SegmenterRecipe:
        return build(SEGMENTERS, value, path, folder)
    if SegmenterRecipe in typing.get_args(hint):
        return tuple(build(SEGMENTERS, item, f"{path}.{i}", folder) for i, item in enumerate(value))
    marker = _path_marker(typing.get_type_hints(kind, include_extras=True)[name])
    if folder is not None and marker is not None and isinstance(value, str):
        return value if marker.unless(value) else below(value, folder)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value) if field.init]
        return dataclasses.replace(
            value,
            **{
                each: _inner(type(value), each, getattr(value, each), f"{path}.{each}", folder)
                for each in fields
            },
        )
    return value


def _sections(kind: type) -> dict[str, list[str]]:
    """The fields of a dataclass that are sections of their own, with their keys."""
    return {
        name: [field.name for section in sections for field in dataclasses.fields(section)]
        for name, hint in typing.get_type_hints(kind).items()
        if (sections := dataclasses_of(hint))
    }


def _path_marker(hint: Any) -> RelativeToRecipe | None:
    """The marker of a field that holds the path of a file or None. None: not such a field."""
    for part in (hint, *typing.get_args(hint)):
        for item in getattr(part, "__metadata__", ()):
            if isinstance(item, RelativeToRecipe):
                return item
    return None
