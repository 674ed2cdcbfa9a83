"""Boxes, tiles and grids: their algebra, and that the cores of any grid partition the raster."""

from __future__ import annotations

import dataclasses
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.geometry import Box, Grid, Tile, Tiling


def boxes(axes: int = 2) -> st.SearchStrategy[Box]:
    edges = st.tuples(st.integers(-20, 20), st.integers(0, 20))
    return st.lists(edges, min_size=axes, max_size=axes).map(
        lambda ends: Box(tuple(a for a, _ in ends), tuple(a + n for a, n in ends))
    )


@st.composite
def grids(draw: st.DrawFn) -> Grid:
    axes = draw(st.integers(1, 3))
    longest = (40, 15, 7)[axes - 1]
    sides = [
        st.lists(st.integers(low, high), min_size=axes, max_size=axes).map(tuple)
        for low, high in ((1, longest), (1, 9))
    ]
    return Grid(*(draw(side) for side in sides), draw(st.integers(0, 6)), draw(st.booleans()))


def pixels(box: Box) -> set[tuple[int, ...]]:
    """The pixels of a box, one by one."""
    return {
        tuple(int(i) + a for i, a in zip(index, box.start, strict=True))
        for index in np.ndindex(*box.shape)
    }


# ---- boxes
# --------------------------------------------------------------------------------------------------


@given(boxes(), boxes())
def test_the_common_part_holds_the_common_pixels(a: Box, b: Box) -> None:
    assert pixels(a & b) == pixels(a) & pixels(b)
    assert pixels(b & a) == pixels(a & b)


@given(boxes(), boxes(), boxes())
def test_the_common_part_of_three_does_not_depend_on_the_order(a: Box, b: Box, c: Box) -> None:
    assert pixels((a & b) & c) == pixels(a & (b & c))


@given(boxes())
def test_a_box_is_its_own_common_part(a: Box) -> None:
    assert a & a == a
    assert a & a.grow((3, 2)) == a


@given(boxes())
def test_size_and_shape_count_the_pixels(a: Box) -> None:
    assert a.size == len(pixels(a))
    assert a.shape == tuple(np.subtract(a.stop, a.start))


@given(
    boxes(),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
    st.tuples(st.integers(0, 5), st.integers(0, 5)),
)
def test_growing_twice_is_growing_by_the_sum(
    a: Box, m: tuple[int, int], n: tuple[int, int]
) -> None:
    assert a.grow(m).grow(n) == a.grow((m[0] + n[0], m[1] + n[1]))
    assert a.grow(m).shape == (a.shape[0] + 2 * m[0], a.shape[1] + 2 * m[1])
    assert a.grow((0, 0)) == a


@given(boxes(3), boxes(3))
def test_coordinates_relative_to_a_box_keep_the_shape_and_go_back(a: Box, outer: Box) -> None:
    inner = a.relative_to(outer)

    assert inner.shape == a.shape
    assert a.relative_to(a).start == (0, 0, 0)
    assert inner.relative_to(Box.whole((1, 1, 1)).relative_to(outer)).start == a.start


@given(grids(), st.data())
def test_slices_cut_the_pixels_of_the_box(grid: Grid, data: st.DataObject) -> None:
    tile = grid[data.draw(st.integers(0, len(grid) - 1))]
    indices = np.stack(np.indices(grid.shape), axis=-1)

    assert {
        tuple(index) for index in indices[tile.core.slices].reshape(-1, len(grid.shape))
    } == pixels(tile.core)


@pytest.mark.parametrize(("start", "stop"), [((0, 0), (1,)), ((0, 5), (3, 4)), ((1,), (0,))])
def test_a_box_that_is_none_is_refused(start: tuple[int, ...], stop: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="start"):
        Box(start, stop)


# ---- grids
# --------------------------------------------------------------------------------------------------


@given(grids())
def test_cores_cover_every_pixel_once(grid: Grid) -> None:
    hits = np.zeros(grid.shape, int)
    for tile in grid:
        hits[tile.core.slices] += 1

    assert (hits == 1).all()


@given(grids())
def test_reads_hold_their_cores_and_stay_in_the_raster(grid: Grid) -> None:
    whole = Box.whole(grid.shape)
    for tile in grid:
        assert tile.core & tile.read == tile.core
        assert tile.read & whole == tile.read
        assert tile.read == tile.core.grow(grid.margin) & whole


@given(grids())
def test_trimming_what_was_read_gives_the_core(grid: Grid) -> None:
    raster = np.arange(np.prod(grid.shape) * 2).reshape(*grid.shape, 2)
    for tile in grid:
        np.testing.assert_array_equal(tile.trim(raster[tile.read.slices]), raster[tile.core.slices])


