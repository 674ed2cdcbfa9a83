"""The records of a run: sources, plan, shards, receipts, and models as files.

    runs/<run_id>/plan.json        what is to be done, written before the work, never changed
    runs/<run_id>/plan.parquet     its images, one row each
    runs/<run_id>/model.json       what was fitted to the collection
    runs/<run_id>/manifest.json    what was done, written last

A run is found by what it is about: its id hashes the segmenter, the versions of the inputs, the
version of the code and the run before it. So the same command finds its own run and goes on, and
nothing needs a lock or a clock.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

from segcore.addresses import written
from segcore.errors import FitError, ImageError
from segcore.model import MODELS, Model
from segcore.raster import RasterSpec, Space

T = TypeVar("T")
ABSENT = "absent"
"""Version of a file that is named and does not exist."""


@dataclass(frozen=True, slots=True)
class Source:
    """One input file."""

    uri: str
    image_id: str
    version: str
    """Changes when its bytes change."""
    size: int
    """Bytes."""
    address: str | None = field(default=None, repr=False, compare=False)
    """Where its bytes are read, if not at `uri` (see `segcore.addresses`). It goes with jobs, and
    is never written.
    """


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an image could not be processed."""

    error_type: str
    error: str
    permanent: bool
    """Whether the same bytes would fail again."""

    @classmethod
    def of(cls, error: Exception) -> Failure:
        """The failure that this error means."""
        permanent = isinstance(error, ImageError | FitError) and error.permanent
        return cls(type(error).__name__, written(str(error)) or type(error).__name__, permanent)


@dataclass(frozen=True, slots=True)
class Item:
    """An image of the plan: its source, and what its header told."""

    source: Source
    spec: RasterSpec | None
    """None where the header could not be read."""
    failure: Failure | None = None
    """Why the image cannot be processed. None: nothing is known against it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A group of images that is committed together: one Parquet file in each table."""

    file: str
    """Name of its files in the tables' folders. An existing name is rewritten, its other rows are
    kept.
    """
    items: tuple[Item, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What one run will do."""

    run_id: str
    parent: str | None
    """The finished run before it. None: the first."""
    sequence: int
    """1 for the first run of an output, and so on."""
    fingerprint: str
    """Hash of all that decides pixels and rows, the inputs aside."""
    settings: Mapping[str, Any]
    """What the fingerprint hashes, in clear, with the versions of the libraries and the seed."""
    shards: tuple[Shard, ...]


@dataclass(frozen=True, slots=True)
class Receipt:
    """What became of one image."""

    source: Source
    spec: RasterSpec | None
    failure: Failure | None
    rows: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Rows of each statistic's table, by its name."""
    tables: Mapping[str, str] = field(default_factory=dict)
    """Staged rows of tables too large to travel: the name of the file below the output, by the
    table's.
    """
    mask: str | None = None
    """Name that the mask will have below the output."""
    staged: Mapping[str, str] = field(default_factory=dict)
    """Where mask, preview and side-cars wait for their commit, by the names that they will have."""
    mask_sha256: str | None = None
    tiles: int = 0
    seconds: float = 0.0
    """Time spent on it by all workers together."""
    segmenter: str = ""
    """Kind and what was fitted or chosen, as JSON."""
    warning: str | None = None
    """Why its result needs a second look. None: nothing is known against it."""


def digest(value: Any) -> str:
    """SHA-256 of a JSON value, independent of the order of keys.

    >>> digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def canonical(value: Any) -> str:
    """One line of JSON, with sorted keys. Dataclasses become objects, tuples become arrays."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), default=_plain, ensure_ascii=False
    )


def run_id(name: str, fingerprint: str, inputs: Sequence[Source], parent: str | None) -> str:
    """The id of the run that takes these inputs on from `parent`."""
    versions = sorted((source.uri, source.version) for source in inputs)
    return f"{name}-{digest([fingerprint, versions, parent])[:12]}"


def dump_model(model: Model) -> str:
    """A fitted model as JSON, with the models inside it."""
    return json.dumps(_record(model), indent=1)


def load_model(text: str) -> Model:
    """The model that `dump_model` wrote."""
    return model_of(json.loads(text))


def model_of(record: Any) -> Model:
    """The model in what `dump_model` wrote, read as JSON. Raises `ValueError`, `KeyError` or
    `TypeError` where it is no model.
    """
    if not isinstance(record, dict) or record.keys() != {"model", "fields"}:
        raise ValueError("it holds no model")
    return cast("Model", _revived(record, None))


def load_spec(record: Mapping[str, Any]) -> RasterSpec:
    """A raster spec from the fields that `dataclasses.asdict` gave."""
    fields = {name: frozen(value) for name, value in record.items() if name != "space"}
    return RasterSpec(
        **fields, space=Space(**{name: frozen(value) for name, value in record["space"].items()})
    )


def frozen(value: Any) -> Any:
    """A JSON value with tuples in place of arrays."""
    if isinstance(value, list):
        return tuple(frozen(item) for item in value)
    return value


def _record(value: Any) -> Any:
    """A model as its kind and fields; other dataclasses as their fields, whose type the field's
    annotation tells.
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
    """What `_record` recorded, in a place that was annotated by `hint`."""
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
    # Annotations are only asked where a field holds more than plain values: most models import
    # theirs for type checkers alone.
    nested = any(
        isinstance(value, dict) and "model" not in value for value in fields.values()
    ) or any(
        isinstance(value, list) and any(isinstance(item, dict) for item in value)
        for value in fields.values()
    )
    hints = typing.get_type_hints(kind) if nested else {}
    return kind(**{name: _revived(value, hints.get(name)) for name, value in fields.items()})


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no place in a record")
