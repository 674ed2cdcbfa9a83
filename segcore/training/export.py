"""The results of a training: the network with its card, the history, and pictures."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import maskloom
from maskloom.segcore.errors import StoreError
from maskloom.segcore.figures.reliability import Line, draw_reliability
from maskloom.segcore.figures.training import curves, examples
from maskloom.segcore.models.rescaled import ALIKE, pixel_sides
from maskloom.segcore.raster.colours import PALETTE
from maskloom.segcore.training import checkpoint
from maskloom.segcore.training.loop import EXAMPLES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.models.calibration import Calibration
    from maskloom.segcore.models.typical import TypicalObjects
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Store
    from maskloom.segcore.training.checkpoint import TrainingState
    from maskloom.segcore.training.loop import TrainingLoop
    from maskloom.segcore.training.run import Prepared
    from maskloom.segcore.training.setup import MeasuredEpoch, OnProgress

PICTURES = ("curves.png", EXAMPLES, "reliability.png")
"""Names of the pictures below the output."""


def publish(
    store: Store, prepared: Prepared, loop: TrainingLoop, on_progress: OnProgress
) -> dict[str, Any]:
    """Measure the best network on all validation images and write it, with card, history and
    pictures; a record of the result as JSON values.

    Raises `StoreError` and exceptions of `on_progress`.
    """
    recipe, task, state = prepared.recipe, prepared.task, loop.state
    model, trainer = loop.best()
    measured = task.measure(trainer, None, on_progress)
    content, name = _saved(model), f"{recipe.name}.keras"
    card = task.card(model, hashlib.sha256(content).hexdigest(), _about(prepared, state, measured))
    history = {
        "classes": list(recipe.classes),
        "best_epoch": state.best_epoch,
        "epochs": list(state.history),
    }
    pictures = [
        curves(*task.panels(state.history), state.best_epoch, recipe.name),
        examples(task.examples(trainer), recipe.classes, recipe.class_table.colours),
    ]
    if measured.calibration is not None:
        card = replace(card, temperature=measured.calibration.temperature)
        pictures.append(_reliability(measured.calibration, recipe.name))
    # The card first: weights without a card are examined like foreign ones.
    files = {
        f"{recipe.name}.json": _completed(card, prepared).dump(),
        name: content,
        "training_history.json": (json.dumps(history, indent=1) + "\n").encode(),
        **dict(zip(PICTURES, pictures, strict=False)),
    }
    for file, written in files.items():
        store.publish(file, written)
    return {
        "model": name,
        "sha256": card.sha256,
        "files": sorted(files),
        "score": round(measured.score, 6),
        "epoch": state.best_epoch,
        "epochs": state.epoch,
        "minutes": _minutes(state),
    }


def _reliability(found: Calibration, name: str) -> bytes:
    """The reliability diagram before and after calibration."""
    lines = [
        Line("without temperature", found.before, PALETTE[1], 2),
        Line(f"temperature {found.temperature:g}", found.after, PALETTE[0]),
    ]
    return draw_reliability(lines, f"{name}: reliability of scores")


def is_whole(store: Store, record: Mapping[str, Any]) -> bool:
    """Whether the files of `publish` still exist, and the network is unchanged.

    Files other than the network are required only if a checkpoint can make them again.
    """
    if (
        not store.exists(record["model"])
        or hashlib.sha256(store.read(record["model"])).hexdigest() != record["sha256"]
    ):
        return False
    return not checkpoint.exists(store) or all(store.exists(file) for file in record["files"])


def _completed(card: Card, prepared: Prepared) -> Card:
    """The card with type and interpretation of the images."""
    images = [pair.image for pair in prepared.setup.dataset.pairs]
    is_rgb = images[0].bands == (1, 2, 3) and all(image.interpretation == "rgb" for image in images)
    return replace(
        card,
        # Scaled by their own values, pixels may be of any type.
        dtype=images[0].dtype if card.image_scaling is None else "",
        interpretation="rgb" if is_rgb else "bands",
        pixel_size=common_pixel_size(images),
        network=asdict(prepared.recipe.network),
        colours=dict(prepared.recipe.colours),
    )


def common_pixel_size(images: Sequence[RasterSpec]) -> float | None:
    """The side of the pixels of all images in um, so that the network can be shown others at this
    size; None if an image does not state it, or if sizes differ.
    """
    sides = [pixel_sides(image) for image in images]
    known = [side for each in sides if each is not None for side in each]
    if not known or None in sides or max(known) > ALIKE * min(known):
        return None
    return float(f"{np.median(known):.6g}")


def _about(prepared: Prepared, state: TrainingState, measured: MeasuredEpoch) -> dict[str, Any]:
    """The card's description of the training."""
    recipe, setup = prepared.recipe, prepared.setup
    about = {
        "name": recipe.name,
        "licence": recipe.licence or "not stated",
        "purpose": recipe.purpose or "not stated",
        "data": {
            "sha256": prepared.data,
            "training_images": len(setup.training),
            "validation_images": len(setup.validation),
            "validation": [setup.dataset.pairs[i].name for i in setup.validation],
            "measured_on": "training images"
            if setup.validation == setup.training
            else "validation images",
        },
        "bands": list(setup.dataset.pairs[0].image.bands),
        "shares": shares_of(recipe.classes, setup.class_counts.shares(setup.training)),
        **sizes_of(recipe.classes, setup.class_counts.typical_sizes(setup.training)),
        "epochs": state.epoch,
        "best_epoch": state.best_epoch,
        "minutes": _minutes(state),
        "metrics": measured.summary,
        "recipe": prepared.settings,
        "versions": _versions(),
    }
    if len(state.plans) > 1:
        # The learning rate followed several plans: the recipe alone does not give these weights.
        about["lengthened"] = [
            {"after_steps": steps, "epochs": epochs} for steps, epochs in state.plans[1:]
        ]
    return about


def shares_of(classes: Sequence[str], shares: NDArray[np.float64]) -> dict[str, list[float]]:
    """The range of each class's share in a training image, rounded outwards so that it includes all
    of them.
    """
    ranges = zip(np.floor(shares[:, 0] * 1e6) / 1e6, np.ceil(shares[:, 1] * 1e6) / 1e6, strict=True)
    return {
        name: [float(least), float(greatest)]
        for name, (least, greatest) in zip(classes, ranges, strict=True)
    }


def sizes_of(
    classes: Sequence[str], sizes: Mapping[int, tuple[float, float]]
) -> dict[str, dict[str, list[float]]]:
    """The range of the median size of each class's objects in a training image, as the card has it;
    empty where the masks do not number objects.
    """
    return {"sizes": {classes[i]: list(of) for i, of in sizes.items()}} if sizes else {}


def scores_of(images: Iterable[TypicalObjects]) -> dict[str, list[float]]:
    """For each class, the least and the median of the median scores of its objects in these images,
    as the card has them; empty where objects have no scores.
    """
    scores: dict[str, list[float]] = {}
    for image in images:
        for name, score in image.scores.items():
            scores.setdefault(name, []).append(score)
    return {
        name: [min(found), round(float(np.median(found)), 6)]
        for name, found in sorted(scores.items())
    }


def _saved(model: Any) -> bytes:
    """A network as the bytes of a `.keras` file. Raises `StoreError` if the temporary folder is
    full.
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


def _minutes(state: TrainingState) -> float:
    return round(state.seconds / 60, 2)


def _versions() -> dict[str, str]:
    import keras

    return {
        "maskloom": maskloom.__version__,
        "keras": str(keras.__version__),
        "backend": str(keras.backend.backend()),
        "python": platform.python_version(),
        "numpy": str(np.__version__),
    }
