"""Blended windows: a partition of unity, and the same bits in every tiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.deep.inference.blended_windows import Windowing, core_scores
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.geometry import Grid, Tile
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.testing.segmenters import Picture

Network = Callable[[np.ndarray], np.ndarray]
REACHES = [
    ReceptiveField(None),
    ReceptiveField(None, 4),
    ReceptiveField(None, 4, 6, 1),
    ReceptiveField(None, fixed=(24, 40)),
    ReceptiveField(None, 1, 3, 0, (32, 24)),
]

reaches = st.sampled_from(REACHES)
sizes = st.integers(1, 120)
tilings = st.sampled_from([(1000, 1000), (64, 64), (32, 32), (16, 16), (128, 32), (8, 128)])


def floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32)


def picture(height: int, width: int) -> Picture:
    pixels = np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, 2), np.uint8
    )
    return Picture(pixels, np.ones((height, width), bool))


def block_of(image: Picture, tile: Tile) -> Block:
    return Block(tile, image.pixels[tile.read.slices], image.valid[tile.read.slices], image.spec)


def scored(
    image: Picture, tile: tuple[int, int], windowing: Windowing, network: Network
) -> np.ndarray:
    shape = image.valid.shape
    scores, times = np.full((*shape, 2), np.nan, np.float32), np.zeros(shape, int)
    for each in Grid(shape, tile, windowing.halo):
        for place, part in core_scores(block_of(image, each), windowing, floats, network):
            scores[each.core.slices][place] = part
            times[each.core.slices][place] += 1
    assert (times == 1).all()
    return scores


def whole_window(margin: int) -> Network:
    """Each pixel's score depends on all pixels of the window."""

    def run(batch: np.ndarray) -> np.ndarray:
        inner = batch[:, margin : batch.shape[1] - margin, margin : batch.shape[2] - margin]
        return np.asarray(inner - batch.mean((1, 2), keepdims=True) * 0.37, np.float32)

    return run


@given(
    reaches,
    st.integers(1, 300),
    st.sampled_from([1, 8, 32, 50, 256]),
    st.sampled_from(["blended", "cut"]),
)
def test_weights_add_up_to_exactly_one(
    field: ReceptiveField, size: int, side: int, seams: Any
) -> None:
    for axis in (0, 1):
        total, products = np.zeros(size, np.float32), []
        for window in Windowing(field, side, seams).windows(axis, size):
            assert window.weights.min() >= 0
            assert seams == "blended" or set(window.weights) <= {0, 1}
            assert window.start == 0 or window.stop <= size + field.stride - 1
            assert window.start % field.stride == 0
            assert window.length % field.stride == field.residue or field.fixed
            total[window.start : window.stop] += window.weights[: size - window.start]
            products.append(window.weights)
        assert (total == 1).all()


@given(reaches, sizes, sizes, tilings, st.sampled_from([8, 32, 50]))
def test_any_tiling_gives_the_same_bits(
    field: ReceptiveField, height: int, width: int, tile: Any, side: int
) -> None:
    image, network = picture(height, width), whole_window(field.margin)
    windowing = Windowing(field, side)
    assert np.array_equal(
        scored(image, tile, windowing, network), scored(image, (1000, 1000), windowing, network)
    )


@given(reaches, sizes, sizes, tilings, st.sampled_from([8, 32, 50]))
def test_class_ids_are_cut_and_never_averaged(
    field: ReceptiveField, height: int, width: int, tile: Any, side: int
) -> None:
    image, windowing, inner = (
        picture(height, width),
        Windowing(field, side, "cut"),
        whole_window(field.margin),
    )

    def ids(batch: np.ndarray) -> np.ndarray:
        return np.where(batch.sum() % 2 < 1, 3, 250) * np.ones_like(inner(batch))

    found = scored(image, tile, windowing, ids)
    assert set(np.unique(found)) <= {3, 250}
    assert np.array_equal(found, scored(image, (1000, 1000), windowing, ids))


@given(reaches, sizes, sizes, st.sampled_from([8, 32, 50]))
def test_blending_scores_that_agree_changes_nothing(
    field: ReceptiveField, height: int, width: int, side: int
) -> None:
    image, margin = picture(height, width), field.margin

    def nothing(batch: np.ndarray) -> np.ndarray:
        return batch[:, margin : batch.shape[1] - margin, margin : batch.shape[2] - margin]

    scores = scored(image, (32, 32), Windowing(field, side), nothing)
    assert np.allclose(scores, image.pixels, rtol=5e-7)  # up to the rounding of four products


def test_scores_are_the_weighted_mean_of_the_windows() -> None:
    image, windowing, network = (
        picture(100, 48),
        Windowing(ReceptiveField(None), 48),
        whole_window(0),
    )
    starts = [0, 24, 48, 52]
    assert [window.start for window in windowing.windows(0, 100)] == starts
    ramp = np.sin(np.pi / 2 * (np.arange(24) + 0.5) / 24) ** 2
    expected = np.zeros((100, 48, 2))
    rises = [np.concatenate([np.zeros(24 + 24 * i), ramp, np.ones(52 - 24 * i)]) for i in range(2)]
    middle = (52 + 96) // 2  # of what the last two windows have in common
    rises.append(np.concatenate([np.zeros(middle - 12), ramp, np.ones(100 - middle - 12)]))
    weights = [1 - rises[0], rises[0] - rises[1], rises[1] - rises[2], rises[2]]
    for start, weight in zip(starts, weights, strict=True):
        scores = network(floats(image.pixels[None, start : start + 48]))[0]
        expected[start : start + 48] += weight[start : start + 48, None, None] * scores
    assert np.abs(scored(image, (1000, 1000), windowing, network) - expected).max() < 255 / 4096


def test_too_small_a_halo_is_seen() -> None:
    image, windowing = picture(100, 100), Windowing(ReceptiveField(None), 32)
    tile = Grid((100, 100), (16, 16), 8)[8]
    (narrow,) = [
        part for _, part in core_scores(block_of(image, tile), windowing, floats, whole_window(0))
    ]
    assert not np.array_equal(
        narrow, scored(image, (16, 16), windowing, whole_window(0))[tile.core.slices]
    )


def test_windows_without_a_valid_pixel_are_not_computed() -> None:
    image, calls = picture(128, 128), []
    image.valid[:80] = False
    image.valid[:, :64] = False

    def counting(batch: np.ndarray) -> np.ndarray:
        calls.append(batch.shape)
        return whole_window(0)(batch)

    tile = Grid((128, 128), (128, 128))[0]
    all_valid = scored(
        picture(128, 128), (1000, 1000), Windowing(ReceptiveField(None), 32), whole_window(0)
    )
    for place, part in core_scores(
        block_of(image, tile), Windowing(ReceptiveField(None), 32), floats, counting
    ):
        assert np.array_equal(part[image.valid[place]], all_valid[place][image.valid[place]])
    assert len(calls) == 3 * 4


def test_windows_that_are_all_margin_are_refused() -> None:
    with pytest.raises(ValueError, match="gives none"):
        Windowing(ReceptiveField(None, margin=10, fixed=(20, 64)))
