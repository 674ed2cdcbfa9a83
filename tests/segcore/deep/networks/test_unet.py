"""U-Net: sizes and numbers of weights as published, and crops that keep what they should."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import keras
import numpy as np
import pytest
from keras import ops

from maskloom.segcore.deep.networks.unet import Unet, skip_crop

PAPER = Unet(width=64, padding="valid")


@pytest.mark.nightly
def test_the_paper_and_the_tutorial() -> None:
    model = PAPER.build(1, 2)
    # Figure 1 of the paper: sizes of the maps, and of those that go across, before and after
    # cropping.
    sized = keras.models.clone_model(model, keras.Input((572, 572, 1)))
    assert sized.output_shape == (None, 388, 388, 2)
    across = [sized.get_layer(f"up{level}_crop") for level in range(4)]
    assert [each.input.shape[1:] for each in across] == [
        (568, 568, 64),
        (280, 280, 128),
        (136, 136, 256),
        (64, 64, 512),
    ]
    assert [each.output.shape[1:] for each in across] == [
        (392, 392, 64),
        (200, 200, 128),
        (104, 104, 256),
        (56, 56, 512),
    ]
    assert sized.get_layer("bottom_relu2").output.shape[1:] == (28, 28, 1024)
    tutorial = replace(PAPER, output_kernel=3).build(1, 2)
    assert tutorial.compute_output_shape((None, 572, 572, 1)) == (None, 386, 386, 2)
    assert tutorial.count_params() == 31_031_682
    # Its output layer has 3x3 taps for each of 64 x 2 pairs of channels.
    assert model.count_params() == 31_031_682 - 8 * 64 * 2


def test_weights_do_not_depend_on_the_padding() -> None:
    same, valid = (Unet(width=8, padding=padding).build(1, 2) for padding in ("same", "valid"))
    assert same.count_params() == valid.count_params()


@pytest.mark.parametrize(
    "upsampling", ["transposed", "nearest", "bilinear", "unpooling", "bed_of_nails"]
)
@pytest.mark.parametrize("depth", [1, 3])
def test_valid_is_the_middle_of_same(upsampling: Any, depth: int) -> None:
    """With equal weights, where the lattices of both meet."""
    valid = Unet(width=2, depth=depth, padding="valid", upsampling=upsampling).build(1, 3)
    same = Unet(width=2, depth=depth, upsampling=upsampling).build(1, 3)
    same.set_weights(valid.get_weights())
    step = 2**depth
    size = next(size for size in range(step, 400) if _fits(size, depth)) + 8 * step
    pixels = np.random.default_rng(3).random((1, size, size + step, 1), np.float32)
    small = np.asarray(ops.convert_to_numpy(valid(pixels)))
    margin = (size - small.shape[1]) // 2
    # Windows of `valid` begin where its maps do, 2 pixels of each level in; `same` sees the image
    # moved to that.
    start = 2 * step - sum(2 << level for level in range(depth)) % step
    around = -(-size // step) * step + 2 * step
    framed = np.zeros((1, around, around + step, 1), np.float32)
    framed[:, start : start + size, start : start + size + step] = pixels
    large = np.asarray(ops.convert_to_numpy(same(framed)))[:, start + margin :, start + margin :]
    height, width = small.shape[1:3]
    # At the border of a map bilinear up-sampling has no neighbour: one pixel of each level, and
    # what the levels above make of it.
    lost = step - 1 if upsampling == "bilinear" else 0
    inside = np.s_[:, lost : height - lost, lost : width - lost]
    assert small[inside].size > 0
    np.testing.assert_allclose(small[inside], large[:, :height, :width][inside], atol=1e-5)


def _fits(size: int, depth: int) -> bool:
    """Whether every pooling meets an even size."""
    for _ in range(depth):
        size -= 4
        if size % 2 or size <= 0:
            return False
        size //= 2
    return size > 4


def test_crops_follow_from_sizes() -> None:
    """Against sizes counted through the network from 572 pixels, and from a larger image."""
    for whole in (572, 572 + 16 * 9):
        size, down = whole, []
        for _ in range(4):
            down.append(size - 4)
            size = (size - 4) // 2
        for level in reversed(range(4)):
            size = 2 * (size - 4)
            assert down[level] - 2 * skip_crop(level, 4) == size


def test_the_wrong_size_is_refused() -> None:
    with pytest.raises(Exception, match=r"(?i)dimension"):
        Unet(width=2, depth=2).build(1, 2)(np.zeros((1, 30, 32, 1), np.float32))


def test_dropout_works_in_training_alone() -> None:
    model = Unet(width=4, depth=1, dropout=0.5).build(1, 2)
    pixels = np.random.default_rng(0).random((1, 8, 8, 1), np.float32)
    calm, again, drawn = (
        np.asarray(ops.convert_to_numpy(model(pixels, training=training)))
        for training in (False, False, True)
    )
    assert np.array_equal(calm, again)
    assert not np.array_equal(calm, drawn)
