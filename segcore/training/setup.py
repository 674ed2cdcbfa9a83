"""The setup of a training, and the protocols of its parts.

A `TrainingTask` is a kind of network in training: the arguments of its steps, its measures and its
pictures. There are three, `semantic`, `flow` and `instances`; `segcore.training.loop` knows none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from maskloom.segcore.figures.training import Curve, Example
from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
    from maskloom.segcore.models.calibration import Calibration
    from maskloom.segcore.training.checkpoint import TrainingState
    from maskloom.segcore.training.class_counts import ClassCounts
    from maskloom.segcore.training.dataset import Dataset
    from maskloom.segcore.training.recipe import TrainingRecipe
    from maskloom.segcore.training.sampling import Batch, PatchShape
    from maskloom.segcore.training.scalings import Scalings

_FEWEST_STEPS, _MOST_STEPS = 20, 500


class Start(Protocol):
    """Weights of another training, from which one starts."""

    @property
    def identity(self) -> str:
        """What tells them from others."""
        ...

    def scaling_for(self, channels: int, factor: float | None) -> Scaling | ImageScaling | None:
        """The scaling that suits them, where `factor` brings values to 0 to 1 (None: not known).
        None: the recipe must say.
        """
        ...

    def stages(self, model: Any) -> list[list[Any]]:
        """The layers of a network that get weights, by stage, the last stage first."""
        ...

    def prepare(self, model: Any) -> None:
        """Set which of these layers learn, before the network is compiled."""
        ...

    def check(self) -> None:
        """Make sure, before images are read, that the weights can be had. Raises `RecipeError`."""
        ...

    def give(self, model: Any) -> str:
        """Give a network the weights, in place; a sentence about it for the user. Raises
        `RecipeError` if they do not fit.
        """
        ...


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """A validated training setup."""

    recipe: TrainingRecipe
    dataset: Dataset
    class_counts: ClassCounts
    scalings: Scalings
    training: tuple[int, ...]
    """Numbers of the images to train on, in the dataset."""
    validation: tuple[int, ...]
    """Numbers of the images to validate on."""
    patch_shape: PatchShape
    channels: int
    initial: Start | None = None
    """Weights to start from. None: random ones."""

    @property
    def steps(self) -> int:
        """Number of steps of an epoch."""
        wanted = self.recipe.training
        if wanted.steps is not None:
            return wanted.steps
        pixels = int(self.class_counts.classes[list(self.training)].sum())
        enough = -(-pixels // (math.prod(self.patch_shape.target) * wanted.batch))
        return int(np.clip(enough, _FEWEST_STEPS, _MOST_STEPS))

    def shown_images(self, most: int) -> list[int]:
        """Numbers of up to `most` validation images, spread over their order."""
        return sorted({self.validation[i * len(self.validation) // most] for i in range(most)})

    def middle(self, number: int, side: int) -> Box:
        """The middle of an image, with at most `side` pixels per axis; of a volume, that of its
        middle plane.
        """
        shape = self.dataset.shape(number)
        sides = (*[1] * (len(shape) - 2), side, side)
        start = tuple(max(0, (n - m) // 2) for n, m in zip(shape, sides, strict=True))
        end = tuple(first + n for first, n in zip(start, sides, strict=True))
        return Box(start, end) & Box.whole(shape)


@dataclass(frozen=True, slots=True)
class MeasuredEpoch:
    """The measures of a network on the validation images."""

    score: float
    """The number to maximise, from 0 to 1."""
    record: Mapping[str, Any]
    """The entry in the history, as JSON values."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """The entry in the card, as JSON values."""
    calibration: Calibration | None = None
    """Of the scores, if all windows were measured. None: the network gives no scores of pixels."""


OnProgress = Callable[[int, int], None]
"""Called with (done, total)."""


class TrainingTask(Protocol):
    """A kind of network in training."""

    @property
    def score_name(self) -> str:
        """Name of the score."""
        ...

    def network(self) -> Any:
        """The keras model to train, with new weights."""
        ...

    def trainer(self, model: Any) -> Any:
        """The keras model to train, with the weights of `model`, and its loss: (model, loss or
        None).
        """
        ...

    def arguments(self, batch: Batch) -> tuple[Any, ...]:
        """Arguments of `train_on_batch`."""
        ...

    def measure(self, trainer: Any, most: int | None, on_progress: OnProgress) -> MeasuredEpoch:
        """Measure the network on at most `most` windows of the validation images. None: all."""
        ...

    def card(self, model: Any, sha256: str, about: Mapping[str, Any]) -> Card:
        """The card of the network in float32."""
        ...

    def examples(self, trainer: Any) -> list[Example]:
        """Parts of validation images with their truth and the prediction."""
        ...

    def panels(self, history: Any) -> tuple[list[Curve], list[Curve]]:
        """Curves of losses, and of scores from 0 to 1."""
        ...


class ProgressMonitor(Protocol):
    """Receives the progress of a training."""

    def say(self, text: str) -> None:
        """Show a line of text to the user."""
        ...

    def checked(self, what: str, done: int, of: int) -> None:
        """`done` of `of` images are checked before training starts; `what` is checked."""
        ...

    def begin(self, setup: TrainingSetup, score_name: str, state: TrainingState) -> None:
        """Training starts, or continues from this state."""
        ...

    def step(self, epoch: int, step: int, loss: float) -> None:
        """A step of an epoch (both counted from 1) is done."""
        ...

    def measured(self, windows: int, of: int) -> None:
        """`windows` of `of` windows of the validation images are measured."""
        ...

    def epoch(self, record: Mapping[str, Any]) -> None:
        """An epoch is done; `record` is its entry in the history."""
        ...

    def look(self, location: str) -> None:
        """A picture of predictions after the first epoch is written."""
        ...
