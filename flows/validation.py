"""Validation of a trained network as users will use it: its validation images are segmented whole,
and compared with their masks as `maskloom evaluate` compares them.

    <output>/validation/<model>/    masks, previews and tables of the run, and below `evaluation`
                                    the tables and the picture of the comparison

While it trains, a network is measured in windows. Here seams, halos and, of networks for objects,
the joining of objects over tiles are those of `maskloom segment`. The main measures are in the
network's card, as `about.metrics.whole_images`; and as `about.scores` how sure the network is of
the objects in an image, so that later runs can warn of images of another kind.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc

from maskloom.flows.evaluation.evaluate import evaluate
from maskloom.flows.evaluation.options import REST, EvaluationRequest, PolygonOptions
from maskloom.flows.progress.displays import display
from maskloom.flows.recipes import run as run_recipes
from maskloom.flows.report.measures import AP_BY_IMAGE, WHOLE_IMAGES
from maskloom.flows.run import RunOptions
from maskloom.flows.run import run as run_flow
from maskloom.flows.terminal import count, told
from maskloom.segcore.annotations.metrics import mean_of_known
from maskloom.segcore.annotations.pairing import NameSuffixes
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.errors import ImageError, MaskloomError, Stopped
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.segcore.objects.typical_objects import TypicalCounts
from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.storage.records import read_table
from maskloom.segcore.storage.store import Store
from maskloom.segcore.training.export import scores_of
from maskloom.segcore.training.flow import is_flow
from maskloom.segcore.training.labels import Colours, Index, Instances, Polygons, Values

if TYPE_CHECKING:
    from maskloom.flows.evaluation.report import Evaluation
    from maskloom.flows.recipes.training import TrainingRun
    from maskloom.flows.stopping import BreakOff
    from maskloom.segcore.models.typical import TypicalObjects
    from maskloom.segcore.training.pairs import Pair
    from maskloom.segcore.training.recipe import TrainingRecipe

FOLDER = "validation"
_MEASURES = ("accuracy", "mean_iou", "mean_dice", "mean_boundary_f", "pq", "ap_dsb2018_50")
_OF_CLASSES = ("iou", "dice", "precision", "recall", "boundary_f")
log = logging.getLogger(__name__)


def segmenter_of(recipe: TrainingRecipe) -> str:
    """The segmenter that runs the network. Networks of maskloom have segmenters of the same name;
    `network` runs those of plug-ins that bring none, `instances` those with vectors or a border.
    """
    if is_flow(recipe.labels) or border_of(recipe) is not None:
        return "instances"
    return recipe.kind if recipe.kind in SEGMENTERS else "network"


def validate(
    training: TrainingRun, pairs: Sequence[Pair], quiet: bool, break_off: BreakOff | None = None
) -> Mapping[str, Any] | None:
    """The measures of a trained network on these pairs, whole; they are added to its card. None:
    they are there already, or cannot be had, which a warning says: the network is trained anyway.

    Raises `Stopped`.
    """
    recipe, store = training.recipe, Store(training.recipe.output)
    name = f"{recipe.name}.json"
    card = Card.load(store.read(name), name)
    metrics: dict[str, Any] = dict(card.about.get("metrics", {}))
    if WHOLE_IMAGES in metrics:
        return None
    images = {pair.image.location for pair in pairs}
    with display(quiet) as shown_by:
        shown_by.report(
            f"Segmenting {count(len(images), 'validation image')} whole, as the network will be "
            "used, to measure it"
        )
    try:
        with _warnings_as_notes(quiet):
            found = _measured(training, pairs, card.sha256, quiet, break_off)
        scores = scores_of(_typical(_output_of(training, card.sha256)))
    except Stopped:
        raise
    except (MaskloomError, ImageError) as error:
        log.warning(
            "The network is trained, but could not be measured on whole images: %s", told(error)
        )
        return None
    measures = _summary(found)
    about = {**card.about, "metrics": {**metrics, WHOLE_IMAGES: measures}}
    if scores:
        about["scores"] = scores
    store.publish(name, replace(card, about=about).dump())
    return measures


def border_of(recipe: TrainingRecipe) -> str | None:
    """The class around objects, which is not in the masks. None: there is no such class."""
    border: str | None = getattr(recipe.labels, "border", None)
    return border


@contextmanager
def _warnings_as_notes(wanted: bool) -> Iterator[None]:
    """What the run of the block warns of is only for a log file: of images that look unlike those
    of training, for example, where the measures say how well they are segmented.
    """

    def demote(record: logging.LogRecord) -> bool:
        if record.levelno == logging.WARNING:
            record.levelno, record.levelname = logging.INFO, logging.getLevelName(logging.INFO)
        return True

    run_log = logging.getLogger("maskloom.run")
    if wanted:
        run_log.addFilter(demote)
    try:
        yield
    finally:
        run_log.removeFilter(demote)


def _measured(
    training: TrainingRun,
    pairs: Sequence[Pair],
    sha256: str,
    quiet: bool,
    break_off: BreakOff | None,
) -> Evaluation:
    """The validation images segmented, and compared with their masks."""
    recipe = training.recipe
    output = _output_of(training, sha256)
    segmenter: dict[str, Any] = {
        "kind": segmenter_of(recipe),
        "weights": Store(recipe.output).uri(f"{recipe.name}.keras"),
    }
    if border_of(recipe) is not None:
        segmenter["border"] = border_of(recipe)
    if recipe.bands:
        segmenter["bands"] = list(recipe.bands)
    document = {
        "name": f"{recipe.name}-validation"[:60],
        "inputs": sorted({split_part(pair.image.location)[0] for pair in pairs}),
        "output": output,
        "segmenter": segmenter,
        "cluster": "serial",
        "storage": {key: dict(value) for key, value in training.storage.items()},
    }
    run_flow(run_recipes.make(document, Path.cwd()), RunOptions(quiet=quiet, break_off=break_off))
    truths = tuple(sorted({split_part(pair.mask.location)[0] for pair in pairs}))
    return evaluate(output, _request(recipe, truths), quiet=quiet, break_off=break_off)


def _output_of(training: TrainingRun, sha256: str) -> str:
    """Where the images segmented by a network are. A folder for each network: nothing is removed if
    a training goes on for more epochs.
    """
    return f"{training.recipe.output}/{FOLDER}/{sha256[:8]}"


def _typical(output: str) -> Iterator[TypicalObjects]:
    """The typical objects of each segmented image that has some."""
    store = Store(output)
    for name in store.names("tables/objects", ".parquet"):
        rows = read_table(store, name, ["image_id", "class_name", "pixel_count", "score"])
        for image_id in rows["image_id"].unique().to_pylist():
            counts = TypicalCounts()
            counts.add_rows(rows.filter(pc.equal(rows["image_id"], image_id)))
            yield counts.medians


def _request(recipe: TrainingRecipe, truths: tuple[str, ...]) -> EvaluationRequest:
    """What `maskloom evaluate` must be told of the masks."""
    labels, classes = recipe.labels, recipe.classes
    values: list[str] = []
    polygons = None
    if isinstance(labels, Index):
        values = [f"{value}={name}" for value, name in enumerate(classes)]
    elif isinstance(labels, Values):
        values = [f"{value}={name}" for value, name in labels.values.items()]
    elif isinstance(labels, Colours):
        values = [f"#{text.removeprefix('#')}={name}" for name, text in labels.colours.items()]
    elif isinstance(labels, Instances):
        values = [f"0={classes[0]}", f"1..={labels.of or classes[1]}"]
    elif isinstance(labels, Polygons):
        values = [f"{value}={name}" for value, name in labels.values.items()]
        polygons = PolygonOptions(
            labels.attribute,
            labels.of,
            labels.outside,
            labels.overlap,
            labels.all_touched,
            labels.layer,
            labels.image,
            labels.coordinates == "pixels",
        )
    return EvaluationRequest(
        truth=truths,
        values=tuple(values),
        void=_void(labels),
        polygons=polygons,
        suffixes=NameSuffixes(recipe.mask_suffix, ""),
    )


def _void(labels: Any) -> tuple[str, ...]:
    """Values of masks that are ignored, as `maskloom evaluate` takes them."""
    void = getattr(labels, "void", ())
    if void == REST:
        return (REST,)
    given = void if isinstance(void, tuple) else (void,)
    if isinstance(labels, Colours):
        return tuple(f"#{str(text).removeprefix('#')}" for text in given if text)
    return tuple(str(value) for value in given if value != "")


def _summary(found: Evaluation) -> dict[str, Any]:
    """The main measures of all images together, as JSON values."""
    rows = found.result.rows()
    whole = next(row for row in rows["images"] if row["image_id"] is None)
    classes = [row for row in rows["classes"] if row["image_id"] is None]
    # Of all objects together above; papers on nuclei give the mean over images.
    of_images = [row["ap_dsb2018_50"] for row in rows["means"] if "ap_dsb2018_50" in row]
    by_image = {AP_BY_IMAGE: _rounded(mean_of_known(np.array(of_images)))} if of_images else {}
    return {
        "images": len(found.result.scores),
        **{name: _rounded(whole[name]) for name in _MEASURES if whole.get(name) is not None},
        **by_image,
        "classes": {
            row["class_name"]: {name: _rounded(row[name]) for name in _OF_CLASSES}
            for row in classes
        },
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else round(float(value), 6)
