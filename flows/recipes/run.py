"""Recipes of runs: a YAML file, flags and the environment in; checked values out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import available_timezones

import pydantic

import maskloom
from maskloom.flows.recipes.schemas import (
    NUMBER,
    build,
    complete,
    did_you_mean,
    explain,
    model_of,
    schema_of,
)
from maskloom.flows.recipes.yaml_files import (
    below,
    completed,
    load_document,
    output_below,
    refuse_secrets,
    shown,
)
from maskloom.segcore import geometry
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.models.composed import Composed
from maskloom.segcore.models.protocols import (
    MODELS,
    SEGMENTERS,
    Fitter,
    Model,
    ObjectSegmenter,
    SegmenterRecipe,
)
from maskloom.segcore.pipeline.jobs import GroundControl, RunSettings
from maskloom.segcore.processes import limits
from maskloom.segcore.processes.limits import Limits
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.registry import Registry
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.protocol import STATISTICS, Statistic
from maskloom.segcore.storage.canonical import digest
from maskloom.segcore.storage.filesystems import configure, filesystem
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster
from maskloom.tasks.plan import Fingerprint

REGISTRIES: tuple[Registry[Any], ...] = (SEGMENTERS, MODELS, STATISTICS)
"""Where the classes of a run's parts have their names."""
DEFAULT_TILE = 2048
SCHEDULE_NOTE = (
    "schedule: checked, but nothing starts this recipe automatically yet: let cron or a timer run "
    "`maskloom run`."
)
"""The note on a recipe with a schedule."""
_SMALLEST_TILE, _LARGEST_TILE = 16, 16384
_CRON_FIELDS = 5
_ANY_TIME = datetime(2026, 1, 1, tzinfo=UTC)


def _of_three(sides: list[int]) -> list[int]:
    if len(sides) != len("zyx"):
        raise ValueError(
            f"expected one whole number, or three for volumes: [z, y, x]; got {len(sides)}: "
            f"{shown(sides)}"
        )
    return sides


def _kind_of_tile(value: Any) -> str:
    return "list[int]" if isinstance(value, list | tuple) else "int"


_Side = Annotated[int, pydantic.Field(ge=_SMALLEST_TILE, le=_LARGEST_TILE)]
_Sides = Annotated[
    list[Annotated[int, pydantic.Field(ge=1, le=_LARGEST_TILE)]],
    pydantic.Field(json_schema_extra={"minItems": len("zyx"), "maxItems": len("zyx")}),
    pydantic.AfterValidator(_of_three),
]


class Tiling(pydantic.BaseModel):
    """How images are cut."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    tile: Annotated[
        Annotated[_Side, pydantic.Tag("int")] | Annotated[_Sides, pydantic.Tag("list[int]")],
        pydantic.Discriminator(_kind_of_tile),
    ] = DEFAULT_TILE
    """Side of a tile in pixels. It never changes a result, only memory and speed. Rounded up to a
    power of two below 256, to a multiple of 256 above, so that no two tiles share a block of the
    mask. Volumes are cut into cubes of about as many voxels; `[z, y, x]` gives their sides instead,
    y and x rounded up to multiples of 16.
    """

    @property
    def value(self) -> geometry.Tiling:
        """The tiling that is used."""
        if isinstance(self.tile, int):
            return geometry.Tiling(effective_tile(self.tile))
        z, *sides = self.tile
        # Pixels of previews must not reach over two tiles.
        return geometry.Tiling(
            (z, *(-(-side // _SMALLEST_TILE) * _SMALLEST_TILE for side in sides))
        )


class Schedule(pydantic.BaseModel):
    """When a server is to run the recipe. `maskloom run` checks this, and runs the recipe now."""

    model_config = pydantic.ConfigDict(extra="forbid", use_attribute_docstrings=True)

    cron: str
    """Five fields: minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    """Name in the IANA database, such as Europe/Vienna."""

    @pydantic.field_validator("cron")
    @classmethod
    def _happens(cls, value: str) -> str:
        from cronsim import CronSim, CronSimError

        wanted = (
            "expected five fields (minute, hour, day of the month, month, day of the week) such as "
            "'0 3 * * *'"
        )
        # It would read a sixth as seconds.
        if len(value.split()) != _CRON_FIELDS:
            raise ValueError(f"{wanted}, got {shown(value)}")
        try:
            next(CronSim(value, _ANY_TIME))
        except CronSimError as error:
            raise ValueError(f"{wanted}, got {shown(value)}: {str(error).lower()}") from error
        except StopIteration:
            raise ValueError(f"{shown(value)} never happens") from None
        return value

    @pydantic.field_validator("timezone")
    @classmethod
    def _exists(cls, value: str) -> str:
        zones = available_timezones()
        if value not in zones:
            raise ValueError(
                "expected a time zone such as Europe/Vienna, got "
                f"{shown(value)}.{did_you_mean(value, zones)}"
            )
        return value


