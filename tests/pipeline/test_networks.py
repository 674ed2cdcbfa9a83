"""Networks from the command line: the same masks for any tiling and number of workers, one choice
of an engine a run, refusals before any work.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import cv2
import keras
import numpy as np
import pyarrow.parquet as pq
import pytest
from detections_support import BlobFinder, write_weights
from skimage import draw, filters
from tests_support import assert_same_results, read_masks, read_table

from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.segmenters import mask_rcnn

QUIET = ("--no-prefect", "--quiet")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    keras.utils.set_random_seed(3)
    model = NETWORKS["unet"](width=4, depth=2).build(3, 3)
    path = tmp_path_factory.mktemp("weights") / "tiny.keras"
    model.save(path)
    card = card_of_model(
        model,
        "unet",
        ("sky", "land", "water"),
        Scaling((100.0,), (1 / 60,)),
        Weights.of(str(path)).sha256,
        {},
    )
    path.with_suffix(".json").write_bytes(replace(card, dtype="uint8").dump())
    return str(path)


# By day tests/flows/test_train_volumes.py does it with another U-Net, and the golden runs without
# workers.
@pytest.mark.nightly
@pytest.mark.parametrize("scaling", [None, {"by": "range", "percentiles": [1, 99]}])
def test_tiles_and_workers_change_no_pixel(collection, maskloom, weights, two_workers, scaling):
    segmenter = {
        "kind": "unet",
        "weights": weights,
        "patch": 128,
        "precision": "float32",
        "engine": "tensorflow",
        **({} if scaling is None else {"scaling": scaling}),
    }
    recipe = collection.recipe(segmenter=segmenter, inputs=["images/p*.*"])
    workers = ["tiling.tile=64", f"cluster={two_workers}"]
    for output, changes in {"whole": ["tiling.tile=4096"], "tiled": workers}.items():
        result = maskloom(
            "run",
            recipe,
            *QUIET,
            "--set",
            f"output={output}",
            *(part for change in changes for part in ("--set", change)),
        )
        assert result.exit_code == 0, result.output
    assert_same_results(collection.folder / "whole", collection.folder / "tiled")
    assert (
        len(
            {
                value
                for mask in read_masks(collection.folder / "whole").values()
                for value in np.unique(mask)
            }
        )
        > 1
    )


def test_the_choice_of_a_run_is_recorded_and_kept(collection, maskloom, weights):
    segmenter = {"kind": "unet", "weights": weights, "patch": 128}
    # Of each image, although `fit` is the collection.
    segmenter["scaling"] = {"by": "deviation", "bands": "together"}
    recipe = collection.recipe(segmenter=segmenter, inputs=["images/p*.png"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    (path,) = collection.output.glob("runs/*/choices.json")
    ((_, choice),) = json.loads(path.read_text()).items()
    for row in read_table(collection.output, "images"):
        said = json.loads(row["segmenter"])
        assert (said["engine"], said["precision"]) == (choice["engine"], choice["precision"])
        pixels = cv2.imread(str(collection.folder / "images" / Path(row["uri"]).name))
        np.testing.assert_allclose(said["scaling"]["offset"], [pixels.mean()], rtol=1e-12)
    assert not list(collection.output.glob("runs/*/model.json"))
    assert "Nothing to do" in maskloom("run", recipe, *QUIET).output


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04 and then nothing", "broken.keras is truncated"),
        (b"", "broken.keras is no .keras file"),
    ],
)
def test_a_broken_file_is_refused_before_any_work(collection, maskloom, tmp_path, content, message):
    (tmp_path / "broken.keras").write_bytes(content)
    recipe = collection.recipe(
        segmenter={"kind": "network", "weights": str(tmp_path / "broken.keras")}
    )
    result = maskloom("run", recipe, *QUIET)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not collection.output.exists()


@pytest.mark.nightly
def test_the_nuclei_weights_find_bright_blobs(maskloom, tmp_path):
    """A made-up picture in the manner of fluorescence: dark, with bright round nuclei."""
    from PIL import Image

    rng = np.random.default_rng(0)
    truth = np.zeros((256, 300), bool)
    for _ in range(18):
        rows, columns = draw.disk(
            rng.uniform(15, (240, 285)), rng.uniform(8, 14), shape=truth.shape
        )
        truth[rows, columns] = True
    glow = np.clip(8 + 90 * truth + rng.normal(0, 4, truth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(np.repeat(glow[..., None], 3, axis=2)).save(tmp_path / "cells.png")
    arguments = ("-s", "unet", "-p", "weights=nuclei", "--set", "cluster=serial", *QUIET)
    result = maskloom("segment", tmp_path / "cells.png", "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    found = read_masks(tmp_path / "out")["masks/cells.png"] == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
    assert read_table(tmp_path / "out", "images")[0]["warning"] is None


def discs(path, shape, side: int, radius: int, blur: float = 0) -> int:
    """A made-up picture in the manner of fluorescence with round nuclei, `side` pixels apart; their
    number.
    """
    from PIL import Image

    truth = np.zeros(shape, bool)
    centres = [
        (y, x)
        for y in range(side // 2, shape[0] - radius, side)
        for x in range(side // 2, shape[1] - radius, side)
    ]
    for centre in centres:
        truth[draw.disk(centre, radius + 0.5, shape=shape)] = True
    noise = np.random.default_rng(0).normal(0, 4, shape)
    bright = filters.gaussian(truth.astype(float), blur)
    glow = np.clip(8 + 90 * bright + noise, 0, 255).astype(np.uint8)
    Image.fromarray(np.repeat(glow[..., None], 3, axis=2)).save(path)
    return len(centres)


def test_nuclei_that_touch_are_counted_and_unusual_ones_give_a_warning(maskloom, tmp_path, caplog):
    """By one file in the box, which `unet` reads too."""
    (tmp_path / "cells").mkdir()
    touching = discs(tmp_path / "cells" / "touching.png", (200, 240), 21, 10)
    tiny = discs(tmp_path / "cells" / "tiny.png", (120, 150), 14, 2)
    large = discs(tmp_path / "cells" / "large.png", (160, 320), 160, 48, 2)
    output, common = tmp_path / "out", ("-p", "weights=nuclei", "--set", "cluster=serial", *QUIET)
    result = maskloom("segment", tmp_path / "cells", "-o", output, "-s", "instances", *common)
    assert result.exit_code == 0, result.output
    rows = read_table(output, "objects")
    counts = Counter(row["image_id"] for row in rows)
    assert counts == {"touching": touching, "tiny": tiny, "large": large}
    area = len(draw.disk((0, 0), 48.5)[0])
    # All of their pixels arrive in the middle: with too few steps, edges are frayed.
    assert all(
        abs(row["pixel_count"] - area) < 0.05 * area for row in rows if row["image_id"] == "large"
    )
    median = np.median([row["pixel_count"] for row in rows if row["image_id"] == "tiny"])
    warnings = {row["image_id"]: row["warning"] for row in read_table(output, "images")}
    told = (
        f"nuclei.keras may not suit objects of this size: the median is nucleus {median:g} pixels "
        "(in training 39 to 6987.5)"
    )
    assert "suit this kind of image: nucleus 7" in warnings["touching"]
    assert warnings["tiny"].startswith(told)
    assert f"tiny: {told}" in caplog.text


@pytest.mark.nightly
@pytest.mark.parametrize("kind", [("unet", "weights=nuclei"), ("watershed", "of=UNET")])
def test_the_nuclei_weights_warn_where_they_find_nothing(maskloom, tmp_path, caplog, kind):
    from PIL import Image

    Image.fromarray(np.full((90, 120, 3), 9, np.uint8)).save(tmp_path / "dark.png")
    parameter = kind[1].replace("UNET", "{kind: unet, weights: nuclei}")
    result = maskloom(
        *("segment", tmp_path / "dark.png", "-o", tmp_path / "out", "-s", kind[0]),
        *("-p", parameter, "--set", "cluster=serial", *QUIET),
    )
    assert result.exit_code == 0, result.output
    told = (
        "nuclei.keras may not suit this kind of image: nucleus 0.00% (in training 0.15% to 59.20% "
        "of an image)"
    )
    (row,) = read_table(tmp_path / "out", "images")
    assert row["warning"].startswith(told)
    assert f"dark: {told}" in caplog.text


def test_scores_of_instances_reach_the_table_and_the_evaluation(maskloom, tmp_path, monkeypatch):
    """Spots of growing size, the larger the surer; the truth has all but the largest, so that the
    surest object is a false one.
    """
    monkeypatch.setattr(mask_rcnn, "_detector", lambda *arguments: BlobFinder())
    weights, image, truth = (
        write_weights(tmp_path),
        np.zeros((200, 260), np.uint8),
        np.zeros((200, 260), np.uint16),
    )
    for i in range(6):
        place = draw.disk((40 + 100 * (i % 2), 30 + 40 * i), 5 + 2 * i)
        image[place], truth[place] = 120, i + 1 if i < 5 else 0
    (tmp_path / "truth").mkdir()
    cv2.imwrite(str(tmp_path / "spots.png"), image)
    cv2.imwrite(str(tmp_path / "truth" / "spots.png"), truth)
    segmenter = {
        "kind": "mask_rcnn",
        "weights": weights,
        "core": 64,
        "halo": 32,
        "classes": ["background", "spot", "other"],
    }
    recipe = {
        "inputs": [str(tmp_path / "spots.png")],
        "segmenter": segmenter,
        "cluster": {"kind": "serial"},
    }
    scores = {}
    for tile in (64, 4096):
        path = tmp_path / f"{tile}.yaml"
        path.write_text(json.dumps({**recipe, "output": f"out{tile}", "tiling": {"tile": tile}}))
        result = maskloom("run", path, *QUIET)
        assert result.exit_code == 0, result.output
        scores[tile] = [
            (row["pixel_count"], row["score"])
            for row in read_table(tmp_path / f"out{tile}", "objects")
        ]
    assert scores[64] == scores[4096]
    assert len(scores[64]) == 6
    pixels, sure = np.array(sorted(scores[64])).T
    np.testing.assert_allclose(sure, 0.5 + np.minimum(0.49, pixels / 2000), atol=0.01)
    result = maskloom(
        "evaluate",
        tmp_path / "out64",
        "--truth",
        tmp_path / "truth" / "*.png",
        "--values",
        "1..=spot",
        "--values",
        "0=background",
        "-q",
    )
    assert result.exit_code == 0, result.output
    rows = pq.read_table(tmp_path / "out64" / "evaluation" / "objects.parquet").to_pylist()
    (row,) = [
        row
        for row in rows
        if row["image_id"] is None and row["class_name"] == "spot" and row["threshold"] == 0.5
    ]
    # The false one comes first: precision i / (i + 1) after i of 5 true ones, at its best from
    # there on 5 / 6.
    assert row["ap_coco"] == pytest.approx(5 / 6)
