"""Training recipes: checked values from a YAML file and changes by options.

The sections are the dataclasses of `segcore.training` and `segcore.deep.networks.recipe`, checked
as those of run recipes are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pydantic

from maskloom.flows.recipes.fingerprints import json_values
from maskloom.flows.recipes.messages import did_you_mean, explain, unknown_key
from maskloom.flows.recipes.schemas import ColourText, complete, model_of, schema_of
from maskloom.flows.recipes.sections import build
from maskloom.flows.recipes.yaml_files import (
    below,
    completed,
    load_document,
    output_below,
    refuse_secrets,
)
from maskloom.segcore.deep.inference.files.weights import is_packaged
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.colours import hexadecimal, parse_colour
from maskloom.segcore.training.augmentations.geometry import DEFAULT
from maskloom.segcore.training.augmentations.protocols import AUGMENTATIONS, Augmentation
from maskloom.segcore.training.imagenet import IMAGENET
from maskloom.segcore.training.labels import LABELS, Colours, LabelKind
from maskloom.segcore.training.loss_terms import LOSSES
from maskloom.segcore.training.recipe import Training, TrainingRecipe
from maskloom.segcore.training.split import Split

_REGISTRIES = (NETWORKS, LABELS, LOSSES, AUGMENTATIONS)


class _File(pydantic.BaseModel):
    """A training recipe as users write it."""

    model_config = pydantic.ConfigDict(
        extra="forbid", use_attribute_docstrings=True, title="maskloom training recipe"
    )

    name: str = pydantic.Field("", pattern="^[a-z0-9-]*$", max_length=60)
    """Name of the model, of the characters a-z, 0-9 and -. Default: the recipe's file name."""
    images: str | list[str]
    """Files, globs, folders, or list files (.csv, .parquet, .txt) with a column `uri`; local paths
    or fsspec URIs.
    """
    masks: str | list[str]
    """The masks, given as the images are. A mask has the name of its image."""
    mask_suffix: str = ""
    """End of the masks' names that the images' names lack, e.g. _mask."""
    output: str
    """Folder for the model; a local path, relative to the recipe file, or an fsspec URI."""
    network: dict[str, Any] | str
    """The network to train: `kind` and its parameters."""
    classes: list[str]
    """Names of the classes, in the order of their ids."""
    initial: str | None = None
    """Weights that training starts from, instead of random ones: a network of the same kind that
    `maskloom train` or `maskloom convert` made, or `nuclei`; or `imagenet` (or a file of
    keras.applications, `.h5`) for the backbones that have such weights. Layers of other shapes
    begin at random. Default for `scaling` is then that of these weights.
    """
    labels: dict[str, Any] | str = "index"
    """What the values of masks mean: index, values, colours or instances."""
    colours: dict[str, ColourText] = {}
    """Colours of classes in the masks that the model makes: `#rrggbb` or a name of CSS, e.g.
    {water: "#1d6fa5", road: grey}. Default: those of labels that are colours. They are in the card.
    """
    bands: list[int] | None = None
    """Numbers of the bands to use, from 1. Default: all."""
    scaling: dict[str, Any] | None = None
    """How pixels become the network's input: {offset: [...], factor: [...]}, (value - offset) *
    factor, the same for all images; or by the values of each image, {by: deviation} to mean 0 and
    deviation 1, {by: range, percentiles: [1, 99.8]} to 0 and 1. Default: 1/255 for 8 bits, 1/65535
    for 16.
    """
    split: dict[str, Any] = {}
    """How images are divided into training and validation."""
    training: dict[str, Any] = {}
    """Options of training."""
    licence: str = ""
    """Licence of the weights."""
    purpose: str = ""
    """What the weights are meant for and what not; shown to their users."""
    storage: dict[str, dict[str, Any]] = {}
    """fsspec options by protocol. No secrets."""


@dataclasses.dataclass(frozen=True, slots=True)
class TrainingRun:
    """A checked training recipe, with the locations of its data."""

    recipe: TrainingRecipe
    images: tuple[str, ...]
    masks: tuple[str, ...]
    settings: Mapping[str, Any]
    """Everything that decides the weights, as JSON values."""
    storage: Mapping[str, Mapping[str, Any]]
    whole_images: bool = True
    """Whether the network is measured on whole images when it is trained."""


def load(path: Path, changes: Sequence[str] = ()) -> TrainingRun:
    """The training recipe of a YAML file, with `key.sub=value` changes. Raises `RecipeError`."""
    document = load_document(path, "images, masks and network")
    return make(document, path.resolve().parent, changes)


def make(document: dict[str, Any], folder: Path, changes: Sequence[str] = ()) -> TrainingRun:
    """A training recipe from its document; relative paths are below `folder`. Raises
    `RecipeError`.
    """
    file = _checked(completed(document, changes, ("images", "masks")))
    training = dict(file.training)
    labels = build(LABELS, file.labels, "labels", folder)
    usual = "sum" if getattr(labels, "target", None) == "flow" else "cross_entropy"
    loss, augmentation = training.pop("loss", usual), training.pop("augmentation", None)
    recipe = TrainingRecipe(
        name=file.name or "model",
        output=output_below(file.output, folder),
        kind=file.network if isinstance(file.network, str) else str(file.network.get("kind")),
        network=build(NETWORKS, file.network, "network", folder),
        classes=tuple(file.classes),
        labels=labels,
        loss=build(LOSSES, loss, "training.loss").terms,
        augmentation=_augmentation(augmentation),
        training=_section(Training, training, "training", ("loss", "augmentation")),
        split=_section(Split, file.split, "split"),
        bands=_bands(file),
        scaling=_scaling(file.scaling),
        initial=_initial(file.initial, folder),
        mask_suffix=file.mask_suffix,
        licence=file.licence,
        purpose=file.purpose,
    )
    recipe.labels.decoder(recipe.classes)
    recipe = dataclasses.replace(recipe, colours=_colours(file, recipe.labels))
    # Location, purpose, licence and colours of the model change no weight; those to start from do
    # by their digest (`segcore.training.run`).
    decisive = {
        key: value
        for key, value in json_values(recipe, _REGISTRIES).items()
        if key not in ("output", "licence", "purpose", "name", "colours", "initial")
    }
    images, masks = _locations(file.images, folder), _locations(file.masks, folder)
    return TrainingRun(recipe, images, masks, decisive, file.storage)


