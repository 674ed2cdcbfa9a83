"""Small trainings: their images, recipes, and a monitor that acts at a moment of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import yaml
from PIL import Image

from maskloom.flows import train as flow
from maskloom.flows.progress.displays import Quiet
from maskloom.flows.progress.training import TrainingProgress
from maskloom.flows.recipes import training as training_recipes
from maskloom.segcore.training import semantic
from maskloom.segcore.training.run import prepare

TINY = {
    "images": "images",
    "masks": "masks",
    "output": "out",
    "network": {"kind": "unet", "width": 2, "depth": 1, "dropout": 0.2},
    "classes": ["dark", "bright"],
    "split": {"validation": 0.25},
    "training": {"patch": 16, "batch": 2, "steps": 4, "epochs": 3, "rate": 0.02},
}


def blocks(folder: Path) -> Path:
    """Four pictures of blocks whose bright pixels are to be found."""
    random = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(4):
        mask = np.kron(random.integers(0, 2, (6, 7)), np.ones((8, 8))).astype(np.uint8)
        pixels = np.clip(60 + 120 * mask + random.normal(0, 10, mask.shape), 0, 255).astype(
            np.uint8
        )
        mask[0, :5] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
    return folder


def made(folder: Path, *changes: str, **keys):
    document = yaml.safe_load(yaml.safe_dump({**TINY, **keys}))
    return training_recipes.make({"name": "tiny", **document}, folder, changes)


def prepared(training_run):
    return prepare(
        training_run.recipe,
        flow.sources(training_run),
        training_run.settings,
        Watch(),
        lambda: False,
    )


def patch_shape_of(recipe, channels, axes, *, measure=semantic.patch_shape_of, known={}):  # noqa: B006  what is known is kept on purpose
    """How far a network looks, which takes a second to measure, is measured once for all tests."""
    key = (recipe.network, recipe.training.patch, channels, axes, recipe.classes)
    if key not in known:
        known[key] = measure(recipe, channels, axes)
    return known[key]


class Watch(TrainingProgress):
    """Does something after a step, (epoch, step) from 1, or when an epoch is measured, (epoch,
    "measured").
    """

    def __init__(self, moment=(0, 0), act=lambda: None):
        super().__init__(Quiet())
        self.moment, self.act, self.seen, self.said = moment, act, [], []

    def say(self, text):
        self.said.append(text)

    def step(self, epoch, step, loss):
        self.seen.append((epoch, step))
        if (epoch, step) == self.moment:
            self.act()

    def measured(self, windows, of):
        if self.seen and self.moment == (self.seen[-1][0], "measured"):
            self.act()


class Killed(BaseException):
    pass


def kill():
    raise Killed


def weights(folder: Path) -> list[np.ndarray]:
    import keras

    return keras.saving.load_model(folder / "tiny.keras", compile=False).get_weights()
