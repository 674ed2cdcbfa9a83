"""Sections: frozen dataclasses of the registries as checked sections of a recipe.

A section of a recipe is the dataclass of the thing it configures, chosen by `kind`; there is no second class beside it. Its annotations are the
types that pydantic checks, the strings behind its fields are the help that users see.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import pydantic

from segcore.errors import RecipeError
from segcore.model import SEGMENTERS, SegmenterRecipe

_UNION_MEMBER = re.compile(r"^(str|int|float|bool|none|constrained-.*|function-.*|[A-Z]\w*)$|\[")


def build(registry: Mapping[str, Any], value: Any, path: str) -> Any:
    """The section's value: an instance of the class that its `kind` names. Raises `RecipeError` with the path in the recipe."""
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, Mapping) or "kind" not in value:
        raise RecipeError(f"{path}: expected a mapping with the key `kind` ({', '.join(registry)}), got {value!r}.")
    try:
        kind = registry[value["kind"]]
    except KeyError as error:
        raise RecipeError(f"{path}.kind: {error.args[0]}") from None
    fields = {name: item for name, item in value.items() if name != "kind"}
    try:
        checked = model_of(kind).model_validate(fields)
    except pydantic.ValidationError as error:
        raise RecipeError(explain(error, path, [field.name for field in dataclasses.fields(kind)])) from None
    try:
        return kind(**{name: _inner(kind, name, getattr(checked, name), f"{path}.{name}") for name in checked.model_fields_set})
    except ValueError as error:
        raise RecipeError(f"{path}: {error}") from error


def _inner(kind: type, name: str, value: Any, path: str) -> Any:
    """The value of a field; where the field holds other segmenters, these are built from their own sections."""
    hint = typing.get_type_hints(kind)[name]
    if hint is SegmenterRecipe:
        return build(SEGMENTERS, value, path)
    if SegmenterRecipe in typing.get_args(hint):
        return tuple(build(SEGMENTERS, item, f"{path}.{i}") for i, item in enumerate(value))
    return value


def _checked_type(hint: Any) -> Any:
    """What pydantic checks of a field: sections of other segmenters are checked when they are built."""
    section = dict[str, Any] | str
    if hint is SegmenterRecipe:
        return section
    return list[section] if SegmenterRecipe in typing.get_args(hint) else hint


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
        fields[field.name] = (_checked_type(hints[field.name]), pydantic.Field(default, description=described.get(field.name)))
    return pydantic.create_model(
        kind.__name__,
        __config__=pydantic.ConfigDict(extra="forbid", arbitrary_types_allowed=True),
        __doc__=inspect.getdoc(kind),
        **fields,
    )


def help_of(kind: type) -> dict[str, str]:
    """The string literal behind each field of a dataclass and of what it is derived from, by the field's name."""
    described = {}
    for part in reversed([each for each in kind.__mro__ if dataclasses.is_dataclass(each)]):
        described.update(_own_help(part))
    return described


def _own_help(kind: type) -> dict[str, str]:
    body = typing.cast(ast.ClassDef, ast.parse(textwrap.dedent(inspect.getsource(kind))).body[0]).body
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
    """JSON Schema of a section: one alternative a kind."""
    alternatives = []
    for name, kind in registry.items():
        schema = model_of(kind).model_json_schema()
        schema["properties"] = {"kind": {"const": name}, **schema.get("properties", {})}
        schema["required"] = ["kind", *schema.get("required", [])]
        alternatives.append(schema)
    return {"oneOf": alternatives}


def explain(
    error: pydantic.ValidationError, path: str, known: list[str], nested: Mapping[str, Iterable[str]] = MappingProxyType({})
) -> str:
    """A line for each thing that pydantic found: where, what was expected, what came, and what to do."""
    lines: dict[str, list[str]] = {}
    for problem in error.errors():
        keys = [str(key) for key in problem["loc"]]
        # Of a union pydantic names the member that it tried, which users do not write in their recipe.
        where = ".".join(filter(None, [path, *(key for key in keys if not _UNION_MEMBER.search(key))]))
        if problem["type"] == "extra_forbidden":
            here = known if len(keys) == 1 else list(nested.get(keys[0], ()))
            close = difflib.get_close_matches(keys[-1], here, n=1)
            what = f"unknown key. {f'Did you mean `{close[0]}`? ' if close else ''}Known keys: {', '.join(here) or 'none'}."
        elif problem["type"] == "missing":
            what = "this key is needed."
        else:
            what = f"{problem['msg']}, got {problem['input']!r}."
        lines.setdefault(where, []).append(what)
    return "\n".join(f"{where}: {' Or: '.join(dict.fromkeys(whats))}" for where, whats in lines.items())