def _checked(document: dict[str, Any]) -> _File:
    """The document with types and keys checked. Raises `RecipeError`."""
    try:
        file = _File.model_validate(document)
    except pydantic.ValidationError as error:
        raise RecipeError(explain(error, "", list(_File.model_fields))) from None
    refuse_secrets(file.storage)
    return file


def _colours(file: _File, labels: LabelKind) -> dict[str, str]:
    """The colours that the recipe states, or else those of the labels. Raises `RecipeError`."""
    for name in file.colours:
        if name not in file.classes:
            raise RecipeError(
                f"colours: there is no class {name!r}.{did_you_mean(name, file.classes)} `classes` "
                f"are {', '.join(file.classes)}."
            )
    known = labels.colours if isinstance(labels, Colours) else {}
    stated = {name: f"#{text.removeprefix('#')}" for name, text in known.items()} | file.colours
    return {name: hexadecimal(parse_colour(text)) for name, text in stated.items()}


def _initial(location: str | None, folder: Path) -> str | None:
    if location is None or location == IMAGENET or is_packaged(location):
        return location
    return below(location, folder)


def _bands(file: _File) -> tuple[int, ...] | None:
    if file.bands is None:
        return None
    if not file.bands or min(file.bands) < 1:
        raise RecipeError(f"bands: expected whole numbers from 1, got {file.bands}.")
    return tuple(file.bands)


def schema() -> dict[str, Any]:
    """JSON Schema of the training recipe."""
    document = _File.model_json_schema()
    properties = document["properties"]
    for key, kind in (("training", Training), ("split", Split)):
        properties[key] = {
            **model_of(kind).model_json_schema(),
            "description": properties[key].get("description", ""),
        }
    of_all, of_each = (model_of(kind).model_json_schema() for kind in (Scaling, ImageScaling))
    for name, numbers in of_all["properties"].items():
        # A single number is accepted without brackets.
        of_all["properties"][name] = {
            "anyOf": [numbers, {"type": "number"}],
            "description": numbers["description"],
        }
    # A training has no `fit` that the other choice could follow.
    of_each["properties"]["of"] = {"const": "image"}
    properties["scaling"] = {
        "anyOf": [of_all, of_each],
        "description": properties["scaling"].get("description", ""),
    }
    for key, registry in (("network", NETWORKS), ("labels", LABELS)):
        properties[key] = {
            **_kinds(registry),
            "description": properties[key].get("description", ""),
        }
    properties["training"]["properties"] |= {
        "loss": {
            **_kinds(LOSSES),
            "description": "What training minimises. Default: cross_entropy; sum for the target "
            "flow, whose vectors have terms of their own.",
        },
        "augmentation": {
            "type": "array",
            "items": _kinds(AUGMENTATIONS),
            "description": "Random changes of patches, in this order. Default: flip, rotate90.",
        },
    }
    return complete(document)


def _kinds(registry: Mapping[str, Any]) -> dict[str, Any]:
    """A section of one of these kinds, or the name of a kind alone."""
    return {"oneOf": [*schema_of(registry)["oneOf"], {"enum": list(registry)}]}


def _locations(named: str | list[str], folder: Path) -> tuple[str, ...]:
    return tuple(below(entry, folder) for entry in ([named] if isinstance(named, str) else named))


def _section(kind: type, value: Mapping[str, Any], path: str, more: Sequence[str] = ()) -> Any:
    """The dataclass of a section without `kind`."""
    known = [*(field.name for field in dataclasses.fields(kind)), *more]
    strange = [key for key in value if key not in known]
    if strange:
        raise RecipeError(f"{path}.{strange[0]}: {unknown_key(str(strange[0]), known)}")
    return build({path: kind}, {**value, "kind": path}, path)


def _augmentation(wanted: Any) -> tuple[Augmentation, ...]:
    if wanted is None:
        return DEFAULT
    if not isinstance(wanted, list):
        raise RecipeError(
            f"training.augmentation: expected a list, e.g. [flip, rotate90], got {wanted!r}."
        )
    return tuple(
        build(AUGMENTATIONS, each, f"training.augmentation.{i}") for i, each in enumerate(wanted)
    )


def _scaling(wanted: Mapping[str, Any] | None) -> Scaling | ImageScaling | None:
    if wanted is None:
        return None
    of_all, of_each = (
        [field.name for field in dataclasses.fields(kind)] for kind in (Scaling, ImageScaling)
    )
    for key in wanted:
        if key not in (*of_all, *of_each):
            raise RecipeError(f"scaling.{key}: {unknown_key(str(key), (*of_all, *of_each))}")
    if not wanted.keys() & of_each:
        lists = {key: each if isinstance(each, list) else [each] for key, each in wanted.items()}
        return _section(Scaling, lists, "scaling")  # type: ignore[no-any-return]
    if wanted.keys() & of_all:
        raise RecipeError(
            "scaling: expected `offset` and `factor`, which are the same for all images, or `by`, "
            f"whose numbers are found in each; got {', '.join(wanted)}. Leave one out."
        )
    return _section(ImageScaling, wanted, "scaling")  # type: ignore[no-any-return]
