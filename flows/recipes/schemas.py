"""Sections of recipes, checked against the frozen dataclasses of the registries.

A section is an instance of the dataclass that it configures, chosen by `kind`, without a second
class for the recipe. The annotations of its fields are the types that pydantic checks, and the
strings after them are the help that users see.
"""

from __future__ import annotations

import ast
import dataclasses
import datetime as dt
import difflib
import functools
import inspect
import operator
import re
import textwrap
import typing
from collections.abc import Iterable, Mapping
from functools import cache, partial
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import pydantic
from pydantic_core import PydanticKnownError

from maskloom.flows.recipes.yaml_files import below, shown
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.models.protocols import SEGMENTERS, SegmenterRecipe
from maskloom.segcore.raster.colours import parse_colour
from maskloom.segcore.storage.addresses import RelativeToRecipe

_MOST_LINES = 20
_EXPECTED = {
    "invalid_key": "a key that is text",
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "finite_number": "a finite number",
    "bool": "true or false",
    "dict": "a mapping",
    "mapping": "a mapping",
    "list": "a list",
    "tuple": "a list",
    "none_required": "nothing",
}
"""Expected values in words, by the beginning of pydantic's type of error."""
_LIMITS = {
    "greater_than_equal": "at least",
    "greater_than": "more than",
    "less_than_equal": "at most",
    "less_than": "less than",
    "string_too_long": "text no longer than",
}
_UNION_MEMBER = re.compile(r"^(str|int|float|bool|none|constrained-.*|function-.*|[A-Z]\w*)$|\[")


def _colour(text: str) -> str:
    parse_colour(text)
    return text


ColourText = Annotated[str, pydantic.AfterValidator(_colour)]
"""A colour as users write it: see `parse_colour`."""


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
        if (sections := _dataclasses_of(hint))
    }


def _dataclasses_of(hint: Any) -> list[type]:
    """The dataclasses that a field may hold."""
    return [
        section
        for section in (hint, *typing.get_args(hint))
        if dataclasses.is_dataclass(section) and isinstance(section, type)
    ]


def _path_marker(hint: Any) -> RelativeToRecipe | None:
    """The marker of a field that holds the path of a file or None. None: not such a field."""
    for part in (hint, *typing.get_args(hint)):
        for item in getattr(part, "__metadata__", ()):
            if isinstance(item, RelativeToRecipe):
                return item
    return None


def _checked_type(hint: Any) -> Any:
    """The type that pydantic checks for a field. Sections of segmenters inside it are checked when
    they are built.
    """
    section = dict[str, Any] | str
    if hint is SegmenterRecipe:
        return section
    if SegmenterRecipe in typing.get_args(hint):
        return list[section]
    if len(_dataclasses_of(hint)) > 1:
        return _one_of(_dataclasses_of(hint)) | None
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


def explain(
    error: pydantic.ValidationError,
    path: str,
    known: list[str],
    nested: Mapping[str, Iterable[str]] = MappingProxyType({}),
) -> str:
    """One line per problem that pydantic found: the place, the expected and the actual value, and
    what to do.

    `known` are the keys at `path`, `nested` those of the sections below it.
    """
    found: dict[str, list[_Finding]] = {}
    for problem in error.errors(include_url=False):
        keys = [str(key) for key in problem["loc"]]
        # For a union, pydantic adds the member that it tried, which is no key of the recipe.
        plain = [key for key in keys if not _UNION_MEMBER.search(key)]
        here = known if len(keys) == 1 else list(nested.get(keys[0], ()))
        found.setdefault(".".join(filter(None, [path, *plain])), []).append(
            _finding(problem, keys[-1], here, nested)
        )
    # If one member of a union fits except for a value inside it, only that value is reported.
    lines = [
        f"{where}: {_sentence(findings)}"
        for where, findings in found.items()
        if not any(other.startswith(f"{where}.") for other in found)
    ]
    more = [f"... and {len(lines) - _MOST_LINES} more."] if len(lines) > _MOST_LINES else []
    return "\n".join(lines[:_MOST_LINES] + more)


def unknown_key(key: str, known: Iterable[str]) -> str:
    """The message on an unknown key, with the key that was probably meant and the known keys."""
    return f"unknown key.{did_you_mean(key, known)} Known keys: {', '.join(known) or 'none'}."


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The most similar known word, as a question after a space; empty if none is similar."""
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean `{close[0]}`?" if close else ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Finding:
    """A problem: the expected and the actual value, or a whole sentence."""

    expected: str = ""
    came: Any = None
    hint: str = ""
    sentence: str = ""


def _sentence(findings: list[_Finding]) -> str:
    expected = list(dict.fromkeys(finding.expected for finding in findings if finding.expected))
    sentences = [finding.sentence for finding in findings if finding.sentence]
    if expected:
        several = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
        first = next(finding for finding in findings if finding.expected)
        hints = "".join(dict.fromkeys(finding.hint for finding in findings))
        sentences.insert(0, f"expected {several}, got {shown(first.came)}.{hints}")
    return " Or: ".join(dict.fromkeys(sentences))


def _finding(
    problem: Any, key: str, known: list[str], nested: Mapping[str, Iterable[str]]
) -> _Finding:
    kind, came, limits = problem["type"], problem["input"], problem.get("ctx", {})
    sentence = _sentence_on(kind, limits, key, known)
    expected = "" if sentence else _expected(kind, limits, nested.get(key, ()))
    if not expected:
        return _Finding(sentence=sentence or f"{problem['msg']}, got {shown(came)}.")
    if kind == "literal_error":
        return _Finding(
            expected, came, did_you_mean(str(came), re.findall(r"'([^']*)'", limits["expected"]))
        )
    return _Finding(expected, came, quotes_hint(came) if "text" in expected else "")


def _sentence_on(kind: str, limits: Mapping[str, Any], key: str, known: list[str]) -> str:
    """The sentence on a problem other than an unexpected value; empty for an unexpected value."""
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return unknown_key(key, known)
    if kind == "value_error":
        return f"{str(limits['error']).rstrip('.')}.".replace("?.", "?")
    return "this key is required." if kind == "missing" else ""


def _expected(kind: str, limits: Mapping[str, Any], inner: Iterable[str]) -> str:
    """The expected value in words; `inner` are the keys of the section. Empty if unknown for this
    kind of problem.
    """
    if kind == "literal_error":
        return str(limits["expected"]).replace("'", "")
    if kind in ("model_type", "model_attributes_type", "dataclass_type"):
        return f"a mapping with {_keys(inner)}"
    if kind in _LIMITS:
        return f"{_LIMITS[kind]} {next(iter(limits.values()))}"
    if kind == "string_pattern_mismatch":
        return f"text of the characters {limits['pattern'].strip('^$*[]')} only"
    return next((words for begin, words in _EXPECTED.items() if kind.startswith(begin)), "")


def quotes_hint(came: Any) -> str:
    """Why YAML did not read a value as text, after a space; empty if that is not the reason."""
    if isinstance(came, bool):
        return (
            " YAML reads no, off and false (yes, on and true) as a truth value. If a name is "
            "meant, put it in quotes."
        )
    if isinstance(came, dt.date):
        return " YAML reads this as a date. If it is text, put it in quotes."
    if isinstance(came, int | float):
        return " YAML reads this as a number. If it is text, put it in quotes."
    return ""


def _keys(names: Iterable[str]) -> str:
    known = [f"`{name}`" for name in names]
    return f"the key{'s' if len(known) > 1 else ''} {', '.join(known)}" if known else "keys"
