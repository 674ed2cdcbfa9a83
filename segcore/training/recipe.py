"""Training recipes: the checked values of their sections.

They do not need keras; `segcore.training.loop` imports it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.training.loss_terms import LossTerms
from maskloom.segcore.training.split import Split
from maskloom.segcore.values import check_range

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
    from maskloom.segcore.training.augmentations.protocols import Augmentation
    from maskloom.segcore.training.labels import LabelKind


@dataclass(frozen=True, slots=True)
class Sampling:
    """How often patches are drawn, relative to 1: see `segcore.training.balance`."""

    classes: Mapping[str, float] = field(default_factory=dict)
    """Of classes, by name, for the patches drawn around a pixel of a class, e.g. {weed: 3}. 0: none
    is drawn around it.
    """
    images: Mapping[str, float] = field(default_factory=dict)
    """Of images, by patterns as in `split`, e.g. {"stained_*": 1.5}; the first that matches counts.
    0: the image is not drawn from.
    """

    def __post_init__(self) -> None:
        for key, values in (("classes", self.classes), ("images", self.images)):
            for name, weight in values.items():
                check_range(f"{key}.{name}", weight, 0, 1000)


@dataclass(frozen=True, slots=True)
class Training:
    """How to train."""

    patch: int | tuple[int, ...] = 256
    """Side of the network's input, in pixels; a multiple of its stride. For a network of volumes
    [z, y, x], or one number for a cube with about as many voxels (256: 32 x 32 x 32).
    """
    batch: int = 8
    """Patches per step."""
    epochs: int = 40
    """Number of epochs; after each the network is measured and kept. May be raised later: training
    then continues from its last checkpoint.
    """
    steps: int | None = None
    """Steps of an epoch. None: enough to cover the labelled pixels once, from 20 to 500."""
    rate: float = 1e-3
    """Highest learning rate."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """How the rate decreases: to a hundredth along half a cosine over all epochs, or not at all."""
    warmup: int = 0
    """Steps in which the rate increases to its highest."""
    optimiser: Literal["adamw", "adam", "sgd"] = "adamw"
    """Optimiser of keras."""
    decay: float = 1e-4
    """Weight decay of adamw."""
    balance: float = 0.5
    """Fraction of the patches drawn around a pixel of a class, all classes with equal probability;
    the others are drawn anywhere.
    """
    sampling: Sampling | None = None
    """Classes and images from which patches are drawn more often. None: none."""
    ema: float | None = None
    """Exponential moving average of the weights: the share of the former average that each step
    keeps, e.g. 0.999. The averaged weights are measured and saved. None: no average.
    """
    accumulation: int | None = None
    """Number of parts in which a batch goes through the network, one after the other; a step takes
    the mean of their gradients. For batches larger than memory. None: whole.
    """
    devices: int | None = None
    """GPUs among which a batch is divided. None: as many of this machine's as divide `batch`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: mixed precision, for processors and GPUs that support it. The file always holds
    float32.
    """
    unfreeze: tuple[int, ...] = ()
    """For `initial`: the number of epochs for which each stage of the layers that it fills holds
    still, the last stage first; the last number is that of all earlier stages. [2, 4]: new layers
    learn alone for two epochs, then with the last stage, and from the fifth on with all. Default:
    all learn from the start.
    """
    stage_rate: float = 1.0
    """For `initial`: factor on the rate of the last stage of the layers that it fills, and once
    more for each stage before (layer-wise rates).
    """
    patience: int | None = None
    """Epochs without a better score until training stops; may be changed later. None: only after
    the last epoch.
    """
    seed: int = 0
    """Seed of initial weights, patches and augmentation."""
    threads: int | None = None
    """Threads of this machine to use. None: all."""
    processes: int | None = None
    """Processes that draw patches; 0: a thread of the main one. None: 0 where a processor trains,
    for a GPU as many as there are cores, at most 16. Changes no patch.
    """
    memory: int = 1024
    """Megabytes of decoded images to keep."""
    tensorboard: bool = False
    """Also write the curves for TensorBoard, below `output`/tensorboard."""

    def end(self, scores: Sequence[float]) -> int | None:
        """The last epoch, from 1, of a training whose epochs have these scores. None: it continues.

        >>> Training(epochs=9, patience=2).end([0.5, 0.6, 0.6, 0.4, 0.9])
        4
        """
        best = 1
        for number, score in enumerate(scores, 1):
            best = number if score > scores[best - 1] else best
            if number >= self.epochs or (
                self.patience is not None and number - best >= self.patience
            ):
                return number
        return None

    def __post_init__(self) -> None:
        sides = (self.patch,) if isinstance(self.patch, int) else self.patch
        for side in sides:
            check_range("patch", side, 8 if len(sides) < 3 else 1, 8192)
        limits = {
            "batch": (1, 4096),
            "epochs": (1, 100_000),
            "steps": (1, 1_000_000),
            "warmup": (0, 1_000_000),
        }
        limits |= {"patience": (1, 100_000), "threads": (1, 1024), "memory": (1, 2**20)}
        limits |= {"accumulation": (2, 4096), "devices": (1, 1024), "processes": (0, 256)}
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is not None:
                check_range(name, value, least, most)
        check_range("rate", self.rate, 1e-12, 100)
        check_range("decay", self.decay, 0, 10)
        check_range("balance", self.balance, 0, 1)
        check_range("seed", self.seed, 0, 2**32 - 1)
        if self.ema is not None and not 0 < self.ema < 1:
            raise ValueError(f"ema: expected a share between 0 and 1, e.g. 0.999; got {self.ema}")
        if list(self.unfreeze) != sorted(set(self.unfreeze)) or min(self.unfreeze, default=0) < 0:
            raise ValueError(
                "unfreeze: expected rising numbers of epochs, e.g. [2, 4]; got "
                f"{list(self.unfreeze)}"
            )
        if not 0 < self.stage_rate <= 1:
            raise ValueError(
                f"stage_rate: expected a factor above 0, at most 1; got {self.stage_rate}"
            )
        if self.accumulation is not None and self.batch % self.accumulation:
            raise ValueError(
                f"accumulation: expected a divisor of `batch`, which is {self.batch}; got "
                f"{self.accumulation}"
            )


@dataclass(frozen=True, slots=True)
class TrainingRecipe:
    """A checked training recipe."""

    name: str
    output: str
    """Folder for the model: an absolute path or fsspec URI."""
    kind: str
    """Name of the network in `segcore.deep.networks.recipe.NETWORKS`."""
    network: Any
    """The network's recipe."""
    classes: tuple[str, ...]
    """Names by class id."""
    labels: LabelKind
    loss: LossTerms
    augmentation: tuple[Augmentation, ...]
    training: Training = field(default_factory=Training)
    split: Split = field(default_factory=Split)
    bands: tuple[int, ...] | None = None
    """Bands to use, from 1. None: all."""
    scaling: Scaling | ImageScaling | None = None
    """None: 1/255 for 8 bits, 1/65535 for 16 bits."""
    initial: str | None = None
    """Weights to start from: a name in the box, a path or a URI, or `imagenet`. None: random
    ones.
    """
    mask_suffix: str = ""
    """End of the names of masks that the names of images lack."""
    licence: str = ""
    """Licence of the weights, for the card."""
    purpose: str = ""
    """What the weights are for, and what not, for the card."""
    colours: Mapping[str, str] = field(default_factory=dict)
    """Colours of classes in masks, by name, as `#rrggbb`, for the card."""

    @property
    def class_table(self) -> ClassTable:
        """Names and colours of the classes."""
        return ClassTable.recorded(self.classes, map(self.colours.get, self.classes))

    def __post_init__(self) -> None:
        if self.initial is None and (self.training.unfreeze or self.training.stage_rate != 1):
            raise RecipeError(
                "training.unfreeze, training.stage_rate: these are for weights of another "
                "training. Set `initial`, for example to imagenet, or leave them out."
            )
        if not 2 <= len(self.classes) <= MOST_CLASSES:
            raise RecipeError(
                f"classes: expected 2 to {MOST_CLASSES} names; got {len(self.classes)}."
            )
        if len(set(self.classes)) < len(self.classes) or not all(self.classes):
            raise RecipeError(
                f"classes: expected different names, none of them empty; got {list(self.classes)}."
            )
        drawn = self.training.sampling.classes if self.training.sampling is not None else {}
        for name in drawn:
            if name not in self.classes:
                raise RecipeError(
                    f"training.sampling.classes: there is no class {name!r}. `classes` are "
                    f"{', '.join(self.classes)}."
                )
        if drawn and not any(drawn.get(name, 1) for name in self.classes):
            raise RecipeError("training.sampling.classes: all classes are 0; expected one above 0.")
        weights = self.loss.weights
        if not isinstance(weights, str):
            if len(weights) != len(self.classes):
                raise RecipeError(
                    f"training.loss.weights: expected {len(self.classes)} numbers, one per class; "
                    f"got {len(weights)}."
                )
            if min(weights) < 0 or not 0 < sum(weights) < math.inf:
                raise RecipeError(
                    "training.loss.weights: expected numbers from 0 on, one above 0; got "
                    f"{list(weights)}."
                )


MOST_CLASSES = 250
"""Class ids that fit into 8 bits beside the marks of void and unknown pixels."""
