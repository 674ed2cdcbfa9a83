"""Scaling of patches by what is found in the whole of their image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests_support import write_tiff

from maskloom.segcore.deep.inference.scaling import ImageScaling, Scaling
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.training import dataset as datasets
from maskloom.segcore.training.class_counts import count_classes
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.labels import Index
from maskloom.segcore.training.pairs import Pair
from maskloom.segcore.training.sampling import PatchShape, Sampler, SamplingOptions, scaled
from maskloom.segcore.training.scalings import Scalings, find_scalings, note_on_contrast

CLASSES = ("even", "odd")
NODATA = 7


def nothing(*_: int) -> None:
    pass


def dataset(folder: Path, *images: np.ndarray, megabytes: int = 64) -> Dataset:
    """Images (y, x, band), and volumes (z, y, x, 1), with some masks."""
    pairs = []
    for i, pixels in enumerate(images):
        kind, name = ("tiff", f"{i}.tif") if pixels.ndim == 3 else ("array", f"{i}.npy")
        path, mask = folder / name, folder / f"{i}-mask.npy"
        if kind == "tiff":
            write_tiff(path, pixels, 32, nodata=NODATA)
        else:
            np.save(path, pixels[..., 0])
        np.save(mask, (np.indices(pixels.shape[:-1]).sum(axis=0) % 2).astype(np.uint8))
        described = (
            FORMATS[kind].describe(str(path), "1"),
            FORMATS["array"].describe(str(mask), "1"),
        )
        pairs.append(Pair(str(i), *described))
    return Dataset(pairs, Index().decoder(CLASSES), megabytes)


def expected(pixels: np.ndarray, how: ImageScaling) -> np.ndarray:
    """By NumPy on a whole image (.., band), 0 where it has no data."""
    valid = (np.isfinite(pixels) & (pixels != NODATA)).all(axis=-1)
    values = pixels[valid].astype(float)
    axis = 0 if how.bands == "each" else None
    if how.by == "deviation":
        low, spread = values.mean(axis), values.std(axis)
    else:
        low, high = np.percentile(values, how.percentiles, axis)
        spread = high - low
    with np.errstate(invalid="ignore"):
        found = (pixels - low) / (spread + how.eps)
    return np.where(valid[..., None], found if how.clip is None else found.clip(*how.clip), 0)


@pytest.mark.parametrize(
    ("how", "planar"),
    [
        (ImageScaling("deviation"), False),
        (ImageScaling("range", (1, 99), clip=(0, 1)), False),
        (ImageScaling("range", (2, 97.5), bands="together", eps=0.01), True),
    ],
    ids=["deviation", "percentiles", "together"],
)
def test_patches_have_the_numbers_of_their_whole_image(
    how: ImageScaling, planar: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of images of several types and gains, of volumes, kept in memory or not."""
    monkeypatch.setattr(datasets, "_STRIP_PIXELS", 700)
    random = np.random.default_rng(0)
    if planar:
        images = [
            random.gamma(2, 20, (4, 40, 50, 1)).astype(np.float32),
            8 + random.random((3, 30, 60, 1)),
        ]
    else:
        images = [
            random.integers(10, 60_000, (70, 90, 2)).astype(np.uint16),
            random.gamma(2, 20, (50, 60, 2)).astype(np.float32),
        ]
        images[0][5:30, 20:50] = NODATA
        images[1][:20, 30:] = np.nan
    wholes = [expected(each, how) for each in images]
    shape = PatchShape((1, 16, 16), (0, 0, 0), (1, 1, 1), True) if planar else PatchShape.square(16)
    for megabytes in (64, 0):
        data = dataset(tmp_path, *images, megabytes=megabytes)
        # Decodes those that are kept.
        counts = count_classes(data, CLASSES, nothing, shape.cell)
        scalings = find_scalings(data, how, nothing, {})
        for number, whole in enumerate(wholes):
            patch = scaled(data, number, Box.whole(data.shape(number)), scalings)
            np.testing.assert_allclose(patch.pixels, whole, rtol=1e-5, atol=1e-5)
        draw = Sampler(data, counts, [0, 1], scalings, SamplingOptions(shape, 8, 0.5, 0))
        known = np.sort(np.concatenate([whole.ravel() for whole in wholes]))
        drawn = draw.batch(0, 0).pixels.ravel()
        near = known[np.searchsorted(known, drawn - 1e-5).clip(max=known.size - 1)]
        np.testing.assert_allclose(drawn, near, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("values", "how", "messages"),
    [
        (np.nan, {"by": "deviation"}, ["valid, finite pixels; there are none"]),
        (NODATA, {"by": "range"}, ["valid, finite pixels; there are none"]),
        (1e32, {"by": "deviation"}, ["another unit"]),
        (1, {"by": "range", "percentiles": (1, 99)}, ["percentiles 1 and 99 are both 1", "clip"]),
    ],
    ids=["nan", "nodata", "huge", "no range"],
)
def test_images_without_a_scaling_are_refused_by_name(
    values: float, how: dict[str, Any], messages: list[str], tmp_path: Path
) -> None:
    image = np.full((40, 40, 1), values, np.float32)
    if values == 1:
        image[0, 0] = 200
    good = np.random.default_rng(0).random((20, 20, 1)).astype(np.float32)
    data = dataset(tmp_path, good, image)
    with pytest.raises(RecipeError) as found:
        find_scalings(data, ImageScaling(**how), nothing, {})
    for message in ("scaling", "1.tif", "split.leave_out", *messages):
        assert message in str(found.value)
    if values == 1:
        # Neither a clip nor a blank image makes enormous values.
        for clipped in (ImageScaling("range", (1, 99), clip=(0, 1)), ImageScaling("deviation")):
            assert len(find_scalings(data, clipped, nothing, {}).found) == 2


def test_images_without_contrast_are_0_and_named(tmp_path: Path) -> None:
    even = np.full((40, 40, 1), 90, np.uint8)
    data = dataset(tmp_path, even, np.arange(1600, dtype=np.uint16).reshape(40, 40, 1) + 8)
    for how in (ImageScaling("deviation"), ImageScaling("range", (1, 99))):
        scalings = find_scalings(data, how, nothing, {})
        assert not scalings.apply(0, even).any()
        (note,) = note_on_contrast(scalings, data)
        assert note.startswith("scaling: 1 of 2 images have no contrast in a band (0)")
    assert note_on_contrast(Scalings(Scaling()), data) == []
