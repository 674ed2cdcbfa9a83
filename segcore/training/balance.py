"""How often places are drawn as the middle of a patch.

`segcore.training.sampling` draws a share of the patches (`training.balance`) around a pixel of a
class, all classes alike, and the others anywhere, all labelled pixels alike. `training.sampling`
changes both: classes of which more is to be seen, and images from which more is to be drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import RecipeError
from maskloom.segcore.training.class_counts import ClassCounts
from maskloom.segcore.training.split import matches

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.training.recipe import Sampling

_FINEST = 1000
"""Weights of images are whole multiples of its inverse, so that sums of counts stay exact."""


def class_rates(wanted: Sampling | None, classes: Sequence[str]) -> tuple[float, ...]:
    """How often patches are drawn around pixels of each class, relative to each other. Empty: all
    alike.
    """
    if wanted is None or not wanted.classes:
        return ()
    return tuple(wanted.classes.get(name, 1.0) for name in classes)


def weighted(
    counts: ClassCounts, wanted: Sampling | None, images: Sequence[tuple[str, str]]
) -> ClassCounts:
    """The counts from which places are drawn: those of an image times its weight. `images`: name
    and location of each.
    """
    if wanted is None or not wanted.images:
        return counts
    weights = [_weight(wanted, image) for image in images]
    return ClassCounts(
        tuple(
            cells * np.int64(round(weight * _FINEST))
            for cells, weight in zip(counts.cells, weights, strict=True)
        )
    )


def chosen(shares: NDArray[np.float64], random: np.random.Generator) -> int:
    """An index, drawn with these cumulative shares (index,)."""
    return int(np.searchsorted(shares, random.random() * shares[-1], side="right"))


def require_drawable(
    counts: ClassCounts,
    wanted: Sampling | None,
    classes: Sequence[str],
    images: Sequence[tuple[str, str]],
    training: Sequence[int],
) -> None:
    """Raise `RecipeError` if a pattern of images matches none of them, or nothing is left to draw
    from.
    """
    if wanted is None:
        return
    for pattern in wanted.images:
        if not any(matches(image, (pattern,)) for image in images):
            raise RecipeError(
                f"training.sampling.images: {pattern!r} matches none of the {len(images)} images, "
                f"for example {images[0][0]!r}. A pattern is compared with name and location, and "
                "may contain * and ?."
            )
    there = weighted(counts, wanted, images).classes[list(training)].any(axis=0)
    if not there.any():
        raise RecipeError(
            "training.sampling.images: all training images with a labelled pixel have the weight "
            "0. Give one of them more."
        )
    rates = class_rates(wanted, classes)
    if rates and not (np.array(rates) > 0)[there].any():
        raise RecipeError(
            "training.sampling.classes: no class with a weight above 0 has a pixel in the training "
            "images. Give another class more than 0."
        )


def _weight(wanted: Sampling, image: tuple[str, str]) -> float:
    for pattern, weight in wanted.images.items():
        if matches(image, (pattern,)):
            return weight
    return 1.0
