"""Canonical JSON: equal values have equal digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from functools import cache
from typing import Any


def digest(value: Any) -> str:
    """SHA-256 of a JSON value in hexadecimal, independent of the order of keys.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """The value as one line of JSON with sorted keys. Dataclasses become objects, tuples become
    arrays.

    Raises `TypeError` if the value contains anything else that JSON lacks.
    """
    return _ENCODER.encode(value)


def with_tuples(value: Any) -> Any:
    """A JSON value with tuples in place of lists."""
    if isinstance(value, list):
        return tuple(with_tuples(item) for item in value)
    return value


@cache
def _names(kind: type) -> tuple[str, ...]:
    """The fields of a dataclass, sorted."""
    return tuple(sorted(field.name for field in dataclasses.fields(kind)))


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        # Nested dataclasses come here too, so nothing need be copied.
        return {name: getattr(value, name) for name in _names(type(value))}
    raise TypeError(f"{type(value).__name__} has no place in a record")


_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), default=_to_json, ensure_ascii=False
)
