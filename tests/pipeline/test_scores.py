"""Runs that keep the scores of classes: the same for any tiling, those of scikit-learn, and made
again, verified and removed as masks are.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
from PIL import Image
from scipy.stats import entropy
from sklearn.calibration import calibration_curve
from sklearn.mixture import GaussianMixture
from tests_support import assert_same_results, read_scores, read_table

import maskloom as ml

pytestmark = pytest.mark.reports

MIXTURE = {"kind": "mixture", "components": 4}
QUIET = ("--no-prefect", "--quiet")


def posteriors(row: dict[str, object], pixels: np.ndarray) -> np.ndarray:
    """Those of scikit-learn for the mixture that the table `images` describes."""
    said = json.loads(str(row["segmenter"]))
    mixture = GaussianMixture(said["components"])
    mixture.weights_ = np.array(said["fractions"])
    mixture.means_, mixture.covariances_ = np.array(said["means"]), np.array(said["covariances"])
    precisions = np.linalg.inv(mixture.covariances_)
    mixture.precisions_cholesky_ = np.linalg.cholesky(precisions)
    return mixture.predict_proba(pixels.reshape(-1, pixels.shape[-1]).astype(float))


def test_scores_are_those_of_the_model_under_any_tiling(collection, maskloom):
    recipe = collection.recipe(segmenter=MIXTURE, scores=True, inputs=["images/scenes/l*.tif"])
    for output, tile in (("whole", 2048), ("tiled", 64)):
        result = maskloom(
            "run", recipe, *QUIET, "--set", f"tiling.tile={tile}", "--set", f"output={output}"
        )
        assert result.exit_code == 0, result.output
    whole = collection.folder / "whole"
    assert_same_results(whole, collection.folder / "tiled")
    (row,) = read_table(whole, "images")
    with rasterio.open(collection.folder / "images/scenes/lonlat.tif") as file:
        pixels, valid = np.moveaxis(file.read(), 0, -1), file.dataset_mask() > 0
    scores = read_scores(whole)[row["scores_uri"]]
    assert (scores[:, ~valid] == 255).all()
    expected = posteriors(row, pixels[valid])
    assert np.abs(scores[:, valid].T / 250 - expected).max() < 0.002 + 1e-5
    of_each = entropy(expected, axis=-1, base=expected.shape[-1])
    assert row["mean_entropy"] == pytest.approx(of_each.mean(), abs=1e-5)
    ordered = np.sort(expected, axis=-1)
    opened = ml.open(str(whole))["lonlat"].scores(np.s_[50:210, 90:300])
    part = scores[:, 50:210, 90:300]
    assert np.array_equal(np.isnan(opened), np.moveaxis(part == 255, 0, -1))
    assert np.allclose(np.nan_to_num(opened, nan=1.02), np.moveaxis(part / 250, 0, -1))
    assert row["mean_margin"] == pytest.approx((ordered[:, -1] - ordered[:, -2]).mean(), abs=1e-5)


def test_an_evaluation_says_how_far_scores_can_be_believed(collection, maskloom):
    """Against a truth that differs from the mask by chance."""
    names = ["a", "b", "a", "c"]  # two components are one class
    recipe = collection.recipe(
        segmenter={**MIXTURE, "classes": names}, scores=True, inputs=["images/photo.png"]
    )
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    with rasterio.open(collection.output / "masks/photo.png") as file:
        mask = file.read(1)
    rng = np.random.default_rng(0)
    truth = np.where(rng.random(mask.shape) < 0.3, rng.integers(0, 3, mask.shape), mask)
    (collection.folder / "truth").mkdir()
    Image.fromarray(truth.astype(np.uint8)).save(collection.folder / "truth/photo.png")
    told = maskloom("evaluate", collection.output, "--truth", collection.folder / "truth")
    assert told.exit_code == 0, told.output
    (scores,) = read_scores(collection.output).values()
    confidence = np.take_along_axis(scores, mask[None].astype(int), 0)[0].ravel() / 250
    accuracy, mean = calibration_curve((mask == truth).ravel(), confidence, n_bins=10)
    table = pq.read_table(collection.output / "evaluation/reliability.parquet").to_pylist()
    rows = [row for row in table if row["image_id"] is None and row["pixels"]]
    assert [row["accuracy"] for row in rows] == pytest.approx(accuracy.tolist())
    assert [row["confidence"] for row in rows] == pytest.approx(mean.tolist(), abs=1e-6)
    weights = np.array([row["pixels"] for row in rows]) / mask.size
    error = float((weights * np.abs(accuracy - mean)).sum())
    assert f"calibration error {error:.3f}" in told.output
    with Image.open(collection.output / "evaluation/reliability.png") as picture:
        picture.load()


def test_scores_are_verified_made_again_and_removed_with_the_wish_for_them(collection, maskloom):
    recipe = collection.recipe(segmenter=MIXTURE, scores=True, inputs=["images/p*.*"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    folder = collection.output / "scores"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(before) == 4
    page = (collection.output / "report.html").read_text()
    assert "Least sure" in page
    assert "least sure first" in page
    (folder / "pixel.tif").unlink()
    (folder / "plain.tif").write_bytes(before["plain.tif"][:-1])
    found = maskloom("verify", collection.output)
    assert found.exit_code == 1
    assert "scores/pixel.tif: the scores of pixel are missing" in found.output
    assert "scores/plain.tif: is not what was written" in found.output
    assert "lost: scores/pixel.tif" in maskloom("status", collection.output).output
    (folder / "plain.tif").unlink()
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert maskloom("verify", collection.output).exit_code == 0
    without = collection.recipe(segmenter=MIXTURE, inputs=["images/p*.*"])
    assert maskloom("run", without, *QUIET).exit_code == 0
    assert list(folder.iterdir()) == []
    assert "Least sure" not in (collection.output / "report.html").read_text()
    assert all(row["mean_entropy"] is None for row in read_table(collection.output, "images"))


@pytest.mark.parametrize(
    ("segmenter", "why"),
    [
        ("kmeans", "kmeans gives no probabilities"),
        ({"kind": "connected_parts", "of": MIXTURE}, "connected_parts gives no probabilities"),
        ([MIXTURE, {**MIXTURE, "seed": 1}, {"kind": "kmeans", "clusters": 4}], "votes"),
        ({"kind": "ensemble", "by": "vote", "members": [MIXTURE, MIXTURE]}, "votes"),
    ],
)
def test_a_segmenter_without_probabilities_is_refused(collection, maskloom, segmenter, why):
    result = maskloom("run", collection.recipe(segmenter=segmenter, scores=True), *QUIET)
    assert result.exit_code == 2
    assert why in result.output
    assert "deeplab, fcn, mixture, network, unet" in result.output
    assert not collection.output.exists()


def test_an_output_of_an_earlier_version_without_the_columns(collection, maskloom):
    recipe = collection.recipe(segmenter=MIXTURE, inputs=["images/photo.png"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    (images,) = (collection.output / "tables/images").iterdir()
    columns = ["mean_entropy", "mean_margin", "scores_uri", "scores_sha256"]
    pq.write_table(pq.read_table(images).drop_columns(columns), images)
    for command in ("status", "clean"):
        assert maskloom(command, collection.output).exit_code == 0
    assert "Nothing to do" in maskloom("run", recipe, *QUIET).output
    recipe = collection.recipe(segmenter=MIXTURE, inputs=["images/p*.png"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    assert len(read_table(collection.output, "images")) == 2


@pytest.mark.nightly
def test_scores_of_a_volume_are_the_same_under_any_tiling(collection, maskloom):
    volume = np.random.default_rng(0).normal(100, 20, (9, 40, 50)).astype(np.float32)
    np.save(collection.folder / "images/volume.npy", volume)
    recipe = collection.recipe(
        segmenter={**MIXTURE, "smoothness": 1}, scores=True, inputs=["images/volume.npy"]
    )
    for output, tile in (("whole", "64"), ("tiled", "[4, 16, 32]")):
        changes = (f"output={output}", f"tiling.tile={tile}")
        result = maskloom("run", recipe, *QUIET, *(f"--set={each}" for each in changes))
        assert result.exit_code == 0, result.output
    assert_same_results(collection.folder / "whole", collection.folder / "tiled")
    (scores,) = read_scores(collection.folder / "whole").values()
    assert scores.shape == (4, 9, 40, 50)
    opened = ml.open(str(collection.folder / "tiled"))["volume"].scores()
    assert np.allclose(opened, np.moveaxis(scores / 250, 0, -1))


@pytest.mark.nightly
def test_an_ensemble_has_the_mean_of_its_members(collection, maskloom):
    members = [MIXTURE, {**MIXTURE, "covariance": "diag"}]
    inputs = ["images/photo.png"]
    for output, segmenter in (("first", members[0]), ("second", members[1]), ("both", members)):
        recipe = collection.recipe(segmenter=segmenter, scores=True, inputs=inputs, output=output)
        assert maskloom("run", recipe, *QUIET).exit_code == 0
    first, second, both = (
        read_scores(collection.folder / name)["scores/photo.tif"].astype(float)
        for name in ("first", "second", "both")
    )
    assert np.abs(both - (first + second) / 2).max() <= 1
