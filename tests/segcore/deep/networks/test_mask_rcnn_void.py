"""What nobody has labelled teaches a Mask R-CNN nothing, and costs it no score."""

from __future__ import annotations

from typing import Any, cast

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.networks.mask_rcnn.anchors import level_anchors
from maskloom.segcore.deep.networks.mask_rcnn.assignment import is_labelled
from maskloom.segcore.deep.networks.mask_rcnn.network import MaskRcnnNetwork
from maskloom.segcore.deep.networks.mask_rcnn.recipe import MaskRcnn
from maskloom.segcore.deep.networks.mask_rcnn.targets import UNLABELLED, objects_of, training_batch
from maskloom.segcore.training.instances import InstanceTask, ObjectLabels, match
from maskloom.segcore.training.labels import VOID
from maskloom.segcore.training.sampling import Batch

SIDE = 64


@pytest.fixture(scope="module")
def network() -> MaskRcnnNetwork:
    keras.utils.set_random_seed(0)
    sizes = {
        "candidates": 32,
        "proposals": 16,
        "detections": 8,
        "sampled": 16,
        "dense": 8,
        "mask": 8,
    }
    return cast(
        "MaskRcnnNetwork",
        MaskRcnn(width=8, pyramid=16, anchors=(8.0, 16.0, 32.0, 64.0), **sizes).build(1, 2),
    )


def learned(network: MaskRcnnNetwork, instances: np.ndarray) -> dict[str, np.ndarray]:
    """What the losses are computed from, for one image of one object."""
    pixels = np.random.default_rng(0).random((1, SIDE, SIDE, 1), np.float32)
    (inputs,) = training_batch(pixels, instances[None], [np.array([0, 1])])
    return {
        name: keras.ops.convert_to_numpy(value)
        for name, value in network(inputs, training=True).items()
    }


def part_of(instances: np.ndarray, box: np.ndarray) -> float:
    """Which part of a box, as far as it lies in the image, is unlabelled; pixel by pixel."""
    top, left, bottom, right = box
    down, across = (
        np.clip(np.minimum(np.arange(n) + 1, last) - np.maximum(np.arange(n), first), 0, None)
        for n, first, last in zip(instances.shape, (top, left), (bottom, right), strict=True)
    )
    covered = np.outer(down, across)
    return float(covered[instances == UNLABELLED].sum() / max(covered.sum(), 1e-9))


@given(seed=st.integers(0, 10_000))
def test_labelled_is_what_lies_in_void_for_at_most_a_half(seed: int) -> None:
    generator = np.random.default_rng(seed)
    instances = np.zeros((2, 30, 41), np.int32)
    instances[0, :, : generator.integers(1, 41)] = UNLABELLED
    instances[1] = np.where(generator.random((30, 41)) < 0.5, UNLABELLED, 3)
    start = generator.uniform(-12, 40, (2, 20, 2))
    boxes = np.concatenate([start, start + generator.uniform(0.5, 30, (2, 20, 2))], -1).astype(
        np.float32
    )
    found = keras.ops.convert_to_numpy(is_labelled(instances, boxes))
    shares = np.array([[part_of(instances[i], box) for box in boxes[i]] for i in range(2)])
    clear = np.abs(shares - 0.5) > 0.01
    assert np.array_equal(found[clear], (shares < 0.5)[clear])
    # The same boxes for all images.
    both = keras.ops.convert_to_numpy(is_labelled(instances, boxes[:1]))
    assert np.array_equal(both[0], found[0])
    assert both.shape == (2, 20)


def test_an_image_without_labels_teaches_nothing(network: MaskRcnnNetwork) -> None:
    values = learned(network, np.full((SIDE, SIDE), UNLABELLED))
    assert [float(loss) for loss in network.losses_of(values).values()] == [0.0] * 5


