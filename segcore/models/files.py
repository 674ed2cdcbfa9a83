"""Fitted models as JSON: the name in `MODELS` and the fields of each."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from typing import Any, cast

from maskloom.segcore.models.protocols import MODELS, Model


def dump_model(model: Model) -> str:
    """A fitted model as JSON, including the models inside it."""
    return json.dumps(_record(model), indent=1)


def load_model(text: str) -> Model:
    """The model that `dump_model` wrote."""
    return model_of(json.loads(text))


def model_of(record: Any) -> Model:
    """The model from the parsed JSON of `dump_model`. Raises `ValueError`, `KeyError` or
    `TypeError` if it is not a model.
    """
    if not isinstance(record, dict) or record.keys() != {"model", "fields"}:
        raise ValueError("it holds no model")
    return cast("Model", _revived(record, None))


def _record(value: Any) -> Any:
    """A model as its kind and fields; other dataclasses as their fields, with the type given by the
    annotation.
    """
    kind = MODELS.name_of(type(value))
    if kind is not None:
        return {"model": kind, "fields": _fields(value)}
    if dataclasses.is_dataclass(value):
        return _fields(value)
    if isinstance(value, Mapping):
        return {name: _record(item) for name, item in value.items()}
    return [_record(item) for item in value] if isinstance(value, (list, tuple)) else value


def _fields(value: Any) -> dict[str, Any]:
    return {field.name: _record(getattr(value, field.name)) for field in dataclasses.fields(value)}


def _revived(value: Any, hint: Any) -> Any:
    """The value of a record by `_record`, for a field with the annotation `hint`."""
    options = typing.get_args(hint)
    if isinstance(value, dict) and value.keys() == {"model", "fields"}:
        return _constructed(MODELS[value["model"]], value["fields"])
    if isinstance(value, dict):
        plain = next(
            (option for option in (hint, *options) if dataclasses.is_dataclass(option)), None
        )
        if plain is not None and typing.get_origin(hint) is not Mapping:
            return _constructed(plain, value)
        return {
            name: _revived(item, options[1] if len(options) > 1 else None)
            for name, item in value.items()
        }
    if isinstance(value, list):
        inner = options if options and Ellipsis not in options else options[:1] * len(value)
        return tuple(
            _revived(item, inner[i] if i < len(inner) else None) for i, item in enumerate(value)
        )
    return value


def _constructed(kind: Any, fields: dict[str, Any]) -> Any:
    # Annotations are resolved only if a field holds more than plain values: most models import the
    # types for type checkers only.
    nested = any(
        isinstance(value, dict) and "model" not in value for value in fields.values()
    ) or any(
        isinstance(value, list) and any(isinstance(item, dict) for item in value)
        for value in fields.values()
    )
    hints = typing.get_type_hints(kind) if nested else {}
    return kind(**{name: _revived(value, hints.get(name)) for name, value in fields.items()})
