"""Faces hold what is near the sides of a core, and neighbours are all pairs of tiles that touch, in
images and volumes.
"""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maskloom.segcore.geometry import Grid
from maskloom.segcore.objects.faces import Faces, neighbours, values_at

axes = st.integers(2, 3)
shapes = axes.flatmap(lambda n: st.tuples(*[st.integers(1, 9)] * n))
grids = axes.flatmap(
    lambda n: st.builds(
        Grid, st.tuples(*[st.integers(1, 9)] * n), st.tuples(*[st.integers(1, 4)] * n)
    )
)


def near_a_side(shape: tuple[int, ...], width: int) -> np.ndarray:
    """True for pixels of a core of this shape that are less than `width` from a side."""
    index = np.indices(shape)
    return np.any(
        [np.minimum(at, n - 1 - at) < width for at, n in zip(index, shape, strict=True)], axis=0
    )


@settings(deadline=None)
@given(shapes, st.integers(1, 4))
def test_faces_hold_each_pixel_near_a_side(shape: tuple[int, ...], width: int) -> None:
    values = np.arange(1, np.prod(shape) + 1).reshape(shape)
    faces, near = Faces.of(values, width), near_a_side(shape, width)
    assert np.array_equal(faces.at(np.nonzero(near)), values[near])
    assert all(
        slab.shape == (*shape[:axis], min(width, shape[axis]), *shape[axis + 1 :])
        for axis, slab in zip(np.repeat(range(len(shape)), 2), faces.slabs, strict=True)
    )
    assert np.array_equal(faces.apply(np.negative).at(np.nonzero(near)), -values[near])
    if not near.all():
        with pytest.raises(ValueError, match=f"within {min(width, *shape)} of"):
            faces.at(np.nonzero(~near))


@settings(deadline=None)
@given(grids)
def test_neighbours_face_each_other(grid: Grid) -> None:
    """The pixels that two tiles turn to each other are, over all pairs, the pairs of pixels that
    touch and belong to different tiles.
    """
    number = np.zeros(grid.shape, int)
    place = np.arange(number.size).reshape(grid.shape)
    for i, tile in enumerate(grid):
        number[tile.core.slices] = i
    faces = [Faces.of(place[tile.core.slices]) for tile in grid]
    found, pairs = set(), []
    for one, other, step in neighbours(grid):
        pairs.append((one, other))
        ours = faces[one].towards(step)
        theirs = faces[other].towards(tuple(-by for by in step))
        assert ours.shape == theirs.shape
        for a, b in product(ours.ravel().tolist(), theirs.ravel().tolist()):
            apart = np.subtract(np.unravel_index(a, grid.shape), np.unravel_index(b, grid.shape))
            if np.abs(apart).max() == 1:
                found.add(frozenset((a, b)))
    assert len(set(map(frozenset, pairs))) == len(pairs)
    assert all(one < other for one, other in pairs)
    expected = set()
    for step in product((-1, 0, 1), repeat=len(grid.shape)):
        for index in np.ndindex(grid.shape):
            beside = tuple(np.add(index, step))
            inside = all(0 <= at < n for at, n in zip(beside, grid.shape, strict=True))
            if inside and number[index] != number[beside]:
                expected.add(frozenset((int(place[index]), int(place[beside]))))
    assert found == expected


def test_neighbours_within_a_reach_are_all_tiles_that_near() -> None:
    grid = Grid((10, 12), (3, 2))
    index = list(np.ndindex(grid.counts))
    expected = {
        (i, j)
        for i, j in product(range(len(grid)), repeat=2)
        if i < j and all(abs(np.subtract(index[i], index[j])) <= (1, 2))
    }
    assert {(one, other) for one, other, _ in neighbours(grid, (1, 2))} == expected


@settings(deadline=None)
@given(grids, st.integers(1, 3), st.integers(0, 99))
def test_values_are_found_by_place(grid: Grid, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 99, grid.shape).astype(np.uint32)
    faces = [Faces.of(values[tile.core.slices], width) for tile in grid]
    number, near = np.zeros(grid.shape, int), np.zeros(grid.shape, bool)
    for i, tile in enumerate(grid):
        number[tile.core.slices] = i
        near[tile.core.slices] = near_a_side(tile.core.shape, width)
    places = np.random.default_rng(seed).permutation(np.flatnonzero(near))
    tiles, found = values_at(grid, faces, places)
    assert np.array_equal(found, values.ravel()[places])
    assert np.array_equal(tiles, number.ravel()[places])
    if not near.all():
        with pytest.raises(ValueError, match="further inside"):
            values_at(grid, faces, np.flatnonzero(~near)[:1])


def test_nothing_asked_gives_nothing() -> None:
    faces = [Faces.of(np.zeros((2, 4), np.uint32))] * 2
    tiles, found = values_at(Grid((4, 4), (2, 4)), faces, np.zeros(0, np.int64))
    assert tiles.size == found.size == 0
