"""Scans through whole runs: discovery, rows, units, and nothing of a patient in what is written."""

from __future__ import annotations

import logging
import os
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from dicom_support import encoded, enhanced, items_of, save, slice_of, stack_of
from PIL import Image
from tests_support import read_table

from maskloom.segcore.errors import FormatError
from maskloom.segcore.processes import quiet_pydicom
from maskloom.segcore.raster.spec import FORMATS

QUIET = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial")
THRESHOLD = ("-s", "threshold", "-p", "value=1000")
NOISE = np.random.default_rng(3).integers(0, 2000, (5, 24, 32), np.uint16)
CANARY = "CANARY"
TAGGED = 0x00091001


NAMES = """
PatientName PatientID PatientComments OtherPatientNames PatientAddress AccessionNumber StudyID
StudyDescription SeriesDescription InstitutionName ReferringPhysicianName OperatorsName
ImageComments StationName DeviceSerialNumber ProtocolName PatientBirthName AdditionalPatientHistory
RequestedProcedureDescription
"""


def canaries(dataset: pydicom.Dataset) -> pydicom.Dataset:
    """The data set with a canary in every element of text that says something about a person, and
    in private ones. UIDs get one too, as far as they can.
    """
    for name in NAMES.split():
        dataset.add_new(name, pydicom.datadict.dictionary_VR(name), f"{CANARY}{name[:8]}")
    for name in ("PatientBirthDate", "StudyDate", "SeriesDate", "AcquisitionDate", "ContentDate"):
        setattr(dataset, name, "19440606")
    for name in ("StudyTime", "ContentTime", "AcquisitionTime"):
        setattr(dataset, name, "131313.131313")
    dataset.SeriesInstanceUID = f"1.2.777777.{zlib.crc32(dataset.SeriesInstanceUID.encode())}"
    dataset.SOPInstanceUID = f"1.2.777777.1.{zlib.crc32(dataset.SOPInstanceUID.encode())}"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.FrameOfReferenceUID = "1.2.777777.3"
    dataset.StudyInstanceUID = "1.2.777777.4"
    dataset.add_new(0x00090010, "LO", f"{CANARY} CREATOR")
    dataset.add_new(TAGGED, "LT", f"{CANARY} private")
    dataset.RequestAttributesSequence = items_of(ScheduledProcedureStepDescription=CANARY)
    return dataset


FORBIDDEN = (CANARY, "777777", "19440606", "1944-06-06", "131313", "13:13:13")


def folder_of_scans(folder: Path) -> Path:
    """Good, odd and broken scans of persons who have canaries for names."""
    save(folder / "volume", [canaries(each) for each in stack_of(NOISE)])
    gap = [canaries(each) for each in stack_of(NOISE, series="gap")]
    save(folder / "gap", gap[:2] + gap[3:], names="IM{:04}")
    save(folder / "frames", [canaries(enhanced(NOISE, series="frames"))])
    cut = encoded(canaries(slice_of(NOISE[0], series="cut")))
    (folder / "cut.dcm").write_bytes(cut[:-300])
    (folder / "header.dcm").write_bytes(cut[:700])
    # Values that are no numbers: libraries quote them.
    for name, before, after in (
        ("number.dcm", b"IS\x02\x001 ", b"IS\x06\x00CANARY"),
        ("spacing.dcm", b"0.5\\0.8 ", b"CANARY!!"),
    ):
        good = encoded(canaries(slice_of(NOISE[0], series=name)))
        assert good.count(before) == 1
        (folder / name).write_bytes(good.replace(before, after))
    report = canaries(slice_of(NOISE[0], None, series="report"))
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    (folder / "report.dcm").write_bytes(encoded(report))
    with zipfile.ZipFile(folder / "packed.zip", "w") as archive:
        for number, each in enumerate(stack_of(NOISE, series="packed")):
            archive.writestr(f"{CANARY}/{number}", encoded(canaries(each)))
    return folder


