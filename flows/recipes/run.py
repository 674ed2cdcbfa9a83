"""Recipes of runs: checked values from a YAML file, changes by options, and the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import maskloom
from maskloom.flows.alerting.delivery import Channel
from maskloom.flows.alerting.rules import Rule
from maskloom.flows.recipes.fingerprints import json_values
from maskloom.flows.recipes.run_checks import check
from maskloom.flows.recipes.run_file import AlertOptions, ReportOptions, RunFile, checked
from maskloom.flows.recipes.schedule import Schedule
from maskloom.flows.recipes.sections import build
from maskloom.flows.recipes.yaml_files import (
    below,
    completed,
    load_document,
    output_below,
)
from maskloom.flows.terminal import recordable
from maskloom.segcore import geometry
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.models.protocols import (
    SEGMENTERS,
    Fitter,
    Model,
    SegmenterRecipe,
    finds_objects,
)
from maskloom.segcore.models.stated_colours import reference_colours, stated_colours
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.processes import limits
from maskloom.segcore.processes.limits import Limits
from maskloom.segcore.raster.classes import ColourChoice
from maskloom.segcore.raster.colours import Colour, parse_colour
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.protocol import STATISTICS, Statistic
from maskloom.segcore.storage.canonical import digest
from maskloom.segcore.storage.filesystems import configure
from maskloom.tasks.clusters.protocol import CLUSTERS, Cluster
from maskloom.tasks.plan import Fingerprint
from maskloom.tasks.zones import ZonesFile, described

IDENTIFYING_MASKS = (
    "masks: DICOM segmentation objects copy name, number and birth date of the patient, and the "
    "identifiers of the study, from the scans. Keep the folder `masks` as you keep the scans."
)
"""Shown for a recipe with such masks."""
_INPUTS_WRITTEN = 20


@dataclass(frozen=True, slots=True)
class RunRecipe:
    """A checked recipe."""

    name: str
    inputs: tuple[str, ...]
    output: str
    kind: str
    """Name of the segmenter."""
    segmenter: Fitter | Model
    """A model, or a fitter that is still to be fitted."""
    fit: Literal["collection", "image"]
    tiling: geometry.Tiling
    statistics: dict[str, Statistic]
    objects: Objects | None
    """Options of the table of objects. None: no such table."""
    cluster: Cluster
    format: str | None
    options: ReadOptions
    storage: dict[str, dict[str, Any]]
    max_failed_fraction: float
    limits: Limits
    masks: dict[str, str] = field(default_factory=dict)
    """See `RunSettings.masks`."""
    colours: dict[str, Colour] = field(default_factory=dict)
    """Colours of classes that the recipe states, by name."""
    scores: bool = False
    """Whether the scores of the classes are kept."""
    zones: ZonesFile | None = None
    """Polygons of the table `zones`, as the user gave them."""
    alerts: tuple[Rule, ...] = ()
    """Conditions that are looked at when a run ends."""
    notify: tuple[Channel, ...] = ()
    """Where alerts are sent."""
    schedule: Schedule | None = None
    """When a server starts the recipe. None: only by hand."""
    reports: bool = True
    """Whether a run ends with a report."""
    pictures: bool = True
    """Whether its report shows the images."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """The recipe as its user wrote it, for the report: see `as_written`."""

    @property
    def work(self) -> Fingerprint:
        """Everything that decides pixels and rows: the segmenter, what it is fitted to, the
        statistics, and the code.
        """
        settings = {
            "segmenter": {"kind": self.kind, **json_values(self.segmenter)},
            "fit": self.fit,
            "statistics": {
                name: json_values(statistic) for name, statistic in self.statistics.items()
            },
            "objects": json_values(self.objects),
            "maskloom": maskloom.__version__,
        }
        # Options at their defaults are left out, so that a new one changes no fingerprint.
        said, default = json_values(self.options), json_values(ReadOptions())
        settings.update({key: value for key, value in said.items() if value != default[key]})
        if self.masks:
            settings["masks"] = self.masks
        if self.scores:
            settings["scores"] = True
        if self.stated_colours:
            # They decide no label, but the files of masks contain them.
            settings["colours"] = self.stated_colours
        return Fingerprint(
            self.name, digest(settings)[:16], settings, apart_by_crs=self.objects is not None
        )

    @property
    def stated_colours(self) -> dict[str, Colour]:
        """Colours of classes by name: of the recipe, or else of the network's card."""
        return {**stated_colours(self.segmenter), **self.colours}

    def run_settings(self, run_id: str) -> RunSettings:
        """The settings that all jobs of a run share."""
        return RunSettings(
            self.output,
            run_id,
            self.segmenter,
            self.statistics,
            self.tiling,
            self.kind,
            self.objects,
            self.masks,
            ColourChoice.of(self.stated_colours, reference_colours(self.segmenter)),
            scores=self.scores,
        )


