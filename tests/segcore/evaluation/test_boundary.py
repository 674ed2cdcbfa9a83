"""Boundary F agrees with an exact distance transform, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.evaluation.boundary import Boundary, halo_of
from maskloom.segcore.geometry import Box, Grid, Tile

CLASSES = 3


def blobs(seed: int, shape: tuple[int, int], void: float = 0.0) -> np.ndarray:
    """Smooth regions of all classes."""
    random = np.random.default_rng(seed)
    fields = ndimage.gaussian_filter(random.normal(size=(CLASSES, *shape)), (0, 3, 3))
    labels = fields.argmax(axis=0)
    labels[ndimage.gaussian_filter(random.normal(size=shape), 2) > (0.12 if void else 9)] = -1
    return labels


def whole(truth: np.ndarray, predicted: np.ndarray, tolerance: float) -> Boundary:
    box = Box.whole(truth.shape)
    return Boundary.of(truth, predicted, Tile((0, 0), box, box), CLASSES, tolerance)


def by_distance(truth: np.ndarray, predicted: np.ndarray, tolerance: float) -> np.ndarray:
    """The counts by the letter of the definition."""
    ignored = (truth < 0) | (predicted < 0)
    counts = np.zeros((CLASSES, 4), int)
    for i in range(CLASSES):
        edges = []
        for labels in (predicted, truth):
            edge = np.zeros(labels.shape, bool)
            for y, x in np.argwhere((labels == i) & ~ignored):
                for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                    inside = 0 <= v < labels.shape[0] and 0 <= u < labels.shape[1]
                    edge[y, x] |= inside and not ignored[v, u] and labels[v, u] != i
            edges.append(edge)
        near = [
            ndimage.distance_transform_edt(~edge) <= tolerance if edge.any() else edge
            for edge in edges
        ]
        mine, other = edges
        counts[i] = [mine.sum(), (mine & near[1]).sum(), other.sum(), (other & near[0]).sum()]
    return counts


def test_a_volume_is_compared_plane_by_plane() -> None:
    planes = [(blobs(seed, (20, 26), 1), blobs(seed + 9, (20, 26))) for seed in range(4)]
    truth, predicted = (np.stack(side) for side in zip(*planes, strict=True))
    grid = Grid(truth.shape, (3, 8, 8), halo_of(2), planar=True)
    found = Boundary.none(CLASSES)
    for tile in grid:
        place = tile.read.slices
        found += Boundary.of(truth[place], predicted[place], tile, CLASSES, 2)
    expected = sum(by_distance(*plane, 2) for plane in planes)
    np.testing.assert_array_equal(found.counts, expected)


@given(st.integers(0, 10**6), st.sampled_from([0, 0.5, 1, 1.5, 2, 3, 4.3]), st.booleans())
def test_agrees_with_a_distance_transform_in_any_tiles(
    seed: int, tolerance: float, void: bool
) -> None:
    truth, predicted = blobs(seed, (37, 45), void), blobs(seed + 1, (37, 45))
    predicted[:4, :4] = -1
    expected = by_distance(truth, predicted, tolerance)
    assert expected[:, 0].any()
    np.testing.assert_array_equal(whole(truth, predicted, tolerance).counts, expected)
    for side in (16, 23):
        parts = Boundary.none(CLASSES)
        for tile in Grid(truth.shape, (side, side), halo_of(tolerance)):
            parts += Boundary.of(
                truth[tile.read.slices], predicted[tile.read.slices], tile, CLASSES, tolerance
            )
        np.testing.assert_array_equal(parts.counts, expected)


@pytest.mark.parametrize(("shift", "expected"), [(0, 1.0), (2, 1.0), (3, 0.0)])
def test_a_straight_edge_within_the_tolerance_counts(shift: int, expected: float) -> None:
    truth, predicted = np.zeros((20, 30), int), np.zeros((20, 30), int)
    truth[:, 10:] = predicted[:, 10 + shift :] = 1
    found = whole(truth, predicted, 2)
    np.testing.assert_allclose(found.f, [expected, expected, np.nan])


def test_the_border_of_the_image_and_void_are_no_boundary() -> None:
    truth = np.ones((8, 8), int)
    truth[:, 4] = -1
    assert not whole(truth, np.ones((8, 8), int), 2).counts.any()
    # A class that one side alone has: nothing is found.
    predicted = np.ones((8, 8), int)
    predicted[2:4, 1:3] = 0
    np.testing.assert_allclose(whole(np.ones((8, 8), int), predicted, 2).f, [0, 0, np.nan])