class _File(pydantic.BaseModel):
    """A recipe as it is written."""

    model_config = pydantic.ConfigDict(
        extra="forbid", use_attribute_docstrings=True, title="maskloom recipe"
    )

    name: str = pydantic.Field("", pattern="^[a-z0-9-]*$", max_length=60)
    """Name of the runs: a-z, 0-9 and -. Default: the recipe's file name."""
    inputs: str | list[str]
    """Files, globs, folders, or list files (.csv, .parquet, .txt) with a column `uri`; local or any
    fsspec URI.
    """
    output: str
    """Folder for masks, tables, previews and runs; local or any fsspec URI. Relative to the recipe
    file.
    """
    segmenter: dict[str, Any] | str | list[dict[str, Any] | str]
    """What to run on every tile: `kind` and its parameters. A list makes an ensemble. See `maskloom
    list segmenters`.
    """
    fit: Literal["collection", "image"] = "collection"
    """collection: one model for all images, so that class 1 means the same everywhere. image: each
    image has its own.
    """
    tiling: Tiling = pydantic.Field(default_factory=lambda: Tiling(tile=DEFAULT_TILE))
    """How images are cut."""
    statistics: list[str | dict[str, Any]] | str | dict[str, Any] | None = None
    """Tables beside `images`. `area` always runs; `objects` does, unless this is set, where masks
    are of objects. See `maskloom list statistics`.
    """
    cluster: dict[str, Any] | str = "local"
    """Where the work is done: local (processes of this machine), serial (this process), address (an
    existing Dask scheduler).
    """
    format: str | None = None
    """Format of all inputs, whatever their names say. See `maskloom list formats`."""
    ground_control: GroundControl = "keep"
    """Images placed by ground control points only. keep: their masks keep the points, and areas are
    in px. affine: the transform that fits the points best takes their place, in masks and areas.
    """
    storage: dict[str, dict[str, Any]] = {}
    """fsspec options by protocol, such as {s3: {profile: lab, endpoint_url: ...}}. No secrets."""
    max_failed_fraction: Annotated[float, NUMBER] = pydantic.Field(
        1.0, ge=0, le=1, allow_inf_nan=False
    )
    """Above this fraction of failed images the run fails (exit 1). Below it failed images give exit
    3.
    """
    schedule: Schedule | None = None
    """When a server is to run the recipe."""
    limits: dict[str, Any] = {}
    """Seconds after which something that does not end is given up: read, work, examine."""


@dataclass(frozen=True, slots=True)
class RunRecipe:
    """A checked recipe."""

    name: str
    inputs: tuple[str, ...]
    output: str
    kind: str
    """Name of the segmenter."""
    segmenter: Fitter | Model
    """What it starts with."""
    fit: Literal["collection", "image"]
    tiling: geometry.Tiling
    statistics: dict[str, Statistic]
    objects: Objects | None
    """The table of objects. None: none is asked for."""
    cluster: Cluster
    format: str | None
    ground_control: GroundControl
    storage: dict[str, dict[str, Any]]
    max_failed_fraction: float
    limits: Limits
    scheduled: bool = False
    """Whether it says when a server is to run it."""

    @property
    def work(self) -> Fingerprint:
        """What decides pixels and rows: the segmenter, what it is fitted to, the statistics, and
        the code.
        """
        settings = {
            "segmenter": {"kind": self.kind, **described(self.segmenter)},
            "fit": self.fit,
            "statistics": {
                name: described(statistic) for name, statistic in self.statistics.items()
            },
            "objects": described(self.objects),
            "maskloom": maskloom.__version__,
        }
        if self.ground_control != "keep":
            settings["ground_control"] = self.ground_control
        return Fingerprint(
            self.name, digest(settings)[:16], settings, apart_by_crs=self.objects is not None
        )

    def run_settings(self, run_id: str) -> RunSettings:
        """What all jobs of a run have in common."""
        return RunSettings(
            self.output,
            run_id,
            self.segmenter,
            self.statistics,
            self.tiling,
            self.kind,
            self.objects,
        )


