"""Scans through whole runs: masks in the place of their source, true volumes, images over time.

nibabel and pynrrd read the sources and the masks.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage
from tests_support import read_table

nibabel = pytest.importorskip("nibabel")
nrrd = pytest.importorskip("nrrd")
SERIAL = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial")
SHAPE = (14, 40, 34)
DATA = Path(os.environ.get("MASKLOOM_TEST_DATA", "absent"))
real = pytest.mark.skipif(not DATA.is_dir(), reason="needs the test data")
# A rotation about two axes, unequal distances, and the shear of a gantry that is tilted.
OBLIQUE = np.array(
    [[-0.62, 0.3, 0.4, 81.5], [0.25, 0.71, -0.9, -60.25], [0.1, 0.2, 2.9, -33], [0, 0, 0, 1]],
    np.float32,
).astype(float)


def volume() -> np.ndarray:
    noise = np.random.default_rng(3).normal(0, 1, SHAPE)
    return np.int16(900 * ndimage.gaussian_filter(noise, 2))


def save_scan(path: Path, pixels: np.ndarray | None = None) -> None:
    """A volume (z, y, x) in the place of `OBLIQUE`, in the format of the suffix."""
    pixels = volume() if pixels is None else pixels
    if ".nii" in path.name:
        image = nibabel.Nifti1Image(pixels.T, OBLIQUE)
        image.header.set_xyzt_units("mm")
        nibabel.save(image, path)
    elif path.suffix == ".mgz":
        image = nibabel.MGHImage(pixels.T, OBLIQUE)
        nibabel.save(image, path)
    elif path.suffix == ".nrrd":
        header = {
            "space": "right-anterior-superior",
            "space directions": OBLIQUE[:3, :3].T,
            "space origin": OBLIQUE[:3, 3],
        }
        nrrd.write(str(path), pixels, header, index_order="C")
    else:
        lps = OBLIQUE[:3] * [[-1], [-1], [1]]
        steps = np.linalg.norm(lps[:, :3], axis=0)
        text = [
            "ObjectType = Image",
            "NDims = 3",
            "DimSize = {} {} {}".format(*pixels.shape[::-1]),
            "ElementType = MET_SHORT",
            "Offset = {} {} {}".format(*lps[:, 3].tolist()),
            "ElementSpacing = {} {} {}".format(*steps.tolist()),
            "TransformMatrix = " + " ".join(map(str, (lps[:, :3] / steps).T.ravel().tolist())),
            "ElementDataFile = LOCAL",
        ]
        path.write_bytes("\n".join([*text, ""]).encode() + pixels.tobytes())


@pytest.mark.parametrize("name", ["a.nii.gz", "a.nii", "a.nrrd", "a.mha"])
def test_masks_lie_on_their_source(maskloom, tmp_path: Path, name: str) -> None:
    (tmp_path / "scans").mkdir()
    save_scan(tmp_path / "scans" / name)
    outputs = tmp_path / "whole", tmp_path / "tiled"
    command = ("segment", tmp_path / "scans", "-s", "threshold", "-p", "value=40", *SERIAL)
    assert maskloom(*command, "-o", outputs[0]).exit_code == 0
    tile = ("--set", "tiling.tile=[4, 16, 16]")
    assert maskloom(*command, "-o", outputs[1], *tile).exit_code == 0
    mask = nibabel.load(outputs[0] / "masks" / "a.nii.gz")
    np.testing.assert_allclose(mask.affine, OBLIQUE, rtol=1e-6, atol=1e-6)
    if ".nii" in name:
        source = nibabel.load(tmp_path / "scans" / name)
        np.testing.assert_array_equal(mask.affine, source.affine)
        for code in ("sform_code", "qform_code", "xyzt_units"):
            assert mask.header[code] & 7 == source.header[code] & 7

    # Random voxels of the source, found again in the mask by their place in the world.
    labels, pixels = np.asanyarray(mask.dataobj), volume()
    for k, j, i in np.random.default_rng(2).integers(0, SHAPE, (50, 3)):
        world = OBLIQUE @ [i, j, k, 1]
        place = tuple(np.rint(np.linalg.inv(mask.affine) @ world).astype(int)[:3])
        assert labels[place] == (pixels[k, j, i] > 40)
    [background, foreground] = read_table(outputs[0], "areas")
    count = int((pixels > 40).sum())
    assert (foreground["pixel_count"], foreground["area_unit"]) == (count, "mm3")
    determinant = abs(np.linalg.det(OBLIQUE[:3, :3]))
    assert foreground["area"] == pytest.approx(count * determinant, rel=1e-6)
    assert background["area"] == pytest.approx((pixels.size - count) * determinant, rel=1e-6)

    whole, tiled = ((each / "masks" / "a.nii.gz").read_bytes() for each in outputs)
    assert whole == tiled
    assert maskloom("verify", outputs[0]).exit_code == 0


@pytest.mark.parametrize("lacking", ["nibabel", "pynrrd", "zarr", "voxels", "voxels of NIfTI"])
def test_what_was_lacking_is_tried_again(
    maskloom, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: str
) -> None:
    """A package, or the file with the voxels of a header."""
    scans = tmp_path / "scans"
    scans.mkdir()
    name = {"nibabel": "a.nii", "pynrrd": "a.nrrd", "zarr": "a.zarr"}.get(lacking, "a.mha")
    if lacking == "zarr":
        pytest.importorskip("zarr").create_array(scans / name, data=volume())
    elif lacking == "voxels of NIfTI":
        nibabel.save(nibabel.Nifti1Pair(volume().T, OBLIQUE), scans / "a.hdr")
    else:
        save_scan(scans / name)
    header = {"voxels": "a.mhd", "voxels of NIfTI": "a.hdr"}.get(lacking, name)
    command = ("segment", scans / header, "-o", tmp_path / "out", "-s", "threshold", *SERIAL)
    voxels = scans / "a.img" if lacking == "voxels of NIfTI" else scans / "a.raw"
    if lacking == "voxels":
        head, _, content = (scans / name).read_bytes().partition(b"LOCAL\n")
        (scans / "a.mhd").write_bytes(head + b"a.raw\n")
        (scans / name).unlink()
        voxels.write_bytes(content)
    with monkeypatch.context() as patch:
        package = {"nibabel": "nibabel.spatialimages", "pynrrd": "nrrd", "zarr": "zarr"}
        if lacking in package:
            patch.setitem(sys.modules, package[lacking], None)
        else:
            content = voxels.read_bytes()
            voxels.unlink()
        assert maskloom(*command).exit_code == 3
    if lacking not in package:
        voxels.write_bytes(content)

    result = maskloom(*command)

    assert result.exit_code == 0, result.output
    assert [row["status"] for row in read_table(tmp_path / "out", "images")] == ["ok"]


def test_objects_of_scans_have_volumes(maskloom, tmp_path: Path) -> None:
    save_scan(tmp_path / "a.nii.gz")
    options = "of={kind: threshold, value: 60}", "min_size=12", "connectivity=26"
    parts = [word for option in options for word in ("-p", option)]
    command = ("segment", tmp_path / "a.nii.gz", "-o", tmp_path / "out", "-s", "connected_parts")
    table = ("--set", "statistics=[area, objects]", "--set", "tiling.tile=[8, 16, 16]")
    assert maskloom(*command, *parts, *SERIAL, *table).exit_code == 0
    labels, count = ndimage.label(volume() > 60, np.ones((3, 3, 3)))
    sizes = np.bincount(labels.ravel(), minlength=count + 1)[1:]
    mask = nibabel.load(tmp_path / "out" / "masks" / "a.nii.gz")
    ids = np.asanyarray(mask.dataobj).T
    kept = np.isin(labels, np.flatnonzero(sizes >= 12) + 1)
    assert mask.get_data_dtype() == np.uint32
    np.testing.assert_array_equal(ids > 0, kept)
    rows = read_table(tmp_path / "out", "objects")
    voxel = abs(np.linalg.det(OBLIQUE[:3, :3]))
    assert sorted(row["area"] for row in rows) == pytest.approx(
        sorted(sizes[sizes >= 12] * voxel), rel=1e-6
    )


def test_each_volume_over_time_has_its_mask(maskloom, tmp_path: Path) -> None:
    series = np.stack([volume(), volume() // 2, -volume()])
    save_scan(tmp_path / "bold.nii.gz", series)
    out = tmp_path / "out"
    command = ("segment", tmp_path / "bold.nii.gz", "-o", out, "-s", "threshold", "-p", "value=20")
    assert maskloom(*command, *SERIAL).exit_code == 0
    for time, pixels in enumerate(series, 1):
        mask = nibabel.load(out / "masks" / f"bold_t{time:04d}.nii.gz")
        np.testing.assert_array_equal(np.asanyarray(mask.dataobj).T, pixels > 20)
        np.testing.assert_array_equal(mask.affine, OBLIQUE)
    assert "Nothing to do" in maskloom(*command, *SERIAL).output


def test_a_damaged_scan_fails_alone(maskloom, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for name in ("a.nii.gz", "b.nii.gz", "c.nrrd", "d.mha"):
        save_scan(folder / name)
    for name in ("b.nii.gz", "c.nrrd", "d.mha"):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    command = ("segment", folder, "-o", tmp_path / "out", "-s", "threshold", "-p", "value=0")
    assert maskloom(*command, *SERIAL, "--set", "max_failed_fraction=1").exit_code == 3
    rows = {row["image_id"]: row for row in read_table(tmp_path / "out", "images")}
    assert {name: row["status"] for name, row in rows.items()} == {
        "a": "ok",
        "b": "failed",
        "c": "failed",
        "d": "failed",
    }
    for name in "bcd":
        assert "Copy it again" in rows[name]["error"]
    masks = [path.name for path in (tmp_path / "out" / "masks").glob("*.gz")]
    assert masks == ["a.nii.gz"]


DEPLOYED = Path(__file__).parents[2] / "deploy" / "recipes"


def run_deployed(maskloom, name: str, folder: Path) -> Path:
    out = folder / "out"
    changes = [f"inputs={folder / 'a.nii.gz'}", f"output={out}", "cluster=serial"]
    words = [word for change in changes for word in ("--set", change)]
    command = ("run", DEPLOYED / f"{name}.yaml", "--no-prefect", "--quiet", *words)
    assert maskloom(*command, "--set", "tiling.tile=[6, 16, 16]").exit_code == 0
    return out


def test_the_recipe_for_lesions_counts_and_measures_them(maskloom, tmp_path: Path) -> None:
    """Balls of known size in a brain of noise, outside of which all is 0."""
    z, y, x = np.indices(SHAPE)
    noise = np.random.default_rng(1).normal(90, 8, SHAPE)
    brain = np.where((y - 20) ** 2 + (x - 17) ** 2 < 15**2, noise, 0)
    centres = [(3, 14, 12), (9, 25, 20), (10, 15, 22)]
    balls = [(z - a) ** 2 + (y - b) ** 2 + (x - c) ** 2 <= 4 for a, b, c in centres]
    for ball in balls:
        brain[ball] = 150
    brain[5, 20, 17] = 150  # one voxel: noise
    save_scan(tmp_path / "a.nii.gz", np.int16(brain))
    out = run_deployed(maskloom, "lesions", tmp_path)
    rows = read_table(out, "objects")
    voxel = abs(np.linalg.det(OBLIQUE[:3, :3]))
    assert [row["area"] for row in rows] == pytest.approx([balls[0].sum() * voxel] * 3, rel=1e-6)
    mask = np.asanyarray(nibabel.load(out / "masks" / "a.nii.gz").dataobj).T
    np.testing.assert_array_equal(mask > 0, np.any(balls, axis=0))
    [image] = read_table(out, "images")
    assert image["nodata_pixels"] == (np.int16(brain) == 0).sum()


def test_the_recipe_for_organs_keeps_the_largest_part_filled(maskloom, tmp_path: Path) -> None:
    scan = np.full(SHAPE, -50, np.int16)
    scan[2:12, 6:30, 8:26] = 400
    scan[4:10, 10:20, 12:20] = 60  # marrow
    scan[:, 36:38] = 350  # the table
    save_scan(tmp_path / "a.nii.gz", scan)
    out = run_deployed(maskloom, "organ-ct", tmp_path)
    expected = np.zeros(SHAPE, bool)
    expected[2:12, 6:30, 8:26] = True
    mask = np.asanyarray(nibabel.load(out / "masks" / "a.nii.gz").dataobj).T
    np.testing.assert_array_equal(mask, expected)


@real
@pytest.mark.parametrize(
    "name",
    [
        "mri_mni152/labels/tissue_csf1_gm2_wm3.nii.gz",
        "mri_ms_lesions/labels/patient07_lesions.nii.gz",
        "mri_ct_pyradiomics/labels/brain1_label.nrrd",
        "mri_ct_pyradiomics/labels/breast1_label.nrrd",
        "dicom/labels/totalseg_ct20/example_seg_dicom.nii.gz",
    ],
)
def test_volumes_of_real_labels(maskloom, tmp_path: Path, name: str) -> None:
    if name.endswith(".nrrd"):
        labels, header = nrrd.read(str(DATA / name), index_order="C")
        voxel = abs(np.linalg.det(header["space directions"]))
    else:
        image = nibabel.load(DATA / name)
        labels, voxel = np.asanyarray(image.dataobj).T, abs(np.linalg.det(image.affine[:3, :3]))
    out = tmp_path / "out"
    command = ("segment", DATA / name, "-o", out, "-s", "threshold", "-p", "value=0.5")
    assert maskloom(*command, *SERIAL).exit_code == 0
    _, inside = read_table(out, "areas")
    assert inside["area_unit"] == "mm3"
    assert inside["area"] == pytest.approx((labels > 0.5).sum() * voxel, rel=1e-12)
    [mask] = (out / "masks").rglob("*.nii.gz")
    np.testing.assert_array_equal(np.asanyarray(nibabel.load(mask).dataobj).T, labels > 0.5)
