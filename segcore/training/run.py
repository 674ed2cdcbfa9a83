"""A whole training, from pairs of files to a model with its card.

    <output>/training_state.json      settings and data of the training and, at the end, its result
    <output>/checkpoint/              state of the training, from which it continues
    <output>/<name>.keras             the best network, in float32
    <output>/<name>.json              its card
    <output>/training_history.json  curves.png  examples.png  reliability.png

The first holds the recipe's settings and the digest of the data. The same command finds it and
continues the training, or does nothing if it is finished; another recipe, or changed data, is
refused. The length of a training may change: with other `epochs` or `patience` it continues from
its checkpoint, even if it was finished. Names of models hold no `_`, so that no card takes the
place of a record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from maskloom.segcore.deep.inference.runtime import import_keras, set_threads
from maskloom.segcore.errors import RecipeError, Stopped, StoreError
from maskloom.segcore.processes.helpers import cores
from maskloom.segcore.storage.canonical import canonical
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.segcore.training import checkpoint
from maskloom.segcore.training.balance import require_drawable
from maskloom.segcore.training.check_cache import Check, Memory
from maskloom.segcore.training.class_counts import count_classes, require_labelled
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.export import is_whole, publish
from maskloom.segcore.training.imagenet import ImageNet, is_imagenet
from maskloom.segcore.training.initial import Initial
from maskloom.segcore.training.loop import STOPPED, TrainingLoop
from maskloom.segcore.training.pairs import (
    data_digest,
    file_digests,
    files_of,
    find_pairs,
    scaling_of,
    usual_scaling,
)
from maskloom.segcore.training.scalings import find_scalings, note_on_contrast
from maskloom.segcore.training.setup import (
    OnProgress,
    ProgressMonitor,
    Start,
    TrainingSetup,
    TrainingTask,
)
from maskloom.segcore.training.tasks import patch_shape_of, task_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskloom.segcore.raster.source import Source
    from maskloom.segcore.training.class_counts import ClassCounts
    from maskloom.segcore.training.pairs import Pair
    from maskloom.segcore.training.recipe import TrainingRecipe

_STATE = "training_state.json"
_NOT_BEGUN = "Training was stopped before it started; the same command begins again."
_UNDECISIVE = frozenset({"threads", "processes", "memory", "tensorboard"})
"""Keys of `training` that change neither the weights nor the data."""
_MOST_PROCESSES = 16
"""That share the checks before training."""
_LENGTH = frozenset({"epochs", "patience"})
"""Keys of `training` that set its length."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked training, ready to start."""

    recipe: TrainingRecipe
    setup: TrainingSetup
    task: TrainingTask
    settings: Mapping[str, Any]
    """Settings that decide the weights, as plain JSON values."""
    data: str
    """Digest of images and masks."""
    notes: tuple[str, ...]
    """For the user."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training."""

    model: str
    """Location of the network."""
    score: tuple[str, float]
    """Name and value, on the validation images."""
    epoch: int
    """The best epoch, from 1, whose weights the network has."""
    epochs: int
    """Number of finished epochs."""
    minutes: float
    before: bool
    """Whether it was finished before this command."""


