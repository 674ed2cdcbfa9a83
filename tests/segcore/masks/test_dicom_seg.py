"""DICOM segmentation objects, read back by pydicom and highdicom."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pydicom
import pytest
from dicom_support import encoded, enhanced, save, stack_of, uid
from skimage.color import lab2rgb

from maskloom.segcore.errors import FormatError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks import MASKS
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.source import Member
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage
from maskloom.segcore.storage.store import Store

DICOM, OPTIONS = FORMATS["dicom"], ReadOptions()
NOISE = np.random.default_rng(4).integers(0, 2000, (6, 20, 30), np.uint16)
PATIENT = {
    "FrameOfReferenceUID": uid("frame"),
    "PatientBirthDate": "19700101",
    "PatientSex": "O",
    "StudyDate": "20200101",
    "StudyTime": "101010",
    "AccessionNumber": "1",
    "StudyID": "1",
    "ReferringPhysicianName": "",
}
TILT = (1, 0, 0, 0, np.cos(0.2), -np.sin(0.2))


def spec_of(folder: Path) -> RasterSpec:
    files = [Member(str(path), "1", 1) for path in sorted(folder.iterdir())]
    [series] = DICOM.group(files, DICOM.headers(files, OPTIONS), OPTIONS).series
    image = StoredImage(series.uri, "1", files=tuple(each.uri for each in series.members))
    return DICOM.describe_image(image, OPTIONS)


def written(folder: Path, labels: np.ndarray, spec: RasterSpec, kind: str, names: tuple[str, ...]):
    writer, tile = MASKS[kind], (2, 16, 16)
    blocks = [
        block
        for each in Grid(spec.shape, tile)
        for block in writer.encode(labels[each.core.slices], each, spec, tile)
    ]
    classes = ClassTable.of(names)
    mask = writer.publish(Store(str(folder)), "m.seg.dcm", blocks[::-1], spec, classes, tile)
    return pydicom.dcmread(folder / "m.seg.dcm"), mask


def places(spec: RasterSpec, labels: np.ndarray, wanted: int) -> set[tuple[float, ...]]:
    """World coordinates (in DICOM's directions) of the voxels with a label, rounded."""
    affine = np.reshape(spec.space.frame.affine, (3, 4))
    z, y, x = np.nonzero(labels == wanted)
    found = affine @ np.array([x, y, z, np.ones(len(z))]) * np.array([[-1], [-1], [1]])
    return set(map(tuple, np.round(found.T, 2) + 0.0))


def places_in(seg: pydicom.Dataset, wanted: int) -> set[tuple[float, ...]]:
    """The same from the object, by PS3.3 C.7.6.2.1.1, without highdicom."""
    shared = seg.SharedFunctionalGroupsSequence[0]
    cosines = np.reshape(shared.PlaneOrientationSequence[0].ImageOrientationPatient, (2, 3)).astype(
        float
    )
    rows, columns = map(float, shared.PixelMeasuresSequence[0].PixelSpacing)
    pixels = seg.pixel_array.reshape(-1, seg.Rows, seg.Columns)
    found: set[tuple[float, ...]] = set()
    for frame, group in zip(pixels, seg.PerFrameFunctionalGroupsSequence, strict=True):
        value = wanted
        if seg.SegmentationType == "BINARY":
            holder = group if "SegmentIdentificationSequence" in group else shared
            number = holder.SegmentIdentificationSequence[0].ReferencedSegmentNumber
            value = 1 if number == wanted else -1
        y, x = np.nonzero(frame == value)
        origin = np.array(group.PlanePositionSequence[0].ImagePositionPatient, float)
        place = origin + np.outer(x * columns, cosines[0]) + np.outer(y * rows, cosines[1])
        found |= set(map(tuple, np.round(place, 2) + 0.0))
    return found


def rgb_of(value: list[int]) -> np.ndarray:
    """A colour of PS3.3 C.10.7.1.1 (CIE Lab in 16 bits) in sRGB of 8 bits, by scikit-image."""
    lightness, a, b = np.array(value, float) / 65535
    return 255 * lab2rgb([100 * lightness, 255 * a - 128, 255 * b - 128])


@pytest.mark.parametrize("kind", ["seg", "seg_binary"])
@pytest.mark.parametrize("backwards", [False, True])
def test_segments_lie_on_their_voxels(tmp_path, kind, backwards):
    step = (0.0, 0.4, -2.5 if backwards else 2.5)
    save(tmp_path / "in", stack_of(NOISE, step, (-10, 5, 7), orientation=TILT, **PATIENT))
    spec = spec_of(tmp_path / "in")
    labels = np.random.default_rng(0).integers(0, 3, spec.shape, np.uint8)
    labels[0] = 255

    seg, _ = written(tmp_path, labels, spec, kind, ("background", "bone", "air"))

    assert seg.SegmentationType == ("LABELMAP" if kind == "seg" else "BINARY")
    names = {each.SegmentNumber: each.SegmentLabel for each in seg.SegmentSequence}
    assert {names[1], names[2]} == {"bone", "air"}
    table = ClassTable.of(("background", "bone", "air"))
    for each in seg.SegmentSequence:
        if (name := each.SegmentLabel) in table.names:
            shown = rgb_of(each.RecommendedDisplayCIELabValue)
            stated = table.colours[table.names.index(name)]
            assert np.abs(np.subtract(shown, stated)).max() <= 2
    for number in (1, 2):
        assert places_in(seg, number) == places(spec, labels, number)
    assert str(seg.FrameOfReferenceUID) == PATIENT["FrameOfReferenceUID"]
    assert seg.PatientName == "Nobody^Known", "it is copied, as users are told"


def test_classes_without_background_count_from_one(tmp_path):
    save(tmp_path / "in", stack_of(NOISE, **PATIENT))
    spec = spec_of(tmp_path / "in")
    labels = np.random.default_rng(0).integers(0, 2, spec.shape, np.uint8)

    seg, _ = written(tmp_path, labels, spec, "seg", ("dark", "bright"))

    for number in (1, 2):
        assert places_in(seg, number) == places(spec, labels, number - 1)


def test_frames_of_an_enhanced_object_in_any_order(tmp_path):
    save(tmp_path / "in", [enhanced(NOISE, order=[3, 1, 5, 0, 2, 4], **PATIENT)])
    spec = spec_of(tmp_path / "in")
    labels = np.random.default_rng(0).integers(0, 2, spec.shape, np.uint8)

    seg, _ = written(tmp_path, labels, spec, "seg_binary", ("background", "bone"))

    assert places_in(seg, 1) == places(spec, labels, 1)


def test_objects_are_segments_and_highdicom_reads_them(tmp_path):
    import highdicom

    save(tmp_path / "in", stack_of(NOISE, **PATIENT))
    spec = spec_of(tmp_path / "in")
    ids = np.zeros(spec.shape, np.uint32)
    for number in range(1, 301):
        ids.flat[number * 7] = number

    seg, _ = written(tmp_path, ids, spec, "seg", ("object",))

    found = highdicom.seg.Segmentation.from_dataset(seg)
    values = found.get_volume(combine_segments=True).array
    assert len(np.unique(values)) == 301
    with pytest.raises(FormatError, match="at most 255"):
        written(tmp_path, ids, spec, "seg_binary", ("object",))


def test_the_same_mask_is_the_same_file_at_any_time(tmp_path):
    save(tmp_path / "in", stack_of(NOISE, **PATIENT))
    spec = spec_of(tmp_path / "in")
    labels = (NOISE > 1000).astype(np.uint8)
    names = ("background", "bone")
    digests = {written(tmp_path, labels, spec, "seg", names)[1].sha256 for _ in range(2)}
    assert len(digests) == 1
    assert written(tmp_path, 1 - labels, spec, "seg", names)[1].sha256 not in digests


def test_what_a_segmentation_cannot_refer_to_is_named(tmp_path):
    save(tmp_path / "in", stack_of(NOISE))
    spec = spec_of(tmp_path / "in")
    lacking = re.escape("FrameOfReferenceUID (0020,0052), which the scans lack")
    with pytest.raises(FormatError, match=lacking):
        written(tmp_path, np.zeros(spec.shape, np.uint8), spec, "seg", ("background", "bone"))


def test_an_attribute_that_highdicom_misses_is_named_with_its_tag(tmp_path):
    scans = stack_of(NOISE, **PATIENT)
    for each in scans:
        del each.Modality
    save(tmp_path / "in", scans)
    spec = spec_of(tmp_path / "in")
    lacking = re.escape("Modality (0008,0060), which the scans lack")
    with pytest.raises(FormatError, match=lacking):
        written(tmp_path, np.zeros(spec.shape, np.uint8), spec, "seg", ("background", "bone"))


def test_scans_without_patient_and_date_give_segmentations_with_these_left_empty(tmp_path):
    """As after a program that removes what identifies a patient."""
    names = ("PatientID", "PatientName", *PATIENT)
    emptied = set(names) - {"FrameOfReferenceUID"}
    scans = stack_of(NOISE, **PATIENT)
    for each in scans:
        for name in emptied & {*each.dir()}:
            delattr(each, name)
    save(tmp_path / "in", scans)
    spec = spec_of(tmp_path / "in")
    labels = (NOISE > 1000).astype(np.uint8)

    seg, _ = written(tmp_path, labels, spec, "seg", ("background", "bone"))

    assert {name for name in emptied if name in seg and not seg.get(name)} == emptied
    assert places_in(seg, 1) == places(spec, labels, 1)


@pytest.mark.nightly
def test_a_recipe_asks_for_them_and_is_told_what_they_hold(tmp_path):
    import subprocess
    import sys

    folder = tmp_path / "in"
    folder.mkdir()
    for number, each in enumerate(stack_of(NOISE, **PATIENT)):
        (folder / f"IM{number}").write_bytes(encoded(each))
    command = (
        f"segment {folder} -o {tmp_path}/out -s threshold -p value=1000 --no-prefect --quiet "
        "--set cluster.kind=serial"
    ).split()
    code = "from maskloom.flows.cli import main; main()"

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", code, *command, *options],
            capture_output=True,
            text=True,
            check=False,
        )

    done = run("--set", "masks={dicom: seg}")

    assert done.returncode == 0, done.stderr
    assert "copy name, number and birth date" in " ".join(done.stderr.split())
    [mask] = (tmp_path / "out/masks").rglob("*.seg.dcm")
    assert pydicom.dcmread(mask).pixel_array.sum() == (NOISE > 1000).sum()
    refused = run("--set", "masks={dicom: png}")
    assert refused.returncode == 2
    assert "{dicom: seg}" in refused.stderr
