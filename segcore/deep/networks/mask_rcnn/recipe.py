"""The recipe of a Mask R-CNN: what the section `network` of a training recipe may hold, known
without loading keras.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from maskloom.segcore.deep.networks.recipe import NETWORKS

if TYPE_CHECKING:
    import keras

Size = Literal["small", "resnet50"]


@NETWORKS.register("mask_rcnn")
@dataclass(frozen=True, slots=True)
class MaskRcnn:
    """Mask R-CNN (He, Gkioxari, Dollár and Girshick 2017) on a feature pyramid (Lin et al.
    2017).
    """

    size: Size = "small"
    """The residual network below the pyramid: `small` has one block a level and trains on two
    cores; `resnet50` is the paper's.
    """
    width: int = 24
    """Channels of the first level of `small`; each further level has twice those."""
    pyramid: int = 64
    """Channels of each level of the pyramid. The paper's: 256."""
    anchors: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0)
    """Side of the anchors in pixels, for levels of stride 4, 8, 16, 32 (and 64 with a fifth). About
    the sizes of the objects.
    """
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors."""
    candidates: int = 1024
    """Boxes of an image that non-maximum suppression starts from."""
    proposals: int = 256
    """Boxes that it leaves for the second stage."""
    detections: int = 256
    """Most objects of an image."""
    sampled: int = 128
    """Boxes of an image that the second stage learns from in one step; at most a quarter of them
    hold an object, as in the paper.
    """
    dense: int = 256
    """Width of the two dense layers of the box head. The paper's: 1024."""
    mask: int = 32
    """Channels of the mask head, where most of the time goes. The paper's: 256."""
    seed: int = 0
    """Decides which anchors and boxes training samples."""

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
    def strides(self) -> tuple[int, ...]:
        """Pixels between positions of each level; images are padded to a multiple of the last."""
        return tuple(4 << level for level in range(len(self.anchors)))

    def build(self, channels: int, classes: int) -> keras.Model:
        """The network for images of `channels` bands and `classes` classes, the background (class
        0) included.

        Raises `ValueError` where there is no band or no class but the background.
        """
        from maskloom.segcore.deep.networks.mask_rcnn.network import MaskRcnnNetwork

        return MaskRcnnNetwork(channels, classes, self)
