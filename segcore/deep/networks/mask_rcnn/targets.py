"""Targets: from images and masks of instances to what a Mask R-CNN is trained with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

UNLABELLED = -1
"""In place of an instance's id: nobody has said what is there."""
_LEAST_PLACES = 8


@dataclass(frozen=True, slots=True, eq=False)
class TruthObjects:
    """The objects of one image."""

    boxes: NDArray[np.float32]
    """(object, 4): y0, x0, y1, x1 in pixels."""
    classes: NDArray[np.int32]
    """(object,), from 1 on."""
    numbers: NDArray[np.int32]
    """(y, x): 0, 1 + the position of the object among the others, or `UNLABELLED`."""


def objects_of(
    instances: NDArray[np.integer[Any]], class_of: NDArray[np.integer[Any]]
) -> TruthObjects:
    """The objects of a mask (y, x) of instance ids, 0 for background, where `class_of[id]` is the
    class of an instance.

    Instances of class 0 are background. An instance is one object, in however many pieces. Pixels
    that nobody labelled are `UNLABELLED`. Raises `ValueError` where ids have no class.
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
    """What `train_on_batch` and `test_on_batch` of a `MaskRcnnNetwork` take:
    `model.train_on_batch(*training_batch(...))`.

    Parameters
    ----------
    images
        (image, y, x, channel) float32, scaled.
    instances
        (image, y, x) ids of instances, 0 for background, `UNLABELLED` where nobody has said what is
        there: nothing is learned from it.
    class_of
        For each image the class of each id, from id 0 on. Class 0: not an object.

    Returns
    -------
    tuple
        A dict of `image`, `boxes` (image, object, 4) float32, `classes` (image, object) int32 and
        `instances` (image, y, x) int32. Places without an object hold zeros; their number is a
        power of two, so that few shapes occur.

    Raises `ValueError` where shapes do not agree or an id has no class.
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
