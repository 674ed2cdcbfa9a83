"""Files of others: those that pydicom carries, and those of MASKLOOM_TEST_DATA, compared with
pydicom's own pixels and with what is known about them.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest

from maskloom.segcore.errors import FormatError, ImageError
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.source import Member
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

DICOM, OPTIONS = FORMATS["dicom"], ReadOptions()
CARRIED = Path(pydicom.__file__).parent / "data" / "test_files"
DATA = Path(os.environ.get("MASKLOOM_TEST_DATA", "/nowhere")) / "dicom" / "images"
FILES = sorted(path for path in CARRIED.rglob("*") if path.is_file())
needs_data = pytest.mark.skipif(not DATA.exists(), reason="MASKLOOM_TEST_DATA is not set")


def frames(path: Path) -> tuple[list[RasterSpec], np.ndarray]:
    """All frames of a file, (frame, y, x, band)."""
    image = StoredImage(str(path), "1")
    specs, found = [], []
    for part in DICOM.parts(image, OPTIONS) or ("",):
        spec = DICOM.describe_image(replace(image, part=part), OPTIONS)
        with DICOM.open(spec) as reader:
            pixels = reader.read(Box.whole(spec.shape))[0]
        specs.append(spec)
        found.append(pixels.reshape(-1, *pixels.shape[-3:]))
    return specs, np.concatenate(found)


def oracle(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """The same from pydicom, rescaled; None where it cannot, or does not apply what we apply."""
    dataset = pydicom.dcmread(path, force=True)
    if "PerFrameFunctionalGroupsSequence" in dataset or dataset.get(
        "PhotometricInterpretation"
    ) == ("PALETTE COLOR"):
        return None
    try:
        pixels = pydicom.pixels.pixel_array(dataset).reshape(shape)
    except (AttributeError, RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    slope = dataset.get("RescaleSlope", dataset.get("DoseGridScaling", 1))
    return pixels * float(slope) + float(dataset.get("RescaleIntercept", 0))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "folder", [CARRIED, pytest.param(DATA / "pydicom_data", marks=needs_data)], ids=["own", "data"]
)
def test_pixels_are_those_of_pydicom_or_there_is_a_reason(folder):
    equal, refused = [], {}
    for path in sorted(each for each in folder.rglob("*") if each.is_file()):
        try:
            _, found = frames(path)
        except ImageError as error:
            refused[path.name] = str(error)
            continue
        expected = oracle(path, found.shape)
        if expected is not None:
            # float32 holds what is not whole.
            np.testing.assert_allclose(found, expected, rtol=1e-6, err_msg=path.name)
            equal.append(path.name)
    assert len(equal) >= (70 if folder == CARRIED else 12)
    reasons = ("holds no image", "is no DICOM file", "ends before its pixels", "ends within")
    other = {
        name: text for name, text in refused.items() if not any(each in text for each in reasons)
    }
    # A stream cut by a delimiter, and files without the size of an image.
    assert set(other) <= {
        "JPEG2000-embedded-sequence-delimiter.dcm",
        "meta_missing_tsyntax.dcm",
        "nested_priv_SQ.dcm",
        "no_meta.dcm",
    }, other


def grouped(folder: Path) -> dict[str, list[RasterSpec] | FormatError]:
    files = [Member(str(path), "1", 1) for path in sorted(folder.rglob("*")) if path.is_file()]
    found: dict[str, list[RasterSpec] | FormatError] = {}
    for series in DICOM.group(files, DICOM.headers(files, OPTIONS), OPTIONS).series:
        image = StoredImage(series.uri, "1", files=tuple(each.uri for each in series.members))
        parts = DICOM.parts(image, OPTIONS) or ("",)
        found[series.uri] = [
            DICOM.describe_image(replace(image, part=part), OPTIONS) for part in parts
        ]
    return found


@needs_data
def test_series_that_other_programs_get_wrong():
    tilted, timed, two = (
        next(iter(grouped(DATA / "dicom2nifti_series/failing" / name).values()))
        for name in ("gantrytilting", "notavolume", "slicecount")
    )
    # Positions give 14.000 degrees, 4.8515 mm along the normal, and 5 mm along the table.
    [tilted] = tilted
    assert tilted.space.metric.size == pytest.approx(0.84754, abs=1e-5)
    assert tilted.space.metric.spacing[0] == pytest.approx(4.8515, abs=1e-4)
    assert "14.0 degrees" in " ".join(tilted.notes)
    assert [spec.shape for spec in timed] == [(512, 512)] * 4
    assert {spec.space.unit for spec in timed} == {"mm2"}
    assert two[0].shape[0] == 2


@needs_data
def test_slopes_differ_from_slice_to_slice_and_rows_are_no_columns():
    [[spec]] = grouped(DATA / "dicom2nifti_series/generic/anatomical/002_non_isotropic").values()
    assert spec.shape == (4, 28, 64)
    assert spec.dtype == "float32"
    files = [pydicom.dcmread(path) for path in spec.files]
    assert len({float(each.RescaleSlope) for each in files}) > 1
    assert spec.space.metric.spacing[1:] == tuple(map(float, files[0].PixelSpacing))
    with DICOM.open(spec) as reader:
        found = reader.read(Box.whole(spec.shape))[0][..., 0]
    expected = [
        each.pixel_array * float(each.RescaleSlope) + float(each.RescaleIntercept) for each in files
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@needs_data
def test_compressed_copies_of_a_series_are_the_same_volume():
    plain, packed = (
        next(iter(grouped(DATA / "dicom2nifti_series/generic" / name).values()))
        for name in ("compressed_j2k", "compressed_jpegls")
    )
    volumes = []
    for [spec] in (plain, packed):
        with DICOM.open(spec) as reader:
            volumes.append(reader.read(Box.whole(spec.shape))[0])
    np.testing.assert_array_equal(*volumes)
