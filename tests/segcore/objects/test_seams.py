"""Borders tell the pixel that stands there, crossings are all pairs over seams, links join what
they name.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.geometry import Grid
from maskloom.segcore.models.fragments import TileBoundary
from maskloom.segcore.objects.seams import (
    Borders,
    Nodes,
    border,
    border_index,
    connected,
    crossings,
    join_links,
)

sides = st.integers(1, 13)
grids = st.builds(Grid, st.tuples(sides, sides), st.tuples(st.integers(1, 6), st.integers(1, 6)))


@given(st.tuples(sides, sides), st.integers(1, 4))
def test_a_border_holds_each_pixel_of_the_frame_once(shape: tuple[int, int], width: int) -> None:
    values = np.arange(1, shape[0] * shape[1] + 1).reshape(shape)
    row, column = (places.ravel() for places in np.indices(shape))
    frame = np.minimum.reduce([row, column, shape[0] - 1 - row, shape[1] - 1 - column]) < width
    flat = border(values, width)
    index = border_index(shape, width, row, column)
    assert np.array_equal(np.sort(flat[index[frame]]), np.sort(values.ravel()[frame]))
    assert np.array_equal(flat[index[frame]], values.ravel()[frame])
    if min(shape) > 2 * width:
        assert (index[~frame] == -1).all()
        assert flat.size == frame.sum()


@given(grids, st.integers(1, 3), st.integers(0, 99))
def test_borders_find_any_pixel_near_a_seam(grid: Grid, width: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 99, grid.shape).astype(np.uint32)
    borders = Borders(grid, width, [border(values[tile.core.slices], width) for tile in grid])
    number = np.zeros(grid.shape, int)
    near = np.zeros(grid.shape, bool)
    for i, tile in enumerate(grid):
        number[tile.core.slices] = i
        near[tile.core.slices] = True
        near[
            tuple(
                slice(a + width, max(a + width, b - width))
                for a, b in zip(tile.core.start, tile.core.stop, strict=True)
            )
        ] = False
    row, column = np.nonzero(near)
    order = np.random.default_rng(seed).permutation(len(row))
    tiles, found = borders.at(row[order], column[order])
    assert np.array_equal(found, values[row[order], column[order]])
    assert np.array_equal(tiles, number[row[order], column[order]])
    if not near.all():
        with pytest.raises(ValueError, match=f"further than {width}"):
            borders.at(*(place[:1] for place in np.nonzero(~near)))


def test_nothing_asked_gives_nothing() -> None:
    none = np.zeros(0, np.int64)
    tiles, found = Borders(Grid((4, 4), (2, 4)), 1, [np.zeros(8, np.uint32)] * 2).at(none, none)
    assert tiles.size == found.size == 0


@given(grids, st.booleans())
def test_crossings_are_all_pairs_of_neighbours_over_seams(grid: Grid, diagonal: bool) -> None:
    number = np.zeros(grid.shape, int)
    for i, tile in enumerate(grid):
        number[tile.core.slices] = i
    listed = [
        (one, other, *map(int, pixels))
        for one, other, places in crossings(grid, diagonal)
        for pixels in zip(*places, strict=True)
    ]
    expected = set()
    for y, x in np.ndindex(grid.shape):
        for dy, dx in ((0, 1), (1, 0), *(((1, 1), (1, -1)) if diagonal else ())):
            v, u = y + dy, x + dx
            if 0 <= v < grid.shape[0] and 0 <= u < grid.shape[1] and number[y, x] != number[v, u]:
                expected.add(frozenset([(y, x, number[y, x]), (v, u, number[v, u])]))
    assert {
        frozenset([(y, x, one), (v, u, other)]) for one, other, y, x, v, u in listed
    } == expected
    assert len(listed) == len(expected)


def test_connected_components_of_a_chain_and_a_loner() -> None:
    groups = connected(5, np.array([0, 1]), np.array([1, 4]))
    assert len(set(groups[[0, 1, 4]])) == 1
    assert len(set(groups)) == 3


def test_nodes_are_numbered_through_the_tiles() -> None:
    nodes = Nodes(
        [np.array([2, 5], np.uint32), np.zeros(0, np.uint32), np.array([1, 7, 9], np.uint32)]
    )
    assert nodes.offsets.tolist() == [0, 2, 2, 5]
    assert nodes.of(2, np.array([9, 1], np.uint32)).tolist() == [4, 2]
    groupings = nodes.groupings(np.arange(5), np.arange(5).astype(np.uint16))
    assert [grouping.fragments.tolist() for grouping in groupings] == [[2, 5], [], [1, 7, 9]]
    assert groupings[2].groups.tolist() == [2, 3, 4]


def _linked(
    mask: np.ndarray, grid: Grid, width: int
) -> tuple[list[np.ndarray], list[TileBoundary]]:
    """Fragments of the tiles, which link over their right and lower edges to the pixel that lies
    there, be it background or not.
    """
    fragments, seams = [], []
    for tile in grid:
        labels = ndimage.label(mask[tile.core.slices])[0].astype(np.uint32)
        links = []
        (top, left), (bottom, right) = tile.core.start, tile.core.stop
        if right < grid.shape[1]:
            links += [(labels[y - top, -1], y, right) for y in range(top, bottom)]
        if bottom < grid.shape[0]:
            links += [(labels[-1, x - left], bottom, x) for x in range(left, right)]
        links = [link for link in links if link[0] > 0]
        linked = np.array(links, np.int64).reshape(-1, 3)
        frame = border(labels, width)
        taking_part = np.unique(np.concatenate([frame[frame > 0], linked[:, 0].astype(np.uint32)]))
        fragments.append(labels)
        seams.append(
            {
                "border": frame,
                "fragments": taking_part,
                "class_of": (10 * len(seams) + taking_part).astype(np.uint16),
                "link_fragment": linked[:, 0].astype(np.uint32),
                "link_row": linked[:, 1],
                "link_column": linked[:, 2],
            }
        )
    return fragments, seams


@given(grids, st.integers(1, 3), st.integers(0, 999))
def test_links_join_what_scipy_labels_as_one(grid: Grid, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random(grid.shape) < 0.6
    fragments, seams = _linked(mask, grid, width)
    out = np.zeros(grid.shape, np.int64)
    loners = 10**6
    classes: dict[int, list[tuple[bool, int]]] = {}
    for number, (tile, labels, seam, grouping) in enumerate(
        zip(grid, fragments, seams, join_links(grid, seams, width), strict=True)
    ):
        assert np.array_equal(grouping.fragments, seam["fragments"])
        names = loners + 100 * number + np.arange(labels.max(initial=0) + 1)
        names[grouping.fragments] = grouping.groups
        names[0] = 0
        out[tile.core.slices] = names[labels]
        for fragment, group, own in zip(
            grouping.fragments, grouping.groups, seam["class_of"], strict=True
        ):
            pointing = any(
                mask[y, x]
                for f, y, x in zip(
                    seam["link_fragment"], seam["link_row"], seam["link_column"], strict=True
                )
                if f == fragment
            )
            classes.setdefault(int(group), []).append((pointing, int(own)))
    whole = ndimage.label(mask)[0]
    pairs = {(a, b) for a, b in zip(out.ravel().tolist(), whole.ravel().tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    for grouping in join_links(grid, seams, width):
        for group, chosen in zip(grouping.groups, grouping.class_of, strict=True):
            members = classes[int(group)]
            first = next((own for pointing, own in members if not pointing), members[0][1])
            assert chosen == first
