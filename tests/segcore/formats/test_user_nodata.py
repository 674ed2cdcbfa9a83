"""The user's nodata value: images of any format, compared with NumPy."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from maskloom.segcore import formats
from maskloom.segcore.formats.user_nodata import with_user_nodata
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import RasterSpec, load_spec
from maskloom.segcore.testing import formats as check

COLOURS = np.random.default_rng(2).integers(0, 3, (13, 17, 3)).astype(np.uint8)
GREY, VOLUME = COLOURS[..., 0], np.stack([COLOURS[..., 0], COLOURS[..., 1]])
BANDS = np.random.default_rng(3).integers(0, 4, (13, 17, 5)).astype(np.int16)


def png(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels).save(path / "image.png")
    return str(path / "image.png")


def tiff(path: Path, pixels: np.ndarray, **how: Any) -> str:
    photometric = "rgb" if pixels.shape[-1] == 3 else "minisblack"
    planar = {} if pixels.ndim == 2 else {"planarconfig": "contig"}
    tifffile.imwrite(path / "image.tif", pixels, photometric=photometric, **planar, **how)
    return str(path / "image.tif")


def npy(path: Path, pixels: np.ndarray) -> str:
    np.save(path / "image.npy", pixels)
    return str(path / "image.npy")


def npz(path: Path, pixels: np.ndarray) -> str:
    np.savez(path / "image.npz", pixels=pixels, axes="zyxb")
    return str(path / "image.npz")


def describe(location: str, value: float) -> RasterSpec:
    spec = with_user_nodata(formats.describe(location, "1"), value)
    # The plan keeps it as JSON.
    assert load_spec(json.loads(json.dumps(asdict(spec)))) == spec
    return spec


FILES = [
    pytest.param(png, GREY, GREY != 0, id="grey PNG"),
    pytest.param(png, COLOURS, COLOURS.any(axis=-1), id="colour PNG"),
    pytest.param(tiff, GREY, GREY != 0, id="grey TIFF"),
    pytest.param(tiff, COLOURS, COLOURS.any(axis=-1), id="colour TIFF"),
    pytest.param(tiff, BANDS, BANDS.all(axis=-1), id="bands"),
    pytest.param(npy, GREY.astype("float32"), GREY != 0, id="floats"),
    pytest.param(npy, VOLUME, VOLUME != 0, id="volume"),
    pytest.param(npz, BANDS[None], BANDS.all(axis=-1)[None], id="volume of bands"),
]


@pytest.mark.parametrize(("write", "pixels", "data"), FILES)
def test_pixels_with_the_value_are_no_data(
    tmp_path: Path, write: Any, pixels: np.ndarray, data: np.ndarray
) -> None:
    spec = describe(write(tmp_path, pixels), 0)
    assert spec.notes == formats.describe(spec.location, "1").notes
    with formats.open_image(spec) as reader:
        found = check.whole(reader, spec)
        assert np.array_equal(found[1], data)
        assert np.array_equal(found[0].reshape(pixels.shape), pixels)
        start = (0,) * (len(spec.shape) - 2) + (2, 3)
        check.check_box(reader, spec, found, Box(start, (*spec.shape[:-2], 9, 16)))


@pytest.mark.parametrize("write", [png, tiff])
@pytest.mark.parametrize("bands", [(2,), (3, 1), (1, 1)])
def test_colours_count_together_whichever_are_read(
    tmp_path: Path, write: Any, bands: tuple[int, ...]
) -> None:
    spec = describe(write(tmp_path, COLOURS), 1).select(bands)
    with formats.open_image(spec) as reader:
        pixels, valid = check.whole(reader, spec)
    assert np.array_equal(pixels, COLOURS[..., [band - 1 for band in bands]])
    assert np.array_equal(valid, (COLOURS != 1).any(axis=-1))


def test_other_bands_count_where_they_are_read(tmp_path: Path) -> None:
    spec = describe(tiff(tmp_path, BANDS), 3).select((5, 2))
    with formats.open_image(spec) as reader:
        pixels, valid = check.whole(reader, spec)
    assert np.array_equal(pixels, BANDS[..., [4, 1]])
    assert np.array_equal(valid, (BANDS[..., [4, 1]] != 3).all(axis=-1))


def test_what_the_file_says_still_holds(tmp_path: Path) -> None:
    location = tiff(tmp_path, BANDS[..., 0], extratags=[(42113, "s", 0, "2", True)])
    spec = describe(location, 0)
    with formats.open_image(spec) as reader:
        _, valid = check.whole(reader, spec)
    assert np.array_equal(valid, (BANDS[..., 0] != 2) & (BANDS[..., 0] != 0))


def test_a_float_is_the_nearest_one(tmp_path: Path) -> None:
    pixels = np.where(GREY == 0, np.float32(-3.4028235e38), GREY).astype(np.float32)
    spec = describe(npy(tmp_path, pixels), -3.40282346638528e38)
    with formats.open_image(spec) as reader:
        _, valid = check.whole(reader, spec)
    assert np.array_equal(valid, GREY != 0)


@pytest.mark.parametrize("value", [-9999, 256, 0.5, 1e300])
def test_a_value_that_the_type_cannot_hold_is_noted(tmp_path: Path, value: float) -> None:
    spec = describe(png(tmp_path, GREY), value)
    assert f"`nodata` has no effect, since uint8 cannot hold {value:g}" in spec.notes
    with formats.open_image(spec) as reader:
        assert check.whole(reader, spec)[1].all()