def written(output: Path) -> dict[str, bytes]:
    """Every file of an output, tables as text too."""
    found = {}
    for path in output.rglob("*"):
        if path.is_file():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".parquet":
                found[f"{path} decoded"] = str(pq.read_table(path).to_pylist()).encode()
            elif path.suffix == ".gz":
                found[f"{path} decoded"] = zlib.decompress(path.read_bytes(), 31)
            elif path.suffix == ".png":
                with Image.open(path) as picture:
                    found[f"{path} decoded"] = str(picture.info).encode()
    return found


def test_nothing_of_a_patient_is_in_anything_that_a_run_writes_or_says(
    tmp_path, maskloom, caplog, capfd
):
    folder = folder_of_scans(tmp_path / "in")
    output = tmp_path / "out"
    caplog.set_level(logging.DEBUG)
    said = [
        maskloom("plan", str(recipe_of(tmp_path, folder, output))).output,
        maskloom("segment", folder, "-o", output, *THRESHOLD, *QUIET).output,
        maskloom("segment", folder / "report.dcm", "-o", output, *THRESHOLD, *QUIET).output,
        maskloom("status", output).output,
        maskloom("verify", output).output,
    ]

    rows = read_table(output, "images")
    assert {row["status"] for row in rows} == {"ok", "failed"}
    assert len([row for row in rows if row["status"] == "failed"]) >= 4
    assert list((output / "previews").rglob("*.png"))
    everything = written(output)
    everything["said"] = "\n".join(said).encode()
    everything["log"] = caplog.text.encode()
    everything["streams"] = "".join(capfd.readouterr()).encode()
    everything["names"] = "\n".join(map(str, output.rglob("*"))).encode()
    assert len(everything) > 20
    for name, content in everything.items():
        for word in FORBIDDEN:
            assert word.encode() not in content, (name, word)


@pytest.mark.nightly
def test_nor_with_prefect_and_workers(tmp_path):
    import subprocess
    import sys

    folder, output = folder_of_scans(tmp_path / "in"), tmp_path / "out"
    recipe = recipe_of(tmp_path, folder, output)
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}
    environment.pop("PREFECT_API_URL", None)
    code = "from maskloom.flows.cli import main; main()"
    cluster = ("--set", "cluster={kind: local, workers: 2}")

    done = subprocess.run(
        [sys.executable, "-c", code, "run", str(recipe), *cluster],
        env={**environment, "PREFECT_LOGGING_LEVEL": "DEBUG"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )

    assert done.returncode == 3, done.stderr
    everything = {**written(output), **written(tmp_path / "prefect")}
    assert any(name.endswith("prefect.db") for name in everything)
    everything["said"] = (done.stdout + done.stderr).encode()
    for name, content in everything.items():
        for word in FORBIDDEN:
            assert word.encode() not in content, (name, word)


def recipe_of(folder: Path, inputs: Path, output: Path) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        f"inputs: [{inputs}]\noutput: {output}\nsegmenter: {{kind: threshold, value: 1000}}\n"
        "cluster: serial\n"
    )
    return path


def test_the_canary_test_can_fail(tmp_path, maskloom, monkeypatch):
    """With identifiers asked for, the UIDs appear where the other test looks for them."""
    save(tmp_path / "in", [canaries(each) for each in stack_of(NOISE)])
    output = tmp_path / "out"
    options = ("--set", "identifiers=true")
    result = maskloom("segment", tmp_path / "in", "-o", output, *THRESHOLD, *QUIET, *options)
    assert result.exit_code == 0, result.output
    assert sum(b"777777" in content for content in written(output).values()) >= 3


