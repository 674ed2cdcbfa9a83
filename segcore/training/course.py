"""Course: a whole training, from pairs of files to a model with its card.

    <output>/training.json         what is learned from what, written first, and at the end where the model is
    <output>/checkpoint/           while it runs
    <output>/<name>.keras          the network at its best, in float32
    <output>/<name>.json           its card
    <output>/history.json  curves.png  examples.png

`training.json` names the recipe's settings and the digest of the data. The same command finds it and goes on, or finds it finished and does
nothing; another recipe, or changed data, is refused.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore.errors import RecipeError, RunError, Stopped, StoreError
from segcore.manifest import canonical, digest
from segcore.storage import STAGING, Store
from segcore.training import checkpoint
from segcore.training.curves import curves, examples
from segcore.training.learner import Learner
from segcore.training.lesson import Lesson, Subject, Watch
from segcore.training.pairs import data_digest, find_pairs, scaling_of
from segcore.training.pixels import Collection
from segcore.training.subjects import beyond, frame_of, subject_of
from segcore.training.survey import require_labelled, survey

if TYPE_CHECKING:
    from collections.abc import Sequence

    from segcore.manifest import Source
    from segcore.training.recipe import Recipe

_STATE = "training.json"
_UNDECISIVE = frozenset({"threads", "memory"})
"""Keys of `training` that change neither what is learned nor from what."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A training that may begin: all is checked."""

    recipe: Recipe
    lesson: Lesson
    subject: Subject
    settings: Mapping[str, Any]
    """What decides the weights."""
    data: str
    """Digest of images and masks."""
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Learned:
    """A finished training."""

    model: str
    """Location of the network."""
    score: tuple[str, float]
    """What it is called, and what it is, on the validation images."""
    epochs: int
    minutes: float
    before: bool
    """Whether it had been finished before this command."""


def prepare(
    recipe: Recipe, sources: tuple[Sequence[Source], Sequence[Source]], settings: Mapping[str, Any], stop: Callable[[], bool]
) -> Prepared:
    """Check the recipe, and all images and masks (`sources`), before any training. Raises `RecipeError`."""
    pairs = find_pairs(*sources, recipe)
    training, validation = recipe.split.divide([pair.name for pair in pairs], [pair.image.location for pair in pairs])
    scaling = scaling_of(pairs, recipe.scaling)
    table = recipe.labels.table(recipe.classes)
    use_threads(recipe.training.threads)
    frame = frame_of(recipe, pairs[0].image.channels)
    _require_writable(recipe.output)
    collection = Collection(pairs, table, recipe.training.memory, beyond(recipe))
    found = survey(collection, recipe.classes, stop)
    if stop():
        raise Stopped("Training was stopped before it began; the same command begins again.")
    warnings = require_labelled(found, training, recipe.classes)
    lesson = Lesson(recipe, collection, found, scaling, tuple(training), tuple(validation), frame, pairs[0].image.channels)
    data = data_digest(pairs)
    return Prepared(recipe, lesson, subject_of(lesson), _decisive(settings), data, tuple(warnings))


def train(prepared: Prepared, watch: Watch, stop: Callable[[], bool]) -> Learned:
    """Train to the end, or what is left of it. Raises `Stopped`, `RunError`, and `RecipeError` where the output holds another training."""
    store = Store(prepared.recipe.output)
    store.sweep()
    before = _claim(store, prepared)
    if before is not None:
        return before
    lesson = prepared.lesson
    try:
        learner = Learner(lesson, prepared.subject, store)
        learner.resume()
        learner.run(watch, stop)
        return _publish(store, prepared, learner, watch)
    finally:
        lesson.collection.close()


def use_threads(count: int | None) -> None:
    """Let the backend of keras use so many threads. None: as many as it likes."""
    import keras

    if count is None:
        return
    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if (tf.config.threading.get_intra_op_parallelism_threads(), tf.config.threading.get_inter_op_parallelism_threads()) == (
            count,
            1,
        ):
            return
        try:
            tf.config.threading.set_intra_op_parallelism_threads(count)
            tf.config.threading.set_inter_op_parallelism_threads(1)
        except RuntimeError as error:
            raise RunError(
                f"training.threads: TensorFlow is at work in this process already ({error}). Start a new one."
            ) from error
    elif backend == "torch":
        import torch

        torch.set_num_threads(count)


