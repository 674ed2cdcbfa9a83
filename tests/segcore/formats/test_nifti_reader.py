"""NIfTI and its relatives, compared with nibabel: numbers, world coordinates, units, refusals."""

from __future__ import annotations

import gzip
import itertools
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from volumes_support import describe

from maskloom.segcore import formats
from maskloom.segcore.errors import FormatError, ReadError, Unavailable
from maskloom.segcore.formats import unpacking
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

nibabel = pytest.importorskip("nibabel")
VOLUME = np.random.default_rng(0).integers(-900, 900, (4, 5, 6), np.int16)
"""(z, y, x)"""
TURNS = [
    np.eye(3)[list(order)] * np.array(signs)
    for order in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]
DATA = Path(os.environ.get("MASKLOOM_TEST_DATA", "absent"))


def save(path: Path, pixels: np.ndarray = VOLUME, affine: Any = None, **fields: Any) -> Path:
    """A NIfTI of a volume (z, y, x), or (time, z, y, x), with fields of its header."""
    image = nibabel.Nifti1Image(pixels.T, np.eye(4) if affine is None else affine)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    if fields:
        change(path, **fields)
    return path


def change(path: Path, **fields: Any) -> None:
    """Write fields of a header over those of a plain NIfTI-1."""
    content = bytearray(path.read_bytes())
    header = np.frombuffer(content, nibabel.nifti1.header_dtype, 1)
    for name, value in fields.items():
        header[name] = value
    path.write_bytes(content)


def read(spec: RasterSpec) -> tuple[np.ndarray, np.ndarray]:
    with formats.open_image(spec) as reader:
        return reader.read(Box.whole(spec.shape))


def pixels_of(path: Path, part: str = "") -> np.ndarray:
    return read(describe(path, part))[0]


def size_of(spec: RasterSpec) -> float | None:
    return None if spec.space.metric is None else spec.space.metric.size


@pytest.mark.parametrize("turn", TURNS, ids=range(48))
def test_each_voxel_is_where_nibabel_puts_it(tmp_path: Path, turn: np.ndarray) -> None:
    affine = np.eye(4)
    affine[:3, :3] = turn * [0.75, 1.5, 3.25]
    affine[:3, 3] = [-90.5, 125.25, -71.0]
    path = save(tmp_path / "a.nii.gz", affine=affine)
    spec, oracle = describe(path), nibabel.load(path)
    pixels = read(spec)[0][..., 0]
    assert spec.space.frame is not None
    ours = np.array(spec.space.frame.affine).reshape(3, 4)
    np.testing.assert_array_equal(ours, oracle.affine[:3])
    for k, j, i in np.random.default_rng(1).integers(0, (4, 5, 6), (9, 3)):
        assert pixels[k, j, i] == oracle.dataobj[i, j, k]
    assert spec.space.metric is not None
    assert spec.space.metric.spacing == (3.25, 1.5, 0.75)
    assert spec.space.unit == "mm3"


@given(st.lists(st.floats(-2, 2, width=32), min_size=12, max_size=12))
def test_the_volume_of_a_voxel_is_the_determinant(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[float]
) -> None:
    affine = np.vstack([np.array(numbers).reshape(3, 4), [0, 0, 0, 1]])
    determinant = abs(np.linalg.det(affine[:3, :3]))
    assume(determinant > 1e-3)
    path = tmp_path_factory.mktemp("affine") / "a.nii"
    nibabel.save(nibabel.Nifti1Image(VOLUME.T, affine), path)
    spec = describe(path)
    assert spec.space.frame is not None
    np.testing.assert_array_equal(
        np.array(spec.space.frame.affine).reshape(3, 4), nibabel.load(path).affine[:3]
    )
    assert size_of(spec) == pytest.approx(determinant, rel=1e-6)


