"""What a Mask R-CNN is to learn: objects of masks, anchors and boxes that are theirs, samples,
masks in boxes.
"""

from __future__ import annotations

import keras
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.networks.mask_rcnn.assignment import (
    best_anchors,
    best_boxes,
    greatest,
    limited,
    mask_targets,
    sample,
)
from maskloom.segcore.deep.networks.mask_rcnn.losses import binary, categorical, smooth
from maskloom.segcore.deep.networks.mask_rcnn.targets import objects_of, training_batch

to_numpy = keras.ops.convert_to_numpy


def test_objects_have_tight_boxes_and_new_numbers() -> None:
    mask = np.zeros((10, 12), np.int32)
    mask[2:5, 3:9] = 7
    mask[6, 1] = mask[8, 2] = 3
    mask[9, 9] = 5
    class_of = np.array([0, 0, 0, 2, 0, 0, 0, 1])
    found = objects_of(mask, class_of)
    # By id: 3 (two pieces, class 2), then 7 (class 1); 5 is of class 0 and no object.
    assert found.boxes.tolist() == [[6, 1, 9, 3], [2, 3, 5, 9]]
    assert found.classes.tolist() == [2, 1]
    assert np.array_equal(found.numbers, np.where(mask == 7, 2, np.where(mask == 3, 1, 0)))


def test_batches_are_padded_to_powers_of_two() -> None:
    masks = np.zeros((2, 16, 16), np.int32)
    masks[0, ::2, ::2] = np.arange(1, 65).reshape(8, 8)
    images = np.zeros((2, 16, 16, 3), np.float32)
    (batch,) = training_batch(images, masks, [np.ones(65, int), np.ones(1, int)])
    assert batch["boxes"].shape == (2, 64, 4)
    assert batch["classes"][0].tolist() == [1] * 64
    assert not batch["classes"][1].any()
    assert not batch["boxes"][1].any()
    (smaller,) = training_batch(images, masks * 0, [np.ones(1, int)] * 2)
    assert smaller["boxes"].shape == (2, 8, 4)


def test_masks_that_do_not_suit_are_refused() -> None:
    images, masks = np.zeros((1, 8, 8, 3), np.float32), np.zeros((1, 8, 9), np.int32)
    with pytest.raises(ValueError, match="instances"):
        training_batch(images, masks, [np.ones(1, int)])
    with pytest.raises(ValueError, match="with ids up to 4"):
        training_batch(images, np.full((1, 8, 8), 4), [np.ones(3, int)])
    with pytest.raises(ValueError, match="2 arrays of classes"):
        training_batch(images, masks[:, :, :8], [np.ones(1, int)] * 2)


def test_anchors_belong_to_what_they_overlap_most() -> None:
    anchors = np.array(
        [[0, 0, 10, 10], [0, 2, 10, 12], [20, 20, 30, 30], [40, 40, 50, 50], [0, 4, 10, 14]],
        np.float32,
    )
    # One box on the first anchor, a small one that overlaps only the third (by 0.16), and a filler.
    boxes = np.array([[[0, 0, 10, 10], [22, 22, 26, 26], [0, 0, 0, 0]]], np.float32)
    whose, positive, negative = (to_numpy(each)[0] for each in best_anchors(anchors, boxes))
    # Overlaps with the first box: 1, 80 / 120, 0, 0, 60 / 140.
    assert positive.tolist() == [True, False, True, False, False]
    assert negative.tolist() == [False, False, False, True, False]
    assert whose[[0, 2]].tolist() == [0, 1]


def test_an_anchor_goes_to_the_object_that_has_no_better() -> None:
    anchors = np.array([[0, 0, 10, 10]], np.float32)
    # It overlaps the first more, but it is the best that either has; the second must not be lost to
    # the first alone.
    boxes = np.array([[[0, 0, 10, 9], [0, 0, 10, 5]]], np.float32)
    whose, positive, _ = (to_numpy(each)[0] for each in best_anchors(anchors, boxes))
    assert positive.tolist() == [True]
    assert whose.tolist() == [0]


def test_an_anchor_chosen_by_a_small_object_is_not_lost_to_a_larger_one() -> None:
    anchors = np.array([[0, 0, 20, 20], [0, 0, 20, 16]], np.float32)
    # The second anchor is the best for the small object (0.3125 against 0.25), though it overlaps
    # the large one by 0.8.
    boxes = np.array([[[0, 0, 20, 20], [0, 0, 10, 10]]], np.float32)
    whose, positive, _ = (to_numpy(each)[0] for each in best_anchors(anchors, boxes))
    assert positive.all()
    assert whose.tolist() == [0, 1]


def test_images_without_objects_have_only_negatives() -> None:
    anchors = np.array([[0, 0, 10, 10], [5, 5, 9, 9]], np.float32)
    _, positive, negative = (
        to_numpy(each)[0] for each in best_anchors(anchors, np.zeros((1, 8, 4), np.float32))
    )
    assert not positive.any()
    assert negative.all()
    assert not to_numpy(best_boxes(anchors[None], np.zeros((1, 8, 4), np.float32))[1]).any()