def _claim(store: Store, prepared: Prepared) -> Learned | None:
    """Take the output for this training; what it came to where it is finished. Raises `RecipeError` where it holds another one."""
    identity = digest({"settings": prepared.settings, "data": prepared.data})
    state = {"identity": identity, "settings": prepared.settings, "data": prepared.data, "finished": None}
    if not store.exists(_STATE):
        store.publish(_STATE, _json(state))
        return None
    try:
        found = json.loads(store.read(_STATE))
        same = found["identity"] == identity
        finished = found["finished"]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(
            f"output: {store.uri(_STATE)} is not the record of a training ({error}). Name another folder, or remove it."
        ) from error
    if not same:
        changed = _differences(found.get("settings"), prepared.settings)
        if found.get("data") != prepared.data:
            changed.append("the images or masks")
        raise RecipeError(
            f"output: {store.root} holds a training of another kind. What differs: {'; '.join(changed) or 'the version of maskloom'}. "
            "Name another folder in `output`, or remove this one to start anew."
        )
    if finished is None or not store.exists(finished["model"]):
        return None
    score = (prepared.subject.score_name, float(finished["score"]))
    return Learned(store.uri(finished["model"]), score, finished["epochs"], finished["minutes"], True)


def _publish(store: Store, prepared: Prepared, learner: Learner, watch: Watch) -> Learned:
    """Write the model, what belongs to it, and at last that the training is finished."""
    recipe, lesson, subject, standing = prepared.recipe, prepared.lesson, prepared.subject, learner.standing
    model, trainer = learner.best()
    measured = subject.measure(trainer, None, watch.measured)
    minutes = round(standing.seconds / 60, 2)
    about = {
        "name": recipe.name,
        "licence": recipe.licence or "not stated",
        "data": {
            "sha256": prepared.data,
            "training_images": len(lesson.training),
            "validation_images": len(lesson.validation),
            "validation": [lesson.collection.pairs[i].name for i in lesson.validation],
            "measured_on": "training images" if lesson.validation == lesson.training else "validation images",
        },
        "bands": list(lesson.collection.pairs[0].image.bands),
        "epochs": standing.epoch,
        "best_epoch": standing.best_epoch,
        "minutes": minutes,
        "metrics": measured.summary,
        "recipe": prepared.settings,
        "versions": _versions(),
    }
    content = saved(model)
    name = f"{recipe.name}.keras"
    card = subject.card(model, hashlib.sha256(content).hexdigest(), about)
    seen = lesson.collection.pairs[0].image
    colours = (
        "rgb"
        if all(pair.image.interpretation == "rgb" for pair in lesson.collection.pairs) and seen.bands == (1, 2, 3)
        else "bands"
    )
    card = replace(card, dtype=seen.dtype, interpretation=colours)
    # The card first: weights without one would be examined as a stranger's.
    store.publish(f"{recipe.name}.json", card.dump())
    store.publish(name, content)
    store.publish(
        "history.json",
        _json({"classes": list(recipe.classes), "best_epoch": standing.best_epoch, "epochs": list(standing.history)}),
    )
    store.publish("curves.png", curves(*subject.panels(standing.history), standing.best_epoch, recipe.name))
    store.publish("examples.png", examples(subject.examples(trainer), recipe.classes))
    finished = {
        "model": name,
        "score": round(measured.score, 6),
        "metrics": measured.summary,
        "epochs": standing.epoch,
        "minutes": minutes,
    }
    identity = digest({"settings": prepared.settings, "data": prepared.data})
    store.publish(
        _STATE, _json({"identity": identity, "settings": prepared.settings, "data": prepared.data, "finished": finished})
    )
    for folder in (checkpoint.FOLDER, STAGING):
        store.remove(folder)
    return Learned(store.uri(name), (subject.score_name, measured.score), standing.epoch, minutes, False)


def saved(model: Any) -> bytes:
    """A network as a `.keras` file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.keras"
        model.save(path)
        return path.read_bytes()


def _decisive(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without what changes no weight, as plain JSON values."""
    kept = json.loads(canonical(settings))
    kept["training"] = {key: value for key, value in kept["training"].items() if key not in _UNDECISIVE}
    return dict(kept)


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


def _versions() -> dict[str, str]:
    import keras

    return {
        "maskloom": version("maskloom"),
        "keras": str(keras.__version__),
        "backend": str(keras.backend.backend()),
        "python": platform.python_version(),
        "numpy": str(np.__version__),
    }


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1) + "\n").encode()
