"""Recipe of a Mask R-CNN: the section `network` of a training recipe, without keras."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from maskloom.segcore.deep.networks.recipe import NETWORKS

if TYPE_CHECKING:
    import keras

Size = Literal["small", "resnet50", "resnet50v1"]


@NETWORKS.register("mask_rcnn")
@dataclass(frozen=True, slots=True)
class MaskRcnn:
    """Mask R-CNN (He, Gkioxari, Dollár and Girshick 2017) with a feature pyramid.

    The pyramid is that of Lin et al. 2017.
    """

    size: Size = "small"
    """Residual network below the pyramid: `small` has one block per level and trains on two cores;
    `resnet50` is the paper's, with group normalisation; `resnet50v1` is that of keras.applications,
    with weights for `initial: imagenet`.
    """
    width: int = 24
    """Channels of the first level of `small`; each further level doubles them."""
    pyramid: int = 64
    """Channels of each level of the pyramid. The paper's: 256."""
    anchors: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0)
    """Sides of the anchors in pixels, for levels of stride 4, 8, 16, 32 (and 64 with a fifth).
    Choose them close to the sizes of the objects.
    """
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Ratios of height to width of the anchors."""
    candidates: int = 1024
    """Boxes per image before non-maximum suppression."""
    proposals: int = 256
    """Boxes per image after suppression, passed to the second stage."""
    detections: int = 256
    """Maximum number of objects per image."""
    sampled: int = 128
    """Boxes per image that the second stage learns from in one step; at most a quarter of them
    contain an object, as in the paper.
    """
    dense: int = 256
    """Width of the two dense layers of the box head. The paper's: 1024."""
    mask: int = 32
    """Channels of the mask head, which takes most of the time. The paper's: 256."""
    seed: int = 0
    """Seed for sampling anchors and boxes in training."""

    def __post_init__(self) -> None:
        if self.size not in get_args(Size):
            raise ValueError(
                f"size: expected one of {', '.join(get_args(Size))}; got {self.size!r}"
            )
        if not 4 <= len(self.anchors) <= 5 or not all(
            math.isfinite(side) and side > 0 for side in self.anchors
        ):
            raise ValueError(
                f"anchors: expected four or five sides above 0, in pixels; got {list(self.anchors)}"
            )
        if not self.ratios or not all(math.isfinite(ratio) and ratio > 0 for ratio in self.ratios):
            raise ValueError(
                f"ratios: expected one or more numbers above 0; got {list(self.ratios)}"
            )
        for name, multiple in (
            ("width", 8),
            ("pyramid", 8),
            ("dense", 1),
            ("mask", 1),
            ("candidates", 1),
            ("proposals", 1),
            ("detections", 1),
        ):
            value = getattr(self, name)
            if value < multiple or value % multiple:
                raise ValueError(f"{name}: expected a multiple of {multiple}; got {value}")
        if self.sampled < 4:
            raise ValueError(f"sampled: expected at least 4 boxes; got {self.sampled}")

    @property
    def application(self) -> str | None:
        """The backbone of keras.applications that it has. None: it has another."""
        return self.size if self.size == "resnet50v1" else None

    @property
    def strides(self) -> tuple[int, ...]:
        """Stride of each level in pixels; images are padded to a multiple of the last."""
        return tuple(4 << level for level in range(len(self.anchors)))

    def build(self, channels: int, classes: int) -> keras.Model:
        """Build the network for `channels` bands and `classes` classes.

        The background, class 0, is included. Raises `ValueError` for fewer than one band or without
        a class besides the background.
        """
        from maskloom.segcore.deep.networks.mask_rcnn.network import MaskRcnnNetwork

        return MaskRcnnNetwork(channels, classes, self)
