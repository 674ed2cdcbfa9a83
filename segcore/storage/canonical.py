"""Canonical JSON: equal values have equal digests."""

from __future__ import annotations

import dataclasses
import hashlib
import json
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
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), default=_to_json, ensure_ascii=False
    )


def with_tuples(value: Any) -> Any:
    """A JSON value with tuples in place of lists."""
    if isinstance(value, list):
        return tuple(with_tuples(item) for item in value)
    return value


def _to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no place in a record")
