"""What numbers mean: 0 as white, palettes, colour systems, scale and offset. Oracles: tifffile,
rasterio, Pillow, arithmetic.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from skimage import data
from tiff_support import read

import maskloom.segcore.formats  # noqa: F401  registers all formats
from maskloom.segcore.annotations.masks import open_mask
from maskloom.segcore.formats import describe
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS

TIFF = FORMATS["tiff"]
PHOTO = data.camera()[:96, :130]
WHITE, BLACK = 0, 1


def write_bits(
    path: Path, picture: np.ndarray, bits: int, photometric: str, **profile: Any
) -> Path:
    """A grey TIFF of 1 to 32 bits as GDAL packs it; `picture` has the numbers to store."""
    profile = {"nbits": bits, **profile} if bits not in (8, 16, 32) else profile
    height, width = picture.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        width=width,
        height=height,
        count=1,
        dtype=picture.dtype,
        photometric=photometric,
        **profile,
    ) as file:
        file.write(picture, 1)
    return path


@pytest.mark.parametrize(
    "layout", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16, "compress": "deflate"}]
)
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 7, 8, 10, 12, 15, 16, 24, 32])
def test_white_as_0_gives_the_numbers_of_the_same_picture_with_black_as_0(
    tmp_path: Path, bits: int, layout: dict[str, Any]
) -> None:
    dtype = "uint8" if bits <= 8 else "uint16" if bits <= 16 else "uint32"
    top = 2**bits - 1
    picture = (PHOTO.astype(np.uint64) * top // 255).astype(dtype)
    black = write_bits(tmp_path / "black.tif", picture, bits, "MINISBLACK", **layout)
    white = write_bits(
        tmp_path / "white.tif", (top - picture).astype(dtype), bits, "MINISWHITE", **layout
    )
    with tifffile.TiffFile(white) as file:
        assert (file.pages[0].photometric, file.pages[0].bitspersample) == (WHITE, bits)
    pixels, valid, spec = read(white)
    np.testing.assert_array_equal(pixels[..., 0], picture)
    expected, known, grey = read(black)
    np.testing.assert_array_equal(pixels, expected)
    np.testing.assert_array_equal(valid, known)
    assert (spec.dtype, spec.bands, spec.interpretation, spec.notes) == (dtype, (1,), "bands", ())
    assert (spec.dtype, spec.bands, spec.interpretation) == (
        grey.dtype,
        grey.bands,
        grey.interpretation,
    )


@given(
    dtype=st.sampled_from(["uint8", "uint16", "uint32", "uint64"]),
    planar=st.sampled_from(["contig", "separate"]),
    seed=st.integers(0, 99),
)
def test_only_the_first_band_of_a_white_as_0_file_is_grey(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, planar: str, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "several.tif"
    stored = np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (20, 30, 3), dtype, endpoint=True
    )
    planes = stored if planar == "contig" else np.moveaxis(stored, -1, 0)
    extra = ["unspecified", "unspecified"]
    tifffile.imwrite(
        path,
        planes,
        photometric="miniswhite",
        planarconfig=planar,
        extrasamples=extra,
        metadata=None,
    )
    pixels, _, spec = read(path)
    np.testing.assert_array_equal(pixels[..., 0], np.iinfo(dtype).max - stored[..., 0])
    np.testing.assert_array_equal(pixels[..., 1:], stored[..., 1:])
    assert "first band" in spec.notes[0]
    np.testing.assert_array_equal(read(path, (3, 1, 1))[0], pixels[..., [2, 0, 0]])


def test_alpha_of_a_white_as_0_file_is_not_inverted(tmp_path: Path) -> None:
    stored = np.dstack([PHOTO.astype(np.uint16) * 257, np.where(PHOTO > 40, 65535, 0)]).astype(
        np.uint16
    )
    tifffile.imwrite(
        tmp_path / "a.tif",
        stored,
        photometric="miniswhite",
        planarconfig="contig",
        extrasamples=["unassalpha"],
    )
    pixels, valid, spec = read(tmp_path / "a.tif")
    assert spec.bands == (1,)
    np.testing.assert_array_equal(pixels[..., 0], 65535 - stored[..., 0])
    np.testing.assert_array_equal(valid, PHOTO > 40)


@pytest.mark.parametrize(
    ("extra", "bands"),
    [("unspecified", (1, 2, 3, 4)), ("assocalpha", (1, 2, 3)), ("unassalpha", (1, 2, 3))],
)
def test_an_extra_sample_is_alpha_only_where_the_file_says_so(
    tmp_path: Path, extra: str, bands: tuple[int, ...]
) -> None:
    stored = np.random.default_rng(0).integers(0, 4, (20, 30, 4), np.uint8) * 80
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="rgb", extrasamples=[extra])
    pixels, valid, spec = read(tmp_path / "a.tif")
    assert (spec.bands, spec.interpretation) == (bands, "rgb")
    np.testing.assert_array_equal(pixels, stored[..., : len(bands)])
    np.testing.assert_array_equal(valid, True if len(bands) == 4 else stored[..., 3] != 0)


@pytest.mark.parametrize("nodata", [0, 700, 65535])
def test_nodata_of_a_white_as_0_file_is_a_stored_number(tmp_path: Path, nodata: int) -> None:
    stored = PHOTO.astype(np.uint16) * 200 + 1
    stored[10:20, 30:60] = nodata
    path = write_bits(tmp_path / "a.tif", stored, 16, "MINISWHITE", nodata=nodata)
    pixels, valid, _ = read(path)
    np.testing.assert_array_equal(valid, stored != nodata)
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(valid, file.dataset_mask() != 0)
    np.testing.assert_array_equal(pixels[valid][:, 0], 65535 - stored[stored != nodata])


@pytest.mark.parametrize("dtype", ["int8", "int16", "int32", "float16", "float32", "float64"])
def test_signed_numbers_and_fractions_stay_as_stored_and_that_is_said(
    tmp_path: Path, dtype: str
) -> None:
    stored = (PHOTO.astype(np.int16) - 128).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite")
    pixels, valid, spec = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels[..., 0], tifffile.imread(tmp_path / "a.tif"))
    assert valid.all()
    assert (spec.bands, spec.interpretation) == ((1,), "bands")
    assert "MinIsWhite" in spec.notes[0]
    assert "stored numbers" in spec.notes[0]


def test_a_file_that_does_not_say_what_0_means_is_taken_as_stored(tmp_path: Path) -> None:
    path = write_bits(tmp_path / "a.tif", PHOTO, 8, "MINISWHITE")
    content = path.read_bytes()
    # Tag 262 becomes a private one.
    at = content.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")
    path.write_bytes(content[:at] + b"\x06\xfe" + content[at + 2 :])
    np.testing.assert_array_equal(read(path)[0][..., 0], PHOTO)


def test_a_mask_with_white_as_0_is_compared_by_its_stored_numbers(tmp_path: Path) -> None:
    classes = (PHOTO // 64).astype(np.uint8)
    path = write_bits(tmp_path / "truth.tif", classes, 8, "MINISWHITE")
    with open_mask(describe(str(path)), "index") as mask:
        np.testing.assert_array_equal(mask.read(Box.whole(classes.shape))[0], classes)


def test_a_transparency_mask_alone_gives_its_numbers(tmp_path: Path) -> None:
    stored = PHOTO > 100
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="mask", subfiletype=4)
    pixels, _, spec = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels[..., 0], stored)
    assert spec.interpretation == "bands"


def test_16_bit_indices_of_a_palette_are_read_as_colours_of_8_bits(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    index, colours = (
        rng.integers(0, 65536, (20, 30), np.uint16),
        rng.integers(0, 256, (3, 65536), np.uint16) * 257,
    )
    tifffile.imwrite(
        tmp_path / "a.tif", index, photometric="palette", colormap=colours.astype(np.uint16)
    )
    pixels, _, spec = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, np.moveaxis(colours[:, index] // 257, 0, -1))
    assert (spec.dtype, spec.interpretation) == ("uint8", "rgb")


@pytest.mark.parametrize(
    ("photometric", "dtype", "word"),
    [
        ("separated", "uint16", "CMYK"),
        ("cielab", "uint16", "L*a*b*"),
        ("icclab", "uint8", "L*a*b*"),
        ("ycbcr", "uint16", "YCbCr"),
    ],
)
def test_colour_systems_that_are_not_turned_into_rgb_are_named(
    tmp_path: Path, photometric: str, dtype: str, word: str
) -> None:
    bands = 4 if photometric == "separated" else 3
    stored = np.random.default_rng(0).integers(0, 255, (20, 30, bands)).astype(dtype)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, photometric=photometric, planarconfig="contig", metadata=None
    )
    pixels, _, spec = read(tmp_path / "a.tif")
    np.testing.assert_array_equal(pixels, stored)
    assert spec.interpretation == "bands"
    assert word in spec.notes[0]


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr"])
def test_8_bit_ink_and_ycbcr_are_read_as_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(data.astronaut()[:64, :64]).convert(mode)
    # Pillow writes YCbCr with JPEG, which rounds.
    picture.save(tmp_path / "a.tif", compression="jpeg" if mode == "YCbCr" else None, quality=100)
    pixels, _, spec = read(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as image:
        expected = np.asarray(image.convert("RGB")).astype(int)
    assert (spec.interpretation, spec.bands, spec.notes) == ("rgb", (1, 2, 3), ())
    assert np.abs(pixels.astype(int) - expected).mean() < 3


def test_scale_and_offset_are_not_applied_and_that_is_said(tmp_path: Path) -> None:
    path = write_bits(tmp_path / "a.tif", PHOTO.astype(np.uint16), 16, "MINISBLACK")
    with rasterio.open(path, "r+") as file:
        file.scales, file.offsets = (0.0001,), (-0.1,)
    pixels, _, spec = read(path)
    np.testing.assert_array_equal(pixels[..., 0], PHOTO)
    assert "scale 0.0001 and offset -0.1" in spec.notes[0]