def test_the_sform_comes_before_the_qform_and_a_difference_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.nii"
    for s_code, q_code, size, note in (
        (1, 0, 8.0, None),
        (0, 1, 27.0, None),
        (2, 1, 8.0, "differ by up to"),
        (0, 0, 27.0, None),
    ):
        image = nibabel.Nifti1Image(VOLUME.T, None)
        image.header.set_xyzt_units("mm")
        image.header.set_sform(np.diag([2, 2, 2, 1]), s_code)
        image.header.set_qform(np.diag([3, 3, 3, 1]), q_code)
        nibabel.save(image, path)
        change(path, sform_code=s_code, qform_code=q_code)
        spec = describe(path)
        assert spec.space.frame is not None
        assert size_of(spec) == size
        assert (spec.space.frame.sform_code, spec.space.frame.qform_code) == (s_code, q_code)
        np.testing.assert_array_equal(
            np.array(spec.space.frame.affine).reshape(3, 4), nibabel.load(path).affine[:3]
        )
        assert note is None or any(note in each for each in spec.notes)


@pytest.mark.parametrize(
    ("unit", "codes", "size"),
    [
        (2, (1, 0), 24.0),
        (0, (1, 0), 24.0),
        (0, (0, 1), 24.0),
        (0, (0, 0), None),
        (2, (0, 0), 24.0),
        (1, (1, 0), 24e9),
        (3, (1, 0), 24e-9),
        (3, (0, 1), 24e-9),
        (2 + 8, (1, 1), 24.0),
        (5, (1, 0), 24.0),
        (5, (0, 0), None),
    ],
)
def test_the_unit_of_length(
    tmp_path: Path, unit: int, codes: tuple[int, int], size: float | None
) -> None:
    path = save(tmp_path / "a.nii", affine=np.diag([2, 3, 4, 1]))
    change(path, xyzt_units=unit, sform_code=codes[0], qform_code=codes[1])
    spec = describe(path)
    if unit == 1:
        assert size_of(spec) is None, "steps of metres are no scan"
        assert "sizes are in px" in " ".join(spec.notes)
        return
    assert size_of(spec) == (None if size is None else pytest.approx(size, rel=1e-12))
    assert spec.space.unit == ("px" if size is None else "mm3")
    assert ("names no unit" in " ".join(spec.notes)) == (unit in (0, 5) and size is not None)


def test_metres_become_millimetres(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", affine=np.diag([0.002, 0.003, 0.004, 1]), xyzt_units=1)
    assert size_of(describe(path)) == pytest.approx(24.0, rel=1e-6)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [
        (0.0754, 3100.76, "float32"),
        (2.0, 0.0, "float32"),
        (1.0, -1024.0, "float32"),
        (1.0, 0.0, "int16"),
        (0.0, 5.0, "int16"),
        (np.nan, np.nan, "int16"),
    ],
)
def test_slope_and_intercept(tmp_path: Path, slope: float, intercept: float, dtype: str) -> None:
    path = save(tmp_path / "a.nii", scl_slope=slope, scl_inter=intercept)
    pixels = pixels_of(path)
    assert pixels.dtype == dtype
    expected = nibabel.load(path).get_fdata().T
    np.testing.assert_allclose(pixels[..., 0], expected, rtol=1e-6)


@pytest.mark.parametrize(
    "dtype", ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8", ">u2", ">f4", ">i4"]
)
def test_the_stored_type_is_kept(tmp_path: Path, dtype: str) -> None:
    stored = (VOLUME % 100).astype(dtype)
    image = nibabel.Nifti1Image(stored.T, np.eye(4), dtype=dtype)
    nibabel.save(image, tmp_path / "a.nii.gz")
    pixels = pixels_of(tmp_path / "a.nii.gz")
    assert pixels.dtype == np.dtype(dtype).newbyteorder("=")
    np.testing.assert_array_equal(pixels[..., 0], stored)


