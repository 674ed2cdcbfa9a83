"""The U-Net of volumes: its layers against SciPy, keras and those of images, its reach along each
axis against the sum of its layers.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers, ops
from scipy import ndimage

from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.receptive_field.measure import measure, verified
from maskloom.segcore.deep.inference.receptive_field.skeletons import receptive_field_of
from maskloom.segcore.deep.networks.layers.upsampling import (
    Upsampling,
    bed_of_nails,
    bilinear,
    max_pool,
    max_unpool,
    nearest,
)
from maskloom.segcore.deep.networks.unet import Unet
from maskloom.segcore.errors import WeightsError

FACTORS = [(2, 2, 2), (1, 2, 2), (2, 1, 3)]


def volume(*shape: int) -> np.ndarray:
    return np.random.default_rng(4).normal(size=(2, *shape, 3)).astype(np.float32)


def plain(tensor: Any) -> np.ndarray:
    return np.asarray(ops.convert_to_numpy(tensor))


@pytest.mark.parametrize("factors", FACTORS)
def test_upsampling_of_volumes_is_that_of_keras_and_scipy(factors):
    maps = volume(3, 4, 5)
    assert np.array_equal(plain(nearest(maps, factors)), layers.UpSampling3D(factors)(maps))
    zooms = (1, *factors, 1)
    linear = ndimage.zoom(maps, zooms, order=1, mode="nearest", grid_mode=True)
    np.testing.assert_allclose(plain(bilinear(maps, factors)), linear, atol=1e-6)
    nails = np.zeros((2, *np.multiply(maps.shape[1:4], factors), 3), np.float32)
    nails[:, :: factors[0], :: factors[1], :: factors[2]] = maps
    assert np.array_equal(plain(bed_of_nails(maps, factors)), nails)


@pytest.mark.parametrize("factors", FACTORS)
def test_pooling_of_volumes_is_that_of_keras_and_is_undone_at_its_positions(factors):
    maps = volume(4, 6, 6)
    values, positions = max_pool(maps, factors)
    assert np.array_equal(plain(values), layers.MaxPooling3D(factors)(maps))
    back = plain(max_unpool(values, positions, factors))
    kept = back != 0
    assert kept.sum() == plain(values).size
    assert np.array_equal(back[kept], maps[kept])


def test_without_a_factor_along_z_planes_are_images():
    maps = volume(3, 4, 6)
    for upsampling in (nearest, bilinear, bed_of_nails):
        planes = [plain(upsampling(maps[:, z], 2)) for z in range(3)]
        assert np.array_equal(plain(upsampling(maps, (1, 2, 2))), np.stack(planes, axis=1))


def test_layers_are_saved_with_their_factors():
    layer = Upsampling((1, 2, 2), "nearest")
    again = Upsampling.from_config(layer.get_config())
    assert again.compute_output_shape((None, 3, None, 4, 8)) == (None, 3, None, 8, 8)


POOLINGS = [None, ((1, 2, 2), (2, 2, 2)), ((1, 2, 2), (1, 2, 2)), ((2, 1, 2), (1, 2, 1))]


def computed(recipe: Unet, axis: int) -> tuple[int, int]:
    """Halo and stride along an axis, from the sizes of the kernels: two convolutions of one pixel
    at each level down and up, in pixels of the level, and the phases of the poolings.
    """
    strides = [1]
    for factors in recipe.poolings:
        strides.append(strides[-1] * factors[axis])
    convolutions = 4 * sum(strides[:-1]) + 2 * strides[-1]
    return convolutions + strides[-1] - 1, strides[-1]


@pytest.mark.parametrize(
    "pooling",
    [pytest.param(each, marks=[pytest.mark.nightly] * (each in POOLINGS[:2])) for each in POOLINGS],
)
def test_the_measured_reach_is_the_computed_one_along_each_axis(pooling):
    recipe = Unet(width=2, depth=2, dimensions=3, pooling=pooling)
    field = receptive_field_of(recipe.build(1, 2))
    for axis, reach in enumerate(field.axes(3)):
        assert (reach.halo, reach.stride) == computed(recipe, axis)
        assert (reach.margin, reach.residue) == (0, 0)


def test_a_network_whose_norms_span_the_volume_has_no_reach():
    model = Unet(width=2, depth=1, dimensions=3, normalisation="group").build(1, 2)
    assert receptive_field_of(model) == ReceptiveField(None, 2)


@pytest.mark.parametrize(
    "kernels",
    [
        [((-2, 4), (0, 0), (-1, 1))],
        # Shifted twice along x: no voxel depends on itself.
        [((0, 2), (-1, 2), (1, 2)), ((-1, 0), (-3, 1), (1, 0))],
    ],
)
def test_lopsided_fields_of_volumes(kernels: list[tuple[tuple[int, int], ...]]) -> None:
    """Each kernel adds up the voxels from an offset on, along each axis."""

    def network(batch: np.ndarray) -> np.ndarray:
        for along in kernels:
            for axis, (first, more) in enumerate(along, 1):
                field = max(abs(first), abs(first + more))
                weights = np.zeros(2 * field + 1, np.float32)
                weights[field + first : field + first + more + 1] = 1
                batch = ndimage.correlate1d(batch, weights, axis, mode="constant")
        return batch

    halos = []
    for axis in range(3):
        first = sum(along[axis][0] for along in kernels)
        last = sum(sum(along[axis]) for along in kernels)
        halos.append(max(0, -first, last))
    found = measure(network, 1, 3)
    assert [reach.halo for reach in found.axes(3)] == halos
    assert verified(found, network, 1, 3) == found
    less = ReceptiveField(tuple(max(0, halo - 1) for halo in halos))
    assert [reach.halo for reach in verified(less, network, 1, 3).axes(3)] == halos


def test_networks_that_give_no_scores_for_voxels_are_refused():
    image = keras.Input((None, None, None, 1))
    model = keras.Model(image, layers.MaxPooling3D(2)(image))
    with pytest.raises(WeightsError, match="no scores for each voxel"):
        receptive_field_of(model)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dimensions": 4}, "dimensions: expected 2 or 3"),
        ({"dimensions": 3, "padding": "valid"}, "need `same`"),
        ({"dimensions": 3, "depth": 2, "pooling": ((2, 2, 2),)}, r"expected 2 \(`depth`\) lists"),
        ({"dimensions": 3, "depth": 1, "pooling": ((2, 2),)}, "of 3 factors"),
        ({"dimensions": 3, "depth": 1, "pooling": ((1, 1, 1),)}, "at least one of them 2"),
        ({"dimensions": 3, "depth": 1, "pooling": ((1, 3, 2),)}, "1 or 2"),
    ],
)
def test_recipes_that_cannot_be_built_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Unet(**options)


@pytest.mark.parametrize("upsampling", ["transposed", "nearest", "bilinear", "unpooling"])
def test_every_pooling_is_undone(upsampling):
    recipe = Unet(2, 2, upsampling=upsampling, dimensions=3, pooling=((1, 2, 2), (2, 1, 2)))
    scores = plain(recipe.build(2, 3)(np.zeros((1, 6, 8, 12, 2), np.float32)))
    assert scores.shape == (1, 6, 8, 12, 3)
    np.testing.assert_allclose(scores.sum(-1), 1, atol=1e-6)
