"""Sizes of pixels from files and from recipes, through whole runs: areas, objects, and what is
said and recorded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rasterio.transform import from_origin
from tests_support import read_table, write_tiff

from maskloom.segcore.formats.arrays import Arrays

TEST_DATA = os.environ.get("MASKLOOM_TEST_DATA")
SQUARE = np.zeros((20, 30), np.uint8)
SQUARE[5:15, 10:20] = 200
QUIET = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial")
THRESHOLD = ("-s", "threshold", "-p", "value=100")
OBJECTS = ("--set", "statistics=[area, objects]")


@pytest.fixture
def segment(tmp_path, maskloom):
    """Segment the images in the folder; options are those of `--set`."""

    def run(*changes: str):
        given = [word for change in changes for word in ("--set", change)]
        output = tmp_path / "out"
        return maskloom(
            "segment", tmp_path / "in", "-o", output, *THRESHOLD, *QUIET, *OBJECTS, *given
        )

    (tmp_path / "in").mkdir()
    return run


def foreground(tmp_path: Path) -> dict[str, object]:
    (row,) = (row for row in read_table(tmp_path / "out", "areas") if row["class_id"] == 1)
    return row


def sizes(tmp_path: Path) -> tuple[object, ...]:
    (row,) = read_table(tmp_path / "out", "images")
    return tuple(row[f"pixel_size_{name}"] for name in ("z", "y", "x", "from"))


@pytest.mark.parametrize(
    ("size", "area", "steps"),
    [
        ("0.5 um", 100 * 0.25e-6, (0.5e-3, 0.5e-3)),
        ("0.5 0.25 um", 100 * 0.125e-6, (0.5e-3, 0.25e-3)),
        ("2 cm", 100 * 400, (20.0, 20.0)),
    ],
)
def test_a_size_of_the_recipe_is_used_and_recorded(tmp_path, segment, size, area, steps):
    Image.fromarray(SQUARE).save(tmp_path / "in" / "a.png", dpi=(72, 72))
    result = segment(f"pixel_size={size}")
    assert result.exit_code == 0, result.output
    shown = {"0.5 um": "25 µm²", "0.5 0.25 um": "12.5 µm²", "2 cm": "400 cm²"}[size]
    assert re.search(rf"^foreground +{shown} +16.7%$", result.output, re.MULTILINE)
    row = foreground(tmp_path)
    assert (row["area_unit"], row["area"]) == ("mm2", pytest.approx(area, rel=1e-12))
    assert sizes(tmp_path) == (None, *map(pytest.approx, steps), "recipe")
    (found,) = read_table(tmp_path / "out", "objects")
    assert found["area"] == pytest.approx(area, rel=1e-12)
    # From the middle of one corner's longer side to that of the other.
    y, x = 9 * steps[0], 9 * steps[1]
    assert found["feret_diameter_max"] == pytest.approx(np.hypot(y + steps[0], x))


def test_volumes_and_the_size_of_a_file(tmp_path, segment, caplog):
    volume = np.zeros((6, 20, 30), np.uint8)
    volume[2:4, 5:15, 10:20] = 200
    np.savez(tmp_path / "in" / "v.npz", pixels=volume, spacing=[2.0, 0.5, 0.5], unit="mm")

    assert segment().exit_code == 0
    assert foreground(tmp_path)["area"] == pytest.approx(200 * 0.5)
    assert sizes(tmp_path) == (2.0, 0.5, 0.5, "file")

    result = segment("pixel_size=3 1 1 mm")
    assert result.exit_code == 0, result.output
    assert "pixel_size` replaces 2 x 0.5 x 0.5 mm" in caplog.text
    row = foreground(tmp_path)
    assert (row["area"], row["area_unit"]) == (pytest.approx(600), "mm3")
    assert sizes(tmp_path) == (3.0, 1.0, 1.0, "recipe")


def test_known_volumes_are_right_in_millilitres(tmp_path, segment):
    """A ball of 1 ml in voxels of unequal sides, and a box of 0.75 ml."""
    spacing = np.array([1.5, 0.5, 0.5])
    z, y, x = (np.arange(n) * step for n, step in zip((20, 50, 120), spacing, strict=True))
    radius = (3 * 1000 / 4 / np.pi) ** (1 / 3)
    middle = (14.0, 12.0, 12.0)
    ball = (
        (z[:, None, None] - middle[0]) ** 2 + (y[:, None] - middle[1]) ** 2 + (x - middle[2]) ** 2
    ) <= radius**2
    box = np.zeros_like(ball)
    box[2:12, 10:30, 60:110] = True
    np.savez(
        tmp_path / "in" / "v.npz",
        pixels=(200 * (ball | box)).astype(np.uint8),
        spacing=spacing,
        unit="mm",
    )
    result = segment()
    assert result.exit_code == 0, result.output
    assert re.search(r"^foreground +4\.7\d* ml ", result.output, re.MULTILINE)
    found = sorted(read_table(tmp_path / "out", "objects"), key=lambda row: row["centroid_x"])
    assert [row["area_unit"] for row in found] == ["mm3", "mm3"]
    assert found[0]["area"] == pytest.approx(1000, rel=0.02)
    assert found[0]["equivalent_diameter"] == pytest.approx(2 * radius, rel=0.01)
    assert found[0]["feret_diameter_max"] == pytest.approx(2 * radius, abs=spacing.max())
    assert found[1]["area"] == pytest.approx(10 * 20 * 50 * spacing.prod())


@pytest.mark.skipif(not TEST_DATA, reason="MASKLOOM_TEST_DATA is not set")
def test_the_average_brain_has_its_volume(tmp_path, segment):
    """1,886,539 voxels of 1 mm."""
    nibabel = pytest.importorskip("nibabel")
    (path,) = Path(TEST_DATA, "mri_mni152", "images").glob("*.nii.gz")
    image = nibabel.load(path)
    np.savez(
        tmp_path / "in" / "v.npz",
        pixels=np.asarray(image.dataobj).T,
        spacing=image.header.get_zooms()[::-1],
        unit="mm",
    )
    result = segment("segmenter.value=0", "statistics=[area]")
    assert result.exit_code == 0, result.output
    assert "foreground  1.887 l" in result.output
    assert foreground(tmp_path)["area"] == pytest.approx(1_886_539, rel=1e-9)


def test_areas_of_unlike_units_are_not_added(tmp_path, segment):
    Image.fromarray(SQUARE).save(tmp_path / "in" / "a.png")
    np.savez(tmp_path / "in" / "v.npz", pixels=SQUARE, spacing=[0.5, 0.5], unit="um")
    result = segment()
    rows = [line.split() for line in result.output.splitlines()]
    assert ["background", "500", "px", "83.3%"] in rows
    assert ["foreground", "25", "µm²", "16.7%"] in rows
    again = segment()
    assert "class" not in again.output


def test_a_map_keeps_its_areas_and_says_so(tmp_path, segment, caplog):
    write_tiff(
        tmp_path / "in" / "a.tif",
        SQUARE[..., None],
        crs="EPSG:32633",
        transform=from_origin(500_000, 5_300_000, 10, 10),
    )
    result = segment("pixel_size=0.5 um")
    assert result.exit_code == 0, result.output
    assert "`pixel_size` is not used, since its coordinate reference system" in caplog.text
    row = foreground(tmp_path)
    assert row["area_unit"] == "m2"
    assert row["area"] == pytest.approx(10_000, rel=1e-3)
    assert sizes(tmp_path) == (None,) * 4


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("pixel_size=1 1 1 mm", "3 numbers for an image with the axes y, x"),
        ("pixel_size=0 um", "from 1 nm to 1 m"),
        ("pixel_size=0.5", "expected text"),
        ("pixel_size=0.5 px", "expected one of m, cm, mm, um, nm; got 'px'"),
        ("pixel_size='0,5 um'", "write decimals with a point"),
        ("level='1 parsec'", "got 'parsec'"),
    ],
)
def test_wrong_pixel_sizes_are_refused_with_a_reason(tmp_path, segment, given, message):
    Image.fromarray(SQUARE).save(tmp_path / "in" / "a.png")
    result = segment(given)
    assert message in result.output
    # What does not suit an image is seen when its header is read.
    assert result.exit_code == (3 if "1 1 1" in given else 2)
    assert (tmp_path / "out").exists() == (result.exit_code == 3)


@pytest.mark.parametrize("spacing", [[1e300] * 2, [1e-9] * 2, [1.0, 2000.0]])
def test_sizes_that_no_instrument_has_are_counted(tmp_path, segment, caplog, spacing):
    np.savez(tmp_path / "in" / "v.npz", pixels=SQUARE, spacing=spacing, unit="mm")
    result = segment()
    assert result.exit_code == 0, result.output
    assert "sizes are in px" in caplog.text
    row = foreground(tmp_path)
    assert (row["area"], row["area_unit"]) == (100, "px")
    assert sizes(tmp_path) == (None,) * 4


def test_the_size_is_that_of_full_resolution(tmp_path, segment, monkeypatch):
    """A reader that delivers every fourth row and second column says so."""
    from dataclasses import replace

    describe = Arrays.describe
    monkeypatch.setattr(
        Arrays,
        "describe",
        lambda self, *given: replace(describe(self, *given), level=2, reduction=(4.0, 2.0)),
    )
    np.save(tmp_path / "in" / "a.npy", SQUARE)
    assert segment("pixel_size=0.5 um").exit_code == 0
    assert sizes(tmp_path) == (None, pytest.approx(2e-3), pytest.approx(1e-3), "recipe")


def tiff(path: Path, **tags: object) -> None:
    """A TIFF by an independent writer, with or without tags of resolution."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(path, SQUARE, metadata=None, **tags)


