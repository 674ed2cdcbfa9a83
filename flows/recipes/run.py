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
from maskloom.flows.recipes.run_file import AlertOptions, ReportOptions, RunFile, checked
from maskloom.flows.recipes.schedule import Schedule
from maskloom.flows.recipes.schemas import (
    build,
    did_you_mean,
)
from maskloom.flows.recipes.yaml_files import (
    below,
    completed,
    load_document,
    output_below,
)
from maskloom.flows.terminal import recordable
from maskloom.segcore import geometry
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.features.named import check_features, names_of_sensor
from maskloom.segcore.features.sensors import SENSORS
from maskloom.segcore.formulas import FormulaError
from maskloom.segcore.models.protocols import (
    SEGMENTERS,
    Fitter,
    Model,
    SegmenterRecipe,
    finds_objects,
    fits_each_image,
    gives_scores,
)
from maskloom.segcore.models.stated_colours import reference_colours, stated_colours
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.processes import limits
from maskloom.segcore.processes.limits import Limits
from maskloom.segcore.raster.classes import ColourChoice
from maskloom.segcore.raster.colours import Colour, parse_colour
from maskloom.segcore.raster.spec import FORMATS, ChoiceFormat
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.statistics.protocol import STATISTICS, Statistic
from maskloom.segcore.storage.canonical import digest
from maskloom.segcore.storage.filesystems import configure, filesystem
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
    _refuse_unknown_format(recipe)
    _refuse_unknown_masks(recipe)
    _refuse_missing_scores(recipe)
    _refuse_mixed_fits(recipe)
    _refuse_unknown_classes(recipe)
    _refuse_unknown_coloured(recipe)
    _refuse_unknown_features(recipe.options)
    _refuse_false_alerts(recipe)
    _refuse_unknown_stores(recipe)
    _refuse_memory_on_processes(recipe)
    return recipe


def _refuse_unknown_masks(recipe: RunRecipe) -> None:
    for name, writer in recipe.masks.items():
        found = FORMATS.get(name)
        known = found.other_masks if isinstance(found, ChoiceFormat) else ()
        if writer not in known:
            choices = ", ".join(
                f"{{{other}: {each}}}"
                for other, image_format in FORMATS.items()
                if isinstance(image_format, ChoiceFormat)
                for each in image_format.other_masks
            )
            raise RecipeError(f"masks: expected one of {choices}; got {{{name}: {writer}}}")


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


def _refuse_unknown_format(recipe: RunRecipe) -> None:
    name = recipe.format
    if name is not None and name not in FORMATS:
        raise RecipeError(
            f"format: unknown format {name!r}.{did_you_mean(name, FORMATS)} "
            f"Known formats: {', '.join(FORMATS)}."
        )


def _refuse_mixed_fits(recipe: RunRecipe) -> None:
    segmenter = recipe.segmenter
    if recipe.fit == "image" or fits_each_image(segmenter):
        return
    if any(map(fits_each_image, getattr(segmenter, "members", ()))):
        raise RecipeError(
            "fit: the values of each image scale it for one member of the ensemble, and another "
            "is fitted to the collection. Set `fit: image`, or leave one of them out."
        )


def _refuse_missing_scores(recipe: RunRecipe) -> None:
    if not recipe.scores or gives_scores(recipe.segmenter):
        return
    having = [
        name
        for name, kind in SEGMENTERS.items()
        if getattr(kind, "gives_scores", False) and name != "ensemble"
    ]
    why = (
        "this ensemble decides by votes"
        if recipe.kind == "ensemble"
        else "this network outputs class ids"
        if recipe.kind in having
        else f"{recipe.kind} gives no probabilities of classes"
    )
    raise RecipeError(
        f"scores: {why}. Segmenters that give them: {', '.join(sorted(having))}, and ensembles of "
        "these by scores. Leave `scores` out, or choose one of them."
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


def _refuse_unknown_coloured(recipe: RunRecipe) -> None:
    model = recipe.segmenter
    known = model.expected_classes if isinstance(model, Fitter) else model.classes
    for name in recipe.colours if known else ():
        if name not in known:
            raise RecipeError(
                f"colours: the mask has no class {name!r}.{did_you_mean(name, known)} Its classes "
                f"are {', '.join(known)}."
            )


def _rule(name: str, wanted: str | AlertOptions) -> Rule:
    if isinstance(wanted, str):
        return Rule(name, wanted)
    return Rule(name, wanted.when, wanted.until, wanted.of)


def _refuse_false_alerts(recipe: RunRecipe) -> None:
    model = recipe.segmenter
    classes = model.expected_classes if isinstance(model, Fitter) else model.classes
    for rule in recipe.alerts:
        rule.check(classes)
        if rule.of == "zone" and recipe.zones is None:
            raise RecipeError(f"alerts.{rule.name}: of: zone needs `zones` in the recipe.")
        measures = {measure for _, measure in rule.needs()}
        if recipe.objects is None and measures & {"objects", "largest"}:
            raise RecipeError(
                f"alerts.{rule.name}: objects are counted where the recipe has statistics: "
                "[objects]."
            )


def _refuse_unknown_features(options: ReadOptions) -> None:
    sensor, known = options.sensor, options.band_names
    if sensor is not None and sensor not in SENSORS:
        raise RecipeError(
            f"sensor: unknown sensor {sensor!r}.{did_you_mean(sensor, SENSORS)} Known sensors: "
            f"{', '.join(SENSORS)}."
        )
    if sensor is not None:
        known = tuple(dict.fromkeys((*known, *names_of_sensor(sensor))))
    try:
        check_features(options.features, known)
    except FormulaError as error:
        raise RecipeError(f"features: {error}.") from error


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
            f"{in_memory[0]} is in the memory of this process, where workers cannot read it. Set "
            "cluster: {kind: serial}."
        )