def prepare(
    recipe: TrainingRecipe,
    sources: tuple[Sequence[Source], Sequence[Source]],
    settings: Mapping[str, Any],
    monitor: ProgressMonitor,
    stop: Callable[[], bool],
    groups: Mapping[str, str] | None = None,
) -> Prepared:
    """Check the recipe and all images and masks (`sources`) before training starts; of a
    cross-validation all folds. `groups`: group of each location, if the split goes by them. Raises
    `RecipeError`, and `Stopped` once `stop` returns True.
    """

    def checked(what: str) -> OnProgress:
        return _reporting(partial(monitor.checked, what), stop, _NOT_BEGUN)

    if len(recipe.split.each) > 1:
        raise RecipeError(
            "split.folds: one training is one fold; name it by split.fold. The command `maskloom "
            "train` trains all of them, one after the other."
        )
    processes = min(cores(), recipe.training.threads or _MOST_PROCESSES, _MOST_PROCESSES)
    pairs, notes = find_pairs(*sources, recipe, checked("headers"), processes)
    names = [pair.name for pair in pairs], [pair.image.location for pair in pairs]
    # Before the pixels are read, which takes longer.
    recipe.split.divide(*names, groups)
    initial = _start(recipe)
    usual = None if initial is None else usual_scaling(pairs, initial)
    how = scaling_of(pairs, recipe.scaling or usual)
    decoder = recipe.labels.decoder(recipe.classes)
    _use_threads(recipe.training.threads)
    image = pairs[0].image
    patch_shape = patch_shape_of(recipe, image.channels, len(image.shape))
    _require_writable(recipe.output)
    if initial is not None and not Store(recipe.output).exists(_STATE):
        initial.check()
    dataset = Dataset(pairs, decoder, recipe.training.memory)
    memory = Memory.of(pairs, recipe, patch_shape.cell, how)
    earlier = memory.read()
    known = {number: check.counts for number, check in earlier.items()}
    class_counts = count_classes(
        dataset, recipe.classes, checked("pixels"), patch_shape.cell, known, processes
    )
    _require_trainable(recipe, dataset, class_counts, groups)
    training, validation = recipe.split.divide(*names, groups)
    notes += require_labelled(class_counts, training, validation, recipe.classes)
    scaled = {i: check.scaling for i, check in earlier.items() if check.scaling is not None}
    scalings = find_scalings(dataset, how, checked("values"), scaled, processes)
    notes += note_on_contrast(scalings, dataset)
    setup = TrainingSetup(
        recipe,
        dataset,
        class_counts,
        scalings,
        tuple(training),
        tuple(validation),
        patch_shape,
        image.channels,
        initial,
    )
    digests = _digests(pairs, earlier, checked("digests"), processes)
    if len(earlier) < len(pairs):
        memory.write(
            {
                number: Check(
                    counts, tuple(digests[file] for file in files_of(pair)), scalings.of(number)
                )
                for number, (pair, counts) in enumerate(
                    zip(pairs, class_counts.images, strict=True)
                )
            }
        )
    data = data_digest(pairs, digests)
    if initial is not None:
        settings = {**settings, "initial": initial.identity}
    return Prepared(
        recipe, setup, task_of(setup), _without(_UNDECISIVE, settings), data, tuple(notes)
    )


def _start(recipe: TrainingRecipe) -> Start | None:
    """The weights that a recipe starts from. None: random ones."""
    if recipe.initial is None:
        return None
    if is_imagenet(recipe.initial):
        return ImageNet.of(recipe.initial, recipe.network)
    return Initial.of(recipe.initial, recipe.kind)


def _digests(
    pairs: Sequence[Pair], earlier: Mapping[int, Check], on_progress: OnProgress, processes: int
) -> dict[str, str]:
    known = dict[str, str]()
    for number, check in earlier.items():
        known |= zip(files_of(pairs[number]), check.digests, strict=True)
    return file_digests(pairs, on_progress, known, processes)


def train(prepared: Prepared, monitor: ProgressMonitor, stop: Callable[[], bool]) -> TrainingResult:
    """Start or continue a training, to its end. Raises `Stopped`, `RunError`, and `RecipeError` if
    the output holds another training.
    """
    store = Store(prepared.recipe.output)
    try:
        with checkpoint.alone(store):
            store.sweep()
            before = _finished(store, prepared)
            if before is not None:
                return before
            for note in prepared.notes:
                monitor.say(note)
            loop = TrainingLoop(prepared.setup, prepared.task, store)
            loop.resume(monitor)
            store.publish(_STATE, _state(prepared, None))
            loop.run(monitor, stop)
            finished = publish(store, prepared, loop, _reporting(monitor.measured, stop, STOPPED))
            store.publish(_STATE, _state(prepared, finished))
            store.remove(STAGING)
            return _result(store, prepared, finished, False)
    finally:
        prepared.setup.dataset.close()


def _require_trainable(
    recipe: TrainingRecipe,
    dataset: Dataset,
    class_counts: ClassCounts,
    groups: Mapping[str, str] | None,
) -> None:
    """Raise `RecipeError` unless both sides of the split, of all folds, have what training needs:
    the last fold may be hours away.
    """
    names = [name for name, _ in dataset.names], [location for _, location in dataset.names]
    for split in recipe.split.all_folds:
        training, validation = split.divide(*names, groups)
        try:
            require_labelled(class_counts, training, validation, recipe.classes)
            require_drawable(
                class_counts, recipe.training.sampling, recipe.classes, dataset.names, training
            )
        except RecipeError as error:
            if split.folds is None:
                raise
            raise RecipeError(
                f"split.folds: fold {split.fold} of {split.folds} cannot be trained. {error} Or "
                "set another split.seed, or fewer folds."
            ) from error


def _use_threads(count: int | None) -> None:
    """Import keras with this number of threads. None: no limit."""
    if count is not None:
        set_threads(count)
    import_keras()