def test_a_folder_of_a_hospital_is_read_whatever_its_files_are_called(tmp_path, maskloom):
    folder = tmp_path / "in"
    save(folder / "DICOM/ST0/SE0", stack_of(NOISE, series="a"), names="IM{:05}")
    save(folder / "b", stack_of(NOISE[:3], series="b"), names="CT.1.2.840.{}")
    save(folder / "c", stack_of(NOISE[:4], series="c"), names="{}.IMA")
    (folder / "README").write_text("Not a scan.")
    (folder / "DICOM/LOCKFILE").write_bytes(b"")
    directory = slice_of(NOISE[0], None)
    for name in ("PixelData", "Rows", "Columns"):
        delattr(directory, name)
    directory.SOPClassUID = "1.2.840.10008.1.3.10"
    (folder / "DICOMDIR").write_bytes(encoded(directory))
    command = ("segment", folder, "-o", tmp_path / "out", *THRESHOLD, *QUIET)

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    rows = read_table(tmp_path / "out", "images")
    assert sorted(row["depth"] for row in rows) == [3, 4, 5]
    areas = read_table(tmp_path / "out", "areas")
    assert {row["area_unit"] for row in areas} == {"mm3"}
    foreground = sum(row["area"] for row in areas if row["class_name"] == "foreground")
    expected = sum((NOISE[:n] > 1000).sum() for n in (3, 4, 5)) * 0.5 * 0.8 * 2
    assert foreground == pytest.approx(expected)
    assert "Nothing to do" in maskloom(*command).output
    result = maskloom(
        "segment",
        folder,
        "-o",
        tmp_path / "other",
        *THRESHOLD,
        "--no-prefect",
        "--set",
        "cluster.kind=serial",
    )
    assert "1 a directory of DICOM files (DICOMDIR)" in result.output.replace("\n", " ")
    assert "2 without a suffix" in result.output.replace("\n", " ")


def test_headers_are_read_once_unless_files_or_the_key_change(tmp_path, maskloom, monkeypatch):
    folder, output = tmp_path / "in", tmp_path / "out"
    save(folder, stack_of(NOISE), names="IM{}")
    (folder / "LICENCE").write_text("Not a scan.")
    seen = []
    kind = type(FORMATS["dicom"])
    original = kind.headers
    monkeypatch.setattr(
        kind,
        "headers",
        lambda self, files, options: seen.append(files) or original(self, files, options),
    )
    command = ("segment", folder, "-o", output, *THRESHOLD, *QUIET)

    counts = []
    for change in ("nothing before", "nothing", "a file", "the key"):
        if change == "a file":
            (folder / "IM9").write_bytes(encoded(stack_of(NOISE, series="b")[0]))
        elif change == "the key":
            monkeypatch.setenv("MASKLOOM_PSEUDONYM_KEY", "secret")
        seen.clear()
        assert maskloom(*command, "--keep-other-recipes").exit_code == 0
        counts.append(sum(map(len, seen)))

    assert counts == [6, 0, 1, 7]
    stored = pq.read_table(output / "runs/headers.parquet").to_pylist()
    assert len(stored) == 7
    assert str(stack_of(NOISE)[0].SeriesInstanceUID) not in str(stored)


def test_what_holds_no_image_is_a_failed_row_when_it_is_named(tmp_path, maskloom):
    report = slice_of(NOISE[0], None)
    for name in ("PixelData", "Rows", "Columns"):
        delattr(report, name)
    report.SOPClassUID = "1.2.840.10008.5.1.4.1.1.88.11"
    (tmp_path / "report.dcm").write_bytes(encoded(report))

    result = maskloom(
        "segment", tmp_path / "report.dcm", "-o", tmp_path / "out", *THRESHOLD, *QUIET
    )

    assert result.exit_code == 3
    [row] = read_table(tmp_path / "out", "images")
    assert "holds no image: it is a report (SR)" in row["error"]


def test_a_new_slice_makes_its_series_new_and_no_other(tmp_path, maskloom):
    folder, output = tmp_path / "in", tmp_path / "out"
    save(folder, stack_of(NOISE[:4], series="a"), names="a{}.dcm")
    save(folder, stack_of(NOISE, series="b"), names="b{}.dcm")
    command = ("segment", folder, "-o", output, *THRESHOLD, *QUIET)
    assert maskloom(*command).exit_code == 0
    before = {row["image_id"]: row for row in read_table(output, "images")}
    (folder / "a9.dcm").write_bytes(encoded(stack_of(NOISE, series="a")[4]))

    assert maskloom(*command).exit_code == 0

    after = {row["image_id"]: row for row in read_table(output, "images")}
    changed = [name for name in before if before[name] != after[name]]
    assert before.keys() == after.keys()
    assert [(before[name]["depth"], after[name]["depth"]) for name in changed] == [(4, 5)]