def test_samples_are_eligible_different_and_repeatable() -> None:
    eligible = np.zeros((2, 50), bool)
    eligible[0, 10:30] = True
    eligible[1, 5:8] = True
    one = sample(eligible, 6, keras.random.SeedGenerator(3))
    indices, taken = to_numpy(one.indices), to_numpy(one.taken)
    assert taken.tolist() == [[1] * 6, [1, 1, 1, 0, 0, 0]]
    assert eligible[0, indices[0]].all()
    assert len(set(indices[0].tolist())) == 6
    assert sorted(indices[1, :3].tolist()) == [5, 6, 7]
    assert np.array_equal(
        to_numpy(sample(eligible, 6, keras.random.SeedGenerator(3)).indices), indices
    )
    assert not np.array_equal(
        to_numpy(sample(eligible, 6, keras.random.SeedGenerator(4)).indices), indices
    )
    fewer = limited(one, keras.ops.convert_to_tensor(np.array([2.0, 9.0], np.float32)))
    assert to_numpy(fewer.taken).tolist() == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


def test_more_may_be_asked_for_than_there_is() -> None:
    values, indices = greatest(np.array([[3.0, 5.0]], np.float32), 4, -1.0)
    assert to_numpy(values).tolist() == [[5, 3, -1, -1]]
    assert to_numpy(indices)[0].tolist() == [1, 0, 1, 1]


def test_a_box_on_its_object_is_full_and_the_cells_of_a_half_are_half() -> None:
    instances = np.zeros((1, 40, 40), np.int32)
    instances[0, 5:33, 6:34] = 2
    boxes = np.array([[[5, 6, 33, 34], [5, 20, 33, 48], [5, 6, 33, 34]]], np.float32)
    found = to_numpy(mask_targets(instances, boxes, np.array([[2, 2, 1]], np.int32), 28))[0]
    assert found[0].all()
    # A cell is a pixel here: columns 20 to 33 are the object's.
    assert np.array_equal(found[1], np.tile(np.arange(28) < 14, (28, 1)))
    assert not found[2].any()


def test_cells_are_the_objects_from_a_half_on() -> None:
    instances = np.zeros((1, 40, 40), np.int32)
    instances[0, 5:33, 6:34] = 1
    # Cells of a pixel, moved by a fraction: the last column is interpolated to 0.7, and to 0.3.
    boxes = np.array([[[5, 6.3, 33, 34.3], [5, 6.7, 33, 34.7]]], np.float32)
    found = to_numpy(mask_targets(instances, boxes, np.array([[1, 1]], np.int32), 28))[0]
    assert found[0].all()
    assert np.array_equal(found[1], np.tile(np.arange(28) < 27, (28, 1)))


@given(radius=st.floats(6, 18), centre=st.tuples(st.floats(20, 30), st.floats(20, 30)))
def test_targets_of_discs_are_discs(radius: float, centre: tuple[float, float]) -> None:
    y, x = np.indices((50, 50)) + 0.5
    instances = ((y - centre[0]) ** 2 + (x - centre[1]) ** 2 <= radius**2).astype(np.int32)[None]
    box = np.array(
        [[[centre[0] - radius, centre[1] - radius, centre[0] + radius, centre[1] + radius]]],
        np.float32,
    )
    found = to_numpy(mask_targets(instances, box, np.array([[1]], np.int32), 28))[0, 0]
    cells = (np.indices((28, 28)) + 0.5) / 14 - 1
    distance = np.hypot(*cells)
    # Within a pixel of the rim anything is right.
    assert found[distance < 1 - 1.2 / radius].all()
    assert not found[distance > 1 + 1.2 / radius].any()


def test_losses_of_known_values() -> None:
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(3, 4)).astype(np.float32) * 20
    targets = generator.integers(0, 2, (3, 4)).astype(np.float32)
    taken = np.array([[1, 1, 0, 1]] * 3, np.float32)
    chance = 1 / (1 + np.exp(-logits.astype(float)))
    plain = -np.where(
        targets > 0, np.log(np.maximum(chance, 1e-300)), np.log1p(-np.minimum(chance, 1 - 1e-16))
    )
    assert float(binary(logits, targets, taken)) == pytest.approx(plain[taken > 0].mean(), rel=1e-3)

    classes = generator.integers(0, 4, 3)
    shares = np.exp(logits / 20) / np.exp(logits / 20).sum(1, keepdims=True)
    plain = -np.log(shares[np.arange(3), classes])
    assert float(
        categorical(logits / 20, classes.astype(np.int32), np.array([1, 0, 1], np.float32))
    ) == pytest.approx(plain[[0, 2]].mean(), rel=1e-4)

    # Off by 0.5 in one shift (half the square) and by 3 in another (3 - 0.5); two of four boxes
    # hold an object.
    shifts = np.zeros((1, 2, 4), np.float32)
    shifts[0, 0, 0], shifts[0, 1, 3] = 0.5, -3
    assert float(
        smooth(shifts, shifts * 0, np.ones((1, 2), np.float32), np.float32(4))
    ) == pytest.approx((0.125 + 2.5) / 4)
