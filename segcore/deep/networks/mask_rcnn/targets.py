"""Training batches for Mask R-CNN from images and instance masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNLABELLED = -1
"""Instance id of unlabelled pixels."""
_LEAST_PLACES = 8


@dataclass(frozen=True, slots=True, eq=False)
class TruthObjects:
    """The objects of one image."""

    boxes: NDArray[np.float32]
    """(object, 4): y0, x0, y1, x1 in pixels."""
    classes: NDArray[np.int32]
    """(object,) class ids, from 1."""
    numbers: NDArray[np.int32]
    """(y, x): 0 for background, 1 + the index of the object, or `UNLABELLED`."""


def objects_of(
    instances: NDArray[np.integer[Any]], class_of: NDArray[np.integer[Any]]
) -> TruthObjects:
    """Return the objects of a mask (y, x) of instance ids, 0 for background.

    `class_of[id]` is the class of an instance; instances of class 0 are background. An instance is
    one object even if it is not connected. Unlabelled pixels are `UNLABELLED`. Raises `ValueError`
    if an id has no class or the mask is not (y, x).
    """
    from scipy import ndimage

    if instances.ndim != 2 or (
        instances.size and (instances.min() < UNLABELLED or instances.max() >= len(class_of))
    ):
        raise ValueError(
            f"instances: expected an array (y, x) of ids from 0 to {len(class_of) - 1}, each with "
            "a class; "
            f"got shape {instances.shape} with ids up to {instances.max(initial=0)}"
        )
    labelled = np.maximum(instances, 0)
    ids = np.where(np.asarray(class_of)[labelled] > 0, labelled, 0).astype(np.int32)
    found = [
        (number + 1, place)
        for number, place in enumerate(ndimage.find_objects(ids))
        if place is not None
    ]
    number_of = np.zeros(len(class_of), np.int32)
    number_of[[old for old, _ in found]] = np.arange(1, len(found) + 1)
    boxes = [(rows.start, columns.start, rows.stop, columns.stop) for _, (rows, columns) in found]
    return TruthObjects(
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array([class_of[old] for old, _ in found], np.int32),
        np.where(instances == UNLABELLED, np.int32(UNLABELLED), number_of[ids]),
    )


def training_batch(
    images: NDArray[np.float32],
    instances: NDArray[np.integer[Any]],
    class_of: Sequence[NDArray[np.integer[Any]]],
) -> tuple[dict[str, NDArray[Any]]]:
    """Return the arguments of `train_on_batch` and `test_on_batch` of a `MaskRcnnNetwork`.

    Call `model.train_on_batch(*training_batch(...))`.

    Parameters
    ----------
    images
        (image, y, x, channel) float32, scaled.
    instances
        (image, y, x) instance ids, 0 for background, `UNLABELLED` for unlabelled pixels, which
        contribute no loss.
    class_of
        For each image the class of each id, from id 0. Class 0: not an object.

    Returns
    -------
    tuple
        A dict of `image`, `boxes` (image, object, 4) float32, `classes` (image, object) int32 and
        `instances` (image, y, x) int32. The object axis is padded with zeros to a power of two, so
        that few different shapes occur.

    Raises `ValueError` if shapes do not agree or an id has no class.
    """
    if instances.shape != images.shape[:3] or len(class_of) != len(images):
        raise ValueError(
            f"expected instances and classes for images of shape {images.shape}; got instances "
            f"{instances.shape} and {len(class_of)} "
            "arrays of classes"
        )
    found = [objects_of(mask, classes) for mask, classes in zip(instances, class_of, strict=True)]
    most = max((len(each.classes) for each in found), default=0)
    places = max(_LEAST_PLACES, 1 << (most - 1).bit_length())
    boxes = np.zeros((len(found), places, 4), np.float32)
    classes = np.zeros((len(found), places), np.int32)
    for number, each in enumerate(found):
        boxes[number, : len(each.boxes)] = each.boxes
        classes[number, : len(each.classes)] = each.classes
    numbers = (
        np.stack([each.numbers for each in found]) if found else np.zeros(instances.shape, np.int32)
    )
    return (
        {
            "image": np.asarray(images, np.float32),
            "boxes": boxes,
            "classes": classes,
            "instances": numbers,
        },
    )
