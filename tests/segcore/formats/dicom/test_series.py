"""Series: which files are one image, in which order, where they are, and when they are none."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_support import AXIAL, encoded, enhanced, items_of, save, slice_of, stack_of, uid
from hypothesis import given
from hypothesis import strategies as st

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats import describe_images
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.source import Grouping, Member, Source
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

DICOM, OPTIONS = FORMATS["dicom"], ReadOptions()
NOISE = np.random.default_rng(5).integers(0, 4000, (7, 6, 10), np.uint16)


def grouped(folder: Path, options: ReadOptions = OPTIONS) -> Grouping:
    files = [
        Member(str(path), "1", path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    ]
    return DICOM.group(files, DICOM.headers(files, options), options)


def images(folder: Path, version: str = "1") -> dict[str, RasterSpec | FormatError]:
    """Every image of a folder, or why there is none, by the name after the pseudonym."""
    found = {}
    for series in grouped(folder).series:
        files = tuple(member.uri for member in series.members)
        image = StoredImage(series.uri, version, files=files)
        try:
            for part in DICOM.parts(image, OPTIONS) or ("",):
                spec = DICOM.describe_image(replace(image, part=part), OPTIONS)
                found[f"{series.uri}{part}"] = spec
        except FormatError as error:
            found[series.uri] = error
    return found


def only(folder: Path) -> RasterSpec:
    [found] = images(folder).values()
    assert isinstance(found, RasterSpec), found
    return found


def refusal(folder: Path) -> str:
    [found] = images(folder).values()
    assert isinstance(found, FormatError)
    return str(found)


def pixels_of(spec: RasterSpec) -> np.ndarray:
    with DICOM.open(spec) as reader:
        return reader.read(Box.whole(spec.shape))[0][..., 0]


def affine_of(spec: RasterSpec) -> np.ndarray:
    return np.reshape(spec.space.frame.affine, (3, 4))


angles = st.floats(-3.1, 3.1)


@given(
    angles=st.tuples(angles, angles, angles),
    order=st.permutations(range(7)),
    tilt=st.floats(-0.4, 0.4),
    backwards=st.booleans(),
)
def test_every_pixel_is_where_its_own_file_says(tmp_path_factory, angles, order, tilt, backwards):
    folder = tmp_path_factory.mktemp("any")
    row, column, normal = rotation(*angles).T
    step = (2.5 * normal + tilt * column) * (-1 if backwards else 1)
    slices = stack_of(NOISE, step, (-30.0, 12.5, 100.0), orientation=[*row, *column])
    save(folder, [slices[k] for k in order])

    spec = only(folder)

    values, affine = pixels_of(spec), affine_of(spec)
    np.testing.assert_allclose(abs(np.linalg.det(affine[:, :3])), spec.space.metric.size, rtol=1e-9)
    np.testing.assert_allclose(spec.space.metric.size, 0.5 * 0.8 * 2.5, rtol=1e-5)
    for number, dataset in enumerate(slices):
        # PS3.3 C.7.6.2.1.1: the place of column i and row j of one file.
        position = np.array(dataset.ImagePositionPatient, float)
        i, j = number, number % 6
        place = position + row * i * 0.8 + column * j * 0.5
        there = np.linalg.solve(affine[:, :3], place * (-1, -1, 1) - affine[:, 3])
        x, y, z = np.rint(there).astype(int)
        np.testing.assert_allclose(there, (x, y, z), atol=1e-4)
        assert (x, y) == (i, j)
        assert values[z, y, x] == NOISE[number, j, i]


def rotation(a: float, b: float, c: float) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_euler("xyz", (a, b, c)).as_matrix()


def test_a_tilted_gantry_shears_the_affine_and_volumes_are_right(tmp_path):
    # Steps of 5 mm along the table, slices tilted by 14 degrees.
    angle = np.radians(14)
    orientation = (1, 0, 0, 0, np.cos(angle), -np.sin(angle))
    save(tmp_path, stack_of(NOISE, (0, 0, 5), orientation=orientation))

    spec = only(tmp_path)

    assert spec.space.metric.size == pytest.approx(0.5 * 0.8 * 5 * np.cos(angle))
    assert "sheared by 14.0 degrees" in spec.notes[0]
    np.testing.assert_allclose(affine_of(spec)[:, 2], (0, 0, 5))


def test_thickness_and_the_order_of_names_and_numbers_play_no_part(tmp_path):
    slices = stack_of(NOISE)
    for number, dataset in enumerate(slices):
        dataset.InstanceNumber, dataset.SliceThickness = 99 - number, 7
        dataset.SpacingBetweenSlices = 9
    save(tmp_path, slices[::-1])

    spec = only(tmp_path)

    assert spec.space.metric.spacing == (2.0, 0.5, 0.8)
    np.testing.assert_array_equal(pixels_of(spec), NOISE)


def test_copies_are_left_out_and_counted(tmp_path):
    slices = stack_of(NOISE)
    again = slice_of(NOISE[3], (0, 0, 6.0), number=50)
    save(tmp_path, [*slices, slices[2], again])

    spec = only(tmp_path)

    np.testing.assert_array_equal(pixels_of(spec), NOISE)
    assert spec.notes[0] == "slices that are copies of others are left out (1)"
    assert spec.notes[1].startswith("slices with other numbers but the same pixels")


def test_missing_slices_are_named_and_hide_no_other_series(tmp_path):
    slices = stack_of(NOISE, start=(0, 0, -10))
    save(tmp_path, [*slices[:2], *slices[3:5], slices[6]])
    save(tmp_path, stack_of(NOISE, series="B"), names="b{}.dcm")

    found = images(tmp_path)

    [error] = [each for each in found.values() if isinstance(each, FormatError)]
    assert "2 of 7 slices are missing (usual distance 2 mm)" in str(error)
    assert "between -8.00 mm and -4.00 mm" in str(error)
    assert [each.shape for each in found.values() if isinstance(each, RasterSpec)] == [(7, 6, 10)]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ((0, 2, 4, 7, 9), r"irregular distances: usually 2.000 mm, but 3.000 mm after 4.00 mm"),
        ((0, 2, 4, 8, 10, 12, 20), r"4 of 11 slices are missing .* 1 between .*, 3 between"),
    ],
)
def test_irregular_distances_are_refused_with_their_places(tmp_path, places, expected):
    save(
        tmp_path,
        [slice_of(NOISE[0], (0, 0, place), number=i) for i, place in enumerate(places)],
    )
    assert re.search(expected, refusal(tmp_path))


def test_a_small_drift_is_accepted_with_a_note(tmp_path):
    places = np.cumsum([0, 2, 2.05, 1.96, 2.03])
    save(tmp_path, [slice_of(NOISE[i], (0, 0, z), number=i) for i, z in enumerate(places)])

    spec = only(tmp_path)

    assert spec.space.metric.spacing[0] == pytest.approx(places[-1] / 4)
    assert "vary from 1.960 to 2.050 mm" in spec.notes[0]


def test_a_slice_beside_the_others_is_refused(tmp_path):
    slices = stack_of(NOISE)
    slices[3].ImagePositionPatient = [5, 0, 6]
    save(tmp_path, slices)
    assert "the slice at 6.00 mm is 5.00 mm beside the line" in refusal(tmp_path)


def test_orientations_sizes_and_localizers_of_one_series_are_images_of_their_own(tmp_path):
    sagittal = (0, 1, 0, 0, 0, -1)
    save(tmp_path, stack_of(NOISE), names="a{}.dcm")
    save(
        tmp_path,
        stack_of(NOISE[:3], (4, 0, 0), orientation=sagittal, SOPInstanceUID=None or uid("s")),
        names="s{}.dcm",
    )
    for number, path in enumerate(sorted(tmp_path.glob("s*.dcm"))):
        import pydicom

        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = uid("s", number)
        dataset.save_as(path)
    localizer = slice_of(NOISE[0], number=77, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    save(tmp_path, [localizer], names="l{}.dcm")
    save(tmp_path, stack_of(NOISE[:, :4], (0, 0, 3)), names="small{}.dcm")
    for number, path in enumerate(sorted(tmp_path.glob("small*.dcm"))):
        import pydicom

        dataset = pydicom.dcmread(path)
        dataset.SOPInstanceUID = uid("small", number)
        dataset.save_as(path)

    found = images(tmp_path)

    assert sorted(spec.shape for spec in found.values()) == [
        (3, 6, 10),
        (6, 10),
        (7, 4, 10),
        (7, 6, 10),
    ]
    assert len({name.rpartition("-")[0] for name in found}) == 1, "all are of one series"


def test_times_at_every_place_are_volumes_in_the_order_of_acquisition(tmp_path):
    times = [
        slice_of(
            NOISE[z] + 1000 * t,
            (0, 0, 2.0 * z),
            number=7 * (2 - t) + z,
            AcquisitionNumber=t + 1,
        )
        for t in range(3)
        for z in range(7)
    ]
    save(tmp_path, times[::-1])

    found = images(tmp_path)

    assert [name[-5:] for name in found] == ["t0001", "t0002", "t0003"]
    for t, spec in enumerate(found.values()):
        np.testing.assert_array_equal(pixels_of(spec), NOISE + 1000 * t)


def test_an_incomplete_time_is_refused(tmp_path):
    times = [
        slice_of(NOISE[z] + t, (0, 0, 2.0 * z), number=7 * t + z, AcquisitionNumber=t)
        for t in range(2)
        for z in range(7 - t)
    ]
    save(tmp_path, times)
    message = refusal(tmp_path)
    assert "up to 2 slices at one place, but fewer at 1 of 7 places" in message
    assert "12.00 mm" in message


def test_one_slice_watched_over_time_is_no_volume(tmp_path):
    save(tmp_path, [slice_of(NOISE[t], number=t + 1) for t in range(4)])

    found = list(images(tmp_path).values())

    assert [spec.shape for spec in found] == [(6, 10)] * 4
    assert {spec.space.unit for spec in found} == {"mm2"}
    assert {spec.space.metric.size for spec in found} == {0.4}
    np.testing.assert_array_equal(np.stack([pixels_of(spec) for spec in found]), NOISE[:4])


def test_one_slice_has_an_area_and_two_have_a_volume_and_a_note(tmp_path):
    save(tmp_path / "one", stack_of(NOISE[:1], SliceThickness=3))
    save(tmp_path / "two", stack_of(NOISE[:2], series="B"))

    one, two = only(tmp_path / "one"), only(tmp_path / "two")

    assert (one.shape, one.space.unit, one.space.metric.size) == ((6, 10), "mm2", 0.4)
    assert (two.shape, two.space.unit) == ((2, 6, 10), "mm3")
    assert "two slices" in two.notes[0]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"orientation": (1, 0, 0, 0.3, 0.7, 0)}, "ImageOrientationPatient is no orientation"),
        ({"orientation": (0, 0, 0, 0, 0, 0)}, "ImageOrientationPatient is no orientation"),
    ],
)
def test_directions_that_are_none_are_refused(tmp_path, change, expected):
    save(tmp_path, stack_of(NOISE, **change))
    assert expected in refusal(tmp_path)


def test_slices_with_and_without_a_scale_are_refused(tmp_path):
    """The numbers of some are Hounsfield units, those of others as stored."""
    slices = stack_of(np.zeros((4, 6, 10), np.int16), RescaleSlope=1, RescaleIntercept=-1024)
    del slices[2].RescaleIntercept, slices[2].RescaleSlope
    save(tmp_path, slices)
    assert "1 of its 4 slices state no RescaleSlope" in refusal(tmp_path)


def test_mixed_pixel_sizes_are_refused(tmp_path):
    slices = stack_of(NOISE)
    slices[2].PixelSpacing = [0.6, 0.8]
    save(tmp_path, slices)
    assert "differ in their PixelSpacing" in refusal(tmp_path)


@pytest.mark.parametrize("order", [range(7), [3, 1, 6, 0, 2, 5, 4]])
def test_frames_of_an_enhanced_object_are_sorted_and_scaled_each(tmp_path, order):
    save(tmp_path, [enhanced(NOISE, order=order)])

    spec = only(tmp_path)

    assert (spec.shape, spec.space.metric.spacing) == ((7, 6, 10), (2.0, 0.5, 0.8))
    expected = NOISE + 100 * np.arange(7)[:, None, None]
    np.testing.assert_array_equal(pixels_of(spec), expected)


def test_stacks_of_an_enhanced_object_are_images_of_their_own(tmp_path):
    save(tmp_path, [enhanced(NOISE[:6], stacks=["JANE DOE"] * 3 + ["x/y"] * 3)])

    found = images(tmp_path)

    assert [name[-2:] for name in found] == ["s1", "s2"]
    assert [spec.shape for spec in found.values()] == [(3, 6, 10)] * 2


def test_times_of_an_enhanced_object_are_volumes(tmp_path):
    made = enhanced(NOISE[:6], RescaleSlope=1)
    for number, group in enumerate(made.PerFrameFunctionalGroupsSequence):
        # Two times of three places, the later one first.
        group.PlanePositionSequence[0].ImagePositionPatient = [0, 0, number % 3]
        group.FrameContentSequence[0].TemporalPositionIndex = 2 - number // 3
    save(tmp_path, [made])

    first, second = images(tmp_path).values()

    scales = 100 * np.arange(6)[:, None, None]
    np.testing.assert_array_equal(pixels_of(first), (NOISE[:6] + scales)[3:])
    np.testing.assert_array_equal(pixels_of(second), (NOISE[:6] + scales)[:3])


def test_a_stack_that_lacks_a_slice_hides_no_other_stack(tmp_path):
    made = enhanced(NOISE, stacks="1112222")
    position = made.PerFrameFunctionalGroupsSequence[5].PlanePositionSequence[0]
    position.ImagePositionPatient = [0, 0, 11]
    [path] = save(tmp_path, [made])
    member = Member(str(path), "1", 1)
    [series] = grouped(tmp_path).series
    source = Source(series.uri, "x", "1", 1, members=(member,))

    found = describe_images(source, "1")

    assert [each.image_id for each, _ in found] == ["x_s1", "x_s2"]
    assert found[0][1].shape == (3, 6, 10)
    assert "irregular distances" in str(found[1][1])


def test_frames_without_positions_are_pictures_over_time_with_the_size_of_their_region(tmp_path):
    movie = slice_of(NOISE[0], None, spacing=None, Modality="US", NumberOfFrames=7)
    movie.PixelData = NOISE.tobytes()
    movie.SequenceOfUltrasoundRegions = items_of(
        RegionSpatialFormat=1,
        PhysicalUnitsXDirection=3,
        PhysicalUnitsYDirection=3,
        PhysicalDeltaX=0.02,
        PhysicalDeltaY=0.03,
    )
    save(tmp_path, [movie])

    found = list(images(tmp_path).values())

    assert [spec.part for spec in found] == [f"t{i:04}" for i in range(1, 8)]
    assert found[0].space.metric.spacing == pytest.approx((0.3, 0.2))
    np.testing.assert_array_equal(np.stack([pixels_of(spec) for spec in found]), NOISE)


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"ImagerPixelSpacing": [0.2, 0.2]}, None),
        ({"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.2, 0.2]}, None),
        ({"ImagerPixelSpacing": [0.2, 0.2], "PixelSpacing": [0.1, 0.1]}, 0.01),
        (
            {
                "ImagerPixelSpacing": [0.2, 0.2],
                "PixelSpacing": [0.2, 0.2],
                "PixelSpacingCalibrationType": "FIDUCIAL",
            },
            0.04,
        ),
        (
            {"ImagerPixelSpacing": [0.2, 0.2], "EstimatedRadiographicMagnificationFactor": 2.0},
            0.01,
        ),
        ({"PixelSpacing": [0.0, 0.2]}, None),
        ({"PixelSpacing": [5000, 5000], "Modality": "CT"}, None),
        ({"PixelSpacing": [0.5, 0.25], "Modality": "MR"}, 0.125),
        ({}, None),
    ],
)
def test_only_sizes_that_can_be_trusted_are_used(tmp_path, elements, expected):
    save(tmp_path, [slice_of(NOISE[0], None, spacing=None, **{"Modality": "DX", **elements})])

    spec = only(tmp_path)

    assert spec.space.unit == ("px" if expected is None else "mm2")
    if expected is not None:
        assert spec.space.metric.size == pytest.approx(expected)
    elif elements:
        assert "sizes are in px" in spec.notes[0]


def test_series_without_uids_are_told_apart_by_their_folders(tmp_path):
    for name in ("a", "b"):
        slices = stack_of(NOISE)
        for dataset in slices:
            dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "", ""
        save(tmp_path / name, slices)

    assert [spec.shape for spec in images(tmp_path).values()] == [(7, 6, 10)] * 2


def test_names_are_pseudonyms_that_depend_on_the_key_and_uids_only_where_asked(
    tmp_path, monkeypatch
):
    save(tmp_path, stack_of(NOISE))
    [public] = grouped(tmp_path).series
    before = DICOM.headers_version(OPTIONS)
    monkeypatch.setenv("MASKLOOM_PSEUDONYM_KEY", "secret")
    [secret] = grouped(tmp_path).series
    [named] = grouped(tmp_path, ReadOptions(identifiers=True)).series

    assert re.fullmatch(r"series-[0-9a-f]{12}-[0-9a-f]{4}", secret.uri.rpartition("/")[2])
    assert public.uri != secret.uri
    assert uid("A") in named.uri
    assert uid("A") not in secret.uri
    assert len({before, DICOM.headers_version(OPTIONS)}) == 2, "stored headers are not used"
    image = StoredImage(named.uri, "1", files=tuple(each.uri for each in named.members))
    assert DICOM.describe_image(image, ReadOptions(identifiers=True)).shape == (7, 6, 10)


def test_what_holds_no_image_is_passed_over_and_what_is_damaged_is_not(tmp_path):
    save(tmp_path, stack_of(NOISE))
    report = slice_of(NOISE[0], None, number=90)
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    (tmp_path / "report.dcm").write_bytes(encoded(report))
    (tmp_path / "notes").write_text("plain text")
    whole = encoded(slice_of(NOISE[0], number=91))
    (tmp_path / "cut.dcm").write_bytes(whole[: whole.index(NOISE[0].tobytes()) - 12])

    found = grouped(tmp_path)

    assert {Path(uri).name: what for uri, what in found.passed_over.items()} == {
        "report.dcm": "a report (SR)"
    }
    assert sorted(len(each.members) for each in found.series) == [1, 7]
    cut = next(each for each in images(tmp_path).items() if each[0].endswith("cut.dcm"))
    assert "ends before its pixels" in str(cut[1])


def test_paths_that_name_the_patient_are_counted_and_not_quoted(tmp_path, caplog):
    folder = tmp_path / "MUSTERMANN_1970"
    save(folder, stack_of(NOISE, PatientName="Mustermann^Erika"))

    grouped(folder)

    assert "Paths of 7 DICOM files hold the name" in caplog.text
    assert "ustermann" not in caplog.text.lower()


@pytest.mark.filterwarnings("ignore:The DICOM readers")
def test_a_mosaic_is_cut_into_its_slices_as_nibabel_does(tmp_path):
    import gzip

    import nibabel
    from nibabel.nicom.dicomwrappers import wrapper_from_file

    samples = Path(nibabel.__file__).parent / "nicom/tests/data"
    path = tmp_path / "mosaic.dcm"
    path.write_bytes(gzip.decompress((samples / "siemens_dwi_0.dcm.gz").read_bytes()))
    oracle = wrapper_from_file(path)

    spec = only(tmp_path)

    # Theirs is (column, row, slice) in the directions of DICOM.
    theirs = oracle.get_data()
    mine = pixels_of(spec)
    assert spec.shape == (theirs.shape[2], *theirs.shape[:2])
    affine, expected = affine_of(spec), oracle.affine
    for i, j, k in np.random.default_rng(0).integers(0, theirs.shape, (50, 3)):
        place = (expected @ (i, j, k, 1))[:3] * (-1, -1, 1)
        x, y, z = np.rint(np.linalg.solve(affine[:, :3], place - affine[:, 3])).astype(int)
        assert mine[z, y, x] == theirs[i, j, k]
    assert spec.space.metric.size == pytest.approx(abs(np.linalg.det(expected[:3, :3])), rel=1e-4)


def test_axial_slices_get_the_affine_of_nifti(tmp_path):
    save(tmp_path, stack_of(NOISE, start=(-10, 20, 30), orientation=AXIAL))
    np.testing.assert_allclose(
        affine_of(only(tmp_path)), [[-0.8, 0, 0, 10], [0, -0.5, 0, -20], [0, 0, 2, 30]]
    )
