"""Writes `docs/reference.md` from the JSON Schemas of the recipes, and the parameters on the pages
of the segmenters: `python docs/make_reference.py`.

A test compares the files with the schemas, so it is run whenever a key or its help changes.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskloom.flows.recipes.run_file import schema as run_schema
from maskloom.flows.recipes.training import schema as training_schema

FILE = Path(__file__).with_name("reference.md")
SEGMENTERS = Path(__file__).with_name("segmenters")
_PARAMETERS = re.compile(r"(<!-- parameters of (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_HEAD = """\
# Reference of the recipes

Every key of the recipes of `maskloom run` and `maskloom train`. This page is made from the code by
`python docs/make_reference.py`. [recipes.md](recipes.md) and [training.md](training.md) explain how
to use the keys; `maskloom schema` and `maskloom schema train` print the same as JSON Schema.
"""
_WORDS = {
    "string": "text",
    "integer": "whole number",
    "number": "number",
    "boolean": "true or false",
    "object": "mapping",
    "null": "",
}

Schema = Mapping[str, Any]


def reference() -> str:
    """The page."""
    parts = [
        _HEAD,
        *_recipe("Run recipe", run_schema()),
        *_recipe("Training recipe", training_schema()),
    ]
    return "\n".join(parts)


def with_parameters(page: str) -> str:
    """The page of a segmenter with the table of its parameters between its two comments."""
    schema = run_schema()
    whole = _resolved(schema["properties"]["segmenter"], schema)
    choices = (whole, *(_resolved(each, schema) for each in whole.get("anyOf", [])))
    kinds = {kind["properties"]["kind"]["const"]: kind for each in choices for kind in _kinds(each)}
    return _PARAMETERS.sub(
        lambda found: found[1] + "\n" + _table(kinds[found[2]], schema) + "\n" + found[3], page
    )


def _recipe(title: str, schema: Schema) -> Iterator[str]:
    yield f"## {title}\n"
    yield _table(schema, schema)
    for key, value in schema["properties"].items():
        yield from _section(key, value, schema)


def _section(key: str, value: Schema, schema: Schema) -> Iterator[str]:
    """The tables of the keys inside a section, by kind where it has kinds."""
    whole = _resolved(value, schema)
    choices = [whole, *(_resolved(each, schema) for each in whole.get("anyOf", []))]
    tables = [each for each in choices if "properties" in each]
    for number, each in enumerate(tables):
        yield f"### `{key}`\n" if number == 0 else "Or:\n"
        yield _table(each, schema)
        for inner, inside in each["properties"].items():
            yield from _section(f"{key}.{inner}", inside, schema)
    kinds = list(_kinds(whole)) or list(_kinds(whole.get("items", {})))
    if kinds:
        yield f"### `{key}`, by kind\n"
    seen: dict[str, str] = {}
    for kind in kinds:
        name = kind["properties"]["kind"]["const"]
        yield f"#### {key}: `{name}`\n"
        if kind.get("description"):
            yield textwrap.fill(_text(kind["description"]), 100) + "\n"
        if len(kind["properties"]) > 1:
            table = _table(kind, schema)
            same = seen.setdefault(table, name)
            yield table if same == name else f"The same keys as `{same}`.\n"


def _kinds(value: Schema) -> Iterator[Schema]:
    return (each for each in value.get("oneOf", []) if "kind" in each.get("properties", {}))


def _table(value: Schema, schema: Schema) -> str:
    """The keys of a section, one row each."""
    needed = value.get("required", [])
    rows = [
        f"| `{key}` | {_type(each, schema)} | {'**required**' if key in needed else _default(each)}"
        f" | {_text(_resolved(each, schema).get('description', ''))} |"
        for key, each in value["properties"].items()
        if "const" not in each
    ]
    return "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows]) + "\n"


def _type(value: Schema, schema: Schema) -> str:
    """What a key takes, in words."""
    whole = _resolved(value, schema)
    if "enum" in whole:
        return ", ".join(f"`{each}`" for each in whole["enum"])
    if "const" in whole:
        return f"`{whole['const']}`"
    if any(_kinds(whole)):
        return "a kind, or a mapping with `kind`"
    choices = whole.get("anyOf") or whole.get("oneOf")
    if choices:
        words = (_type(each, schema) for each in choices)
        return " or ".join(dict.fromkeys(filter(None, words)))
    if whole.get("type") == "array":
        inner = _type(whole.get("items", {}), schema)
        return f"list of {inner}" if inner else "list"
    return _WORDS.get(whole.get("type", ""), "")


def _default(value: Schema) -> str:
    import json

    default = value.get("default")
    return "" if default in (None, "", [], {}) else f"`{json.dumps(default, ensure_ascii=False)}`"


def _resolved(value: Schema, schema: Schema) -> Schema:
    """The schema that a reference leads to, with what stands beside the reference."""
    reference = value.get("$ref")
    if reference is None:
        return value
    target: Schema = schema["$defs"][reference.rpartition("/")[2]]
    return {**target, **{key: each for key, each in value.items() if key != "$ref"}}


def _text(text: str) -> str:
    """Help as one line of a table, in the words of YAML."""
    return " ".join(text.split()).replace("|", "\\|").replace("None: ", "Default: ")


if __name__ == "__main__":
    FILE.write_text(reference(), encoding="utf-8")
    for page in SEGMENTERS.glob("*.md"):
        page.write_text(with_parameters(page.read_text(encoding="utf-8")), encoding="utf-8")
