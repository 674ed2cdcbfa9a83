"""The losses that a recipe can name, each as a weighted sum of terms; `losses` computes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from maskloom.segcore.registry import Registry
from maskloom.segcore.values import check_range

Weighting = Literal["none", "balanced"]
LOSSES: Registry[type] = Registry("loss")


@dataclass(frozen=True, slots=True)
class LossTerms:
    """A loss as a weighted sum of its terms."""

    cross_entropy: float = 0.0
    dice: float = 0.0
    focal: float = 0.0
    gamma: float = 2.0
    weights: Weighting | tuple[float, ...] = "none"


@LOSSES.register("cross_entropy")
@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Cross-entropy of each labelled pixel."""

    weights: Weighting | tuple[float, ...] = "none"
    """`balanced` gives all classes the same weight, however rare; or one number per class."""

    @property
    def terms(self) -> LossTerms:
        """The loss as a sum of terms."""
        return LossTerms(cross_entropy=1.0, weights=self.weights)


@LOSSES.register("dice")
@dataclass(frozen=True, slots=True)
class DiceLoss:
    """One minus the soft Dice coefficient, mean of the classes (Milletari 2016)."""

    weights: Weighting | tuple[float, ...] = "none"
    """Weight of each class in the mean: `none` all the same, `balanced` more for rare ones, or one
    number per class.
    """

    @property
    def terms(self) -> LossTerms:
        """The loss as a sum of terms."""
        return LossTerms(dice=1.0, weights=self.weights)


@LOSSES.register("focal")
@dataclass(frozen=True, slots=True)
class FocalLoss:
    """Cross-entropy with lower weights for pixels that the network is sure of (Lin 2017)."""

    gamma: float = 2.0
    """0 is the cross-entropy; larger values concentrate on hard pixels."""
    weights: Weighting | tuple[float, ...] = "none"
    """`balanced` gives all classes the same weight, however rare; or one number per class."""

    def __post_init__(self) -> None:
        check_range("gamma", self.gamma, 0, 10)

    @property
    def terms(self) -> LossTerms:
        """The loss as a sum of terms."""
        return LossTerms(focal=1.0, gamma=self.gamma, weights=self.weights)


@LOSSES.register("sum")
@dataclass(frozen=True, slots=True)
class SumOfLosses:
    """A weighted sum of losses; by default cross-entropy and Dice in equal parts."""

    cross_entropy: float = 1.0
    """Share of the cross-entropy."""
    dice: float = 1.0
    """Share of the Dice loss."""
    focal: float = 0.0
    """Share of the focal loss."""
    gamma: float = 2.0
    """Exponent of the focal loss."""
    weights: Weighting | tuple[float, ...] = "none"
    """Weights of the classes, in all terms."""

    def __post_init__(self) -> None:
        for name, share in (
            ("cross_entropy", self.cross_entropy),
            ("dice", self.dice),
            ("focal", self.focal),
        ):
            check_range(name, share, 0, 1000)
        if self.cross_entropy + self.dice + self.focal == 0:
            raise ValueError(
                "expected a share above 0 for one of cross_entropy, dice, focal; all are 0"
            )
        check_range("gamma", self.gamma, 0, 10)

    @property
    def terms(self) -> LossTerms:
        """The loss as a sum of terms."""
        return LossTerms(self.cross_entropy, self.dice, self.focal, self.gamma, self.weights)