def _finished(store: Store, prepared: Prepared) -> TrainingResult | None:
    """The result of a finished training; None if it must be started or continued. Raises
    `RecipeError` if the output holds another one.
    """
    if not store.exists(_STATE):
        _require_no_model(store, f"{prepared.recipe.name}.keras")
        return None
    try:
        found = json.loads(store.read(_STATE))
        settings, data, finished = found["settings"], found["data"], found["finished"]
        settings = _without(_UNDECISIVE, settings)
        settings = _with_defaults(settings, prepared.settings, prepared.recipe)
        changed = _differences(_without(_LENGTH, settings), _without(_LENGTH, prepared.settings))
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"output: {store.uri(_STATE)} is not the record of a training ({error}). Name another "
            "folder, or remove it."
        ) from error
    if finished is None and not checkpoint.exists(store):
        # It ended before its first checkpoint: nothing is lost if it begins with other settings.
        return None
    if data != prepared.data:
        changed.append("the images or masks")
    if changed:
        raise RecipeError(
            f"output: {store.root} holds another training. Differences: "
            f"{'; '.join(changed)}. "
            "Name another folder in `output`, or remove this one to start again."
        )
    if finished is None or not is_whole(store, finished):
        return None
    if settings == prepared.settings:
        return _result(store, prepared, finished, True)
    if not checkpoint.exists(store):
        raise RecipeError(
            f"output: the training in {store.root} is finished, and its checkpoint has been "
            "removed, so it cannot continue: "
            f"{'; '.join(_differences(settings, prepared.settings))}. Name another folder in "
            "`output`."
        )
    return None


def _reporting(tell: OnProgress, stop: Callable[[], bool], message: str) -> OnProgress:
    """A callback that passes progress on, and raises `Stopped` once `stop` returns True."""

    def on_progress(done: int, of: int) -> None:
        tell(done, of)
        if stop():
            raise Stopped(message)

    return on_progress


def _without(keys: frozenset[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without some keys of `training`, as plain JSON values."""
    kept = json.loads(canonical(settings))
    return {
        **kept,
        "training": {key: value for key, value in kept["training"].items() if key not in keys},
    }


def _result(
    store: Store, prepared: Prepared, finished: Mapping[str, Any], before: bool
) -> TrainingResult:
    score = (prepared.task.score_name, float(finished["score"]))
    return TrainingResult(
        store.uri(finished["model"]),
        score,
        finished["epoch"],
        finished["epochs"],
        finished["minutes"],
        before,
    )


def _require_no_model(store: Store, name: str) -> None:
    if store.exists(name):
        raise RecipeError(
            f"output: {store.uri(name)} exists, but was not written by a training in this folder. "
            "Name another folder, or move it away."
        )


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """The differences of two JSON values, one line per key of the recipe."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if before == now else [f"{path} was {json.dumps(before)} and is {json.dumps(now)}"]


def _with_defaults(before: Any, now: Any, values: Any) -> Any:
    """Recorded settings with the keys that versions of maskloom have added since, at their
    defaults: what a training did when there was no such key. `now`: settings of the same recipe
    today, made of the dataclasses `values`.
    """
    if isinstance(before, list) and isinstance(now, list) and isinstance(values, tuple):
        if not len(before) == len(now) == len(values):
            return before
        return [_with_defaults(*each) for each in zip(before, now, values, strict=True)]
    if not is_dataclass(values) or not isinstance(before, dict) or not isinstance(now, dict):
        return before
    if before.get("type") != now.get("type"):
        return before
    known = {
        key: _with_defaults(value, now.get(key), getattr(values, key, None))
        for key, value in before.items()
    }
    added = {
        field.name: _default(field)
        for field in fields(values)
        if field.name in now and field.name not in before and _has_default(field)
    }
    return {**known, **added}


def _has_default(field: Field[Any]) -> bool:
    return field.default is not MISSING or field.default_factory is not MISSING


def _default(field: Field[Any]) -> Any:
    """The default of a field as a JSON value."""
    made = field.default
    if made is MISSING and field.default_factory is not MISSING:
        made = field.default_factory()
    return json.loads(canonical(made))


def _require_writable(output: str) -> None:
    store = Store(output)
    try:
        store.publish(".writable", b"")
        store.remove(".writable")
    except (StoreError, OSError) as error:
        raise RecipeError(f"output: {output} cannot be written to: {error}") from error


def _state(prepared: Prepared, finished: Mapping[str, Any] | None) -> bytes:
    return _json({"settings": prepared.settings, "data": prepared.data, "finished": finished})


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
