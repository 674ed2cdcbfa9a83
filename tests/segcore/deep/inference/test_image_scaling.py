"""Scaling by the pixels of an image: the numbers are those of NumPy on the whole image, to the last
bit whatever the tiles, and values that nothing can be found in are refused.
"""

from __future__ import annotations

from fractions import Fraction
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from maskloom.segcore.deep.inference.image_scaling import Finder, finder_of, scaling_of
from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.errors import FitError, NothingToFit
from maskloom.segcore.geometry import Tiling
from maskloom.segcore.raster.spec import Block
from maskloom.segcore.testing.segmenters import Picture

SHAPE = (61, 47)
HOWS = (
    ImageScaling("deviation"),
    ImageScaling("deviation", bands="together"),
    ImageScaling("range"),
    ImageScaling("range", (1, 99.8)),
    ImageScaling("range", (0.1, 97.3), bands="together", eps=1e-3),
)


def picture(dtype: str, low: float = 0.0, high: float = 200.0) -> Picture:
    random = np.random.default_rng(0)
    values = random.uniform(low, high, (*SHAPE, 3)) * [1, 0.5, 0.1]
    return Picture(values.astype(dtype), random.random(SHAPE) < 0.9)


def found(shown: Picture, how: ImageScaling, tile: int) -> Scaling:
    """The scaling by tiles of this side, the last of them first."""
    step: Any = finder_of(how)
    while isinstance(step, Finder):
        blocks = [
            Block(each, shown.pixels[each.read.slices], shown.valid[each.read.slices], shown.spec)
            for each in Tiling(tile).grid(SHAPE, 5)
        ]
        step = step.finish(reduce(step.merge, [step.observe(each) for each in blocks[::-1]]))
    assert isinstance(step, Scaling)
    return step


def expected(shown: Picture, how: ImageScaling) -> tuple[list[float], list[float]]:
    """Offsets and factors by NumPy, on values as float32."""
    values = shown.pixels[shown.valid].astype(np.float32).astype(float)
    rows = [values.ravel()] if how.bands == "together" else list(values.T)
    rows = [row[np.isfinite(row)] for row in rows]
    if how.by == "deviation":
        ends = [(row.mean(), row.std()) for row in rows]
    else:
        cut = [np.percentile(row, how.percentiles) for row in rows]
        ends = [(low, high - low) for low, high in cut]
    return [low for low, _ in ends], [1 / (spread + how.eps) for _, spread in ends]


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "int32", "float32", "float64"]
)
def test_numbers_are_those_of_numpy_on_the_whole_image(dtype: str) -> None:
    shown = picture(dtype, *((-100, 100) if dtype in ("int8", "float32", "int16") else (0, 200)))
    for how in HOWS:
        whole = found(shown, how, 1000)
        offsets, factors = expected(shown, how)
        np.testing.assert_allclose(whole.offset, offsets, rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(whole.factor, factors, rtol=1e-12)
        if how.by == "range":
            assert whole.offset == tuple(offsets)
        for tile in (7, 32):
            assert found(shown, how, tile) == whole, (how, tile)


def test_means_and_deviations_are_exact_where_sums_of_floats_are_not() -> None:
    shown = picture("float32", 1e7, 3e7)
    shown.pixels[::7] *= np.float32(-1e-22)
    shown.pixels[3, 4] = np.inf
    shown.pixels[5, 6, 1] = np.nan
    whole = found(shown, ImageScaling("deviation", bands="together", eps=1e-20), 1000)
    values = [Fraction(float(x)) for x in shown.pixels[shown.valid].ravel() if np.isfinite(x)]
    mean = sum(values) / len(values)
    variance = sum((x - mean) ** 2 for x in values) / len(values)
    assert whole == Scaling((float(mean),), (1 / float(variance) ** 0.5,))
    assert found(shown, ImageScaling("deviation", bands="together", eps=1e-20), 9) == whole


def test_all_equal_values_become_0_and_clip_cuts_what_is_beyond() -> None:
    even = Picture(np.full((*SHAPE, 1), 7, np.uint8), np.ones(SHAPE, bool))
    for by in ("deviation", "range"):
        how = ImageScaling(by)  # type: ignore[arg-type]
        assert not how.apply(found(even, how, 20), even.pixels).any()
    how = ImageScaling("range", (10, 90), clip=(0, 1))
    shown = picture("float32")
    scaled = how.apply(found(shown, how, 20), shown.pixels)
    assert (scaled.min(), scaled.max(), scaled.dtype) == (0, 1, np.float32)


def test_values_that_nothing_can_be_found_in_are_refused() -> None:
    none = Picture(np.zeros((*SHAPE, 2), np.uint8), np.zeros(SHAPE, bool))
    infinite = Picture(np.full((*SHAPE, 2), np.nan, np.float32), np.ones(SHAPE, bool))
    huge = Picture(np.full((*SHAPE, 2), 1e32, np.float32), np.ones(SHAPE, bool))
    for by in ("deviation", "range"):
        how = ImageScaling(by)  # type: ignore[arg-type]
        for shown in (none, infinite):
            with pytest.raises(NothingToFit, match="valid, finite pixels; there are none"):
                found(shown, how, 20)
        with pytest.raises(FitError, match="bring the values into another unit"):
            found(huge, how, 20)
    # A band without values is left as it is.
    half = picture("float32")
    half.pixels[..., 1] = np.nan
    kept = found(half, ImageScaling("deviation"), 20)
    assert kept.offset[1] == 0
    assert scaling_of(whole_block(half), ImageScaling("deviation")) == kept


def whole_block(shown: Picture) -> Block:
    (tile,) = Tiling(1000).grid(SHAPE, 0)
    return Block(tile, shown.pixels, shown.valid, shown.spec)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"by": "mean"}, "scaling.by: expected deviation or range; got 'mean'"),
        ({"by": "range", "percentiles": (99, 1)}, "two ascending numbers from 0 to 100"),
        ({"by": "deviation", "percentiles": (1, 99)}, "belongs to `by: range`"),
        ({"by": "range", "eps": 0.0}, "scaling.eps"),
        ({"by": "range", "clip": (1, 0)}, "scaling.clip"),
        ({"by": "range", "bands": "all"}, "each or together"),
    ],
)
def test_other_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageScaling(**options)


def test_percentiles_ascend() -> None:
    shown = picture("float32")
    lows = [found(shown, ImageScaling("range", (p, 100)), 20).offset for p in range(0, 99, 11)]
    assert all(np.less(a, b).all() for a, b in pairwise(lows))
