"""Volumes: planes are those of the array, and only the blocks that they touch are read."""

from __future__ import annotations

import numpy as np
import pytest

from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import Space
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.viewing import volumes
from maskloom.segcore.viewing.readers import Readers
from maskloom.segcore.viewing.volumes import Volume, planes_of

SHAPE = (9, 14, 11)


class Recorded:
    """A reader of an array that counts how often each voxel was read."""

    def __init__(self, voxels: np.ndarray) -> None:
        self.voxels, self.times = voxels, np.zeros(voxels.shape[:3], int)

    def read(self, box: Box):
        self.times[box.slices] += 1
        voxels = self.voxels[box.slices]
        return voxels, voxels[..., 0] % 7 > 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("chunks", [(1, 1, 11), (1, 14, 11), (4, 4, 4), SHAPE])
@pytest.mark.parametrize("most", [1, 10**6])
def test_planes_are_those_of_the_array_and_no_voxel_is_read_twice(chunks, most, monkeypatch):
    monkeypatch.setattr(volumes, "_BLOCK", 32)
    monkeypatch.setattr(volumes, "_SLAB", most)
    voxels = np.random.default_rng(1).integers(0, 99, (*SHAPE, 2)).astype(np.int16)
    spec = RasterSpec(
        "x", "numpy", SHAPE, (1, 2), "int16", chunks, "", 2, space=Space(axes=("z", "y", "x"))
    )
    recorded = Recorded(voxels)
    block = volumes._block(SHAPE, chunks)
    assert all(n % m == 0 or n == size for n, m, size in zip(block, chunks, SHAPE, strict=True))
    volume = Volume(spec, Readers(lambda: recorded, 1), block, np.zeros([9, 14, 11], bool))
    for plane in planes_of(spec):
        before = recorded.times.copy()
        index = SHAPE[plane.across] // 3
        pixels, valid = volume.plane(plane, index)
        expected = np.take(voxels, index, plane.across)
        np.testing.assert_array_equal(pixels, expected)
        np.testing.assert_array_equal(valid, expected[..., 0] % 7 > 0)
        read = np.flatnonzero((recorded.times - before).any(axis=tuple({0, 1, 2} - {plane.across})))
        thick = block[plane.across]
        assert read.size == 0 or (read // thick == index // thick).all()
    assert recorded.times.max() == 1
