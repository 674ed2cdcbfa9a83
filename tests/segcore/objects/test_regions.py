"""Regions from edge weights: tiled equals Kruskal's algorithm on the whole image, whatever the
weights and the tiles.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from objects_support import boundary_bytes
from scipy import ndimage

from maskloom.segcore.geometry import Grid
from maskloom.segcore.models.fragments import Fragments
from maskloom.segcore.objects.regions import Edges, find_regions, join_regions

INFINITE = np.float32(np.inf)


def kruskal(edges: Edges, valid: np.ndarray, min_size: int) -> np.ndarray:
    """The definition, as plainly as it can be written: sets of pixels, and one pass over all edges
    in their order.
    """
    height, width = valid.shape
    listed = []
    for y in range(height):
        for x in range(width):
            if x + 1 < width and edges.right[y, x] < INFINITE:
                listed.append((edges.right[y, x], y, x, 0, (y, x + 1)))
            if y + 1 < height and edges.down[y, x] < INFINITE:
                listed.append((edges.down[y, x], y, x, 1, (y + 1, x)))
    region = {(y, x): {(y, x)} for y, x in np.argwhere(valid).tolist()}
    for weight, y, x, _, other in sorted(listed):
        one, two = region[y, x], region[other]
        if one is not two and (weight < 1 or min(len(one), len(two)) < min_size):
            one |= two
            for pixel in two:
                region[pixel] = one
    ids = np.zeros((height, width), np.int64)
    for number, pixels in enumerate({id(pixels): pixels for pixels in region.values()}.values(), 1):
        for pixel in pixels:
            ids[pixel] = number
    return ids


def tiled(
    edges: Edges, valid: np.ndarray, tile: tuple[int, int], min_size: int
) -> tuple[np.ndarray, list[Fragments]]:
    """The regions by tiles; ids in no particular order."""
    grid = Grid(valid.shape, tile)
    found = []
    for each in grid:
        part = each.core.slices
        found.append(
            find_regions(
                Edges(edges.right[part], edges.down[part]),
                valid[part],
                each.core,
                grid.shape,
                min_size,
            )
        )
    groupings = join_regions(grid, [each.boundary for each in found], min_size)
    ids = np.zeros(valid.shape, np.int64)
    next_free = 1 + max(int(each.groups.max(initial=0)) for each in groupings)
    for each, fragments, grouping in zip(grid, found, groupings, strict=True):
        count = len(fragments.class_of)
        assert np.array_equal(
            np.unique(fragments.values[fragments.values > 0]), np.arange(1, count)
        )
        assert (fragments.class_of[1:] == 1).all()
        assert (np.diff(grouping.fragments.astype(int)) > 0).all()
        assert (grouping.groups > 0).all()
        of = np.concatenate([[0], np.arange(next_free, next_free + count - 1)])
        next_free += count
        of[grouping.fragments] = grouping.groups
        ids[each.core.slices] = of[fragments.values]
    return ids, found


def in_order(ids: np.ndarray) -> np.ndarray:
    """The same regions, numbered in the order of their first pixels; 0 stays."""
    values, firsts, inverse = np.unique(ids, return_index=True, return_inverse=True)
    rank = np.empty(len(values), np.int64)
    order = np.argsort(np.where(values == 0, -1, firsts))
    rank[order] = np.arange(len(values)) + (0 if values[0] == 0 else 1)
    return rank[inverse].reshape(ids.shape)


def make_edges(generator: np.random.Generator, valid: np.ndarray, levels: int, low: float) -> Edges:
    """Random weights with `levels` different values from `low` on: the fewer, the more ties."""
    right, down = (low + generator.integers(0, levels, (2, *valid.shape)) / 4).astype(np.float32)
    right[:, -1] = down[-1] = INFINITE
    right[:, :-1][~(valid[:, :-1] & valid[:, 1:])] = INFINITE
    down[:-1][~(valid[:-1] & valid[1:])] = INFINITE
    return Edges(right, down)


@given(
    st.integers(0, 2**32),
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    st.tuples(st.integers(1, 7), st.integers(1, 7)),
    st.integers(1, 30),
    st.sampled_from([1, 2, 5, 1000]),
    st.sampled_from([0.0, 0.5, 0.75, 1.0]),
    st.sampled_from([0.0, 0.1, 0.5]),
)
def test_tiles_give_the_regions_of_the_whole(
    seed: int,
    shape: tuple[int, int],
    tile: tuple[int, int],
    min_size: int,
    levels: int,
    low: float,
    holes: float,
) -> None:
    generator = np.random.default_rng(seed)
    valid = generator.random(shape) >= holes
    edges = make_edges(generator, valid, levels, low)
    expected = in_order(kruskal(edges, valid, min_size))
    for each in (tile, shape, (1, 1), (5, 7)):
        assert np.array_equal(in_order(tiled(edges, valid, each, min_size)[0]), expected), each


@pytest.mark.parametrize("min_size", [1, 7, 40, 5_000])
@pytest.mark.parametrize(("levels", "low"), [(3, 0.75), (1_000_000, 0.9), (6, 0.25)])
def test_larger_pictures_over_many_tiles(min_size: int, levels: int, low: float) -> None:
    generator = np.random.default_rng(min_size + levels)
    valid = ndimage.gaussian_filter(generator.random((60, 70)), 2) > 0.46
    edges = make_edges(generator, valid, levels, low)
    expected = in_order(kruskal(edges, valid, min_size))
    for tile in ((16, 16), (9, 70), (60, 11), (32, 48), (60, 70)):
        assert np.array_equal(in_order(tiled(edges, valid, tile, min_size)[0]), expected), tile


@pytest.mark.parametrize("tile", [(50, 50), (16, 16), (7, 50)])
def test_without_merging_regions_are_the_connected_parts(tile: tuple[int, int]) -> None:
    picture = np.random.default_rng(1).random((50, 50)) > 0.4
    right, down = np.full((2, 50, 50), INFINITE)
    right[:, :-1] = np.where(picture[:, :-1] == picture[:, 1:], 0, 9)
    down[:-1] = np.where(picture[:-1] == picture[1:], 0, 9)
    ids = tiled(Edges(right, down), np.ones((50, 50), bool), tile, 1)[0]
    parts, count = ndimage.label(picture)
    others = ndimage.label(~picture)[0]
    assert np.array_equal(in_order(ids), in_order(np.where(picture, parts, others + count)))


def test_small_regions_go_where_the_edge_is_lightest_then_first() -> None:
    values = np.array([[0, 0, 0, 5, 9, 9, 9]])
    right = np.full((1, 7), INFINITE)
    right[:, :-1] = np.abs(np.diff(values))
    edges, valid = Edges(right, np.full((1, 7), INFINITE)), np.ones((1, 7), bool)
    assert tiled(edges, valid, (1, 7), 3)[0][0, 3] == tiled(edges, valid, (1, 7), 3)[0][0, 4]
    right[0, 2] = right[0, 3] = 4
    for tile in ((1, 7), (1, 1), (1, 3), (1, 4)):
        ids = tiled(edges, valid, tile, 3)[0][0]
        assert ids[3] == ids[2]
        assert ids[3] != ids[4]


def test_small_regions_without_neighbours_stay() -> None:
    valid = np.array([[True, False, True, True]])
    none = np.full((1, 4), INFINITE)
    right = none.copy()
    right[0, 2] = 0
    for tile in ((1, 4), (1, 1), (1, 3)):
        assert in_order(tiled(Edges(right, none), valid, tile, 99)[0]).tolist() == [[1, 0, 2, 2]]


def test_boundaries_grow_with_the_border_not_with_the_area() -> None:
    generator = np.random.default_rng(2)
    sizes = {}
    for side in (64, 128, 256):
        # Noise at its worst: every edge has a weight of its own, and no two pixels are alike.
        edges = make_edges(generator, np.ones((3 * side, 3 * side), bool), 2**20, 1.0)
        _, found = tiled(edges, np.ones((3 * side, 3 * side), bool), (side, side), 20)
        sizes[side] = boundary_bytes(found[4].boundary)
    assert sizes[256] < 2.5 * sizes[128] < 6 * sizes[64]