def test_scans_that_failed_for_want_of_the_library_are_a_series_once_it_is_there(
    tmp_path, maskloom, monkeypatch
):
    folder, output = tmp_path / "in", tmp_path / "out"
    save(folder, stack_of(NOISE[:4]))
    command = ("segment", folder, "-o", output, *THRESHOLD, *QUIET)
    with monkeypatch.context() as absent:
        quiet_pydicom.pydicom.cache_clear()
        absent.setitem(sys.modules, "pydicom", None)
        assert maskloom(*command).exit_code == 3
    rows = read_table(output, "images")
    assert {row["error_type"] for row in rows} == {"NotInstalled"}
    assert all("pip install 'maskloom[medical]'" in row["error"] for row in rows)
    quiet_pydicom.pydicom.cache_clear()

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    [row] = read_table(output, "images")
    assert (row["status"], row["depth"]) == ("ok", 4)
    assert maskloom("verify", output).exit_code == 0


ORIENTATIONS = {
    "axial": ((1, 0, 0, 0, 1, 0), (0, 0, 2)),
    "from the head": ((1, 0, 0, 0, 1, 0), (0, 0, -2)),
    "sagittal": ((0, 1, 0, 0, 0, -1), (3, 0, 0)),
    "coronal": ((1, 0, 0, 0, 0, -1), (0, -2, 0)),
    "oblique": ((0.8, 0.6, 0, 0, 0, -1), (-1.2, 1.6, 0)),
    "tilted": ((1, 0, 0, 0, 0.96, -0.28), (0, 0, 5)),
}


@pytest.mark.parametrize("what", ["slice elsewhere", "another key", "library installed"])
def test_a_series_that_gets_another_name_is_in_the_tables_once(
    tmp_path, maskloom, monkeypatch, what
):
    """Its name depends on the folder of its files and on the key; without pydicom each file is an
    image of its own, which fails.
    """
    scans = stack_of(NOISE)
    save(tmp_path / "in" / "a", scans[:-1])
    save(tmp_path / "in" / "other", stack_of(NOISE[:3], series="other"))
    command = ("segment", tmp_path / "in", "-o", tmp_path / "out", *THRESHOLD, *QUIET)
    with monkeypatch.context() as patch:
        if what == "library installed":
            patch.setattr("maskloom.segcore.formats.dicom.find_spec", lambda _: None)
            for name in ("", ".header", ".pixels"):
                patch.setattr(f"maskloom.segcore.formats.dicom{name}.pydicom", not_installed)
        first = maskloom(*command)
        assert first.exit_code == (3 if what == "library installed" else 0), first.output
    if what == "slice elsewhere":
        save(tmp_path / "in" / "b", scans[-1:])
    elif what == "another key":
        monkeypatch.setenv("MASKLOOM_PSEUDONYM_KEY", "secret")

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    assert "no longer among the inputs" not in result.output
    rows = read_table(tmp_path / "out", "images")
    slices = 5 if what == "slice elsewhere" else 4
    assert sorted((row["depth"], row["status"]) for row in rows) == [(3, "ok"), (slices, "ok")]
    areas = read_table(tmp_path / "out", "areas")
    assert sum(row["pixel_count"] for row in areas) == (3 + slices) * NOISE[0].size
    for folder in ("masks", "previews"):
        files = [path for path in (tmp_path / "out" / folder).rglob("series-*") if path.is_file()]
        assert len([path for path in files if path.suffix != ".txt"]) == 2
    assert maskloom("verify", tmp_path / "out").exit_code == 0
    assert "Nothing to do: 2 images are unchanged." in maskloom(*command).output


def not_installed() -> object:
    raise FormatError("DICOM files need the extra 'medical': pip install 'maskloom[medical]'.")


