"""Measured reaches equal those worked out by hand; tiles that see so far give the scores of the
whole image, and less is not enough.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.deep.inference.patches import Patching, core_scores, one_by_one
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.deep.inference.receptive_field.measure import measure, verified
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.testing.segmenters import Picture

keras = pytest.importorskip("keras")

from keras import layers  # noqa: E402

from maskloom.segcore.deep.inference.receptive_field.skeletons import (  # noqa: E402
    receptive_field_of,
    runner,
    skeleton_of,
)
from maskloom.segcore.deep.networks.fcn import Fcn  # noqa: E402
from maskloom.segcore.deep.networks.unet import Unet  # noqa: E402


def chain(*parts: Any, channels: int = 1) -> Any:
    return keras.Sequential([keras.Input((None, None, channels)), *parts])


def same(filters: int, kernel: int, **options: Any) -> Any:
    return layers.Conv2D(filters, kernel, padding="same", **options)


def gated() -> Any:
    """One branch looks at 1 pixel around and is multiplied by another that looks at 4."""
    image = keras.Input((None, None, 2))
    return keras.Model(
        image, layers.Conv2D(2, 1)(same(3, 3)(image) * same(3, 9, activation="sigmoid")(image))
    )


def squeezed() -> Any:
    """Squeeze and excitation: channels weighted by their mean over the image."""
    image = keras.Input((None, None, 2))
    maps = layers.UpSampling2D(2)(layers.MaxPooling2D(2)(same(4, 3)(image)))
    gate = layers.Reshape((1, 1, 4))(
        layers.Dense(4, activation="sigmoid")(layers.GlobalAveragePooling2D()(maps))
    )
    return keras.Model(image, layers.Conv2D(2, 1)(layers.Multiply()([maps, gate])))


def nested() -> Any:
    image = keras.Input((None, None, 3))
    inner = chain(
        same(4, 3, strides=2, use_bias=False),
        layers.BatchNormalization(),
        layers.ReLU(),
        channels=3,
    )
    return keras.Model(
        image, layers.UpSampling2D(2)(same(2, 3, activation="softmax")(inner(image)))
    )


BY_HAND: dict[str, tuple[Any, ReceptiveField]] = {
    "five 3x3": (
        lambda: chain(*[same(3, 3, activation="relu") for _ in range(5)]),
        ReceptiveField(5),
    ),
    "without padding": (
        lambda: chain(*[layers.Conv2D(3, 3) for _ in range(3)]),
        ReceptiveField(3, 1, 3),
    ),
    "dilated": (lambda: chain(same(2, 3, dilation_rate=7), same(2, 5)), ReceptiveField(7 + 2)),
    "depthwise and separable": (
        lambda: chain(
            layers.DepthwiseConv2D(5, padding="same"),
            layers.SeparableConv2D(2, 3, padding="same"),
            channels=3,
        ),
        ReceptiveField(2 + 1),
    ),
    # Taps so far apart that a short strip would lose them without a trace.
    "wide gaps": (lambda: chain(same(2, 3, dilation_rate=450)), ReceptiveField(450)),
    "tall kernels": (lambda: chain(same(2, (1, 9)), same(2, (5, 1))), ReceptiveField(4)),
    # The cells of 4 pixels beside a pixel's own: it may lie at the far end of its own.
    "pooled by 4": (
        lambda: chain(layers.MaxPooling2D(4), same(2, 3), layers.UpSampling2D(4)),
        ReceptiveField(4 + 3, 4),
    ),
    # Row 2i is a mean of cells i - 1 and i, the first of which begins at 2i - 2.
    "bilinear": (
        lambda: chain(layers.MaxPooling2D(2), layers.UpSampling2D(2, interpolation="bilinear")),
        ReceptiveField(2, 2),
    ),
    # Cell i spans 3i ... 3i + 2 and reaches rows 3i - 1 ... 3i + 4.
    "transposed": (
        lambda: chain(
            same(2, 3, strides=3), layers.Conv2DTranspose(2, 6, strides=3, padding="same")
        ),
        ReceptiveField(4, 3),
    ),
    "gated": (gated, ReceptiveField(4)),
    "squeezed": (squeezed, ReceptiveField(None, 2)),
    # Row 2i + 1 is of cell i, so of cells i - 1 ... i + 1, the first of which begins at 2i - 2; the
    # last one ends at 2i + 4.
    "nested": (nested, ReceptiveField(4, 2)),
    "group norm": (
        lambda: chain(
            same(4, 3), layers.GroupNormalization(2), layers.MaxPooling2D(2), layers.UpSampling2D(2)
        ),
        ReceptiveField(None, 2),
    ),
    "dense over space": (
        lambda: keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(64), layers.Reshape((8, 8, 1))]
        ),
        ReceptiveField(None, fixed=(8, 8)),
    ),
    "one size": (
        lambda: keras.Sequential([keras.Input((32, 48, 1)), same(2, 3), same(2, 3)]),
        ReceptiveField(2, fixed=(32, 48)),
    ),
    # Two convolutions at each level on the way down and up, 6 * 2**d - 4 in all, and the phases of
    # the pooling, 2**d - 1.
    **{
        f"U-Net of depth {d}": (
            lambda d=d: Unet(width=2, depth=d).build(1, 2),
            ReceptiveField(7 * 2**d - 5, 2**d),
        )
        for d in (2, 3, 4)
    },
    "U-Net with unpooling": (
        lambda: Unet(width=2, depth=2, upsampling="unpooling").build(1, 2),
        ReceptiveField(23, 4),
    ),
    "the paper's U-Net": (
        lambda: Unet(width=2, padding="valid").build(1, 2),
        ReceptiveField(107, 16, 92, 572 % 16),
    ),
    # VGG16's convolutions reach 2 + 4 + 12 + 24 + 48 = 90; a row is of its cell of 32 or one beside
    # it: 32 + 15 at most.
    "FCN-32s": (lambda: Fcn(variant="32s", width=1).build(3, 2), ReceptiveField(90 + 47, 32)),
    # Of its own cell alone: from the first row to the last one.
    "FCN of the tutorial": (
        lambda: Fcn(variant="tutorial", width=1).build(3, 2),
        ReceptiveField(90 + 31, 32),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
def test_reach_is_that_worked_out_by_hand(name: str) -> None:
    build, expected = BY_HAND[name]
    assert receptive_field_of(build()) == expected


def scored(image: Picture, tile: int, field: ReceptiveField, network: Any, side: int) -> np.ndarray:
    patching = Patching(field, side)
    scores = np.full((*image.valid.shape, 2), np.nan, np.float32)
    for each in Grid(image.valid.shape, (tile, tile), patching.halo):
        block = Block(
            each, image.pixels[each.read.slices], image.valid[each.read.slices], image.spec
        )
        for place, part in core_scores(
            block, patching, one_by_one(network, lambda pixels: pixels.astype(np.float32) / 255)
        ):
            scores[each.core.slices][place] = part
    return scores


RECIPES = [
    Unet(2, 2),
    Unet(2, 2, "valid", upsampling="bilinear"),
    Unet(2, 1, upsampling="unpooling", normalisation="batch"),
]


@pytest.mark.parametrize("recipe", RECIPES)
def test_tiles_that_see_the_reach_equal_the_whole_image_and_less_is_not_enough(
    recipe: Unet,
) -> None:
    model = recipe.build(1, 2)
    field = receptive_field_of(model)
    pixels = np.random.default_rng(3).integers(0, 256, (100, 72, 1), np.uint8)
    image, network = Picture(pixels, np.ones(pixels.shape[:2], bool)), runner(model)
    whole = scored(image, 1024, field, network, 1024)
    tiled = scored(image, 64, field, network, 48)
    assert np.array_equal(tiled, scored(image, 1024, field, network, 48))
    assert np.allclose(tiled, whole, atol=1e-5)
    # The skeleton adds up positive numbers only: a missing one cannot be missed.
    skeleton = skeleton_of(model)
    assert skeleton is not None

    def twice(batch: np.ndarray) -> np.ndarray:
        return np.repeat(skeleton.network(batch), 2, -1)

    whole = scored(image, 1024, field, twice, 1024)
    assert np.allclose(scored(image, 64, field, twice, 32), whole, rtol=1e-5)
    if not field.margin:
        less = ReceptiveField(field.halo - field.stride, field.stride)
        assert not np.allclose(scored(image, 64, less, twice, 32), whole, rtol=1e-5)


kernels = st.lists(st.tuples(st.integers(-3, 1), st.integers(0, 6)), min_size=1, max_size=4)


@given(kernels)
def test_lopsided_fields(parts: list[tuple[int, int]]) -> None:
    """Each part adds up the rows from an offset on; the field goes from the sum of first offsets to
    that of last ones.
    """

    def network(batch: np.ndarray) -> np.ndarray:
        for first, more in parts:
            field = max(abs(first), abs(first + more))
            kernel = np.zeros((1, 2 * field + 1, 1, 1), np.float32)
            kernel[0, field + first : field + first + more + 1] = 1
            batch = ndimage.correlate(batch, kernel, mode="constant")
        return batch

    first, last = sum(part[0] for part in parts), sum(sum(part) for part in parts)
    assert measure(network, 1) == ReceptiveField(max(0, -first, last))


def test_a_reach_beyond_the_limit_is_unbounded() -> None:
    def far(batch: np.ndarray) -> np.ndarray:
        shifted = np.zeros_like(batch)
        shifted[:, 200:] = batch[:, :-200]
        return batch + shifted

    assert measure(far, 1) == ReceptiveField(200)
    assert measure(far, 1, limit=199) == ReceptiveField(None)


def test_a_network_that_looks_farther_than_its_skeleton_is_found_out() -> None:
    def blur(batch: np.ndarray) -> np.ndarray:
        return np.asarray(ndimage.uniform_filter(batch, (1, 11, 3, 1), mode="constant"))

    assert verified(ReceptiveField(3), blur, 1).halo == 5
    assert verified(ReceptiveField(5), blur, 1) == ReceptiveField(5)
    assert verified(ReceptiveField(7), blur, 1) == ReceptiveField(7)
    assert (
        verified(ReceptiveField(5), lambda batch: batch - batch.mean((1, 2), keepdims=True), 1).halo
        is None
    )
    # A margin of 2 with padding before it: the outermost rows that it gives are not whole.
    assert verified(ReceptiveField(2, 1, 2), lambda batch: blur(batch)[:, 2:-2, 2:-2], 1).halo == 5


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([layers.MaxPooling2D(4)], "one for each pixel"),
        ([layers.Conv2D(2, 2)], "same margin at each side"),
        ([layers.GlobalAveragePooling2D()], "expected"),
    ],
)
def test_networks_that_give_no_scores_for_pixels_are_refused(parts: Any, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        receptive_field_of(chain(*parts))
