"""Flips at test time: the mean over a patch and its mirror images, under any tiling that of the
whole image.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage, special

from maskloom.segcore.deep.inference import blended_windows
from maskloom.segcore.deep.inference.blended_windows import Windowing
from maskloom.segcore.deep.inference.flips import FlippedEngine, orientations
from maskloom.segcore.deep.inference.patches import Patching, core_scores, mirrored
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.geometry import Grid
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.testing.segmenters import Picture

RANDOM = np.random.default_rng(3)
KERNELS = RANDOM.integers(-4, 5, (2, 5, 5)).astype(np.float32)
"""Whole numbers without any symmetry; sums of pixels times them are exact in float32."""


def floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32)


def picture(*shape: int) -> Picture:
    pixels = np.random.default_rng(sum(shape)).integers(0, 256, (*shape, 1), np.uint8)
    return Picture(pixels, np.ones(shape, bool))


def lopsided(stride: int) -> Any:
    """Two scores: the second looks at corners of cells of `stride` pixels, then both look to one
    side only, with zeros beyond the border.
    """

    def run(batch: np.ndarray) -> np.ndarray:
        assert batch.shape[1] % stride == batch.shape[2] % stride == 0
        image = batch[0, ..., 0]
        cells = np.kron(image[::stride, ::stride], np.ones((stride, stride), np.float32))
        maps = [
            ndimage.correlate(values, kernel, mode="constant")
            for values, kernel in zip((image, cells), KERNELS, strict=True)
        ]
        return np.stack(maps, axis=-1)[None]

    return run


def tiled(image: Picture, tile: Any, layout: Any, engine: Any) -> np.ndarray:
    """Scores of the image, put together from those of its tiles."""
    run = blended_windows.core_scores if isinstance(layout, Windowing) else core_scores
    parts: list[Any] = []
    for each in Grid(image.valid.shape, tile, layout.halo):
        read = each.read.slices
        block = Block(each, image.pixels[read], image.valid[read], image.spec)
        parts += [
            (each, place, np.array(part)) for place, part in run(block, layout, floats, engine)
        ]
    scores = np.full((*image.valid.shape, parts[0][2].shape[-1]), np.nan, np.float32)
    for each, place, part in parts:
        scores[each.core.slices][place] = part
    return scores


def of_whole(pixels: np.ndarray, network: Any) -> np.ndarray:
    """The mean over the four flips of a whole image, written out."""
    answers = [
        network(np.ascontiguousarray(pixels[None, ::up, ::left]))[0, ::up, ::left]
        for up, left in product((1, -1), repeat=2)
    ]
    return np.mean(answers, axis=0, dtype=np.float64)


@given(
    st.integers(1, 70),
    st.integers(1, 70),
    st.sampled_from([(1000, 1000), (32, 32), (16, 24), (7, 64)]),
    st.sampled_from([1, 2, 6, 8]),
    st.sampled_from([5, 16, 512]),
)
def test_tiles_give_the_mean_of_the_flips_of_the_whole_image(
    height: int, width: int, tile: Any, stride: int, side: int
) -> None:
    """Also where the image is odd, completed to the stride, or smaller than a patch."""
    image, network = picture(height, width), lopsided(stride)
    rows = mirrored(np.arange(height + -height % stride), height)
    columns = mirrored(np.arange(width + -width % stride), width)
    whole = of_whole(floats(image.pixels[rows][:, columns]), network)[:height, :width]
    patching = Patching(ReceptiveField(2 + stride - 1, stride), side)
    assert np.array_equal(
        tiled(image, tile, patching, FlippedEngine(network, "scores", "both")), whole
    )


@pytest.mark.parametrize(
    "layout",
    [
        Patching(ReceptiveField(9, 4, fixed=(32, 40))),
        Patching(ReceptiveField(13, 4, 9, 2), 16),
        Windowing(ReceptiveField(None, 4), 16),
        Windowing(ReceptiveField(None, 1, fixed=(16, 24))),
    ],
    ids=["one size", "without padding", "windows", "windows of one size"],
)
def test_no_tiling_changes_the_mean(layout: Any) -> None:
    margin, image = layout.receptive_field.margin, picture(61, 45)

    def network(batch: np.ndarray) -> np.ndarray:
        height, width = batch.shape[1] // 4 * 4, batch.shape[2] // 4 * 4
        scores = lopsided(4)(batch[:, :height, :width])
        inner = slice(margin, -margin) if margin else slice(None)
        # What the last pixels beyond the cells get, no square uses.
        rest = [(0, 0), *((0, n - n // 4 * 4) for n in batch.shape[1:3]), (0, 0)]
        return np.pad(scores, rest)[:, inner, inner]

    engine = FlippedEngine(network, "scores", "both")
    whole = tiled(image, (1000, 1000), layout, engine)
    assert not np.array_equal(whole, tiled(image, (1000, 1000), layout, network))
    for tile in [(16, 16), (32, 8), (7, 50)]:
        assert np.array_equal(tiled(image, tile, layout, engine), whole)


def test_volumes_are_flipped_along_all_axes() -> None:
    image = picture(7, 21, 18)
    kernel = RANDOM.integers(-4, 5, (3, 3, 3)).astype(np.float32)

    def network(batch: np.ndarray) -> np.ndarray:
        return ndimage.correlate(batch[0, ..., 0], kernel, mode="constant")[None, ..., None]

    answers = [
        network(floats(image.pixels)[None, ::z, ::y, ::x])[0, ::z, ::y, ::x]
        for z, y, x in product((1, -1), repeat=3)
    ]
    layout = Patching(ReceptiveField(1), (4, 8, 16), 3)
    engine = FlippedEngine(network, "scores", "all", 3)
    for tile in [(7, 21, 18), (3, 8, 10)]:
        assert np.array_equal(tiled(image, tile, layout, engine), np.mean(answers, axis=0))


def test_probabilities_are_averaged_not_logits() -> None:
    patch = floats(picture(6, 8).pixels)[None] / 64
    for count in (1, 2):

        def network(batch: np.ndarray, count: int = count) -> np.ndarray:
            return lopsided(2)(batch)[..., :count] / 100

        def probable(batch: np.ndarray, network: Any = network) -> np.ndarray:
            logits = network(batch).astype(np.float64)
            alone = logits.shape[-1] == 1
            return special.expit(logits) if alone else special.softmax(logits, axis=-1)

        found = FlippedEngine(network, "logits", "both")(patch)
        np.testing.assert_allclose(found[0], of_whole(patch[0], probable), rtol=1e-5)


def test_vectors_turn_with_their_axes() -> None:
    """Slopes along x and y are those of the mirrored image, mirrored, with another sign."""

    def slopes(batch: np.ndarray) -> np.ndarray:
        padded = np.pad(batch[..., 0], [(0, 0), (1, 1), (1, 1)], mode="edge")
        along_x = padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
        along_y = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1]
        return np.stack([batch[..., 0], along_x, along_y], axis=-1)

    patch = floats(picture(9, 7).pixels)[None]
    for flips in ("horizontal", "both"):
        found = FlippedEngine(slopes, "scores", flips, vectors=2)(patch)
        assert np.array_equal(found, slopes(patch))


def test_orientations_are_all_subsets_of_the_axes() -> None:
    assert [len(orientations(each, 2)) for each in ("none", "horizontal", "both", "all")] == [
        1, 2, 4, 4
    ]  # fmt: skip
    assert len(orientations("all", 3)) == 8