@pytest.mark.parametrize(
    ("resolution", "unit", "steps"),
    [
        ((40_000, 20_000), "CENTIMETER", (0.5e-3, 0.25e-3)),
        ((25_400, 25_400), "INCH", (1e-3, 1e-3)),
        ((72, 72), "INCH", (25.4 / 72,) * 2),
    ],
)
def test_tags_of_tiff_are_used_where_asked_for(tmp_path, segment, resolution, unit, steps):
    tiff(tmp_path / "in" / "a.tif", resolution=resolution, resolutionunit=unit)
    assert segment().exit_code == 0
    assert foreground(tmp_path)["area_unit"] == "px"
    assert sizes(tmp_path) == (None,) * 4

    result = segment("pixel_size=tags")

    assert result.exit_code == 0, result.output
    row = foreground(tmp_path)
    assert row["area_unit"] == "mm2"
    assert row["area"] == pytest.approx(100 * steps[0] * steps[1], rel=1e-6)
    assert sizes(tmp_path) == (None, *(pytest.approx(step, rel=1e-6) for step in steps), "tags")


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"resolution": (100, 100), "resolutionunit": "NONE"},
        {"resolution": ((0, 1), (0, 1)), "resolutionunit": "INCH"},
        {"resolution": ((1, 1000), (1, 1000)), "resolutionunit": "CENTIMETER"},
    ],
)
def test_tags_that_say_nothing(tmp_path, segment, caplog, tags):
    tiff(tmp_path / "in" / "a.tif", **tags)
    result = segment("pixel_size=tags")
    assert result.exit_code == 0, result.output
    assert foreground(tmp_path)["area_unit"] == "px"
    assert "sizes are in px" in caplog.text


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp"])
def test_dots_per_inch_of_pictures_are_never_used(tmp_path, segment, suffix):
    exif = Image.Exif()
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 300.0, 2
    kinds = {} if suffix == "bmp" else {"exif": exif}
    Image.fromarray(SQUARE).save(tmp_path / "in" / f"a.{suffix}", dpi=(300, 300), **kinds)
    assert segment("pixel_size=tags").exit_code == 0
    assert foreground(tmp_path)["area_unit"] == "px"


def test_a_turned_picture_has_its_tags_turned(tmp_path, segment):
    """Orientation 6: rows are columns."""
    tiff(
        *(tmp_path / "in" / "a.tif",),
        resolution=(40_000, 20_000),
        resolutionunit="CENTIMETER",
        extratags=[(274, "H", 1, 6, True)],
    )
    assert segment("pixel_size=tags").exit_code == 0
    assert sizes(tmp_path) == (None, pytest.approx(0.25e-3), pytest.approx(0.5e-3), "tags")
