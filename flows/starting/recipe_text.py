"""A commented recipe as text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml

from maskloom.flows.starting.rules import Line

_WIDTH, _COLUMN = 100, 30
"""Columns of the recipe, and the one at which comments begin."""


def text_of(head: Sequence[str], lines: Sequence[Line], document: Mapping[str, Any]) -> str:
    """The recipe: lines on the whole, and each key of the document with its reason."""
    parts = [f"# {each}" for each in head]
    known = {each.key: each for each in lines}
    for each in lines:
        if not each.key:
            parts += ["", *(f"# {text}" for text in each.why)] if each.why else []
        elif each.key not in _PLAIN:
            parts += ["", *_entry(each, document[each.key])]
        else:
            parts += _entry(each, document[each.key])
    for key, value in document.items():
        if key not in known:
            parts += ["", *_entry(Line(key, value, ("as said by --set",)), value)]
    return "\n".join(parts) + "\n"


_PLAIN = ("name", "inputs", "output")


def _entry(each: Line, value: Any) -> Iterator[str]:
    """The lines of a key: its reason, it, and what was not chosen."""
    same = value == each.value
    why = (each.why if same else ("as said by --set", *each.why[1:])) or ("",)
    reason, *others = why
    if isinstance(value, dict) and len(value) > 2:
        if reason:
            yield f"# {reason}"
        yield f"{each.key}:"
        for key, item in value.items():
            told = each.inner.get(key, "") if same or _has(each.value, key, item) else ""
            yield from _commented(f"  {key}: {_flow(item)}", told)
    elif isinstance(value, dict) and each.inner:
        yield f"# {reason}"
        told = next(iter(filter(None, (each.inner.get(key, "") for key in value))), "")
        yield from _commented(f"{each.key}: {_flow(value)}", told)
    else:
        yield from _commented(f"{each.key}: {_flow(value)}", reason)
    for other in others:
        yield f"# {other}"


def _has(value: Any, key: str, item: Any) -> bool:
    return isinstance(value, dict) and value.get(key) == item


def _commented(text: str, why: str) -> Iterator[str]:
    if not why:
        yield text
    elif max(len(text), _COLUMN) + len(why) + 4 <= _WIDTH:
        yield f"{text:{_COLUMN}}  # {why}"
    else:
        indent = " " * (len(text) - len(text.lstrip()))
        yield f"{indent}# {why}"
        yield text


def _flow(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(
        value, default_flow_style=True, sort_keys=False, width=10**6, allow_unicode=True
    )
    return text.removesuffix("\n").removesuffix("\n...").strip()
