"""Schemas of sections, made from the frozen dataclasses that they configure.

The annotations of the fields are the types that pydantic checks, and the strings after them are the
help that users see.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import operator
import textwrap
import typing
from collections.abc import Mapping
from functools import cache, partial
from itertools import pairwise
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import PydanticKnownError

from maskloom.segcore.models.protocols import SegmenterRecipe
from maskloom.segcore.raster.colours import parse_colour


def _colour(text: str) -> str:
    parse_colour(text)
    return text


ColourText = Annotated[str, pydantic.AfterValidator(_colour)]
"""A colour as users write it: see `parse_colour`."""


def dataclasses_of(hint: Any) -> list[type]:
    """The dataclasses that a field may hold."""
    return [
        section
        for section in (hint, *typing.get_args(hint))
        if dataclasses.is_dataclass(section) and isinstance(section, type)
    ]


def _checked_type(hint: Any) -> Any:
    """The type that pydantic checks for a field. Sections of segmenters inside it are checked when
    they are built.
    """
    section = dict[str, Any] | str
    if hint is SegmenterRecipe:
        return section
    if SegmenterRecipe in typing.get_args(hint):
        return list[section]
    if len(dataclasses_of(hint)) > 1:
        return _one_of(dataclasses_of(hint)) | None
    members = {hint, *typing.get_args(hint)}
    return (
        hint
        if bool in members or not members & {int, float}
        else Annotated[hint, NUMBER if float in members else WHOLE_NUMBER]
    )


def _one_of(sections: list[type]) -> Any:
    """A section that is one of several dataclasses: that with most of its keys, so that messages
    are about that one alone.
    """

    def closest(value: Any) -> str:
        if not isinstance(value, Mapping):
            return type(value).__name__ if type(value) in sections else sections[0].__name__
        shared = {
            section: sum(field.name in value for field in dataclasses.fields(section))
            for section in sections
        }
        return max(sections, key=shared.__getitem__).__name__

    tagged: Any = functools.reduce(
        operator.or_, (Annotated[each, pydantic.Tag(each.__name__)] for each in sections)
    )
    return Annotated[tagged, pydantic.Discriminator(closest)]


def _no_truth_value(expected: Literal["int_type", "float_type"], value: Any) -> Any:
    if isinstance(value, bool):
        raise PydanticKnownError(expected)
    return value


NUMBER = pydantic.BeforeValidator(partial(_no_truth_value, "float_type"))
WHOLE_NUMBER = pydantic.BeforeValidator(partial(_no_truth_value, "int_type"))
"""For fields that are numbers, since pydantic reads true as 1."""


@cache
def model_of(kind: type) -> type[pydantic.BaseModel]:
    """A pydantic model with the fields, defaults and help of a dataclass."""
    hints = typing.get_type_hints(kind)
    described = help_of(kind)
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if field.default is not dataclasses.MISSING:
            default: Any = field.default
        elif field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        else:
            default = ...
        fields[field.name] = (
            _checked_type(hints[field.name]),
            pydantic.Field(default, description=described.get(field.name)),
        )
    return pydantic.create_model(
        kind.__name__,
        __config__=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True),
        __doc__=inspect.getdoc(kind),
        **fields,
    )


def help_of(kind: type) -> dict[str, str]:
    """The string after each field of a dataclass and of its bases, by the name of the field."""
    described = {}
    for part in reversed([each for each in kind.__mro__ if dataclasses.is_dataclass(each)]):
        described.update(_own_help(part))
    return described


def _own_help(kind: type) -> dict[str, str]:
    body = typing.cast(
        "ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]
    ).body
    described = {}
    for field, text in pairwise(body):
        if (
            isinstance(field, ast.AnnAssign)
            and isinstance(field.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
            and isinstance(text.value.value, str)
        ):
            described[field.target.id] = " ".join(text.value.value.split())
    return described


def schema_of(registry: Mapping[str, Any]) -> dict[str, Any]:
    """JSON Schema of a section: one alternative per kind."""
    alternatives = []
    for name, kind in registry.items():
        schema = model_of(kind).model_json_schema()
        schema["properties"] = {"kind": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["kind", *schema.get("required", [])]
        alternatives.append(schema)
    return {"oneOf": alternatives}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema of a recipe, with the definitions of its sections at its root, where
    references look for them.
    """
    definitions: dict[str, Any] = {}

    def without_definitions(value: Any) -> Any:
        if isinstance(value, list):
            return [without_definitions(item) for item in value]
        if not isinstance(value, Mapping):
            return value
        definitions.update(value.get("$defs", {}))
        return {key: without_definitions(item) for key, item in value.items() if key != "$defs"}

    rest = without_definitions(document)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": definitions,
        **rest,
    }
