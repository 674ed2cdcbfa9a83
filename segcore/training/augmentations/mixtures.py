"""Mixtures: patches that take a part of another patch of their step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.training.augmentations.pixels import rectangle
from maskloom.segcore.training.augmentations.protocols import AUGMENTATIONS, Patch
from maskloom.segcore.values import check_range

if TYPE_CHECKING:
    from numpy.typing import NDArray


@AUGMENTATIONS.register("cutmix")
@dataclass(frozen=True, slots=True)
class CutMix:
    """A rectangle from the next patch of the step, with its labels, in place of what was there (Yun
    et al. 2019; French et al. 2020 for segmentation). Its share of the patch is from 0 to 1, all
    alike.
    """

    fraction: float = 0.5
    """Of the patches that are changed. The only patch of a step never is."""

    def __post_init__(self) -> None:
        check_range("fraction", self.fraction, 0, 1)

    def mix(self, patches: Sequence[Patch], random: np.random.Generator) -> list[Patch]:
        """As many patches of the same sizes."""
        mixed = []
        for patch, other in zip(patches, [*patches[1:], patches[0]], strict=True):
            if random.random() >= self.fraction or other is patch:
                mixed.append(patch)
                continue
            share = math.sqrt(random.random())
            place = (..., *rectangle(patch.classes.shape, (share, share), random))
            mixed.append(_with_part(patch, other, place))
        return mixed


def _with_part(patch: Patch, other: Patch, place: tuple[Any, ...]) -> Patch:
    """A patch with the pixels and labels that another has at this place (.., y, x)."""
    pixels, classes, ids = patch.pixels.copy(), patch.classes.copy(), patch.ids
    pixels[*place, :] = other.pixels[*place, :]
    classes[place] = other.classes[place]
    if ids is not None and other.ids is not None:
        # In 64 bits, and above those of this patch: objects of two patches may have one number.
        ids, added = ids.astype(np.int64), other.ids[place].astype(np.int64)
        ids[place] = np.where(added > 0, added + ids.max(), 0)
    valid = None
    if patch.valid is not None or other.valid is not None:
        valid = _all_valid(patch).copy()
        valid[place] = _all_valid(other)[place]
    return Patch(pixels, classes, ids, valid)


def _all_valid(patch: Patch) -> NDArray[np.bool_]:
    return np.ones(patch.classes.shape, np.bool_) if patch.valid is None else patch.valid
