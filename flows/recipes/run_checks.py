"""Checks of a whole run recipe: names that nothing has, and parts that do not fit together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskloom.flows.recipes.messages import did_you_mean
from maskloom.segcore.errors import RecipeError, StoreError
from maskloom.segcore.features.named import check_features, names_of_sensor
from maskloom.segcore.features.sensors import SENSORS
from maskloom.segcore.formulas import FormulaError
from maskloom.segcore.models.protocols import (
    SEGMENTERS,
    Fitter,
    fits_each_image,
    gives_scores,
)
from maskloom.segcore.raster.spec import FORMATS, ChoiceFormat
from maskloom.segcore.storage.filesystems import filesystem

if TYPE_CHECKING:
    from maskloom.flows.recipes.run import RunRecipe


def check(recipe: RunRecipe) -> None:
    """Raise `RecipeError` for the first fault of a recipe that its sections alone do not show."""
    _refuse_unknown_format(recipe)
    _refuse_unknown_masks(recipe)
    _refuse_missing_scores(recipe)
    _refuse_mixed_fits(recipe)
    _refuse_unknown_classes(recipe)
    _refuse_unknown_colours(recipe)
    _refuse_unknown_features(recipe)
    _refuse_false_alerts(recipe)
    _refuse_unknown_stores(recipe)
    _refuse_memory_on_processes(recipe)


def _refuse_unknown_format(recipe: RunRecipe) -> None:
    name = recipe.format
    if name is not None and name not in FORMATS:
        raise RecipeError(
            f"format: unknown format {name!r}.{did_you_mean(name, FORMATS)} "
            f"Known formats: {', '.join(FORMATS)}."
        )


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


def _refuse_mixed_fits(recipe: RunRecipe) -> None:
    segmenter = recipe.segmenter
    if recipe.fit == "image" or fits_each_image(segmenter):
        return
    if any(map(fits_each_image, getattr(segmenter, "members", ()))):
        raise RecipeError(
            "fit: the values of each image scale it for one member of the ensemble, and another "
            "is fitted to the collection. Set `fit: image`, or leave one of them out."
        )


def _refuse_unknown_classes(recipe: RunRecipe) -> None:
    known = _classes(recipe)
    for name in (recipe.objects.classes or ()) if recipe.objects is not None and known else ():
        if name not in known:
            raise RecipeError(
                f"statistics.objects.classes: the mask has no class {name!r}. Its classes are "
                f"{', '.join(known)}."
            )


def _refuse_unknown_colours(recipe: RunRecipe) -> None:
    known = _classes(recipe)
    for name in recipe.colours if known else ():
        if name not in known:
            raise RecipeError(
                f"colours: the mask has no class {name!r}.{did_you_mean(name, known)} Its classes "
                f"are {', '.join(known)}."
            )


def _refuse_unknown_features(recipe: RunRecipe) -> None:
    options = recipe.options
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


def _refuse_false_alerts(recipe: RunRecipe) -> None:
    classes = _classes(recipe)
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


def _classes(recipe: RunRecipe) -> tuple[str, ...]:
    """Names of the classes that the mask will have; empty if they are known after the fit only."""
    model = recipe.segmenter
    return model.expected_classes if isinstance(model, Fitter) else model.classes
