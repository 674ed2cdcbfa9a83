"""`maskloom evaluate` on scans: voxels are compared where they are in the scanner."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from cli_support import invoke
from dicom_support import save, stack_of
from scipy import ndimage
from sklearn import metrics

from maskloom.flows.evaluation import report
from maskloom.segcore.figures.evaluation import make_strip

nib = pytest.importorskip("nibabel")

FIELD = ndimage.gaussian_filter(np.random.default_rng(5).normal(size=(14, 30, 26)), 2)
VOXELS = np.clip(1000 + 9000 * FIELD, 0, 4000).astype(np.uint16)
"""(z, y, x)"""
TRUTH = (np.roll(VOXELS, 1, 2) > 1100).astype(np.uint8)
LPS = np.diag([-0.8, -0.5, 2.0, 1.0])
"""The affine of `dicom_support.stack_of`."""
THRESHOLD = ("-s", "threshold", "-p", "value=1000", "-p", "classes=[outside, inside]")
OPTIONS = ("--no-prefect", "--quiet", "--set", "cluster=serial")


def scan(path: Path, voxels: np.ndarray, affine: np.ndarray = LPS, axes: str = "LPS") -> Path:
    """Write a NIfTI of (z, y, x) at a place, with its voxels in another order of axes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = nib.Nifti1Image(voxels.T, affine)
    transform = nib.orientations.ornt_transform(
        nib.io_orientation(affine), nib.orientations.axcodes2ornt(axes)
    )
    turned = whole.as_reoriented(transform)
    turned.set_sform(turned.affine, 1)
    nib.save(turned, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a run over a DICOM series in a folder `ct`, and a NIfTI `t1` of it."""
    folder = tmp_path_factory.mktemp("scans")
    save(folder / "in" / "ct", stack_of(VOXELS))
    scan(folder / "in" / "t1.nii.gz", VOXELS, axes="ASR")
    done = invoke("segment", folder / "in", "-o", folder / "out", *THRESHOLD, *OPTIONS)
    assert done.exit_code == 0, done.output
    return folder / "out"


def iou(folder: Path) -> dict[str | None, float]:
    """The IoU of the inside by image, as the tables have it."""
    rows = pq.read_table(folder / "classes.parquet").to_pylist()
    return {row["image_id"]: row["iou"] for row in rows if row["class_name"] == "inside"}


EXPECTED = metrics.jaccard_score(TRUTH.ravel(), (VOXELS > 1000).ravel())


def test_truth_in_any_order_of_its_axes_is_compared_where_it_is(run: Path, tmp_path: Path) -> None:
    scan(tmp_path / "ct" / "organs.nii.gz", TRUTH, axes="PIL")
    scan(tmp_path / "t1.nii.gz", TRUTH, axes="LAS")
    done = invoke("evaluate", run, "--truth", tmp_path, "--out", tmp_path / "eval", "-q")
    assert done.exit_code == 0, done.output
    assert done.stderr == ""
    found = iou(tmp_path / "eval")
    assert list(found.values()) == [pytest.approx(EXPECTED)] * 3


@pytest.mark.parametrize(
    ("affine", "words"),
    [
        (np.array([[1, 0, 0, 7], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]) @ LPS, "to 7 mm apart"),
        (LPS @ np.diag([1, 1, 1.5, 1]), "0.8 x 0.5 x 3 mm apart, not 0.8 x 0.5 x 2 mm"),
    ],
    ids=["shifted", "other spacing"],
)
def test_truth_elsewhere_is_refused_for_its_image(
    run: Path, tmp_path: Path, affine: np.ndarray, words: str
) -> None:
    scan(tmp_path / "ct.nii.gz", TRUTH, affine)
    scan(tmp_path / "t1.nii.gz", TRUTH)
    done = invoke("evaluate", run, "--truth", tmp_path, "--out", tmp_path / "eval", "-q")
    assert done.exit_code == 3
    assert "ct.nii.gz lies elsewhere in the scanner than the mask of ct/series-" in done.stderr
    assert words in done.stderr
    assert set(iou(tmp_path / "eval")) == {None, "t1"}


def test_truth_without_a_place_is_compared_by_index_with_a_note(run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "ct.npy", TRUTH)
    done = invoke("evaluate", run, "--truth", tmp_path, "--out", tmp_path / "eval", "-q")
    assert done.exit_code == 0, done.output
    assert "1 image: of truth and mask only one says where its voxels are" in done.stderr
    assert iou(tmp_path / "eval")[None] == pytest.approx(EXPECTED)


def test_truth_that_fits_no_series_names_those_that_would(run: Path, tmp_path: Path) -> None:
    scan(tmp_path / "ct1.nii.gz", TRUTH)
    done = invoke("evaluate", run, "--truth", tmp_path, "-q")
    assert done.exit_code == 2
    assert "of the folder: for example ct.nii.gz." in " ".join(done.stderr.split())


def test_the_picture_shows_the_series(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    monkeypatch.setattr(
        report, "make_strip", lambda *given: seen.append(given[2]) or make_strip(*given)
    )
    scan(tmp_path / "ct.nii.gz", TRUTH)
    done = invoke("evaluate", run, "--truth", tmp_path, "--out", tmp_path / "eval", "-q")
    assert done.exit_code == 0, done.output
    (photo,) = seen
    # Some plane of the scan, stretched to the range of grey.
    plane = max(np.corrcoef(photo[..., 0].ravel(), each.ravel())[0, 1] for each in VOXELS)
    assert plane > 0.95
