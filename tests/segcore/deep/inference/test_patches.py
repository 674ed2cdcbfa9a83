"""Patches: whatever the tiling, each pixel's scores are the same bits, and those of one run over
the whole image.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import ndimage

from maskloom.segcore.deep.inference.patches import Patching, core_scores, cut, mirrored
from maskloom.segcore.deep.inference.receptive_field.field import ReceptiveField
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.geometry import Box, Grid, Tile
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.testing.segmenters import Picture

Network = Callable[[np.ndarray], np.ndarray]


def floats(pixels: np.ndarray) -> np.ndarray:
    return pixels.astype(np.float32)


def picture(height: int, width: int, bands: int = 1) -> Picture:
    pixels = np.random.default_rng(height * 1000 + width).integers(
        0, 256, (height, width, bands), np.uint8
    )
    return Picture(pixels, np.ones((height, width), bool))


def block_of(image: Picture, tile: Tile) -> Block:
    return Block(tile, image.pixels[tile.read.slices], image.valid[tile.read.slices], image.spec)


def scored(
    image: Picture, tile: tuple[int, int], patching: Patching, network: Network
) -> np.ndarray:
    """Scores of a whole image, put together from those of its tiles; each pixel exactly once."""
    shape = image.valid.shape
    scores, times = None, np.zeros(shape, int)
    for each in Grid(shape, tile, patching.halo):
        for place, part in core_scores(block_of(image, each), patching, floats, network):
            scores = (
                np.full((*shape, part.shape[-1]), np.nan, np.float32) if scores is None else scores
            )
            scores[each.core.slices][place] = part
            times[each.core.slices][place] += 1
    assert scores is not None
    assert (times == 1).all()
    return scores


def blur(radius: int) -> Network:
    """A convolution with same padding: sums over squares, zeros beyond the border."""
    kernel = np.ones((1, 2 * radius + 1, 2 * radius + 1, 1))
    return lambda batch: np.asarray(
        ndimage.convolve(batch, kernel.astype(np.float32), mode="constant")
    )


def cells(stride: int) -> Network:
    """Sums over cells of stride x stride pixels and over the cells beside them, back at full size:
    a reach of 2 stride - 1.
    """

    def run(batch: np.ndarray) -> np.ndarray:
        assert batch.shape[1] % stride == batch.shape[2] % stride == 0
        sums = (
            batch[0, ..., 0]
            .reshape(batch.shape[1] // stride, stride, batch.shape[2] // stride, stride)
            .sum((1, 3))
        )
        near = ndimage.convolve(sums, np.ones((3, 3), np.float32), mode="constant")
        return np.repeat(np.repeat(near, stride, 0), stride, 1)[None, ..., None]

    return run


def valid_cells(stride: int, margin: int, residue: int) -> Network:
    """As `cells` without padding: takes sizes of one residue and gives what lies `margin` from the
    border.
    """

    def run(batch: np.ndarray) -> np.ndarray:
        assert batch.shape[1] % stride == batch.shape[2] % stride == residue
        height, width = batch.shape[1] // stride * stride, batch.shape[2] // stride * stride
        wide = np.pad(
            cells(stride)(batch[:, :height, :width]),
            ((0, 0), (0, stride), (0, stride), (0, 0)),
            mode="edge",
        )
        return wide[:, margin : batch.shape[1] - margin, margin : batch.shape[2] - margin]

    return run


tilings = st.sampled_from([(1000, 1000), (64, 64), (32, 32), (16, 16), (128, 32), (8, 128)])
sizes = st.integers(1, 90)
beyond = st.sampled_from([None, 40])
"""Sizes from which on squares lie over seams."""


@given(sizes, sizes, tilings, st.sampled_from([1, 3, 8]), st.sampled_from([5, 16, 32, 512]), beyond)
def test_same_padding_equals_one_run_over_the_whole_image(
    height: int, width: int, tile: Any, radius: int, side: int, shifted: int | None
) -> None:
    image = picture(height, width)
    whole = blur(radius)(floats(image.pixels)[None])[0]
    patching = Patching(ReceptiveField(radius), side, shifted_beyond=shifted)
    assert np.array_equal(scored(image, tile, patching, blur(radius)), whole)


@given(
    sizes, sizes, tilings, st.sampled_from([1, 2, 6, 8]), st.sampled_from([5, 16, 32, 512]), beyond
)
def test_sizes_that_are_no_multiple_of_the_stride_are_completed_by_mirroring(
    height: int, width: int, tile: Any, stride: int, side: int, shifted: int | None
) -> None:
    image = picture(height, width)
    completed = np.pad(
        image.pixels,
        ((0, -height % stride), (0, -width % stride), (0, 0)),
        mode="reflect" if min(height, width) > 1 else "edge",
    )
    if min(height, width) == 1:  # numpy mirrors no axis of one pixel; ours stays as it is
        completed = np.pad(image.pixels, ((0, 0), (0, 0), (0, 0)))[
            mirrored(np.arange(height + -height % stride), height)
        ]
        completed = completed[:, mirrored(np.arange(width + -width % stride), width)]
    whole = cells(stride)(floats(completed)[None])[0, :height, :width]
    patching = Patching(ReceptiveField(2 * stride - 1, stride), side, shifted_beyond=shifted)
    assert np.array_equal(scored(image, tile, patching, cells(stride)), whole)


@given(
    sizes,
    sizes,
    tilings,
    st.sampled_from([(4, 4, 0), (4, 8, 1), (8, 13, 5)]),
    st.sampled_from([5, 16, 512]),
    beyond,
)
def test_networks_without_padding_see_the_image_mirrored_beyond_its_border(
    height: int,
    width: int,
    tile: Any,
    kind: tuple[int, int, int],
    side: int,
    shifted: int | None,
) -> None:
    stride, margin, residue = kind
    image, network = picture(height, width), valid_cells(*kind)
    field = ReceptiveField(margin + stride - 1, stride, margin, residue)
    far = [margin + n + margin + 2 * stride for n in (height, width)]
    far = [n + (residue - n) % stride for n in far]
    rows, columns = (
        mirrored(np.arange(n) - margin, size) for n, size in zip(far, (height, width), strict=True)
    )
    whole = network(floats(image.pixels[rows][:, columns])[None])[0, :height, :width]
    patching = Patching(field, side, shifted_beyond=shifted)
    assert np.array_equal(scored(image, tile, patching, network), whole)


@given(sizes, sizes, tilings, st.sampled_from([1, 4]), beyond)
def test_files_of_one_size_tile_exactly(
    height: int, width: int, tile: Any, stride: int, shifted: int | None
) -> None:
    image, network = picture(height, width), cells(stride)
    field = ReceptiveField(2 * stride - 1, stride, fixed=(32, 40))
    patching = Patching(field, shifted_beyond=shifted)

    def only_one_size(batch: np.ndarray) -> np.ndarray:
        assert batch.shape[1:3] == (32, 40)
        return network(batch)

    lead = stride * 2 if stride > 1 else 1
    far = [n + 2 * lead + -n % stride for n in (height, width)]
    rows, columns = (
        mirrored(np.arange(n) - lead, size) for n, size in zip(far, (height, width), strict=True)
    )
    whole = network(floats(image.pixels[rows][:, columns])[None])[
        0, lead : lead + height, lead : lead + width
    ]
    assert np.array_equal(scored(image, tile, patching, only_one_size), whole)


def test_patches_of_a_square_have_one_shape_and_the_same_telling_pixels_in_every_tiling() -> None:
    image, seen = picture(300, 200), {}

    def spy(batch: np.ndarray) -> np.ndarray:
        shapes.append(batch.shape)
        return blur(5)(batch)

    patching = Patching(ReceptiveField(5), 64)
    for tile in [(512, 512), (64, 64), (16, 32), (256, 256)]:
        shapes: list[Any] = []
        scored(image, tile, patching, spy)
        seen[tile] = shapes
    assert set(seen[512, 512]) == set(seen[64, 64]) == set(seen[16, 32])
    assert (
        len(seen[512, 512]) == len(seen[64, 64]) == len(seen[256, 256]) == 5 * 4
    )  # tiles of whole squares compute nothing twice


@pytest.mark.parametrize(("shifted", "squares"), [(None, 6), (256, 5), (512, 6)])
def test_squares_over_seams_are_fewer_for_a_tile_with_a_margin(
    shifted: int | None, squares: int
) -> None:
    patching = Patching(ReceptiveField(5), 32, shifted_beyond=shifted)
    assert len(patching.spans(0, 512, (128 - 9, 256 + 9))) == squares


def test_too_small_a_halo_is_seen() -> None:
    image = picture(64, 64)
    whole = blur(6)(floats(image.pixels)[None])[0]
    assert not np.array_equal(
        scored(image, (16, 16), Patching(ReceptiveField(5), 16), blur(6)), whole
    )


def test_squares_without_a_valid_pixel_are_not_computed() -> None:
    image = picture(64, 64)
    image.valid[:, :40] = False
    tile = Grid((64, 64), (64, 64))[0]
    places = [
        place
        for place, _ in core_scores(
            block_of(image, tile), Patching(ReceptiveField(0), 16), floats, blur(0)
        )
    ]
    assert places == [
        (slice(y, y + 16), slice(x, x + 16)) for y, x in product(range(0, 64, 16), (32, 48))
    ]


@given(st.integers(-200, 200), st.integers(1, 50), st.integers(2, 30))
def test_mirroring_is_that_of_numpy(start: int, length: int, size: int) -> None:
    padded = np.pad(np.arange(size), 300, mode="reflect")
    assert np.array_equal(
        mirrored(np.arange(start, start + length), size), padded[start + 300 : start + 300 + length]
    )


def test_patches_inside_a_tile_are_not_copied() -> None:
    image = picture(40, 40)
    block = block_of(image, Grid((40, 40), (40, 40))[0])
    assert np.shares_memory(cut(block, (3, 4), (10, 20)), image.pixels)


def test_output_of_another_size_than_the_card_says_is_refused() -> None:
    block = block_of(picture(40, 40), Tile((0, 0), Box((0, 0), (40, 40)), Box((0, 0), (40, 40))))
    with pytest.raises(WeightsError, match="40 x 40 pixels for a patch of 40 x 40"):
        list(
            core_scores(
                block, Patching(ReceptiveField(2)), floats, lambda batch: batch[:, ::2, ::2]
            )
        )


@pytest.mark.parametrize(
    "field",
    [
        ReceptiveField(None),
        ReceptiveField(20, fixed=(64, 40)),
        ReceptiveField(20, 16, fixed=(64, 79)),
    ],
)
def test_networks_that_cannot_be_exact_are_refused(field: ReceptiveField) -> None:
    assert not Patching.suits(field)
    with pytest.raises(ValueError, match="blended windows"):
        Patching(field)


def test_the_papers_unet_loses_nothing_of_its_output() -> None:
    """572 -> 388 (Ronneberger et al. 2015): a reach that exceeds the margin by the phases of the
    stride only.
    """
    field = ReceptiveField(halo=107, stride=16, margin=92, residue=12)
    (span,) = Patching(field, 384).spans(0, 384, (0, 384))
    assert (span.first, span.length, span.output) == (-92, 572, 0)
    assert Patching(ReceptiveField(107, 16, 92, 12, (572, 572))).sides == (384, 384)
