"""The training flow: trains a network by a recipe and writes it with its card."""

from __future__ import annotations

import logging
import shlex
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from maskloom.flows.progress.displays import display
from maskloom.flows.progress.training import TrainingProgress
from maskloom.flows.recipes.training import TrainingRun
from maskloom.flows.stopping import BreakOff, stoppable
from maskloom.flows.validation import FOLDER, border_of, segmenter_of, validate
from maskloom.segcore import formats
from maskloom.segcore.deep.inference.runtime import import_keras
from maskloom.segcore.errors import ImageError, RecipeError
from maskloom.segcore.raster.source import Source
from maskloom.segcore.storage.filesystems import configure, filesystem, store_errors
from maskloom.segcore.storage.records import read_json
from maskloom.segcore.storage.store import Store
from maskloom.segcore.training.export import PICTURES
from maskloom.segcore.training.labels import Polygons
from maskloom.segcore.training.log import require_tensorboard
from maskloom.segcore.training.run import TrainingResult, prepare, train
from maskloom.tasks.discovery import lists
from maskloom.tasks.discovery.discover import discover, passed_over_note
from maskloom.tasks.discovery.vectors import find_vectors

if TYPE_CHECKING:
    from maskloom.segcore.training.recipe import TrainingRecipe

log = logging.getLogger(__name__)


def run(training: TrainingRun, quiet: bool, *, break_off: BreakOff | None = None) -> TrainingResult:
    """Train a network, or continue a training. `break_off`: see `stoppable`.

    Raises `RecipeError`, `RunError`, `Stopped`.
    """
    configure(training.storage)
    if training.recipe.training.tensorboard:
        # Before seconds go into Keras and minutes into the images.
        require_tensorboard(training.recipe.output)
    # Imported through the runtime, which silences TensorFlow's notices.
    import_keras()
    stop = threading.Event()
    with display(quiet) as shown_by, stoppable(stop, shown_by, break_off):
        monitor = TrainingProgress(shown_by)
        prepared = prepare(
            training.recipe,
            sources(training),
            training.settings,
            monitor,
            stop.is_set,
            groups(training),
        )
        result = train(prepared, monitor, stop.is_set)
    if training.whole_images:
        setup = prepared.setup
        validate(training, [setup.dataset.pairs[i] for i in setup.validation], quiet, break_off)
    return result


def sources(training: TrainingRun) -> tuple[list[Source], list[Source]]:
    """All images and all masks of a recipe. Raises `RecipeError` if a pattern finds none,
    `StoreError` if a store cannot be listed.
    """
    images = _discovered(training, training.images, "images")
    if isinstance(training.recipe.labels, Polygons):
        return images, find_vectors(training.masks, "masks")
    return images, _discovered(training, training.masks, "masks")


def groups(training: TrainingRun) -> dict[str, str] | None:
    """The group of each image in the lists of the recipe, by its location. None: the split does
    not go by a column. Raises `RecipeError`.
    """
    column = training.recipe.split.group_column
    if column is None:
        return None
    named = [entry for entry in training.images if lists.is_list(entry)]
    if not named or any(entry.lower().endswith(".txt") for entry in named):
        raise RecipeError(
            "split.group_column: expected `images` to be list files (.csv or .parquet) with a "
            f"column {column!r}; got {', '.join(training.images)}."
        )
    found: dict[str, str] = {}
    for entry in named:
        fs, path = filesystem(entry)
        with store_errors(f"read the list {entry!r}"):
            content = fs.cat_file(path)
        try:
            rows = lists.read_column(entry, content, column)
        except RecipeError as error:
            raise RecipeError(f"split.group_column: {error}") from error
        found |= {lists.absolute(name, entry): group for name, group in rows.items()}
    return found


def usage(training: TrainingRun, result: TrainingResult) -> str:
    """A command line that uses the model. One that learned a border makes objects by it."""
    recipe = training.recipe
    border = border_of(recipe)
    options = "" if border is None else f" -p {shlex.quote(f'border={border}')}"
    if recipe.bands is not None:
        options += f" -p bands='{list(recipe.bands)}'"
    weights = shlex.quote(f"weights={result.model}")
    return f"maskloom segment IMAGE... -o OUTPUT -s {segmenter_of(recipe)} -p {weights}{options}"


def metrics(recipe: TrainingRecipe) -> Mapping[str, Any]:
    """The measures of a trained network, from its card."""
    card = read_json(Store(recipe.output), f"{recipe.name}.json", dict)
    found: Mapping[str, Any] = card.get("about", {}).get("metrics", {})
    return found


def _discovered(training: TrainingRun, entries: Sequence[str], key: str) -> list[Source]:
    try:
        found = discover(entries, "", {})
    except RecipeError as error:
        raise RecipeError(f"{key}: {str(error).removeprefix('inputs: ')}") from error
    if found.passed_over:
        log.warning("%s: %s", key, passed_over_note(found.passed_over).strip())
    # If the model is in the folder of the images, its pictures and masks are no training images.
    return [
        image
        for source in found.sources
        if not _is_ours(source.uri, training.recipe.output)
        for image in _images_of(source)
    ]


def _is_ours(uri: str, output: str) -> bool:
    """Whether a training into this output has written a file."""
    below = uri.removeprefix(f"{output}/")
    return below != uri and (below.startswith(f"{FOLDER}/") or below.rpartition("/")[2] in PICTURES)


def _images_of(source: Source) -> list[Source]:
    """The images in a file; the file itself if it cannot be read, which is reported later, unless
    the recipe leaves it out.
    """
    try:
        return formats.images_of(source)
    except (ImageError, FileNotFoundError):
        return [source]
