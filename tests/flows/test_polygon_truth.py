"""Polygons in place of masks, in training and evaluation: the same labels, the same figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from rasterio.features import shapes
from typer.testing import CliRunner

from maskloom.flows import train as flow
from maskloom.flows.cli import app
from maskloom.flows.recipes import training as training_recipes
from maskloom.segcore.geometry import Box
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.pairs import find_pairs

NAMES = ("dark", "bright")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Pictures, their masks with void (9), and the same as polygons."""
    folder, random = tmp_path_factory.mktemp("labelled"), np.random.default_rng(0)
    for kind in ("images", "masks", "polygons"):
        (folder / kind).mkdir()
    for i in range(3):
        mask = np.kron(random.integers(0, 2, (6, 7)), np.ones((9, 9))).astype(np.uint8)
        mask[:4, :20] = 9
        pixels = (60 + 90 * (mask == 1) + random.integers(0, 60, mask.shape)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{i}.png")
        features = [
            {"type": "Feature", "geometry": shape, "properties": {"label": f"kind {int(value)}"}}
            for shape, value in shapes(mask)
        ]
        (folder / "polygons" / f"{i}.geojson").write_text(
            json.dumps({"type": "FeatureCollection", "features": features})
        )
    return folder


def dataset(folder: Path, masks: str, labels: dict) -> Dataset:
    document = {
        "images": "images",
        "masks": masks,
        "output": "out",
        "network": "unet",
        "classes": list(NAMES),
        "labels": labels,
    }
    training = training_recipes.make(document, folder)
    pairs, _ = find_pairs(*flow.sources(training), training.recipe, lambda *_: None)
    return Dataset(pairs, training.recipe.labels.decoder(NAMES), 1)


def test_a_network_is_trained_on_the_same_labels(folder) -> None:
    meant = {"kind 0": "dark", "kind 1": "bright"}
    drawn = dataset(folder, "polygons", {"kind": "polygons", "values": meant, "void": "rest"})
    stored = dataset(folder, "masks", {"kind": "index", "void": [9]})
    assert [pair.name for pair in drawn.pairs] == [pair.name for pair in stored.pairs]
    for i in range(3):
        box = Box((-3, 5), (40, 60))
        assert (drawn.window(i, box).classes == stored.window(i, box).classes).all()
        assert set(np.unique(stored.window(i, box).classes)) == {0, 1, 255}


def measures(folder: Path, out: str, *arguments: str) -> dict:
    command = ["evaluate", str(folder / "run"), *arguments, "--out", str(folder / out), "-q"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    table = pq.read_table(folder / out / "classes.parquet").to_pylist()
    return [{key: row[key] for key in ("class_name", "iou", "boundary_f")} for row in table]


def test_evaluation_gives_the_same_figures_and_the_rest_is_void(folder) -> None:
    command = ["segment", str(folder / "images"), "-o", str(folder / "run"), "-s", "threshold"]
    command += ["-p", "value=100", "-p", f"classes={list(NAMES)}", "--no-prefect", "-q"]
    done = CliRunner().invoke(app, [*command, "--set", "cluster=serial"])
    assert done.exit_code == 0, done.output
    stored = measures(folder, "a", "-t", str(folder / "masks"), "--void", "9")
    assert stored == measures(folder, "b", "-t", str(folder / "masks"), "--void", "rest")
    values = ["-v", "kind 0=dark,kind 1=bright", "--void", "rest"]
    polygons = str(folder / "polygons" / "*.geojson")
    assert stored == measures(folder, "c", "-t", polygons, *values)
    assert stored[0]["iou"] < 1
