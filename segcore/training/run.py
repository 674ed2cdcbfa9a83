"""Course: a whole training, from pairs of files to a model with its card.

    <output>/training_state.json      what is learned from what, and in the end where the model is
    <output>/checkpoint/              where training stands; when it is finished, what a longer one
                                      would go on from
    <output>/<name>.keras             the network at its best, in float32
    <output>/<name>.json              its card
    <output>/training_history.json  curves.png  examples.png

The first names the recipe's settings and the digest of the data. The same command finds it and goes
on, or finds it finished and does nothing; another recipe, or changed data, is refused. How long to
train is no part of what is learned: with other `epochs` or `patience` a training goes on from its
checkpoint, also a finished one. Names of models hold no `_`, so that no card takes the place of a
record.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from maskloom.segcore.deep.inference.runtime import set_threads
from maskloom.segcore.errors import RecipeError, Stopped, StoreError
from maskloom.segcore.storage.canonical import canonical
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.segcore.training import checkpoint
from maskloom.segcore.training.class_counts import require_labelled, survey
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.export import is_whole, publish
from maskloom.segcore.training.loop import STOPPED, TrainingLoop
from maskloom.segcore.training.pairs import data_digest, find_pairs, scaling_of
from maskloom.segcore.training.setup import OnProgress, ProgressMonitor, TrainingSetup, TrainingTask
from maskloom.segcore.training.tasks import frame_of, subject_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskloom.segcore.raster.source import Source
    from maskloom.segcore.training.recipe import TrainingRecipe

_STATE = "training_state.json"
_NOT_BEGUN = "Training was stopped before it began; the same command begins again."
_UNDECISIVE = frozenset({"threads", "memory"})
"""Keys of `training` that change neither what is learned nor from what."""
_LENGTH = frozenset({"epochs", "patience"})
"""Keys of `training` that say how long it goes on."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training that may begin: all is checked."""

    recipe: TrainingRecipe
    lesson: TrainingSetup
    subject: TrainingTask
    settings: Mapping[str, Any]
    """What decides the weights, as plain JSON values."""
    data: str
    """Digest of images and masks."""
    notes: tuple[str, ...]
    """What people should know."""


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A finished training."""

    model: str
    """Location of the network."""
    score: tuple[str, float]
    """What it is called, and what it is, on the validation images."""
    epoch: int
    """The epoch, from 1, whose weights the network has: the best."""
    epochs: int
    """Finished epochs."""
    minutes: float
    before: bool
    """Whether it had been finished before this command."""


def prepare(
    recipe: TrainingRecipe,
    sources: tuple[Sequence[Source], Sequence[Source]],
    settings: Mapping[str, Any],
    watch: ProgressMonitor,
    stop: Callable[[], bool],
) -> Prepared:
    """Check the recipe, and all images and masks (`sources`), before any training. Raises
    `RecipeError`, and `Stopped` where `stop` says so.
    """

    def checked(what: str) -> OnProgress:
        return _told(partial(watch.checked, what), stop, _NOT_BEGUN)

    pairs, notes = find_pairs(*sources, recipe, checked("headers"))
    training, validation = recipe.split.divide(
        [pair.name for pair in pairs], [pair.image.location for pair in pairs]
    )
    scaling = scaling_of(pairs, recipe.scaling)
    table = recipe.labels.table(recipe.classes)
    _use_threads(recipe.training.threads)
    frame = frame_of(recipe, pairs[0].image.channels)
    _require_writable(recipe.output)
    collection = Dataset(pairs, table, recipe.training.memory)
    found = survey(collection, recipe.classes, checked("pixels"))
    notes += require_labelled(found, training, validation, recipe.classes)
    lesson = TrainingSetup(
        recipe,
        collection,
        found,
        scaling,
        tuple(training),
        tuple(validation),
        frame,
        pairs[0].image.channels,
    )
    data = data_digest(pairs, checked("digests"))
    return Prepared(
        recipe, lesson, subject_of(lesson), _without(_UNDECISIVE, settings), data, tuple(notes)
    )


def train(prepared: Prepared, watch: ProgressMonitor, stop: Callable[[], bool]) -> TrainingResult:
    """Train to the end, or what is left of it. Raises `Stopped`, `RunError`, and `RecipeError`
    where the output holds another training.
    """
    store = Store(prepared.recipe.output)
    try:
        with checkpoint.alone(store):
            store.sweep()
            before = _finished(store, prepared)
            if before is not None:
                return before
            for note in prepared.notes:
                watch.say(note)
            learner = TrainingLoop(prepared.lesson, prepared.subject, store)
            learner.resume(watch)
            store.publish(_STATE, _state(prepared, None))
            learner.run(watch, stop)
            finished = publish(store, prepared, learner, _told(watch.measured, stop, STOPPED))
            store.publish(_STATE, _state(prepared, finished))
            store.remove(STAGING)
            return _learned(store, prepared, finished, False)
    finally:
        prepared.lesson.collection.close()


def _use_threads(count: int | None) -> None:
    """Let the backend of keras use so many threads. None: as many as it likes."""
    import keras

    if count is None:
        return
    set_threads(count)
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(count)


def _finished(store: Store, prepared: Prepared) -> TrainingResult | None:
    """What this training came to; None where it is to be begun or gone on with. Raises
    `RecipeError` where the output holds another one.
    """
    if not store.exists(_STATE):
        _require_no_model(store, f"{prepared.recipe.name}.keras")
        return None
    try:
        found = json.loads(store.read(_STATE))
        settings, data, finished = found["settings"], found["data"], found["finished"]
        changed = _differences(_without(_LENGTH, settings), _without(_LENGTH, prepared.settings))
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"output: {store.uri(_STATE)} is not the record of a training ({error}). Name another "
            "folder, or remove it."
        ) from error
    if data != prepared.data:
        changed.append("the images or masks")
    if changed:
        raise RecipeError(
            f"output: {store.root} holds a training of another kind. What differs: "
            f"{'; '.join(changed)}. "
            "Name another folder in `output`, or remove this one to start anew."
        )
    if finished is None or not is_whole(store, finished):
        return None
    if settings == prepared.settings:
        return _learned(store, prepared, finished, True)
    if not checkpoint.exists(store):
        raise RecipeError(
            f"output: the training in {store.root} is finished, and its checkpoint has been "
            "removed, so it cannot go on: "
            f"{'; '.join(_differences(settings, prepared.settings))}. Name another folder in "
            "`output`."
        )
    return None


def _told(tell: OnProgress, stop: Callable[[], bool], message: str) -> OnProgress:
    """Tells it on, and raises `Stopped` where `stop` says so."""

    def told(done: int, of: int) -> None:
        tell(done, of)
        if stop():
            raise Stopped(message)

    return told


def _without(keys: frozenset[str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without some keys of `training`, as plain JSON values."""
    kept = json.loads(canonical(settings))
    return {
        **kept,
        "training": {key: value for key, value in kept["training"].items() if key not in keys},
    }


def _learned(
    store: Store, prepared: Prepared, finished: Mapping[str, Any], before: bool
) -> TrainingResult:
    score = (prepared.subject.score_name, float(finished["score"]))
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
            f"output: {store.uri(name)} exists, and no training of this folder has written it. "
            "Name another folder, or move it away."
        )


def _differences(before: Any, now: Any, path: str = "") -> list[str]:
    """Where two JSON values differ, in the words of a recipe."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [
            line
            for key in sorted(before.keys() | now.keys())
            for line in _differences(before.get(key), now.get(key), f"{path}.{key}".strip("."))
        ]
    return [] if before == now else [f"{path} was {json.dumps(before)} and is {json.dumps(now)}"]


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
