"""Two passes give every tile the final ids of its pixels and of those around it, in images and
volumes.
"""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.geometry import Grid
from maskloom.segcore.models.fragments import Fragments
from maskloom.segcore.objects import two_pass
from maskloom.segcore.objects.components import Components
from maskloom.segcore.objects.two_pass import RING, join_tiles, pack_labels, relabel, with_ring

grids = st.integers(2, 3).flatmap(
    lambda n: st.builds(
        Grid, st.tuples(*[st.integers(1, 9)] * n), st.tuples(*[st.integers(1, 5)] * n)
    )
)


@pytest.mark.parametrize("unpacked", [1, 2**25], ids=["one", "all"])
@settings(deadline=None)
@given(grid=grids, seed=st.integers(0, 999))
def test_tiles_know_their_ids_and_those_around_them(unpacked: int, grid: Grid, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(two_pass, "_UNPACKED_BYTES", unpacked)
        check_ids(grid, seed)


def check_ids(grid: Grid, seed: int) -> None:
    generator = np.random.default_rng(seed)
    mask = generator.random(grid.shape) < 0.5
    valid = generator.random(grid.shape) < 0.9
    values = np.where(valid, mask, 255).astype(np.uint8)
    parts = Components((1,), 8 if mask.ndim == 2 else 26)
    expected = ndimage.label(mask & valid, np.ones((3,) * mask.ndim))[0]
    tiles = [
        pack_labels(
            parts.fragment(values[tile.core.slices], tile, grid.shape),
            valid[tile.core.slices],
            tile,
            grid.shape,
            {"index": tile.index},
        )
        for tile in grid
    ]
    relabellings = list(join_tiles(parts, grid, tiles, "memory"))
    surrounded = np.pad(expected, RING)
    for tile, packed, relabelling in zip(grid, tiles, relabellings, strict=True):
        found = relabel(packed.labels, relabelling)
        core = tile.core.slices
        assert np.array_equal(found.ids, expected[core])
        assert np.array_equal(found.valid, valid[core])
        classes = np.where(valid[core], expected[core] > 0, 255)
        assert np.array_equal(found.classes(255, "uint8"), classes)
        assert found.summary == {"index": tile.index}
        around = tuple(
            slice(a, b + 2 * RING) for a, b in zip(tile.core.start, tile.core.stop, strict=True)
        )
        ringed = with_ring(found.ids, relabelling.ring, tile, grid.shape)
        assert np.array_equal(ringed, surrounded[around])


@pytest.mark.nightly
@pytest.mark.parametrize("fill_holes", [False, True])
def test_the_memory_of_joining_does_not_grow_with_the_volume(fill_holes, monkeypatch) -> None:
    """As long as there is little on the sides of the tiles."""
    monkeypatch.setattr(two_pass, "_UNPACKED_BYTES", 2**17)
    parts = Components((1,), fill_holes=fill_holes)
    peaks = []
    for depth in (8, 64):
        grid = Grid((16 * depth, 64, 64), (16, 32, 32))
        empty = np.zeros(grid.tile, np.uint8)
        tiles = [
            pack_labels(parts.fragment(empty, tile, grid.shape), empty == 0, tile, grid.shape)
            for tile in grid
        ]
        tracemalloc.start()
        for each in join_tiles(parts, grid, tiles, "memory"):
            assert not each.ring.any()
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def test_fragments_without_a_class_are_refused() -> None:
    grid = Grid((2, 2), (2, 2))
    fragments = Fragments(np.array([[1, 2], [2, 2]], np.uint32), np.zeros(2, np.uint16), {})
    with pytest.raises(ValueError, match="fragments up to 2, and classes of 1"):
        pack_labels(fragments, np.ones((2, 2), bool), grid[0], grid.shape)