def test_nan_and_infinity_are_no_data(tmp_path: Path) -> None:
    stored = VOLUME.astype(np.float32)
    stored[0, 0, :2] = np.nan, np.inf
    pixels, valid = read(describe(save(tmp_path / "a.nii", stored)))
    assert not valid[0, 0, :2].any()
    assert valid.sum() == stored.size - 2
    assert not pixels[0, 0, :2].any()


def test_a_fourth_axis_is_several_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    series = np.stack([VOLUME + 1000 * time for time in range(3)])
    path = save(tmp_path / "bold.nii.gz", series)
    source = Source(str(path), "bold", "1", path.stat().st_size)
    found = formats.describe_images(source, "1")
    assert [each.image_id for each, _ in found] == ["bold_t0001", "bold_t0002", "bold_t0003"]
    assert found[1][0].uri == f"{path}#part=t0002/3"
    for time, (_, spec) in enumerate(found):
        np.testing.assert_array_equal(read(spec)[0][..., 0], series[time])
    with pytest.raises(FormatError, match=r"holds 3 images over time.*#part=t0001/3"):
        describe(path)
    with pytest.raises(FormatError, match="has no image t0004"):
        describe(path, "t0004")
    # A thousand images do not read the header a thousand times.
    calls = []
    header = type(FORMATS["nifti"]).header
    monkeypatch.setattr(
        type(FORMATS["nifti"]), "header", lambda *each: (calls.append(1), header(*each))[1]
    )
    formats.describe_images(replace(source, version="2"), "2")
    assert len(calls) == 2
    assert not FORMATS["nifti"].parts(
        StoredImage(str(save(tmp_path / "one.nii", VOLUME[None]))), ReadOptions()
    )