def load(path: Path, changes: Sequence[str] = ()) -> RunRecipe:
    """The recipe of a YAML file, with `key.sub=value` changes. Raises `RecipeError`."""
    document = load_document(path, "inputs, output and segmenter")
    return make(document, path.resolve().parent, changes)


def make(document: dict[str, Any], folder: Path, changes: Sequence[str] = ()) -> RunRecipe:
    """A recipe from its document; relative paths are below `folder`. Raises `RecipeError`."""
    file = _checked(completed(document, changes))
    time_limits: Limits = build({"limits": Limits}, {**file.limits, "kind": "limits"}, "limits")
    kind_of_segmenter, segmenter = _segmenter(file, folder, time_limits)
    tables = {"area": build(STATISTICS, "area", "statistics")}
    for i, entry in enumerate(_wanted_tables(file.statistics, segmenter)):
        kind = entry if isinstance(entry, str) else str(entry.get("kind"))
        tables[kind] = build(STATISTICS, entry, f"statistics.{i}", folder)
    recipe = RunRecipe(
        name=file.name or "recipe",
        inputs=_inputs(file, folder),
        output=output_below(file.output, folder),
        kind=kind_of_segmenter,
        segmenter=segmenter,
        fit=file.fit,
        tiling=file.tiling.value,
        objects=tables.pop("objects", None),
        statistics=tables,
        cluster=build(CLUSTERS, file.cluster, "cluster", folder),
        format=file.format,
        ground_control=file.ground_control,
        storage=file.storage,
        max_failed_fraction=file.max_failed_fraction,
        limits=time_limits,
        scheduled=file.schedule is not None,
    )
    _refuse_unknown_format(recipe)
    _refuse_unknown_classes(recipe)
    _refuse_unknown_stores(recipe)
    _refuse_memory_on_processes(recipe)
    return recipe


def _checked(document: dict[str, Any]) -> _File:
    """The document with types and keys checked. Raises `RecipeError`."""
    if isinstance(document.get("cluster"), dict):
        document["cluster"].setdefault("kind", "local")
    try:
        file = _File.model_validate(document)
    except pydantic.ValidationError as error:
        raise RecipeError(
            explain(
                error,
                "",
                list(_File.model_fields),
                {"tiling": Tiling.model_fields, "schedule": Schedule.model_fields},
            )
        ) from None
    refuse_secrets(file.storage)
    return file


def _segmenter(file: _File, folder: Path, time_limits: Limits) -> tuple[str, Fitter | Model]:
    """The name of the segmenter, and the fitter or model that it starts with."""
    section = (
        {"kind": "ensemble", "members": file.segmenter}
        if isinstance(file.segmenter, list)
        else file.segmenter
    )
    recipe: SegmenterRecipe = build(SEGMENTERS, section, "segmenter", folder)
    # Weights may be in a store that needs its options, and take their time.
    configure(file.storage)
    limits.configure(time_limits)
    try:
        started = recipe.start()
    except RecipeError as error:
        raise RecipeError(f"segmenter: {error}") from error
    return section if isinstance(section, str) else str(section["kind"]), started


def _inputs(file: _File, folder: Path) -> tuple[str, ...]:
    entries = [file.inputs] if isinstance(file.inputs, str) else file.inputs
    if not entries:
        raise RecipeError("inputs: expected at least one file, glob, folder or list, got none.")
    return tuple(below(entry, folder) for entry in entries)


