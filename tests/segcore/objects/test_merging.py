"""Links join the fragments that they name, as SciPy labels the whole image."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.geometry import Grid
from maskloom.segcore.models.fragments import TileBoundary
from maskloom.segcore.objects.faces import Faces
from maskloom.segcore.objects.merging import Nodes, connected, join_links

sides = st.integers(1, 13)
grids = st.builds(Grid, st.tuples(sides, sides), st.tuples(st.integers(1, 6), st.integers(1, 6)))


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
    found = nodes.equivalences(np.arange(5), np.arange(5).astype(np.uint16))
    assert [each.fragments.tolist() for each in found] == [[2, 5], [], [1, 7, 9]]
    assert found[2].groups.tolist() == [2, 3, 4]


def _linked(
    mask: np.ndarray, grid: Grid, width: int
) -> tuple[list[np.ndarray], list[TileBoundary]]:
    """Fragments of the tiles, which link over their right and lower edges to the pixel that lies
    there, be it background or not.
    """
    fragments, boundaries = [], []
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
        faces = Faces.of(labels, width)
        taking_part = np.unique(
            np.concatenate([linked[:, 0], *(slab.ravel() for slab in faces.slabs)])
        ).astype(np.uint32)
        taking_part = taking_part[taking_part > 0]
        fragments.append(labels)
        boundaries.append(
            {
                "faces": faces,
                "fragments": taking_part,
                "class_of": (10 * len(boundaries) + taking_part).astype(np.uint16),
                "link_fragment": linked[:, 0].astype(np.uint32),
                "link_place": np.ravel_multi_index((linked[:, 1], linked[:, 2]), grid.shape),
            }
        )
    return fragments, boundaries


@settings(deadline=None)
@given(grids, st.integers(1, 3), st.integers(0, 999))
def test_links_join_what_scipy_labels_as_one(grid: Grid, width: int, seed: int) -> None:
    mask = np.random.default_rng(seed).random(grid.shape) < 0.6
    fragments, boundaries = _linked(mask, grid, width)
    out = np.zeros(grid.shape, np.int64)
    loners = 10**6
    classes: dict[int, list[tuple[bool, int]]] = {}
    joined = join_links(grid, boundaries)
    for number, (tile, labels, boundary, found) in enumerate(
        zip(grid, fragments, boundaries, joined, strict=True)
    ):
        assert np.array_equal(found.fragments, boundary["fragments"])
        names = loners + 100 * number + np.arange(labels.max(initial=0) + 1)
        names[found.fragments] = found.groups
        names[0] = 0
        out[tile.core.slices] = names[labels]
        for fragment, group, own in zip(
            found.fragments, found.groups, boundary["class_of"], strict=True
        ):
            pointing = any(
                mask.ravel()[place]
                for one, place in zip(
                    boundary["link_fragment"], boundary["link_place"], strict=True
                )
                if one == fragment
            )
            classes.setdefault(int(group), []).append((pointing, int(own)))
    whole = ndimage.label(mask)[0]
    pairs = {(a, b) for a, b in zip(out.ravel().tolist(), whole.ravel().tolist(), strict=True)}
    assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs})
    for found in joined:
        for group, chosen in zip(found.groups, found.class_of, strict=True):
            members = classes[int(group)]
            first = next((own for pointing, own in members if not pointing), members[0][1])
            assert chosen == first
