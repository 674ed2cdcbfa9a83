"""Lessons: what is to be learned, and by what kind of network.

A subject is a kind of network in training: how a step looks to it, how it is measured, what a
picture of it shows. There are two, `semantic` and `instances`; the loop in `learner` knows neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskloom.segcore.figures.training import Curve, Example
from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.card import Card, Scaling
    from maskloom.segcore.training.checkpoint import TrainingState
    from maskloom.segcore.training.class_counts import ClassCounts
    from maskloom.segcore.training.dataset import Dataset
    from maskloom.segcore.training.recipe import TrainingRecipe
    from maskloom.segcore.training.sampling import Batch, PatchShape

_FEWEST_STEPS, _MOST_STEPS = 20, 500


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """What is to be learned, checked and ready."""

    recipe: TrainingRecipe
    collection: Dataset
    found: ClassCounts
    scaling: Scaling
    training: tuple[int, ...]
    """Numbers of the images to train on."""
    validation: tuple[int, ...]
    frame: PatchShape
    channels: int

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        wanted = self.recipe.training
        if wanted.steps is not None:
            return wanted.steps
        pixels = int(self.found.classes[list(self.training)].sum())
        return int(
            np.clip(-(-pixels // (self.frame.target**2 * wanted.batch)), _FEWEST_STEPS, _MOST_STEPS)
        )

    def shown_images(self, most: int) -> list[int]:
        """Numbers of some validation images, spread over their order."""
        return sorted({self.validation[i * len(self.validation) // most] for i in range(most)})

    def middle(self, number: int, side: int) -> Box:
        """The middle of an image, of at most so many pixels a side."""
        start = tuple(max(0, (size - side) // 2) for size in self.collection.shape(number))
        whole = Box.whole(self.collection.shape(number))
        return Box(start, tuple(first + side for first in start)) & whole


@dataclass(frozen=True, slots=True)
class MeasuredEpoch:
    """How good a network is."""

    score: float
    """What training tries to raise, from 0 to 1."""
    record: Mapping[str, Any]
    """What the history tells of it, as JSON values."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """What the card tells of it, as JSON values."""


OnProgress = Callable[[int, int], None]
"""Told how many are done, of how many."""


class TrainingTask(Protocol):
    """A kind of network in training."""

    @property
    def score_name(self) -> str:
        """What its score is called by people."""
        ...

    def trainer(self, model: Any) -> Any:
        """The keras model that is trained, of the same weights as `model`, and its loss: (model,
        loss or None).
        """
        ...

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """What `train_on_batch` takes."""
        ...

    def measure(self, trainer: Any, most: int | None, told: OnProgress) -> MeasuredEpoch:
        """How good the network is on at most so many windows of the validation images. None:
        all.
        """
        ...

    def card(self, model: Any, sha256: str, about: Mapping[str, Any]) -> Card:
        """The card of the network in float32."""
        ...

    def examples(self, trainer: Any) -> list[Example]:
        """Parts of validation images with what is true and what the network says."""
        ...

    def panels(self, history: Any) -> tuple[list[Curve], list[Curve]]:
        """Curves of losses, and of scores from 0 to 1."""
        ...


class ProgressMonitor(Protocol):
    """Whoever wants to know how far training is."""

    def say(self, text: str) -> None:
        """Something that people should know, in a line."""
        ...

    def checked(self, what: str, done: int, of: int) -> None:
        """So many images or masks are looked at before training begins, and for what."""
        ...

    def begin(self, lesson: TrainingSetup, score_name: str, standing: TrainingState) -> None:
        """Training begins, or goes on from where it stands."""
        ...

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A step of an epoch (both from 1) is done."""
        ...

    def measured(self, windows: int, of: int) -> None:
        """So many windows of the validation images are measured."""
        ...

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is done."""
        ...
