"""When images were acquired, as cameras and other programs write it into their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image, TiffImagePlugin
from stac_support import write_band

from maskloom.segcore import formats
from maskloom.segcore.raster.source import Source

TAKEN, WRITTEN, OFFSET = "2026:05:13 12:00:31", "2026:06:01 00:00:00", "+02:00"
PIXELS = np.zeros((8, 8), np.uint8)


def acquired(path: Path) -> str | None:
    return formats.describe(str(path)).acquired


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_photograph_was_taken_before_it_was_changed(tmp_path, suffix):
    exif = Image.Exif()
    exif[306] = WRITTEN
    exif.get_ifd(0x8769).update({36867: TAKEN, 36881: OFFSET})
    Image.new("RGB", (8, 8)).save(tmp_path / f"a.{suffix}", exif=exif)
    assert acquired(tmp_path / f"a.{suffix}") == "2026-05-13T10:00:31Z"
    exif = Image.Exif()
    exif[306] = WRITTEN
    Image.new("RGB", (8, 8)).save(tmp_path / f"b.{suffix}", exif=exif)
    assert acquired(tmp_path / f"b.{suffix}") == "2026-06-01T00:00:00Z"
    Image.new("RGB", (8, 8)).save(tmp_path / f"c.{suffix}", exif=b"Exif\0\0broken")
    assert acquired(tmp_path / f"c.{suffix}") is None


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (TAKEN, "2026-05-13T12:00:31Z"),
        ("2026-05-13T12:00:31+02:00", "2026-05-13T10:00:31Z"),
        ("2026-05-13 12:00:31", "2026-05-13T12:00:31Z"),
        ("0000:00:00 00:00:00", None),
        ("yesterday", None),
        (None, None),
    ],
)
def test_the_tag_of_a_tiff(tmp_path, said, expected):
    write_band(tmp_path / "a.tif", PIXELS)
    if said is not None:
        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            file.update_tags(TIFFTAG_DATETIME=said)
    assert acquired(tmp_path / "a.tif") == expected


def test_exif_and_metadata_of_satellites_go_before_the_tag_of_a_tiff(tmp_path):
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[306], tags[34665] = WRITTEN, {36867: TAKEN, 36881: OFFSET}
    Image.new("RGB", (8, 8)).save(tmp_path / "a.tif", tiffinfo=tags)
    assert acquired(tmp_path / "a.tif") == "2026-05-13T10:00:31Z"
    write_band(tmp_path / "b.tif", PIXELS)
    with rasterio.open(tmp_path / "b.tif", "r+") as file:
        file.update_tags(TIFFTAG_DATETIME=WRITTEN)
        file.update_tags(ns="IMAGERY", ACQUISITIONDATETIME="2026-05-13 10:00:31")
    assert acquired(tmp_path / "b.tif") == "2026-05-13T10:00:31Z"


def test_each_picture_of_a_microscope_has_its_date(tmp_path):
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as file:
        for day in (13, 14):
            said = {"axes": "ZYX", "AcquisitionDate": f"2026-05-{day}T10:00:31"}
            file.write(np.zeros((3, 8, 8), np.uint8), metadata=said)
    source = Source(str(tmp_path / "a.ome.tif"), "a", "", 0)
    found = [spec.acquired for _, spec in formats.describe_images(source, "1")]
    assert found == ["2026-05-13T10:00:31Z", "2026-05-14T10:00:31Z"]