@given(grids())
def test_trimmed_tiles_put_the_raster_together_again(grid: Grid) -> None:
    raster = np.arange(np.prod(grid.shape)).reshape(grid.shape)
    copy = np.full_like(raster, -1)
    for tile in grid:
        copy[tile.core.slices] = tile.trim(raster[tile.read.slices])

    np.testing.assert_array_equal(copy, raster)


@given(grids())
def test_a_grid_is_a_sequence_in_row_order(grid: Grid) -> None:
    tiles = list(grid)

    assert len(tiles) == len(grid) == np.prod(grid.counts)
    assert [tile.index for tile in tiles] == list(np.ndindex(*grid.counts))
    assert [grid[i] for i in range(len(grid))] == tiles
    assert [grid[i - len(grid)] for i in range(len(grid))] == tiles
    assert grid[1::2] == tiles[1::2]
    assert grid[::-1] == tiles[::-1]
    for outside in (len(grid), -len(grid) - 1):
        with pytest.raises(IndexError, match=f"tile {outside} of a grid of {len(grid)} tiles"):
            grid[outside]


@given(grids())
def test_cores_have_the_tile_s_shape_except_at_the_far_border(grid: Grid) -> None:
    for tile in grid:
        for axis, (side, last) in enumerate(zip(tile.core.shape, grid.counts, strict=True)):
            assert side == grid.tile[axis] or (
                tile.index[axis] == last - 1 and 0 < side < grid.tile[axis]
            )


@pytest.mark.parametrize(
    ("shape", "tile", "halo"),
    [
        ((5, 5), (4,), 0),
        ((5, 5), (0, 4), 0),
        ((5, 0), (4, 4), 0),
        ((5, 5), (4, 4), -1),
        ((5,), (4, 4), 0),
    ],
)
def test_a_grid_that_is_none_is_refused(
    shape: tuple[int, ...], tile: tuple[int, ...], halo: int
) -> None:
    with pytest.raises(ValueError, match="tile"):
        Grid(shape, tile, halo)


def test_values_compare_hash_pickle_and_do_not_change() -> None:
    grid = Grid((50, 40), (16, 16), 3)

    assert pickle.loads(pickle.dumps(grid)) == grid
    assert {grid[0], Grid((50, 40), (16, 16), 3)[0]} == {grid[0]}
    with pytest.raises(dataclasses.FrozenInstanceError):
        grid.halo = 1  # type: ignore[misc]


def test_planes_do_not_see_each_other() -> None:
    grid = Grid((9, 20, 20), (2, 6, 6), 3, planar=True)

    assert grid.margin == (0, 3, 3)
    assert grid[0].read == Box((0, 0, 0), (2, 9, 9))
    assert Grid((20, 20), (6, 6), 3, planar=True).margin == (3, 3)


def test_the_one_tile_of_an_uncut_raster() -> None:
    for shape in ((7,), (5, 4), (3, 5, 4)):
        assert Tile.whole(shape) == Grid(shape, shape, 2)[0]


# ---- tilings
# --------------------------------------------------------------------------------------------------


def test_a_side_cuts_images_into_squares_and_volumes_into_cubes_of_about_as_many_voxels() -> None:
    for side in (16, 64, 256, 512, 1024, 2048, 4096, 16384):
        tiling = Tiling(side)
        cube = tiling.tile((300, 400, 500))

        assert tiling.tile((400, 500)) == (side, side)
        assert len(set(cube)) == 1
        assert cube[0] % 16 == 0
        assert cube == (16, 16, 16) or np.prod(cube) <= tiling.pixels
        assert (cube[0] + 16) ** 3 > tiling.pixels
        assert tiling.tile((300, 400, 500), planar=True) == (1, side, side)
    assert Tiling(512).tile((9, 9, 9)) == (64, 64, 64)


def test_a_side_for_each_axis_is_taken_as_it_is() -> None:
    tiling = Tiling((8, 64, 32))

    assert tiling.grid((20, 100, 100), halo=2) == Grid((20, 100, 100), (8, 64, 32), 2)
    assert tiling.grid((20, 100, 100), 2, planar=True) == Grid(
        (20, 100, 100), (1, 64, 32), 2, planar=True
    )
    assert tiling.pixels == 8 * 64 * 32
    assert tiling.suits((1, 1, 1))
    assert not tiling.suits((100, 100))
    with pytest.raises(ValueError, match=r"\(8, 64, 32\).*\(100, 100\)"):
        tiling.tile((100, 100))