def test_a_fifth_axis_and_colours_are_bands(tmp_path: Path) -> None:
    vectors = np.stack([VOLUME, -VOLUME, VOLUME // 2])
    path = save(tmp_path / "v.nii", vectors[:, None])
    np.testing.assert_array_equal(pixels_of(path), np.moveaxis(vectors, 0, -1))
    over_time = np.stack([vectors, vectors * 2], axis=1)
    path = save(tmp_path / "t.nii.gz", over_time)
    np.testing.assert_array_equal(pixels_of(path, "t0002"), np.moveaxis(vectors * 2, 0, -1))
    colours = np.random.default_rng(2).integers(0, 255, (4, 5, 6, 4), np.uint8)
    for count, names in ((3, "RGB"), (4, "RGBA")):
        kind = np.dtype([(each, "u1") for each in names])
        stored = np.ascontiguousarray(colours[..., :count]).view(kind)[..., 0]
        path = tmp_path / f"{names}.nii"
        nibabel.save(nibabel.Nifti1Image(stored.T, np.eye(4)), path)
        spec = describe(path)
        pixels, valid = read(spec)
        assert spec.interpretation == "rgb"
        np.testing.assert_array_equal(pixels, colours[..., :3])
        np.testing.assert_array_equal(valid, (colours[..., 3] > 0) | (count == 3))


def test_two_axes_are_an_image_with_an_area(tmp_path: Path) -> None:
    path = tmp_path / "slice.nii"
    nibabel.save(nibabel.Nifti1Image(VOLUME[0].T, np.diag([0.5, 0.25, 7, 1])), path)
    spec = describe(path)
    assert spec.shape == (5, 6)
    assert (size_of(spec), spec.space.unit) == (0.125, "mm2")


def test_header_and_voxels_in_two_files(tmp_path: Path) -> None:
    for kind, ending in (("Nifti1Pair", ".img"), ("Nifti2Pair", ".img"), ("Nifti1Pair", ".img.gz")):
        folder = tmp_path / kind / ending
        folder.mkdir(parents=True)
        nibabel.save(getattr(nibabel, kind)(VOLUME.T, np.diag([1, 2, 3, 1])), folder / f"a{ending}")
        header = folder / f"a{ending}".replace("img", "hdr")
        spec = describe(header)
        np.testing.assert_array_equal(read(spec)[0][..., 0], VOLUME)
        assert size_of(spec) == 6
        (folder / f"a{ending}").unlink()
        with pytest.raises(FormatError, match=r"voxels is missing: a\.img"):
            describe(header)


def test_analyze_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "a.img"
    image = nibabel.spm2analyze.Spm2AnalyzeImage(VOLUME.T, np.diag([-1, 2, 3, 1]))
    image.header["scl_slope"] = 0.5
    image.to_filename(path)
    spec = describe(tmp_path / "a.hdr")
    oracle = nibabel.load(path)
    np.testing.assert_allclose(read(spec)[0][..., 0], oracle.get_fdata().T)
    assert size_of(spec) == 6
    assert "which side is left" in spec.notes[0]


def test_mgh_is_read_in_its_place(tmp_path: Path) -> None:
    affine = np.array([[-1, 0, 0, 90.5], [0, 0, 1.25, -70], [0, -1.5, 0, 60], [0, 0, 0, 1]])
    for name in ("a.mgz", "a.mgh"):
        image = nibabel.freesurfer.MGHImage(VOLUME.T.astype(np.int16), affine)
        image.to_filename(tmp_path / name)
        spec = describe(tmp_path / name)
        oracle = nibabel.load(tmp_path / "a.mgz")
        np.testing.assert_array_equal(read(spec)[0][..., 0], VOLUME)
        assert spec.space.frame is not None
        ours = np.array(spec.space.frame.affine).reshape(3, 4)
        np.testing.assert_array_equal(ours, oracle.affine[:3])
        assert size_of(spec) == pytest.approx(1.875)


def test_a_transform_that_places_nothing_is_not_used(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", affine=np.diag([2, 3, 4, 1]))
    change(path, srow_x=np.nan)
    spec = describe(path)
    assert (spec.space.unit, spec.space.frame) == ("px", None)
    assert "its sform place no voxels; sizes are in px" in spec.notes[0]
    change(path, qform_code=1)
    spec = describe(path)
    assert size_of(spec) == 24
    assert "the qform is used" in spec.notes[0]
    change(path, sform_code=0, qform_code=0, pixdim=[1, 0, 3, 4, 0, 0, 0, 0])
    spec = describe(path)
    assert spec.space.unit == "px"
    assert "expected distances between voxels" in spec.notes[0]
    np.testing.assert_array_equal(read(spec)[0][..., 0], VOLUME)


def test_distances_that_contradict_the_affine_are_said(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", affine=np.diag([2, 3, 4, 1]))
    change(path, pixdim=[1, 2, 3, 40, 0, 0, 0, 0])
    spec = describe(path)
    assert size_of(spec) == 24
    assert "its distances between voxels (2, 3, 40)" in spec.notes[0]


DAMAGE = {
    "no axis": ({"dim": [0] * 8}, "0 axes"),
    "one axis": ({"dim": [1, 6, 1, 1, 1, 1, 1, 1]}, "1 axes"),
    "too many axes": ({"dim": [6, 3, 2, 4, 1, 1, 5, 1]}, "more than 5 axes"),
    "an empty axis": ({"dim": [3, 6, 0, 4, 1, 1, 1, 1]}, "is empty"),
    "a negative axis": ({"dim": [3, 6, -5, 4, 1, 1, 1, 1]}, "is empty"),
    "sides that lie": ({"dim": [3, 6, 5, 5, 1, 1, 1, 1]}, "promises 652 bytes, and it has 592"),
    "huge sides": ({"dim": [5, 32767, 32767, 32767, 32767, 1, 1, 1]}, "ends early"),
    "complex numbers": ({"datatype": 32, "bitpix": 64}, "complex numbers"),
    "128 bits": ({"datatype": 1536, "bitpix": 128}, "data code 1536 not supported"),
    "an unknown type": ({"datatype": 77}, "header that cannot be right"),
    "a start in the header": ({"vox_offset": 16}, "header that cannot be right"),
    "a start beyond the end": ({"vox_offset": 1e30}, "ends early"),
    "a start that is no number": ({"vox_offset": np.nan}, "header that cannot be right"),
    "a start below 0": ({"vox_offset": -16}, "header that cannot be right"),
    "an infinite intercept": ({"scl_slope": 2, "scl_inter": np.inf}, "cannot be right"),
    "CIFTI": ({"intent_code": 3001}, "is CIFTI"),
    "a header of a pair": ({"magic": b"ni1"}, "is a header whose voxels are in another file"),
}


@pytest.mark.parametrize("name", DAMAGE)
@pytest.mark.filterwarnings("ignore::RuntimeWarning:nibabel")
def test_a_damaged_header_is_refused_with_its_reason(tmp_path: Path, name: str) -> None:
    fields, message = DAMAGE[name]
    path = save(tmp_path / "a.nii", **fields)
    with pytest.raises(FormatError, match=message):
        describe(path)
    packed = tmp_path / "a.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    if "ends early" in message or "promises" in message:
        with pytest.raises((FormatError, ReadError)):
            pixels_of(packed)
    else:
        with pytest.raises(FormatError, match=message):
            describe(packed)


@given(st.binary(min_size=1, max_size=40), st.integers(0, 347))
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_any_header_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes, place: int
) -> None:
    path = save(tmp_path_factory.mktemp("noise") / "a.nii")
    content = bytearray(path.read_bytes())
    content[place : place + len(noise)] = noise
    path.write_bytes(content)
    try:
        spec = FORMATS["nifti"].describe_image(StoredImage(str(path), "1", "t0001"), ReadOptions())
        read(spec)
    except (FormatError, ReadError):
        return


def test_extensions_are_skipped(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOLUME.T, np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", b"x" * 5000))
    nibabel.save(image, tmp_path / "a.nii")
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.nii")[..., 0], VOLUME)
    content = bytearray((tmp_path / "a.nii").read_bytes())
    # The size of an extension is of no importance: vox_offset says where the voxels are.
    struct.pack_into("<i", content, 352, 2**31 - 1)
    (tmp_path / "a.nii").write_bytes(content)
    np.testing.assert_array_equal(pixels_of(tmp_path / "a.nii")[..., 0], VOLUME)


def test_damaged_gzip_is_no_image(tmp_path: Path) -> None:
    large = np.random.default_rng(3).integers(0, 2**15, (20, 60, 60), np.int16)
    whole = save(tmp_path / "a.nii.gz", large).read_bytes()
    middle = len(whole) // 2
    for content, message in (
        (whole[:middle], "its end is missing"),
        (whole[:-4], "its end is missing"),
        (whole[:-8] + bytes(4) + whole[-4:], "incorrect data check"),
        (whole[:middle] + bytes(400) + whole[middle + 400 :], "is damaged or cut off"),
    ):
        path = tmp_path / "b.nii.gz"
        path.write_bytes(content)
        with pytest.raises(ReadError, match=message):
            pixels_of(path)
        path.unlink()
    for content in (whole[:30], b"\x1f\x8b" + bytes(40)):
        (tmp_path / "c.nii.gz").write_bytes(content)
        with pytest.raises(FormatError):
            describe(tmp_path / "c.nii.gz")


def test_several_members_of_gzip_are_one_file(tmp_path: Path) -> None:
    content = gzip.decompress(save(tmp_path / "a.nii.gz").read_bytes())
    parts = [gzip.compress(content[start : start + 100]) for start in range(0, len(content), 100)]
    # bgzip ends with an empty member; others pad with zeros.
    first = gzip.compress(content[:400])
    (tmp_path / "b.nii.gz").write_bytes(first + gzip.compress(content[400:]) + gzip.compress(b""))
    np.testing.assert_array_equal(pixels_of(tmp_path / "b.nii.gz")[..., 0], VOLUME)
    (tmp_path / "c.nii.gz").write_bytes(first + gzip.compress(content[400:]) + bytes(50))
    np.testing.assert_array_equal(pixels_of(tmp_path / "c.nii.gz")[..., 0], VOLUME)
    assert b"".join(unpacking._unpack(parts, "deflate")) == content


def test_small_files_do_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    class Counting:
        def __init__(self) -> None:
            self.file = unpacking_file()

        def __enter__(self) -> Counting:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def write(self, data: bytes) -> int:
            written.append(len(data))
            return self.file.write(data)

        def flush(self) -> None:
            self.file.flush()

        def fileno(self) -> int:
            return self.file.fileno()

    unpacking_file = unpacking.tempfile.TemporaryFile
    monkeypatch.setattr(unpacking.tempfile, "TemporaryFile", Counting)
    head = save(tmp_path / "a.nii").read_bytes()[:352]
    bomb = tmp_path / "bomb.nii.gz"
    bomb.write_bytes(gzip.compress(head + bytes(2**26)))
    with pytest.raises(ReadError, match="contradicts itself"):
        pixels_of(bomb)
    assert sum(written) == 352 + VOLUME.nbytes
    # A header that promises more than its file can hold.
    lying = save(tmp_path / "b.nii", dim=[3, 3000, 3000, 3000, 1, 1, 1, 1]).read_bytes()
    bomb.write_bytes(gzip.compress(lying))
    with pytest.raises(FormatError, match=r"promises 54000000352 bytes, and it can have at most"):
        describe(bomb)
    # What could be true asks for room first.
    usage = unpacking.shutil._ntuple_diskusage(1, 1, 100)
    monkeypatch.setattr(unpacking.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(Unavailable, match=r"only 100 are free.*TMPDIR"):
        pixels_of(save(tmp_path / "c.nii.gz"))


def test_a_file_is_unpacked_once_for_all_tiles_and_again_when_it_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    write = unpacking._write
    monkeypatch.setattr(
        unpacking, "_write", lambda *each: (calls.append(each[1].location), write(*each))
    )
    series = np.stack([VOLUME, VOLUME * 2])
    path = save(tmp_path / "a.nii.gz", series)
    for part in ("t0001", "t0002", "t0001"):
        pixels_of(path, part)
    assert len(calls) == 1
    spec = FORMATS["nifti"].describe_image(StoredImage(str(path), "2", "t0001"), ReadOptions())
    read(spec)
    assert len(calls) == 2
    before = len(list(Path("/proc/self/fd").iterdir()))
    for number in range(6):
        pixels_of(save(tmp_path / f"{number}.nii.gz"))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + unpacking._KEPT


def test_without_nibabel_the_remedy_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "a.nii")
    monkeypatch.setitem(__import__("sys").modules, "nibabel.spatialimages", None)
    with pytest.raises(FormatError, match=r"pip install 'maskloom\[medical\]'"):
        describe(path)


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the test data")
@pytest.mark.parametrize(
    "name",
    [
        "mri_mni152/images/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
        "mri_mni152/labels/tissue_csf1_gm2_wm3.nii.gz",
        "mri_ms_lesions/images/patient07_FLAIR.nii.gz",
        "dicom/labels/totalseg_ct20/example_seg_dicom.nii.gz",
    ],
)
def test_real_scans_are_those_of_nibabel(name: str) -> None:
    spec, oracle = describe(DATA / name), nibabel.load(DATA / name)
    np.testing.assert_array_equal(read(spec)[0][..., 0], np.asanyarray(oracle.dataobj).T)
    assert spec.space.frame is not None
    np.testing.assert_array_equal(
        np.array(spec.space.frame.affine).reshape(3, 4), oracle.affine[:3]
    )
    assert size_of(spec) == pytest.approx(abs(np.linalg.det(oracle.affine[:3, :3])), rel=1e-12)
