"""Values that decide a result as JSON values, from which fingerprints are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from maskloom.segcore.models.protocols import MODELS, SEGMENTERS
from maskloom.segcore.registry import Registry
from maskloom.segcore.statistics.protocol import STATISTICS

REGISTRIES: tuple[Registry[Any], ...] = (SEGMENTERS, MODELS, STATISTICS)
"""The registries that name the classes in a run's recipe."""


def json_values(value: Any, registries: Sequence[Registry[Any]] = REGISTRIES) -> Any:
    """A value as JSON values. A dataclass becomes a mapping of its fields, with its name in the
    first registry that holds its class as `type`; a class in no registry has no `type`.

    Names of Python classes do not appear, so renaming a class changes no fingerprint.
    """
    if is_dataclass(value):
        names = (registry.name_of(type(value)) for registry in registries)
        name = next(filter(None, names), None)
        # Fields that comparisons ignore, as the path of a file with a known digest, decide nothing.
        counted = (field.name for field in fields(value) if field.compare)
        return {
            **({} if name is None else {"type": name}),
            **{field: json_values(getattr(value, field), registries) for field in counted},
        }
    if isinstance(value, Mapping):
        return {key: json_values(item, registries) for key, item in value.items()}
    return [json_values(item, registries) for item in value] if isinstance(value, tuple) else value
