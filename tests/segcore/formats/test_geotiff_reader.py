"""TIFF reading: which pixels are data, what the header tells, what is refused. Oracles: rasterio,
tifffile, PIL, arithmetic.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
import tifffile
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from skimage import data
from tiff_support import read

import maskloom.segcore.formats  # noqa: F401  registers all formats
from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS

TIFF = FORMATS["tiff"]
DATA = os.environ.get("MASKLOOM_TEST_DATA")
with_data = pytest.mark.skipif(DATA is None, reason="needs MASKLOOM_TEST_DATA")
PHOTO = data.astronaut()[:96, :128]
GRID = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5300000)}


def write(path: Path, bands: np.ndarray, **profile: Any) -> Path:
    """A TIFF of (band, row, column); `edit` is called with the file before it is closed."""
    edit = profile.pop("edit", lambda file: None)
    count, height, width = bands.shape
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with rasterio.open(
            path,
            "w",
            driver="GTiff",
            width=width,
            height=height,
            count=count,
            dtype=bands.dtype,
            **profile,
        ) as file:
            edit(file)
            file.write(bands)
    return path


def rgb() -> np.ndarray:
    return np.moveaxis(PHOTO, -1, 0).copy()


# --- which pixels are data ---


def test_nodata_hides_a_colour_pixel_only_where_all_bands_have_it(tmp_path: Path) -> None:
    bands = np.maximum(rgb(), 1)
    bands[:, 5, 5] = 0
    bands[0, 9, 9] = 0
    path = write(tmp_path / "a.tif", bands, nodata=0, photometric="RGB")
    _, valid, spec = read(path)
    assert spec.interpretation == "rgb"
    assert np.argwhere(~valid).tolist() == [[5, 5]]
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(valid, file.dataset_mask() != 0)


@given(
    count=st.integers(1, 5),
    colours=st.booleans(),
    nodata=st.sampled_from([0, 3, 255, None]),
    chosen=st.lists(st.integers(1, 5), min_size=1, max_size=3),
)
def test_nodata_is_the_dataset_mask_of_a_colour_picture_and_any_band_that_is_read_of_others(
    tmp_path_factory: pytest.TempPathFactory,
    count: int,
    colours: bool,
    nodata: int | None,
    chosen: list[int],
) -> None:
    path = tmp_path_factory.getbasetemp() / "nodata.tif"
    colours = colours and count >= 3
    bands = np.random.default_rng(count).choice(np.array([0, 3, 7, 255], np.uint8), (count, 24, 30))
    write(path, bands, nodata=nodata, photometric="RGB" if colours else "MINISBLACK")
    if colours and count > 3:
        with rasterio.open(path, "r+") as file:
            file.colorinterp = [
                ColorInterp.red,
                ColorInterp.green,
                ColorInterp.blue,
                *[ColorInterp.undefined] * (count - 3),
            ]
    wanted = tuple(band for band in chosen if band <= count) or (1,)
    _, valid, spec = read(path, wanted)
    assert spec.file_bands == count
    with rasterio.open(path) as file:
        expected = (
            (file.read_masks() != 0).any(axis=0)
            if colours
            else (file.read_masks(wanted) != 0).all(axis=0)
        )
        if colours and count != 4:
            # Of four bands that begin with red, rasterio takes the last for alpha, whatever it is.
            np.testing.assert_array_equal(expected, file.dataset_mask() != 0)
    np.testing.assert_array_equal(valid, expected)


def test_nodata_hides_a_pixel_of_other_bands_where_any_that_is_read_has_it(tmp_path: Path) -> None:
    bands = np.maximum(rgb(), 1).astype(np.uint16)
    bands[0, 9, 9] = bands[2, 7, 7] = 0
    path = write(tmp_path / "a.tif", bands, nodata=0, photometric="MINISBLACK")
    assert np.argwhere(~read(path)[1]).tolist() == [[7, 7], [9, 9]]
    assert np.argwhere(~read(path, (1, 2))[1]).tolist() == [[9, 9]]
    assert read(path, (2,))[1].all()


@pytest.mark.parametrize(
    ("dtype", "nodata"), [("float32", float("nan")), ("float64", -9999.0), ("float32", None)]
)
def test_pixels_that_are_not_finite_are_no_data_and_come_out_as_zero(
    tmp_path: Path, dtype: str, nodata: float | None
) -> None:
    bands = rgb().astype(dtype)
    bands[0, 1, 1], bands[1, 2, 2], bands[2, 3, 3] = np.nan, np.inf, -np.inf
    pixels, valid, _ = read(write(tmp_path / "a.tif", bands, nodata=nodata))
    assert np.argwhere(~valid).tolist() == [[1, 1], [2, 2], [3, 3]]
    assert np.isfinite(pixels).all()
    assert pixels[1, 1, 0] == pixels[2, 2, 1] == pixels[3, 3, 2] == 0
    assert pixels[1, 1, 1] == bands[1, 1, 1], "the other bands of such a pixel keep their values"


def test_nodata_is_compared_in_the_type_of_the_pixels(tmp_path: Path) -> None:
    bands = np.ones((1, 8, 8), np.float32)
    bands[0, 2, 2] = np.float32(-3.4e38)
    assert np.argwhere(~read(write(tmp_path / "a.tif", bands, nodata=-3.4e38))[1]).tolist() == [
        [2, 2]
    ]


@pytest.mark.parametrize(
    ("dtype", "nodata"),
    [("uint8", -9999), ("uint8", 255.5), ("int16", 65535), ("uint8", float("nan"))],
)
def test_nodata_that_the_type_cannot_hold_means_nothing(
    tmp_path: Path, dtype: str, nodata: float
) -> None:
    path = tmp_path / "a.tif"
    write(path, np.full((1, 8, 8), 255, dtype))
    # rasterio refuses such values, other writers do not.
    tifffile.imwrite(
        path, np.full((8, 8), 255, dtype), extratags=[(42113, "s", 0, str(nodata), True)]
    )
    _, valid, spec = read(path)
    assert valid.all()
    assert spec.nodata is None


def test_alpha_is_validity_and_no_band(tmp_path: Path) -> None:
    alpha = np.full((1, 96, 128), 9, np.uint8)
    alpha[0, 10:20, 30:40] = 0
    five = np.concatenate([rgb(), alpha, rgb()[:1] // 2])

    def name_bands(file: Any) -> None:
        file.colorinterp = [
            ColorInterp.red,
            ColorInterp.green,
            ColorInterp.blue,
            ColorInterp.alpha,
            ColorInterp.undefined,
        ]

    path = write(tmp_path / "a.tif", five, edit=name_bands, photometric="RGB")
    pixels, valid, spec = read(path)
    assert (spec.file_bands, spec.interpretation) == (4, "rgb")
    np.testing.assert_array_equal(valid, alpha[0] != 0)
    np.testing.assert_array_equal(np.moveaxis(pixels, -1, 0), five[[0, 1, 2, 4]])
    pixels, valid, _ = read(path, (4,))
    np.testing.assert_array_equal(pixels[..., 0], five[4])
    np.testing.assert_array_equal(valid, alpha[0] != 0)


@pytest.mark.parametrize("internal", [True, False])
@pytest.mark.parametrize("remote", [True, False])
def test_masks_beside_and_inside_the_file(tmp_path: Path, internal: bool, remote: bool) -> None:
    mask = np.ones((96, 128), bool)
    mask[40:50] = False
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
        write(
            tmp_path / "a.tif",
            rgb(),
            edit=lambda file: file.write_mask(mask),
            photometric="RGB",
            **GRID,
        )
    assert (tmp_path / "a.tif.msk").exists() != internal
    location = f"memory://masks-{internal}" if remote else str(tmp_path)
    if remote:
        fsspec.filesystem("memory").put(str(tmp_path), f"/masks-{internal}", recursive=True)
    _, valid, spec = read(f"{location}/a.tif")
    np.testing.assert_array_equal(valid, mask)
    assert spec.space.affine == GRID["transform"][:6]


def test_a_palette_is_read_as_colours(tmp_path: Path) -> None:
    index = PHOTO[..., 0] // 32
    colours = {i: (20 * i, 255 - i, i, 255 if i != 4 else 0) for i in range(8)}

    def paint(file: Any) -> None:
        file.write_colormap(1, colours)

    path = write(tmp_path / "a.tif", index[None], edit=paint, photometric="palette", nodata=6)
    pixels, valid, spec = read(path)
    assert (spec.bands, spec.dtype, spec.interpretation, spec.nodata) == (
        (1, 2, 3),
        "uint8",
        "rgb",
        6,
    )
    for i, colour in colours.items():
        assert (pixels[index == i] == colour[:3]).all()
    # A TIFF keeps no alpha of its colours.
    np.testing.assert_array_equal(valid, index != 6)


@pytest.mark.parametrize("remote", [True, False])
def test_colours_beside_the_file_may_be_transparent_or_missing(
    tmp_path: Path, remote: bool
) -> None:
    index = PHOTO[..., 0] // 32
    path = write(tmp_path / "a.tif", index[None])
    entries = "".join(
        f'<Entry c1="{9 * i}" c2="0" c3="1" c4="{0 if i == 4 else 255}"/>' for i in range(7)
    )
    band = f"<ColorInterp>Palette</ColorInterp><ColorTable>{entries}</ColorTable>"
    Path(f"{path}.aux.xml").write_text(
        f'<PAMDataset><PAMRasterBand band="1">{band}</PAMRasterBand></PAMDataset>'
    )
    if remote:
        fsspec.filesystem("memory").put(str(tmp_path), "/colours", recursive=True)
    pixels, valid, spec = read("memory://colours/a.tif" if remote else path)
    assert spec.interpretation == "rgb"
    np.testing.assert_array_equal(valid, (index != 4) & (index != 7))
    np.testing.assert_array_equal(pixels[valid][:, 0], 9 * index[valid])


# --- what the header tells ---


def test_space_is_what_the_file_says_and_nothing_else(tmp_path: Path) -> None:
    rotated = Affine.translation(500000, 5300000) * Affine.rotation(30) * Affine.scale(10, -10)
    space = read(write(tmp_path / "a.tif", rgb(), crs="EPSG:32633", transform=rotated))[2].space
    assert space.affine == pytest.approx(rotated[:6])
    assert rasterio.crs.CRS.from_wkt(space.crs) == rasterio.crs.CRS.from_epsg(32633)
    assert read(write(tmp_path / "b.tif", rgb()))[2].space == type(space)()
    points = [
        GroundControlPoint(row=r, col=c, x=c, y=-r, z=5) for r, c in [(0, 0), (0, 90), (90.5, 0)]
    ]
    held = read(write(tmp_path / "c.tif", rgb(), gcps=points, crs="EPSG:4326"))[2].space
    assert (held.affine, held.crs, held.unit) == (None, None, "px")
    assert held.gcps == tuple((point.col, point.row, point.x, point.y, point.z) for point in points)
    assert rasterio.crs.CRS.from_wkt(held.gcp_crs) == rasterio.crs.CRS.from_epsg(4326)
    assert read(write(tmp_path / "d.tif", rgb(), transform=rotated))[2].space.crs is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_is_applied_to_plain_tiffs(tmp_path: Path, orientation: int) -> None:
    from PIL import Image, ImageOps

    path = tmp_path / "a.tif"
    stored = np.ascontiguousarray(PHOTO[:50])
    tifffile.imwrite(path, stored, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
    exif = Image.Exif()
    exif[274] = orientation
    image = Image.fromarray(stored)
    image.info["exif"] = exif.tobytes()
    upright = np.asarray(ImageOps.exif_transpose(image))
    pixels, _, spec = read(path)
    assert spec.shape == upright.shape[:2]
    np.testing.assert_array_equal(pixels, upright)
    box = Box((3, 7), (20, 30))
    with TIFF.open(spec) as reader:
        np.testing.assert_array_equal(reader.read(box)[0], upright[box.slices])


def test_chunks_tell_the_truth(tmp_path: Path) -> None:
    big = np.random.default_rng(0).integers(0, 255, (1, 3000, 500), np.uint8)
    strip = {"compress": "deflate", "blockysize": 3000}
    assert TIFF.describe(
        str(write(tmp_path / "tiles.tif", rgb(), tiled=True, blockxsize=64, blockysize=32)), ""
    ).chunks == (
        32,
        64,
    )
    assert TIFF.describe(str(write(tmp_path / "strips.tif", rgb(), blockysize=8)), "").chunks == (
        8,
        128,
    )
    assert TIFF.describe(str(write(tmp_path / "strip.tif", big, **strip)), "").chunks == (3000, 500)
    assert TIFF.describe(
        str(write(tmp_path / "rows.tif", big, compress="deflate", blockysize=1)), ""
    ).chunks == (1, 500)
    # Without compression GDAL reads any rows of a strip by themselves.
    assert (
        TIFF.describe(str(write(tmp_path / "bare.tif", big, blockysize=3000)), "").chunks[0] < 100
    )


# --- what is refused ---


def test_complex_pixels_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="complex64"):
        TIFF.describe(str(write(tmp_path / "a.tif", np.zeros((1, 8, 8), np.complex64))), "")


def test_giant_blocks_and_too_many_bands_are_refused_by_the_header(tmp_path: Path) -> None:
    block = {
        "tiled": True,
        "blockxsize": 2**15,
        "blockysize": 2**15,
        "compress": "deflate",
        "sparse_ok": True,
    }
    for name, size, count, message in [
        ("block", 2**15, 1, "decoded at once"),
        ("bands", 8, 5000, "limit is 4096"),
    ]:
        path = tmp_path / f"{name}.tif"
        profile = block if count == 1 else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            rasterio.open(
                path,
                "w",
                driver="GTiff",
                width=size,
                height=size,
                count=count,
                dtype="uint8",
                **profile,
            ).close()
        with pytest.raises(FormatError, match=message):
            TIFF.describe(str(path), "")


def test_a_damaged_block_names_file_box_and_reason_and_spares_the_others(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.tif",
        rgb(),
        tiled=True,
        blockxsize=32,
        blockysize=32,
        compress="deflate",
        interleave="pixel",
        **GRID,
    )
    with tifffile.TiffFile(path) as file:
        offset, size = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    content = bytearray(path.read_bytes())
    content[offset : offset + size] = bytes(size)
    path.write_bytes(content)
    spec = TIFF.describe(str(path), "")
    with TIFF.open(spec) as reader:
        np.testing.assert_array_equal(reader.read(Box((0, 0), (64, 128)))[0], PHOTO[:64])
        with pytest.raises(
            ReadError, match=r"a\.tif: rows 64 to 96, columns 96 to 128 .*Decod"
        ) as caught:
            reader.read(Box((64, 96), (96, 128)))
    assert caught.value.permanent


def test_a_file_that_changed_after_planning_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", rgb())
    spec = TIFF.describe(str(path), "")
    write(path, rgb()[:, :50])
    with pytest.raises(SourceChanged, match="changed since"):
        TIFF.open(spec)


@pytest.mark.parametrize(
    "name",
    [
        "a#b?c.tif",
        "50%20.tif",
        "ä😀 '\".tif",
        "line\nbreak.tif",
        "not-\udcffutf8.tif",
        "GTIFF_DIR:1:x.tif",
    ],
)
def test_hostile_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "plain.tif", rgb()).rename(tmp_path / name)
    np.testing.assert_array_equal(read(path)[0], PHOTO)


# --- real files ---


@with_data
@pytest.mark.parametrize(
    "name",
    [
        "rasterio/RGB.byte.tif",
        "rasterio/RGB2.byte.tif",
        "rasterio/alpha.tif",
        "rasterio/float_nan.tif",
        "rio_cogeo/image_rgb_mask.tif",
        "rio_cogeo/image_nodata.tif",
        "rio_tiler/cog_rgba.tif",
        "rio_tiler/pix4d_alpha_nodata.tif",
        "rio_tiler/cog_nonearth.tif",
    ],
)
def test_valid_is_what_rasterio_calls_the_dataset_mask(name: str) -> None:
    path = Path(str(DATA)) / "geotiff" / "images" / name
    with rasterio.open(path) as file:
        expected = file.dataset_mask() != 0
    np.testing.assert_array_equal(read(path)[1], expected)


@with_data
def test_values_are_what_tifffile_reads() -> None:
    folder = Path(str(DATA)) / "odd_valid"
    paths = [
        *folder.glob("icevision_bands/*"),
        *folder.glob("libtiff/depth/flower-minisblack-*"),
        *folder.glob("libtiff/int*.tif"),
    ]
    paths += [
        *folder.glob("libtiff/*fp16*"),
        *folder.glob("libtiff/depth/flower-rgb-*"),
        *folder.glob("libtiff/gradient*"),
    ]
    compared = 0
    for path in paths:
        expected = tifffile.imread(path)
        # tifffile scales odd bit depths of colour; planar files have their bands first.
        if expected.ndim == 3 and "planar" in path.name:
            expected = np.moveaxis(expected, 0, -1)
        pixels, valid, _ = read(path)
        expected = expected.reshape(pixels.shape)
        np.testing.assert_allclose(
            pixels,
            np.nan_to_num(expected.astype(np.float64), posinf=0, neginf=0),
            err_msg=path.name,
        )
        np.testing.assert_array_equal(valid, np.isfinite(expected.astype(np.float64)).all(axis=-1))
        compared += 1
    assert compared > 40