def test_masks_lie_on_their_scans_in_the_world(tmp_path, maskloom):
    """Places of random voxels, from the headers of single files and from the mask by NiBabel."""
    import nibabel

    folder, output = tmp_path / "in", tmp_path / "out"
    for name, (orientation, step) in ORIENTATIONS.items():
        slices = stack_of(NOISE, step, (-40, 30, 20), orientation=orientation, series=name)
        save(folder / name.replace(" ", "_"), slices[::-1])
        # One slice has a place too, though no volume.
        [one] = stack_of(
            *(NOISE[3:4], step, (5, 6, 7)), orientation=orientation, series=f"{name} one"
        )
        save(folder / f"{name.replace(' ', '_')}_one", [one])

    assert maskloom("segment", folder, "-o", output, *THRESHOLD, *QUIET).exit_code == 0

    generator = np.random.default_rng(0)
    for where in [path.name for path in folder.iterdir()]:
        [mask] = (output / "masks" / where).glob("*.nii.gz")
        image = nibabel.load(mask)
        labels = np.asarray(image.dataobj)
        size = NOISE[0].size if where.endswith("_one") else NOISE.size
        assert (int(image.header["sform_code"]), labels.size) == (1, size)
        for path in (folder / where).iterdir():
            scan = pydicom.dcmread(path)
            cosines = np.reshape(scan.ImageOrientationPatient, (2, 3)).astype(float)
            for j, i in generator.integers(0, (24, 32), (20, 2)):
                place = np.array(scan.ImagePositionPatient, float)
                place += cosines[0] * i * float(scan.PixelSpacing[1])
                place += cosines[1] * j * float(scan.PixelSpacing[0])
                there = np.linalg.inv(image.affine) @ (*(place * (-1, -1, 1)), 1)
                x, y, z = np.rint(there[:3]).astype(int)
                np.testing.assert_allclose(there[:3], (x, y, z), atol=1e-3)
                assert labels[x, y, z] == (scan.pixel_array[j, i] > 1000)


@pytest.mark.parametrize("tile", [16, 64])
def test_tiles_do_not_change_masks(tmp_path, maskloom, tile):
    save(tmp_path / "in", stack_of(NOISE))
    output = tmp_path / f"out{tile}"
    options = ("--set", f"tiling.tile={tile}")
    result = maskloom("segment", tmp_path / "in", "-o", output, *THRESHOLD, *QUIET, *options)
    assert result.exit_code == 0, result.output
    [row] = read_table(output, "images")
    assert row["valid_pixels"] == NOISE.size
    [area] = [each for each in read_table(output, "areas") if each["class_id"] == 1]
    assert area["pixel_count"] == (NOISE > 1000).sum()


DATA = os.environ.get("MASKLOOM_TEST_DATA", "")


@pytest.mark.skipif(not DATA, reason="MASKLOOM_TEST_DATA is not set")
def test_the_organs_of_a_real_ct_have_the_volumes_of_their_labels(tmp_path):
    import nibabel

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.source import Member
    from maskloom.segcore.raster.stored import ReadOptions, StoredImage

    image_format, options = FORMATS["dicom"], ReadOptions()
    files = [
        Member(str(path), "1", 1)
        for path in sorted((Path(DATA) / "dicom/images/totalseg_ct20").iterdir())
    ]
    headers = image_format.headers(files, options)
    [series] = image_format.group(files, headers, options).series
    image = StoredImage(series.uri, "1", files=tuple(each.uri for each in series.members))
    spec = image_format.describe_image(image, options)
    [truth] = (Path(DATA) / "dicom/labels/totalseg_ct20").glob("*.nii.gz")
    labels = nibabel.load(truth)
    with image_format.open(spec) as reader:
        values = reader.read(Box.whole(spec.shape))[0][..., 0]

    # The volume of every structure in ml, by the size of our voxels and by theirs.
    theirs = abs(np.linalg.det(labels.affine))
    assert spec.space.metric.size == pytest.approx(theirs, rel=1e-6)
    assert spec.space.metric.spacing[0] == pytest.approx(2.0), "not SliceThickness, which is 3"
    # Each label lies on the organ: soft tissue, air and bone have their numbers.
    affine = np.vstack([np.reshape(spec.space.frame.affine, (3, 4)), (0, 0, 0, 1)])
    content = np.asarray(labels.dataobj)
    means = {}
    for number in (1, 20, 69):
        there = np.argwhere(content == number)
        places = np.linalg.inv(affine) @ labels.affine @ np.c_[there, np.ones(len(there))].T
        x, y, z = np.rint(places[:3]).astype(int)
        means[number] = values[z, y, x].mean()
    assert 50 < means[1] < 150, "spleen"
    assert means[20] < -400, "colon"
    assert means[69] > 400, "hip"
