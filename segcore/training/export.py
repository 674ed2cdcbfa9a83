"""Outcome: what a training leaves for its users: the network with its card, the history, and
pictures of both.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import maskloom
from maskloom.segcore.errors import StoreError
from maskloom.segcore.figures.training import curves, examples
from maskloom.segcore.training import checkpoint

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.storage.store import Store
    from maskloom.segcore.training.checkpoint import TrainingState
    from maskloom.segcore.training.loop import TrainingLoop
    from maskloom.segcore.training.run import Prepared
    from maskloom.segcore.training.setup import MeasuredEpoch, OnProgress

PICTURES = ("curves.png", "examples.png")
"""Their names below the output."""


def publish(
    store: Store, prepared: Prepared, learner: TrainingLoop, told: OnProgress
) -> dict[str, Any]:
    """Measure the network at its best on all validation images and write it, with all that belongs
    to it; the record of this, as JSON values.

    Raises `StoreError`, and what `told` raises.
    """
    recipe, subject, standing = prepared.recipe, prepared.subject, learner.standing
    model, trainer = learner.best()
    measured = subject.measure(trainer, None, told)
    content, name = _saved(model), f"{recipe.name}.keras"
    card = subject.card(
        model, hashlib.sha256(content).hexdigest(), _about(prepared, standing, measured)
    )
    history = {
        "classes": list(recipe.classes),
        "best_epoch": standing.best_epoch,
        "epochs": list(standing.history),
    }
    pictures = (
        curves(*subject.panels(standing.history), standing.best_epoch, recipe.name),
        examples(subject.examples(trainer), recipe.classes),
    )
    # The card first: weights without one would be examined as a stranger's.
    files = {
        f"{recipe.name}.json": _completed(card, prepared).dump(),
        name: content,
        "training_history.json": (json.dumps(history, indent=1) + "\n").encode(),
        **dict(zip(PICTURES, pictures, strict=True)),
    }
    for file, written in files.items():
        store.publish(file, written)
    return {
        "model": name,
        "sha256": card.sha256,
        "files": sorted(files),
        "score": round(measured.score, 6),
        "epoch": standing.best_epoch,
        "epochs": standing.epoch,
        "minutes": _minutes(standing),
    }


def is_whole(store: Store, record: Mapping[str, Any]) -> bool:
    """Whether what `publish` wrote is still there, and the network as it was written.

    Other files than the network count only where they can be made again from a checkpoint.
    """
    if (
        not store.exists(record["model"])
        or hashlib.sha256(store.read(record["model"])).hexdigest() != record["sha256"]
    ):
        return False
    return not checkpoint.exists(store) or all(store.exists(file) for file in record["files"])


def _completed(card: Card, prepared: Prepared) -> Card:
    """The card with what the images were."""
    images = [pair.image for pair in prepared.lesson.collection.pairs]
    is_rgb = images[0].bands == (1, 2, 3) and all(image.interpretation == "rgb" for image in images)
    return replace(
        card,
        dtype=images[0].dtype,
        interpretation="rgb" if is_rgb else "bands",
        network=asdict(prepared.recipe.network),
    )


def _about(prepared: Prepared, standing: TrainingState, measured: MeasuredEpoch) -> dict[str, Any]:
    """What the card tells of the training."""
    recipe, lesson = prepared.recipe, prepared.lesson
    about = {
        "name": recipe.name,
        "licence": recipe.licence or "not stated",
        "purpose": recipe.purpose or "not stated",
        "data": {
            "sha256": prepared.data,
            "training_images": len(lesson.training),
            "validation_images": len(lesson.validation),
            "validation": [lesson.collection.pairs[i].name for i in lesson.validation],
            "measured_on": "training images"
            if lesson.validation == lesson.training
            else "validation images",
        },
        "bands": list(lesson.collection.pairs[0].image.bands),
        "shares": _shares(recipe.classes, lesson.found.shares(lesson.training)),
        "epochs": standing.epoch,
        "best_epoch": standing.best_epoch,
        "minutes": _minutes(standing),
        "metrics": measured.summary,
        "recipe": prepared.settings,
        "versions": _versions(),
    }
    if len(standing.plans) > 1:
        # The rate has followed several plans, so the recipe alone does not give these weights.
        about["lengthened"] = [
            {"after_steps": steps, "epochs": epochs} for steps, epochs in standing.plans[1:]
        ]
    return about


def _shares(classes: Sequence[str], found: NDArray[np.float64]) -> dict[str, list[float]]:
    """The range of each class's share in a training image, rounded outwards so that no such image
    lies outside.
    """
    ranges = zip(np.floor(found[:, 0] * 1e6) / 1e6, np.ceil(found[:, 1] * 1e6) / 1e6, strict=True)
    return {
        name: [float(least), float(greatest)]
        for name, (least, greatest) in zip(classes, ranges, strict=True)
    }


def _saved(model: Any) -> bytes:
    """A network as a `.keras` file. Raises `StoreError` where there is no room for it among the
    temporary files.
    """
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.keras"
            model.save(path)
            return path.read_bytes()
    except OSError as error:
        raise StoreError(
            f"Cannot write the network to {tempfile.gettempdir()}: {error}. Make room there, or "
            "name another folder by the variable TMPDIR, then "
            "run the same command."
        ) from error


def _minutes(standing: TrainingState) -> float:
    return round(standing.seconds / 60, 2)


def _versions() -> dict[str, str]:
    import keras

    return {
        "maskloom": maskloom.__version__,
        "keras": str(keras.__version__),
        "backend": str(keras.backend.backend()),
        "python": platform.python_version(),
        "numpy": str(np.__version__),
    }
