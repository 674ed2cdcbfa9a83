"""Masks of detections are pasted to the pixel, and windows find each object once, whatever the
region.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.networks.mask_rcnn.detections import Detections, overlaps, suppressed
from maskloom.segcore.deep.networks.mask_rcnn.lattice import WindowLattice, mirrored
from maskloom.segcore.geometry import Box

SIZE = 28


def detections_of(
    boxes: list[tuple[float, ...]],
    masks: np.ndarray | None = None,
    scores: list[float] | None = None,
) -> Detections:
    count = len(boxes)
    return Detections(
        np.array(boxes, np.float64).reshape(-1, 4),
        np.ones(count, np.int64),
        np.array(scores if scores is not None else [0.9] * count, np.float32),
        np.ones((count, SIZE, SIZE), np.float32) if masks is None else masks,
    )


def test_a_full_mask_fills_the_pixels_whose_middle_is_in_the_box() -> None:
    painted = detections_of([(2.4, 3.6, 7.5, 9.4)]).paint(Box.whole((12, 12)))
    # Middles at 2.5 ... 7.5 down, 4.5 ... 8.5 across.
    expected = np.zeros((12, 12), int)
    expected[2:8, 4:9] = 1
    assert np.array_equal(painted, expected)


def test_cells_go_to_the_pixels_they_cover() -> None:
    mask = (np.random.default_rng(0).random((1, SIZE, SIZE)) > 0.5).astype(np.float32)
    painted = detections_of([(5, 8, 5 + SIZE, 8 + SIZE)], mask).paint(Box.whole((40, 40)))
    assert np.array_equal(painted[5 : 5 + SIZE, 8 : 8 + SIZE], mask[0])
    assert painted.sum() == mask.sum()


def test_masks_are_interpolated_between_cells() -> None:
    from scipy import ndimage

    mask = ndimage.gaussian_filter(np.random.default_rng(1).random((SIZE, SIZE)), 3)
    mask = ((mask - mask.min()) / np.ptp(mask)).astype(np.float32)
    box = (3.3, 7.8, 53.1, 41.2)
    painted = detections_of([box], mask[None]).paint(Box.whole((60, 50)))
    y, x = np.indices((60, 50)) + 0.5
    places = [
        (y - box[0]) / (box[2] - box[0]) * SIZE - 0.5,
        (x - box[1]) / (box[3] - box[1]) * SIZE - 0.5,
    ]
    values = ndimage.map_coordinates(mask.astype(float), places, order=1, mode="nearest")
    inside = (y >= box[0]) & (y <= box[2]) & (x >= box[1]) & (x <= box[3])
    clear = np.abs(values - 0.5) > 1e-6
    assert np.array_equal((painted > 0)[clear], ((values >= 0.5) & inside)[clear])


def test_the_better_of_two_has_the_pixels_they_share() -> None:
    painted = detections_of([(0, 0, 6, 6), (4, 4, 10, 10)]).paint(Box.whole((10, 10)))
    assert painted[5, 5] == 1
    assert painted[6, 6] == 2
    assert np.count_nonzero(painted == 1) == 36
    assert np.count_nonzero(painted == 2) == 36 - 4


def test_a_part_of_the_image_is_painted_as_the_whole() -> None:
    generator = np.random.default_rng(2)
    start = generator.uniform(-5, 50, (12, 2))
    boxes = [
        tuple(row) for row in np.concatenate([start, start + generator.uniform(3, 25, (12, 2))], 1)
    ]
    found = detections_of(boxes, generator.random((12, SIZE, SIZE)).astype(np.float32))
    whole = found.paint(Box.whole((64, 64)))
    part = Box((11, 20), (40, 61))
    assert np.array_equal(found.paint(part), whole[part.slices])


def test_only_rivals_of_the_same_class_hit() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 5.0]])
    # The second is of the same window, the third of another class, the fourth overlaps by a half
    # exactly.
    hit = suppressed(boxes, np.array([1, 1, 2, 1]), np.array([0, 0, 1, 1]), 0.5)
    assert hit.tolist() == [False, False, False, False]
    assert suppressed(boxes, np.array([1, 1, 2, 1]), np.array([0, 1, 1, 1]), 0.4).tolist() == [
        False,
        True,
        False,
        True,
    ]
    assert overlaps(boxes, boxes)[0, 3] == 0.5


@given(seed=st.integers(0, 10_000), core=st.sampled_from([32, 50]), halo=st.sampled_from([16, 24]))
def test_windows_find_every_object_once_and_every_region_sees_the_same(
    seed: int, core: int, halo: int
) -> None:
    generator = np.random.default_rng(seed)
    lattice, shape = WindowLattice(core, halo), (150, 130)
    # Objects up to the halo's size, a little apart; each window sees those it holds whole, a little
    # moved and with a score of its own.
    places = [(y, x) for y in range(0, shape[0], halo + 6) for x in range(0, shape[1], halo + 6)]
    objects = np.array(
        [
            (y, x, *(np.array([y, x]) + generator.integers(halo // 2, halo - 3, 2)))
            for y, x in places
        ],
        float,
    )
    objects = objects[(objects[:, 2] <= shape[0]) & (objects[:, 3] <= shape[1])]

    def find(window: Box) -> Detections:
        own = np.random.default_rng([seed, *(side + 10_000 for side in window.start)])
        start = np.array([*window.start, *window.start], float)
        inside = np.all((objects[:, :2] >= window.start) & (objects[:, 2:] <= window.stop), axis=1)
        boxes = objects + own.uniform(-1, 1, objects.shape) - start
        return detections_of(
            [tuple(box) for box in boxes[inside]], None, own.random(int(inside.sum())).tolist()
        )

    whole = lattice.detections(Box.whole(shape), shape, find, 0.5)
    assert len(whole) == len(objects)
    assert np.all(overlaps(objects, whole.boxes).max(axis=1) > 0.5)
    assert np.all(np.diff(whole.scores) <= 0)

    for _ in range(8):
        # Edges of regions a little beyond edges of cores, where the middles of objects may lie on
        # the other side.
        start = core * generator.integers(0, 2, 2) + generator.integers(0, halo // 2, 2)
        stop = start + generator.integers(1, 30, 2)
        region = Box(tuple(start.tolist()), tuple(stop.tolist()))
        reach = region.grow((lattice.tile_halo,) * 2)
        for _, window in lattice.windows(region, shape):
            assert np.all(np.array(window.start) >= reach.start)
            assert np.all(np.array(window.stop) <= reach.stop)
        part = lattice.detections(region, shape, find, 0.5)
        touching = [
            found.boxes[
                np.all(
                    (found.boxes[:, :2] < region.stop) & (found.boxes[:, 2:] > region.start), axis=1
                )
            ]
            for found in (whole, part)
        ]
        assert np.array_equal(*touching)


def test_of_two_windows_the_one_at_home_is_believed() -> None:
    """Its core holds the middle of the box, so it sees most around it. Of what is nobody's, the
    surer stays.
    """
    lattice = WindowLattice(32, 16)

    def seen(home: list[float], other: list[float], column: float) -> list[float]:
        parts = [
            detections_of([(4, column - 5 + moved, 14, column + 5 + moved)], None, scores)
            for moved, scores in ((0, home), (0.2, other))
        ]
        return lattice.merged({(0, 0): parts[0], (0, 1): parts[1]}, (64, 64), 0.5).scores.tolist()

    assert seen([0.25], [0.75], 31) == [0.25]
    assert seen([0.75], [0.25], 31) == [0.75]
    assert seen([0.75], [0.25], 32.5) == [0.25]
    # Beyond the slack of two pixels nobody but the one at home is asked.
    assert seen([0.75], [0.25], 36) == [0.25]
    assert seen([0.25], [0.75], 27) == [0.25]


def test_nothing_found_is_no_detections() -> None:
    found = WindowLattice(32, 8).detections(
        Box.whole((40, 40)), (40, 40), lambda window: detections_of([]), 0.5
    )
    assert len(found) == 0
    assert not found.paint(Box.whole((40, 40))).any()


def test_boxes_outside_of_the_image_are_dropped_and_centres_are_of_what_is_inside() -> None:
    found = detections_of([(-10, -10, -1, 5), (-4, 2, 6, 8), (30, 30, 40, 40)]).clipped((30, 30))
    assert found.boxes.tolist() == [[-4, 2, 6, 8]]
    assert found.centres((30, 30)).tolist() == [[3, 5]]
    assert found.moved((10, 20)).boxes.tolist() == pytest.approx(np.array([[6, 22, 16, 28]]))


def test_windows_are_filled_with_their_own_pixels_mirrored() -> None:
    pixels = np.arange(6, dtype=np.float32).reshape(2, 3, 1)
    filled = mirrored(pixels, Box((0, 0), (2, 3)), Box((-1, -2), (4, 4)))
    assert filled[..., 0].tolist() == [
        [1, 0, 0, 1, 2, 2],
        [1, 0, 0, 1, 2, 2],
        [4, 3, 3, 4, 5, 5],
        [4, 3, 3, 4, 5, 5],
        [1, 0, 0, 1, 2, 2],
    ]