def described(value: Any, registries: Sequence[Registry[Any]] = REGISTRIES) -> Any:
    """A value as JSON: dataclasses as their fields, with the name under which one of the registries
    holds their class as `type`. A class in none of them is known by the field that holds it.

    No name of a Python class appears, so renaming a class changes no fingerprint.
    """
    if is_dataclass(value):
        names = (registry.name_of(type(value)) for registry in registries)
        name = next(filter(None, names), None)
        # What does not count when values are compared (the place of a file whose digest is known)
        # decides nothing.
        counted = (field.name for field in fields(value) if field.compare)
        return {
            **({} if name is None else {"type": name}),
            **{field: described(getattr(value, field), registries) for field in counted},
        }
    if isinstance(value, Mapping):
        return {key: described(item, registries) for key, item in value.items()}
    return [described(item, registries) for item in value] if isinstance(value, tuple) else value


def _wanted_tables(
    named: list[str | dict[str, Any]] | str | dict[str, Any] | None, segmenter: Fitter | Model
) -> list[str | dict[str, Any]]:
    if named is None:
        return ["objects"] if isinstance(segmenter, ObjectSegmenter | Composed) else []
    return named if isinstance(named, list) else [named]


def _refuse_unknown_format(recipe: RunRecipe) -> None:
    name = recipe.format
    if name is not None and name not in FORMATS:
        raise RecipeError(
            f"format: there is no format {name!r}.{did_you_mean(name, FORMATS)} "
            f"Known: {', '.join(FORMATS)}."
        )


def _refuse_unknown_classes(recipe: RunRecipe) -> None:
    model = recipe.segmenter
    known = model.expected_classes if isinstance(model, Fitter) else model.classes
    for name in (recipe.objects.classes or ()) if recipe.objects is not None and known else ():
        if name not in known:
            raise RecipeError(
                f"statistics.objects.classes: the mask has no class {name!r}. Its classes are "
                f"{', '.join(known)}."
            )


def effective_tile(tile: int) -> int:
    """The side of the tiles that are cut: a power of two below 256, else a multiple of 256.

    >>> [effective_tile(side) for side in (16, 100, 256, 300, 2048)]
    [16, 128, 256, 512, 2048]
    """
    return 1 << (tile - 1).bit_length() if tile < 256 else -(-tile // 256) * 256


def schema() -> dict[str, Any]:
    """JSON Schema of the recipe."""
    document = _File.model_json_schema()
    sections = {
        "segmenter": schema_of(SEGMENTERS),
        "cluster": schema_of(CLUSTERS),
        "statistics": schema_of(STATISTICS),
    }
    properties = document["properties"]
    for name in ("segmenter", "cluster"):
        text = {
            "enum": [
                alternative["properties"]["kind"]["const"]
                for alternative in sections[name]["oneOf"]
            ]
        }
        properties[name] = {
            "description": properties[name].get("description", ""),
            "oneOf": [*sections[name]["oneOf"], text],
        }
    # A list is an ensemble.
    properties["segmenter"]["oneOf"].append(
        {"type": "array", "items": {"$ref": "#/properties/segmenter"}}
    )
    properties["limits"] = model_of(Limits).model_json_schema()
    properties["statistics"]["items"] = {
        "oneOf": [*sections["statistics"]["oneOf"], {"enum": list(STATISTICS)}]
    }
    return complete(document)


def _refuse_unknown_stores(recipe: RunRecipe) -> None:
    for location in (*recipe.inputs, recipe.output):
        try:
            filesystem(location)
        except StoreError as error:
            raise RecipeError(str(error)) from error


def _refuse_memory_on_processes(recipe: RunRecipe) -> None:
    in_memory = [
        location for location in (*recipe.inputs, recipe.output) if location.startswith("memory:")
    ]
    if in_memory and not recipe.cluster.in_process:
        raise RecipeError(
            f"{in_memory[0]} lives in the memory of one process, which workers cannot see. Set "
            f"cluster: {{kind: serial}}."
        )
