"""Networks from the command line: the same masks for any tiling and number of workers, one choice of an engine a run, refusals before any work."""

from __future__ import annotations

import json
from dataclasses import replace

import keras
import numpy as np
import pytest
from skimage import draw
from tests_support import assert_same_results, read_masks, read_table

from segcore.inference.card import Scaling
from segcore.inference.examine import card_of_model
from segcore.inference.weights import Weights
from segcore.networks.recipes import NETWORKS

QUIET = ("--no-prefect", "--quiet")


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    keras.utils.set_random_seed(3)
    model = NETWORKS["unet"](width=4, depth=2).build(3, 3)
    path = tmp_path_factory.mktemp("weights") / "tiny.keras"
    model.save(path)
    card = card_of_model(model, "unet", ("sky", "land", "water"), Scaling((100.0,), (1 / 60,)), Weights.of(str(path)).sha256, {})
    path.with_suffix(".json").write_bytes(replace(card, dtype="uint8").dump())
    return str(path)


def test_tiles_and_workers_change_no_pixel(collection, maskloom, weights):
    segmenter = {"kind": "unet", "weights": weights, "patch": 128, "precision": "float32", "engine": "tensorflow"}
    recipe = collection.recipe(segmenter=segmenter, inputs=["images/p*.*"])
    workers = ["tiling.tile=64", "cluster.kind=local", "cluster.workers=2"]
    for output, changes in {"whole": ["tiling.tile=4096"], "tiled": workers}.items():
        result = maskloom(
            "run", recipe, *QUIET, "--set", f"output={output}", *(part for change in changes for part in ("--set", change))
        )
        assert result.exit_code == 0, result.output
    assert_same_results(collection.folder / "whole", collection.folder / "tiled")
    assert len({value for mask in read_masks(collection.folder / "whole").values() for value in np.unique(mask)}) > 1


def test_the_choice_of_a_run_is_recorded_and_kept(collection, maskloom, weights):
    recipe = collection.recipe(segmenter={"kind": "unet", "weights": weights, "patch": 128}, inputs=["images/p*.png"])
    assert maskloom("run", recipe, *QUIET).exit_code == 0
    (path,) = collection.output.glob("runs/*/choices.json")
    ((_, choice),) = json.loads(path.read_text()).items()
    for row in read_table(collection.output, "images"):
        said = json.loads(row["segmenter"])
        assert (said["engine"], said["precision"]) == (choice["engine"], choice["precision"])
    assert "Nothing to do" in maskloom("run", recipe, *QUIET).output


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"PK\x03\x04 and then nothing", "broken.keras is truncated"), (b"", "broken.keras is no .keras file")],
)
def test_a_broken_file_is_refused_before_any_work(collection, maskloom, tmp_path, content, message):
    (tmp_path / "broken.keras").write_bytes(content)
    recipe = collection.recipe(segmenter={"kind": "network", "weights": str(tmp_path / "broken.keras")})
    result = maskloom("run", recipe, *QUIET)
    assert result.exit_code == 2, result.output
    assert message in result.output
    assert not collection.output.exists()


def test_the_nuclei_weights_find_bright_blobs(maskloom, tmp_path):
    """A made-up picture in the manner of fluorescence: dark, with bright round nuclei."""
    from PIL import Image

    rng = np.random.default_rng(0)
    truth = np.zeros((256, 300), bool)
    for _ in range(18):
        rows, columns = draw.disk(rng.uniform(15, (240, 285)), rng.uniform(8, 14), shape=truth.shape)
        truth[rows, columns] = True
    glow = np.clip(8 + 90 * truth + rng.normal(0, 4, truth.shape), 0, 255).astype(np.uint8)
    Image.fromarray(np.repeat(glow[..., None], 3, axis=2)).save(tmp_path / "cells.png")
    arguments = ("-s", "unet", "-p", "weights=nuclei", "--set", "cluster=serial", *QUIET)
    result = maskloom("segment", tmp_path / "cells.png", "-o", tmp_path / "out", *arguments)
    assert result.exit_code == 0, result.output
    found = read_masks(tmp_path / "out")["masks/cells.png"] == 1
    assert 2 * (found & truth).sum() / (found.sum() + truth.sum()) > 0.85
