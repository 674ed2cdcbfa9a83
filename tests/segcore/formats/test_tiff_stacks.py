"""TIFF files of several pictures: volumes, times, scenes, levels and sizes. Oracle: tifffile."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import given
from hypothesis import strategies as st

import maskloom.segcore.formats  # noqa: F401  registers all formats
from maskloom.segcore.errors import FormatError, ImageError, ReadError, SourceChanged
from maskloom.segcore.geometry import Box
from maskloom.segcore.ground.space import PixelSize
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage
from maskloom.segcore.testing import formats as check

TIFF = FORMATS["tiff"]
DRAW = np.random.default_rng(6)
SIZES = {"T": 3, "Z": 4, "C": 2, "Y": 40, "X": 56, "S": 3}


def images(path: Path | str, **options: Any) -> dict[str, RasterSpec]:
    """The images in a file by the names of their parts."""
    image, wanted = StoredImage(str(path), "v"), ReadOptions(**options)
    return {
        part: TIFF.describe_image(replace(image, part=part), wanted)
        for part in TIFF.parts(image, wanted) or [""]
    }


def pixels_of(spec: RasterSpec, box: Box | None = None) -> np.ndarray:
    with TIFF.open(spec) as reader:
        pixels, valid = reader.read(box or Box.whole(spec.shape))
    assert valid.all()
    return pixels


def values(axes: str, dtype: str = "uint16") -> np.ndarray:
    shape = [SIZES[letter] for letter in axes]
    low, high = (-100, 100) if np.dtype(dtype).kind in "if" else (0, 250)
    return DRAW.integers(low, high, shape).astype(dtype)


def expected(stored: np.ndarray, axes: str) -> list[np.ndarray]:
    """The images (z, y, x, band) or (y, x, band) of a stack."""
    ordered = np.einsum(f"{axes}->{''.join(sorted(axes, key='TZYXCS'.index))}", stored)
    times = ordered if "T" in axes else ordered[np.newaxis]
    bands = [each for each in "CS" if each in axes]
    keep = times.ndim - 1 - len(bands)
    return [each.reshape(*each.shape[:keep], -1) for each in times]


WRITERS: dict[str, dict[str, Any]] = {
    "ome": {"ome": True},
    "ome tiles": {"ome": True, "tile": (16, 32), "compression": "zlib"},
    "ome strips": {"ome": True, "rowsperstrip": 7, "compression": "lzw", "predictor": True},
    "ome of big-endian": {"ome": True, "byteorder": ">", "bigtiff": True},
    "imagej": {"imagej": True},
    "imagej deflated": {"imagej": True, "compression": "zlib"},
    "imagej behind one directory": {"imagej": True, "truncate": True},
    "tifffile": {},
    "tifffile tiles": {"tile": (32, 16)},
    "tifffile behind one directory": {"truncate": True, "byteorder": ">"},
}
each_writer = pytest.mark.parametrize("options", WRITERS.values(), ids=WRITERS.keys())


def write(path: Path, stored: np.ndarray, axes: str, **options: Any) -> Path:
    metadata = {"axes": axes, **options.pop("metadata", {})}
    photometric = "rgb" if "S" in axes else "minisblack"
    tifffile.imwrite(path, stored, photometric=photometric, metadata=metadata, **options)
    return path


@each_writer
@pytest.mark.parametrize("axes", ["ZYX", "TYX", "CZYX", "TZCYX", "TCYX", "ZYXS"])
def test_slices_are_a_volume_channels_are_bands_and_times_are_images(tmp_path, axes, options):
    order = "".join(sorted(axes, key="TZCYXS".index)) if "imagej" in options else axes
    stored = values(order, "uint8" if "S" in axes else "uint16")
    path = write(tmp_path / "a.tif", stored, order, **options)
    found = images(path)
    wanted = expected(stored, order)
    assert list(found) == ([f"t{i:04}" for i in (1, 2, 3)] if "T" in axes else [""])
    for spec, pixels in zip(found.values(), wanted, strict=True):
        np.testing.assert_array_equal(pixels_of(spec), pixels)
        assert spec.interpretation == ("rgb" if "S" in axes else "bands")
        assert spec.mask == ("tiff_stack" if "Z" in axes else "")
        check.check_spec(spec)
    # The oracle agrees with what was written.
    np.testing.assert_array_equal(tifffile.imread(path), stored.squeeze())


@each_writer
def test_any_box_equals_its_part_of_the_whole(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("stack") / "a.tif"
    [spec] = images(write(path, values("ZCYX"), "ZCYX", **options)).values()
    with TIFF.open(spec) as reader:
        image = check.whole(reader, spec)

        @given(check.boxes(spec.shape))
        def compare(box: Box) -> None:
            check.check_box(reader, spec, image, box)

        compare()
        check.check_chunks(reader, spec, image)
    check.check_bands(TIFF, spec, image)


@pytest.mark.parametrize(
    "dtype",
    ["uint8", "int8", "uint16", "int16", "uint32", "int32", "float16", "float32", "float64"],
)
def test_any_type_of_number(tmp_path, dtype):
    stored = values("ZYX", dtype)
    [spec] = images(write(tmp_path / "a.tif", stored, "ZYX", compression="zlib")).values()
    assert spec.dtype == ("float32" if dtype == "float16" else dtype)
    np.testing.assert_array_equal(pixels_of(spec)[..., 0], stored)


def test_what_is_not_finite_or_not_in_the_file_is_no_data(tmp_path):
    stored = values("ZYX", "float32")
    stored[1, 3, 4], stored[2, 5, 6] = np.nan, np.inf
    path = write(tmp_path / "a.tif", stored, "ZYX", tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path, mode="r+") as file:
        counts = file.pages[3].tags[325]
        counts.overwrite([0, *counts.value[1:]])
    [spec] = images(path).values()
    with TIFF.open(spec) as reader:
        pixels, valid = reader.read(Box.whole(spec.shape))
    wanted = np.isfinite(stored)
    wanted[3, :16, :16] = False
    np.testing.assert_array_equal(valid, wanted)
    np.testing.assert_array_equal(pixels[valid][:, 0], stored[valid])
    assert (pixels[~valid] == 0).all()


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "bool"])
def test_numbers_whose_0_is_white_are_inverted(tmp_path, dtype):
    stored = values("ZYX", "uint8") > 120 if dtype == "bool" else values("ZYX", dtype)
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="miniswhite", metadata={"axes": "ZYX"})
    [spec] = images(tmp_path / "a.tif").values()
    most = 1 if dtype == "bool" else np.iinfo(dtype).max
    np.testing.assert_array_equal(pixels_of(spec)[..., 0], most - stored.astype(spec.dtype))


def test_samples_in_planes_and_alpha(tmp_path):
    stored = DRAW.integers(0, 250, (4, 3, 40, 56), np.uint8)
    tifffile.imwrite(
        tmp_path / "planes.tif",
        stored,
        photometric="rgb",
        planarconfig="separate",
        metadata={"axes": "ZSYX"},
        compression="zlib",
    )
    [spec] = images(tmp_path / "planes.tif").values()
    np.testing.assert_array_equal(pixels_of(spec), np.moveaxis(stored, 1, -1))
    np.testing.assert_array_equal(
        pixels_of(spec.select((3, 1))), np.moveaxis(stored, 1, -1)[..., [2, 0]]
    )
    rgba = np.concatenate(
        [np.moveaxis(stored, 1, -1), DRAW.integers(0, 2, (4, 40, 56, 1), np.uint8) * 255], -1
    )
    tifffile.imwrite(
        tmp_path / "alpha.tif",
        rgba,
        photometric="rgb",
        extrasamples=["unassalpha"],
        metadata={"axes": "ZYXS"},
    )
    [spec] = images(tmp_path / "alpha.tif").values()
    with TIFF.open(spec) as reader:
        pixels, valid = reader.read(Box.whole(spec.shape))
    np.testing.assert_array_equal(pixels, rgba[..., :3])
    np.testing.assert_array_equal(valid, rgba[..., 3] != 0)


def test_a_volume_in_one_page(tmp_path):
    stored = np.repeat(values("ZYX"), 5, axis=0)
    tifffile.imwrite(
        tmp_path / "a.tif", stored, volumetric=True, tile=(16, 16, 16), photometric="minisblack"
    )
    [spec] = images(tmp_path / "a.tif").values()
    np.testing.assert_array_equal(pixels_of(spec)[..., 0], stored)
    box = Box((15, 3, 10), (18, 30, 50))
    np.testing.assert_array_equal(pixels_of(spec, box)[..., 0], stored[box.slices])


@pytest.mark.parametrize("options", [{"metadata": None}, {}], ids=["plain", "tifffile"])
def test_the_recipe_gives_pages_their_meaning(tmp_path, options):
    stored = values("ZYX")
    tifffile.imwrite(tmp_path / "a.tif", stored, photometric="minisblack", **options)
    with pytest.raises(FormatError, match="set `axes: zyx`"):
        images(tmp_path / "a.tif")
    [volume] = images(tmp_path / "a.tif", axes="zyx").values()
    np.testing.assert_array_equal(pixels_of(volume)[..., 0], stored)
    times = images(tmp_path / "a.tif", axes="tyx")
    assert list(times) == ["t0001", "t0002", "t0003", "t0004"]
    np.testing.assert_array_equal(pixels_of(times["t0003"])[..., 0], stored[2])


def test_names_in_the_file_come_before_the_recipe(tmp_path):
    path = write(tmp_path / "a.tif", values("ZYX"), "ZYX", ome=True)
    assert [spec.shape for spec in images(path, axes="tyx").values()] == [(4, 40, 56)]


def test_each_scene_is_an_image_and_labels_of_slides_are_none(tmp_path):
    stored = {"left eye": values("ZYX"), "right eye": values("TYX"), "label image": values("YX")}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for name, each in stored.items():
            axes = {"left eye": "ZYX", "right eye": "TYX"}.get(name, "YX")
            metadata = {"axes": axes, "Name": name, "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
            file.write(each, photometric="minisblack", metadata=metadata)
    found = images(tmp_path / "a.ome.tif")
    assert list(found) == ["s01", "s02_t0001", "s02_t0002", "s02_t0003"]
    np.testing.assert_array_equal(pixels_of(found["s01"])[..., 0], stored["left eye"])
    for i in range(3):
        spec = found[f"s02_t000{i + 1}"]
        np.testing.assert_array_equal(pixels_of(spec)[..., 0], stored["right eye"][i])
        assert spec.space.metric.size == pytest.approx(0.5e-3**2)
    with pytest.raises(FormatError, match=r"holds 4 images \(s01, .* one is expected"):
        TIFF.describe(str(tmp_path / "a.ome.tif"), "v")


def test_levels_are_chosen_by_number_or_size(tmp_path):
    levels = [DRAW.integers(0, 99, (3, 160 >> n, 128 >> n), np.uint8) for n in range(3)]
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        metadata = {"axes": "ZYX", "PhysicalSizeZ": 2.0}
        metadata |= {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.25}
        options = {"tile": (32, 32), "photometric": "minisblack"}
        file.write(levels[0], subifds=2, metadata=metadata, **options)
        for level in levels[1:]:
            file.write(level, subfiletype=1, **options)
    cases = {
        0: 0,
        1: 1,
        2: 2,
        PixelSize((1.0,), "um"): 2,
        PixelSize((0.7,), "um"): 1,
        PixelSize((0.1,), "um"): 0,
    }
    for wanted, level in cases.items():
        [spec] = images(tmp_path / "a.ome.tif", level=wanted).values()
        assert spec.level == level
        np.testing.assert_array_equal(pixels_of(spec)[..., 0], levels[level])
        side = 0.25e-3 * 2**level
        assert spec.space.metric.spacing == pytest.approx((2e-3, side, side))
        assert spec.reduction == (() if level == 0 else (1, 2**level, 2**level))
    with pytest.raises(FormatError, match=r"has 3 level\(s\)"):
        images(tmp_path / "a.ome.tif", level=3)


def test_levels_of_one_picture(tmp_path):
    levels = [DRAW.integers(0, 99, (160 >> n, 128 >> n), np.uint8) for n in range(2)]
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=True) as file:
        file.write(levels[0], subifds=1, tile=(32, 32), metadata={"axes": "YX"})
        file.write(levels[1], subfiletype=1, tile=(32, 32))
    for number, level in enumerate(levels):
        [spec] = images(tmp_path / "a.tif", level=number).values()
        np.testing.assert_array_equal(pixels_of(spec)[..., 0], level)
    with pytest.raises(FormatError, match="`level` must be a number, from 0 to 1"):
        images(tmp_path / "a.tif", level=PixelSize((1.0,), "um"))
    with rasterio.open(
        tmp_path / "map.tif",
        "w",
        driver="COG",
        width=1200,
        height=1200,
        count=1,
        dtype="uint8",
        crs="EPSG:32633",
        transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:
        file.write(np.zeros((1200, 1200), np.uint8), 1)
    with pytest.raises(FormatError, match="is placed on a map"):
        images(tmp_path / "map.tif", level=1)


# --- sizes ---


@pytest.mark.parametrize("axes", ["ZYX", "YX"])
@pytest.mark.parametrize(
    ("unit", "millimetres"),
    [("µm", 1e-3), ("μm", 1e-3), ("nm", 1e-6), ("mm", 1), ("cm", 10), (None, 1e-3)],
)
def test_ome_states_the_size_of_a_pixel(tmp_path, axes, unit, millimetres):
    said = {"PhysicalSizeX": 2.5, "PhysicalSizeY": 5.0, "PhysicalSizeZ": 7.0}
    if unit:
        said |= {f"PhysicalSize{axis}Unit": unit for axis in "XYZ"}
    path = write(tmp_path / "a.tif", values(axes), axes, ome=True, metadata=said)
    [spec] = images(path).values()
    wanted = np.array([7.0, 5.0, 2.5][-len(axes) :]) * millimetres
    np.testing.assert_allclose(spec.space.metric.spacing, wanted)
    assert spec.space.unit == f"mm{len(axes)}"


@pytest.mark.parametrize("axes", ["ZYX", "YX", "CYX"])
@pytest.mark.parametrize(
    ("unit", "millimetres"),
    [
        ("micron", 1e-3),
        ("um", 1e-3),
        (r"\u00B5m", 1e-3),
        ("mm", 1),
        ("inch", 25.4),
        ("pixel", None),
        ("", None),
    ],
)
def test_imagej_states_the_size_of_a_pixel(tmp_path, axes, unit, millimetres):
    path = write(
        tmp_path / "a.tif",
        values(axes),
        axes,
        imagej=True,
        resolution=(4, 2),
        metadata={"unit": unit, "spacing": 3.0},
    )
    [spec] = images(path).values()
    if millimetres is None:
        assert spec.space.unit == "px"
    else:
        wanted = np.array([3.0, 0.5, 0.25][-2 - axes.count("Z") :]) * millimetres
        np.testing.assert_allclose(spec.space.metric.spacing, wanted)


@pytest.mark.parametrize("axes", ["YX", "TYX"])
def test_resolution_tags_count_only_if_the_recipe_says_so(tmp_path, axes):
    path = write(tmp_path / "a.tif", values(axes), axes, resolution=(72, 36), resolutionunit="INCH")
    for spec in images(path).values():
        assert spec.space.unit == "px"
    for spec in images(path, pixel_size="tags").values():
        np.testing.assert_allclose(spec.space.metric.spacing, (25.4 / 36, 25.4 / 72))
    tifffile.imwrite(path, values("YX"), resolution=(1e4, 1e4), resolutionunit="CENTIMETER")
    [spec] = images(path, pixel_size="tags").values()
    np.testing.assert_allclose(spec.space.metric.spacing, (1e-3, 1e-3))


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "1e-9", "1e9", "wide"])
def test_sizes_that_cannot_be_are_px_with_a_note(tmp_path, size):
    text = tifffile.OmeXml()
    text.addimage("uint16", (4, 40, 56), (4, 1, 1, 40, 56, 1), axes="ZYX")
    xml = text.tostring().replace("SizeX=", f'PhysicalSizeX="{size}" PhysicalSizeY="1" SizeX=', 1)
    tifffile.imwrite(
        tmp_path / "a.tif",
        values("ZYX"),
        photometric="minisblack",
        metadata=None,
        description=xml.encode(),
    )
    [spec] = images(tmp_path / "a.tif").values()
    assert spec.space.unit == "px"
    assert "sizes are in px" in spec.notes[0]


# --- damage and lies ---


def ome_text(path: Path, old: str, new: str) -> None:
    """Change the OME metadata of a file to a text of the same length."""
    content = path.read_bytes()
    assert len(old) == len(new)
    assert content.count(old.encode()) >= 1
    path.write_bytes(content.replace(old.encode(), new.encode(), 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [('SizeZ="4"', 'SizeZ="9"'), ('SizeT="1"', 'SizeT="5"')],
)
def test_a_description_of_more_pages_than_there_are_is_refused(tmp_path, old, new):
    path = write(tmp_path / "a.tif", values("ZYX"), "ZYX", ome=True, compression="zlib")
    ome_text(path, old, new)
    with pytest.raises(FormatError, match="pages by its description"):
        images(path)


def test_numbers_that_nobody_can_have_cost_nothing(tmp_path):
    for options in ({"ome": True}, {"imagej": True}, {}):
        path = tmp_path / "a.tif"
        write(path, values("ZYX"), "ZYX", **options)
        content = path.read_bytes()
        for old, new in (
            (b'SizeZ="4"', b'SizeZ="999999999"'),
            (b"slices=4", b"slices=999999999"),
            (b"images=4", b"images=999999999"),
            (b'"shape": [4,', b'"shape": [999999999,'),
        ):
            found = content.find(old)
            if found < 0:
                continue
            with tifffile.TiffFile(path) as file:
                text = file.pages[0].description.encode("utf-8").replace(old, new)
            with tifffile.TiffFile(path, mode="r+") as file:
                file.pages[0].tags[270].overwrite(text)
            with pytest.raises(FormatError, match=r"claims .* pictures|hold"):
                images(path)


def test_parts_in_other_files_are_refused_and_not_opened(tmp_path):
    path = write(tmp_path / "a.ome.tif", values("ZYX"), "ZYX", ome=True)
    other = write(tmp_path / "b.ome.tif", values("ZYX"), "ZYX", ome=True)
    with tifffile.TiffFile(path) as file:
        text = file.pages[0].description
    plane = '<TiffData IFD="0" FirstZ="{0}"><UUID FileName="b.ome.tif">urn:uuid:b</UUID></TiffData>'
    start, stop = text.index("<TiffData"), text.index("</Pixels>")
    text = text[:start] + "".join(plane.format(z) for z in range(4)) + text[stop:]
    image = text[text.index("<Image") : text.index("</Image>") + len("</Image>")]
    for changed in (text, text.replace("</OME>", f"{image}</OME>")):
        with tifffile.TiffFile(path, mode="r+") as file:
            file.pages[0].tags[270].overwrite(changed)
        with pytest.raises(FormatError, match=r"several files|not in it|another file"):
            images(path)
    assert other.exists()
    binary = '<?xml version="1.0"?><OME><BinaryOnly MetadataFile="x.companion.ome" UUID="a"/></OME>'
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags[270].overwrite(binary)
    with pytest.raises(FormatError, match=r"metadata are in another file \(x\.companion\.ome\)"):
        images(path)


def test_an_encoding_that_nobody_knows_is_damage(tmp_path):
    path = write(tmp_path / "a.tif", values("ZYX"), "ZYX", ome=True)
    ome_text(path, 'encoding="UTF-8"', 'encoding="HTF-8"')
    with pytest.raises(FormatError, match=r"OME metadata cannot be read: .*HTF-8"):
        images(path)


def test_axes_without_a_place_are_named(tmp_path):
    stored = DRAW.integers(0, 9, (5, 4, 40, 56), np.uint8)
    write(tmp_path / "a.tif", stored, "EZYX")
    with pytest.raises(FormatError, match="has pictures 5 along E"):
        images(tmp_path / "a.tif")
    write(tmp_path / "b.tif", stored, "QZYX")
    with pytest.raises(FormatError, match="two axes Z"):
        images(tmp_path / "b.tif", axes="zyx")
    assert len(images(tmp_path / "b.tif", axes="tyx")) == 5
    write(tmp_path / "c.tif", stored.astype("complex64"), "TZYX")
    with pytest.raises(FormatError, match="holds complex64"):
        images(tmp_path / "c.tif")


@each_writer
def test_any_cut_is_a_failed_row(tmp_path_factory, options):
    path = tmp_path_factory.mktemp("cut") / "a.tif"
    stored = values("ZYX")
    whole = write(path, stored, "ZYX", **options).read_bytes()

    @given(st.integers(0, len(whole) - 1), st.booleans(), st.integers(0, 255))
    def harm(place: int, cut: bool, byte: int) -> None:
        path.write_bytes(
            whole[:place] if cut else whole[:place] + bytes([byte]) + whole[place + 1 :]
        )
        try:
            for spec in images(path, axes="zyx").values():
                with TIFF.open(spec) as reader:
                    pixels, _ = reader.read(Box.whole(spec.shape))
        except ImageError as error:
            assert str(path) in str(error)
            return
        if cut and "truncate" not in options:
            # Only what no reader needs may be missing. Of pages behind one directory, the first one
            # may have been taken out on purpose.
            np.testing.assert_array_equal(pixels[..., 0], stored)

    harm()


def test_a_damaged_tile_is_a_read_error_and_others_are_read(tmp_path):
    stored = values("ZYX")
    path = write(tmp_path / "a.tif", stored, "ZYX", tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(path) as file:
        offset = file.pages[2].dataoffsets[5]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = bytes(20)
    path.write_bytes(bytes(content))
    [spec] = images(path).values()
    with TIFF.open(spec) as reader:
        with pytest.raises(ReadError, match=r"a\.tif: the pixels from \(0, 0, 0\)"):
            reader.read(Box.whole(spec.shape))
        pixels, _ = reader.read(Box((0, 0, 0), (2, 40, 56)))
    np.testing.assert_array_equal(pixels[..., 0], stored[:2])


def test_a_file_that_changed_after_planning_is_refused(tmp_path):
    [spec] = images(write(tmp_path / "a.tif", values("ZYX"), "ZYX")).values()
    write(tmp_path / "a.tif", values("ZCYX"), "ZCYX")
    with pytest.raises(SourceChanged):
        TIFF.open(spec)


@pytest.mark.parametrize("options", [{"ome": True, "compression": "zlib"}, {"imagej": True}])
def test_any_store_gives_the_same_image(tmp_path, options):
    stored = values("TZCYX")
    path = write(tmp_path / "a.tif", stored, "TZCYX", **options)
    location = f"memory://stacks/{'-'.join(options)}.tif"
    fs, inside = fsspec.core.url_to_fs(location)
    fs.put(str(path), inside)
    for here, there in zip(images(path).values(), images(location).values(), strict=True):
        assert repr(there).replace(location, str(path)) == repr(here)
        np.testing.assert_array_equal(pixels_of(there), pixels_of(here))


@pytest.mark.skipif(
    "MASKLOOM_TEST_DATA" not in os.environ, reason="needs the folder of test images"
)
def test_real_stacks_are_read_as_tifffile_reads_them():
    folder = Path(os.environ["MASKLOOM_TEST_DATA"])
    path = folder / "wsi/images/multi-channel-z-series.ome.tif"
    [spec] = images(path).values()
    assert (spec.shape, spec.bands, spec.dtype) == ((5, 167, 439), (1, 2, 3), "int8")
    np.testing.assert_array_equal(pixels_of(spec), np.moveaxis(tifffile.imread(path), 0, -1))
    pages = tifffile.imread(folder / "reports/three_pages.tif")
    [spec] = images(folder / "reports/three_pages.tif", axes="zyx").values()
    np.testing.assert_array_equal(pixels_of(spec)[..., 0], pages)
    [spec] = images(folder / "reports/imagej_3_channels.tif").values()
    channels = tifffile.imread(folder / "reports/imagej_3_channels.tif")
    np.testing.assert_array_equal(pixels_of(spec), np.moveaxis(channels, 0, -1))