def load(path: Path, changes: Sequence[str] = ()) -> RunRecipe:
    """The recipe of a YAML file, with `key.sub=value` changes. Raises `RecipeError`."""
    document = load_document(path, "inputs, output and segmenter")
    loaded = make(document, path.resolve().parent, changes)
    return replace(loaded, written={**loaded.written, "file": recordable(str(path.resolve()))})


def as_written(document: Mapping[str, Any], folder: Path, changes: Sequence[str]) -> dict[str, Any]:
    """The recipe as its user wrote it: without the values of variables, with signatures of
    addresses masked, and with the first of many inputs.
    """
    if document.get("notify"):
        # The path of a webhook is its secret.
        document = {**document, "notify": "***"}
    inputs = document.get("inputs")
    if isinstance(inputs, list) and len(inputs) > _INPUTS_WRITTEN:
        more = f"... and {len(inputs) - _INPUTS_WRITTEN} more"
        document = {**document, "inputs": [*inputs[:_INPUTS_WRITTEN], more]}
    found: dict[str, Any] = recordable(
        {"document": dict(document), "folder": str(folder), "changes": list(changes)}
    )
    return found


def make(
    document: dict[str, Any],
    folder: Path,
    changes: Sequence[str] = (),
    started: Fitter | Model | None = None,
) -> RunRecipe:
    """A recipe from its document; relative paths are below `folder`. Raises `RecipeError`.

    `started` is a model or fitter in place of the one that the document describes by more than its
    kind.
    """
    written = as_written(document, folder, changes)
    file = checked(completed(document, changes))
    time_limits: Limits = build({"limits": Limits}, {**file.limits, "kind": "limits"}, "limits")
    kind_of_segmenter, segmenter = (
        _segmenter(file, folder, time_limits) if started is None else (str(file.segmenter), started)
    )
    tables = {"area": build(STATISTICS, "area", "statistics")}
    for i, entry in enumerate(_wanted_tables(file.statistics, segmenter)):
        kind = entry if isinstance(entry, str) else str(entry.get("kind"))
        tables[kind] = build(STATISTICS, entry, f"statistics.{i}", folder)
    output = output_below(file.output, folder)
    zones = _zones(file, folder)
    if zones is not None:
        tables["zones"] = described(zones, output)
    recipe = RunRecipe(
        name=file.name or "recipe",
        inputs=_inputs(file, folder),
        output=output,
        kind=kind_of_segmenter,
        segmenter=segmenter,
        fit=file.fit,
        tiling=file.tiling.value,
        objects=tables.pop("objects", None),
        statistics=tables,
        cluster=build(CLUSTERS, file.cluster, "cluster", folder),
        format=file.format,
        options=file.options,
        storage=file.storage,
        max_failed_fraction=file.max_failed_fraction,
        limits=time_limits,
        masks=file.masks,
        scores=file.scores,
        zones=zones,
        alerts=tuple(_rule(name, wanted) for name, wanted in file.alerts.items()),
        notify=tuple(Channel(each.webhook, each.block) for each in file.notify),
        colours={name: parse_colour(text) for name, text in file.colours.items()},
        schedule=file.schedule,
        reports=file.report is not False,
        pictures=file.report.pictures if isinstance(file.report, ReportOptions) else file.report,
        written=written,
    )
    check(recipe)
    return recipe


def _segmenter(file: RunFile, folder: Path, time_limits: Limits) -> tuple[str, Fitter | Model]:
    """The name of the segmenter, and the fitter or model that it starts with."""
    section = (
        {"kind": "ensemble", "members": file.segmenter}
        if isinstance(file.segmenter, list)
        else file.segmenter
    )
    recipe: SegmenterRecipe = build(SEGMENTERS, section, "segmenter", folder)
    # Weights may be in a store that needs its options, and take long to load.
    configure(file.storage)
    limits.configure(time_limits)
    try:
        started = recipe.start()
    except RecipeError as error:
        raise RecipeError(f"segmenter: {error}") from error
    return section if isinstance(section, str) else str(section["kind"]), started


def _zones(file: RunFile, folder: Path) -> ZonesFile | None:
    wanted = file.zones
    if wanted is None:
        return None
    if isinstance(wanted, str):
        return ZonesFile(below(wanted, folder))
    attributes = None if wanted.attributes is None else tuple(wanted.attributes)
    return ZonesFile(below(wanted.file, folder), wanted.layer, attributes)


def _inputs(file: RunFile, folder: Path) -> tuple[str, ...]:
    entries = [file.inputs] if isinstance(file.inputs, str) else file.inputs
    if not entries:
        raise RecipeError("inputs: expected at least one file, glob, folder or list; got none.")
    return tuple(below(entry, folder) for entry in entries)


def _wanted_tables(
    named: list[str | dict[str, Any]] | str | dict[str, Any] | None, segmenter: Fitter | Model
) -> list[str | dict[str, Any]]:
    if named is None:
        return ["objects"] if finds_objects(segmenter) else []
    return named if isinstance(named, list) else [named]


def _rule(name: str, wanted: str | AlertOptions) -> Rule:
    if isinstance(wanted, str):
        return Rule(name, wanted)
    return Rule(name, wanted.when, wanted.until, wanted.of)
