"""Every window of every level can be read, and shows the place that it names."""

from __future__ import annotations

import numpy as np
import pytest

from maskloom.segcore.geometry import Box, Grid
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.viewing.pyramids import Held, Level, Pyramid

STEPS = [np.floor, np.ceil]


@pytest.mark.parametrize("rounded", STEPS, ids=["down", "up"])
@pytest.mark.parametrize("factor", [2, 4, 3])
@pytest.mark.parametrize("shape", [(1025, 770), (1031, 519), (513, 1537)])
def test_all_tiles_of_a_stored_level_show_their_place(shape, factor, rounded):
    """Pixels hold their own row and column, so each tile can be compared with where it lies."""
    spec = RasterSpec("x", "picture", shape, (1, 2), "float32", shape, "", 2)
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    whole = np.stack([rows, columns], axis=-1)
    small = tuple(int(rounded(n / factor)) for n in shape)
    near = [((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip(small, shape, strict=True)]
    levels = [whole, whole[np.ix_(*near)]]
    pyramid = Pyramid(
        spec,
        "mask",
        tuple(Level(each.shape[:2], Held(each, np.ones(each.shape[:2], bool))) for each in levels),
        (),
    )
    for level in range(pyramid.count):
        for tile in Grid(pyramid.shape(level), (128, 128)):
            box: Box = tile.core
            pixels, valid = pyramid.read(level, box)
            assert pixels.shape[:2] == valid.shape == box.shape
            for axis in range(2):
                middle = (np.arange(box.start[axis], box.stop[axis]) + 0.5) * 2**level - 0.5
                found = pixels[..., axis].mean(axis=1 - axis)
                # A pixel of a level holds one of some factor x 2**level pixels.
                assert np.abs(found - middle).max() <= factor * 2**level + 2