def test_an_object_in_void_is_learned_and_the_void_is_not(network: MaskRcnnNetwork) -> None:
    instances = np.full((SIDE, SIDE), UNLABELLED)
    instances[20:44, 20:44] = 0
    instances[24:40, 24:40] = 1
    values = learned(network, instances)
    recipe = network.recipe
    anchors = np.concatenate(
        [
            keras.ops.convert_to_numpy(
                level_anchors((SIDE // stride,) * 2, stride, side, recipe.ratios)
            )
            for stride, side in zip(recipe.strides, recipe.anchors, strict=True)
        ]
    )
    object_box = np.array([24, 24, 40, 40])
    sides = np.clip(
        np.minimum(anchors[:, 2:], object_box[2:]) - np.maximum(anchors[:, :2], object_box[:2]),
        0,
        None,
    ).prod(1)
    overlaps = sides / ((anchors[:, 2:] - anchors[:, :2]).prod(1) + 16**2 - sides)
    nothing = (overlaps < 0.3) & (
        np.array([part_of(instances, anchor) for anchor in anchors]) <= 0.5 + 1e-6
    )
    negatives = values["anchor_taken"].sum() - values["anchor_positive"].sum()
    assert values["anchor_positive"].sum() > 0
    # Fewer than are drawn at most, so that all of them take part.
    assert 0 < nothing.sum() < 128 < (overlaps < 0.3).sum()
    assert negatives == nothing.sum()
    assert values["box_positive"].sum() > 0
    assert values["mask_taken"].sum() > 0


def test_samples_have_the_sizes_of_the_papers(network: MaskRcnnNetwork) -> None:
    instances = np.zeros((SIDE, SIDE), np.int64)
    instances[20:36, 20:36] = 1
    values = learned(network, instances)
    # Of 1,020 anchors 256 take part; of the boxes at most three without an object for each with
    # one.
    assert values["anchor_taken"].sum() == 256
    objects = values["box_positive"].sum()
    assert 0 < objects <= 4
    assert 0 < values["box_taken"].sum() - objects <= 3 * objects


def test_places_without_a_proposal_are_no_objects() -> None:
    keras.utils.set_random_seed(0)
    sure = MaskRcnn(
        width=8,
        pyramid=8,
        anchors=(8.0, 16.0, 32.0, 64.0),
        candidates=32,
        proposals=16,
        dense=8,
        mask=8,
    ).build(1, 2)
    logits = sure.box_head.get_layer("logits")
    logits.bias.assign(np.array([0, 20], np.float32))
    # So small that most anchors are suppressed and places stay free.
    found = {
        name: keras.ops.convert_to_numpy(value)[0]
        for name, value in sure.detect(np.ones((1, 8, 8, 1), np.float32), 0.5, 0.9).items()
    }
    boxes = found["boxes"][found["classes"] > 0]
    assert 0 < len(boxes) < 16
    assert np.all(boxes[:, 2:] - boxes[:, :2] > 0.1)


def test_cells_of_masks_in_void_take_no_part(network: MaskRcnnNetwork) -> None:
    instances = np.zeros((SIDE, SIDE), np.int64)
    instances[8:36, 8:36] = 1
    # The left half of the object's box is not labelled but for a column that keeps the box as it
    # is.
    instances[9:36, 8:22] = UNLABELLED
    values = learned(network, instances)
    true = np.flatnonzero(
        np.abs(values["box_targets"][0]).max(axis=1) + (values["box_positive"][0] == 0) < 1e-6
    )
    assert len(true) > 0
    taken, targets = values["mask_taken"][0, true[0]], values["mask_targets"][0, true[0]]
    # A cell is a pixel here.
    assert np.array_equal(taken, instances[8:36, 8:36] != UNLABELLED)
    assert np.array_equal(targets, instances[8:36, 8:36] == 1)


def test_objects_keep_void_apart_from_background() -> None:
    found = objects_of(np.array([[-1, 0, 2], [-1, 2, 2]]), np.array([0, 1, 1]))
    assert found.numbers.tolist() == [[-1, 0, 1], [-1, 1, 1]]
    assert found.boxes.tolist() == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="expected an array"):
        objects_of(np.array([[-2]]), np.array([0, 1]))


def test_training_passes_void_on() -> None:
    classes = np.zeros((1, 8, 8), np.uint8)
    ids = np.zeros((1, 8, 8), np.uint16)
    classes[0, 2:4, 2:6], ids[0, 2:4, 2:6] = 1, 900
    classes[0, 5:] = VOID
    task = InstanceTask(cast("Any", None))
    (inputs,) = task.arguments(Batch(np.zeros((1, 8, 8, 1), np.float32), classes, ids))
    assert np.array_equal(
        inputs["instances"], np.where(classes == VOID, UNLABELLED, classes.astype(int))
    )
    assert inputs["boxes"][0, 0].tolist() == [2, 2, 4, 6]
    assert inputs["classes"][0].tolist() == [1, *[0] * 7]


def test_what_is_found_in_void_is_no_error() -> None:
    true, predicted, classes = (np.zeros((6, 12), np.int32) for _ in range(3))
    true[1:3, 1:3] = 7
    classes[:, 6:] = VOID
    predicted[1:3, 1:3] = 1  # true
    predicted[4, 4:9] = 2  # three of five pixels in void
    predicted[1, 5:7] = 3  # half
    predicted[4, 9] = 4  # all
    # An object whose larger part is cut off by void is found by its rest.
    true[5, 4:6] = 8
    predicted[5, 4:10] = 5
    labels = classes.astype(np.uint8)
    labels[true > 0] = 1
    truth = ObjectLabels.of(true, labels)
    matching = match(truth, ObjectLabels(predicted, np.array([0, *[1] * 5])))
    assert (matching.predicted.ids[matching.partner > 0]).tolist() == [1, 5]
    assert matching.counts(2).tallies[1, 0].tolist() == [2, 1, 0]
    # Without their pixels in void, objects are the same as in an image that ends there.
    cut = match(
        ObjectLabels.of(true[:, :6], labels[:, :6]),
        ObjectLabels(predicted[:, :6], np.array([0, *[1] * 5])),
    )
    np.testing.assert_array_equal(cut.iou[cut.partner > 0], matching.iou[matching.partner > 0])
