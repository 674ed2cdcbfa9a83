"""Fingerprints and records follow names of registries and parameters, never names of Python
classes: renaming a class must not cause any output to be made again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from maskloom.flows.cli import app
from maskloom.flows.recipes import run as recipes
from maskloom.flows.recipes import training
from maskloom.segcore.models.composed import Composed
from maskloom.segcore.models.files import dump_model, load_model
from maskloom.segcore.models.protocols import MODELS

THRESHOLD = {"kind": "threshold", "value": 100, "classes": ["dark", "bright"]}
KMEANS = {"kind": "kmeans", "clusters": 2}
SEGMENTERS = {
    "threshold": THRESHOLD,
    "kmeans": KMEANS,
    "mean_shift": {"kind": "mean_shift"},
    "parts": {"kind": "connected_parts", "of": THRESHOLD},
    "watershed": {"kind": "watershed", "of": THRESHOLD, "stitch": {"by": "overlap", "iou": 0.5}},
    "fitted_watershed": {"kind": "watershed", "of": KMEANS},
    "network": {"kind": "unet", "weights": "nuclei"},
    "ensemble": {"kind": "ensemble", "members": [THRESHOLD, KMEANS]},
}
TRAINING = {
    "name": "golden",
    "images": "images",
    "masks": "masks",
    "output": "model",
    "network": {"kind": "unet", "width": 4},
    "classes": ["dark", "bright"],
    "labels": {"kind": "index"},
    "training": {"loss": {"kind": "dice"}, "augmentation": ["flip", "rotate90"]},
}


def make(segmenter: object, **keys: object) -> recipes.RunRecipe:
    document = {"inputs": "a.tif", "output": "out", "segmenter": segmenter, "statistics": "objects"}
    return recipes.make({**document, **keys}, Path("/nowhere"))


def settings_of_training(**keys: object) -> Any:
    training_run = training.make({**json.loads(json.dumps(TRAINING)), **keys}, Path("/nowhere"))
    return json.loads(json.dumps(training_run.settings))


def classes_in(value: Any) -> Iterator[type]:
    """The classes of a value and of all that it holds."""
    if isinstance(value, tuple):
        for item in value:
            yield from classes_in(item)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value)
        for field in dataclasses.fields(value):
            yield from classes_in(getattr(value, field.name))


@pytest.fixture
def rename() -> Iterator[Callable[..., set[str]]]:
    """Renames all classes in some values, and gives their names before."""
    before: dict[type, tuple[str, str]] = {}

    def renamed(*values: Any) -> set[str]:
        for kind in {kind for value in values for kind in classes_in(value)}:
            before[kind] = kind.__name__, kind.__qualname__
            kind.__name__ = kind.__qualname__ = f"Renamed{len(before)}"
        return {name for name, _ in before.values()}

    yield renamed
    for kind, names in before.items():
        kind.__name__, kind.__qualname__ = names


@pytest.mark.parametrize("kind", SEGMENTERS)
def test_renaming_every_class_changes_no_fingerprint(kind, rename):
    before = make(SEGMENTERS[kind])
    settings, fingerprint = before.work.settings, before.work.fingerprint
    names = rename(before.segmenter, before.objects, *before.statistics.values())
    assert {"Area", "Objects"} < names
    after = make(SEGMENTERS[kind])
    assert after.work.settings == settings
    assert after.work.fingerprint == fingerprint
    assert "Renamed" not in json.dumps(after.work.settings)


def test_the_renaming_reaches_segmenters_statistics_and_what_they_hold(rename):
    before = make(SEGMENTERS["fitted_watershed"])
    assert isinstance(before.segmenter, Composed)
    names = rename(before.segmenter, before.objects, *before.statistics.values())
    assert {"Composed", "KMeans", "Watershed", "SeamRule", "Area", "Objects"} <= names


def test_a_class_under_another_name_in_the_registry_changes_the_fingerprint(monkeypatch):
    """The name in the registry is what users write, so it does count."""
    before = make({"kind": "connected_parts", "of": THRESHOLD}).work
    items = dict(MODELS)
    renamed = {"limit" if name == "threshold" else name: kind for name, kind in items.items()}
    monkeypatch.setattr(MODELS, "_registered", renamed)
    assert make({"kind": "connected_parts", "of": THRESHOLD}).work.fingerprint != before.fingerprint


@pytest.mark.parametrize(
    "changed",
    [
        {"segmenter": {**SEGMENTERS["watershed"], "distance": 31}},
        {"segmenter": {**SEGMENTERS["watershed"], "stitch": {"by": "overlap", "iou": 0.6}}},
        {"segmenter": {**SEGMENTERS["watershed"], "stitch": {"by": "ownership", "iou": 0.5}}},
        {"segmenter": {**SEGMENTERS["watershed"], "of": {**THRESHOLD, "value": 101}}},
        {"segmenter": {**SEGMENTERS["watershed"], "of": {**THRESHOLD, "band": 1}}},
        {"segmenter": {**SEGMENTERS["watershed"], "of": KMEANS}},
        {"segmenter": {"kind": "connected_parts", "of": THRESHOLD}},
        {"segmenter": THRESHOLD},
        {"statistics": {"kind": "objects", "min_size": 2}},
        {"statistics": "area"},
        {"fit": "image"},
    ],
    ids=json.dumps,
)
def test_a_changed_parameter_changes_the_fingerprint(changed):
    settings = {"segmenter": SEGMENTERS["watershed"], **changed}
    assert make(SEGMENTERS["watershed"]).work.fingerprint != make(**settings).work.fingerprint


def test_all_kinds_differ():
    found = {make(section).work.fingerprint for section in SEGMENTERS.values()}
    assert len(found) == len(SEGMENTERS)


@pytest.mark.parametrize("kind", ["threshold", "parts", "watershed", "network"])
def test_model_files_hold_no_name_of_a_class(kind, rename):
    model: Any = make(SEGMENTERS[kind]).segmenter
    before = dump_model(model)
    rename(model)
    assert dump_model(model) == before
    assert load_model(before) == model


def test_renaming_every_class_changes_no_record_of_a_training(rename):
    before = settings_of_training()
    training_run = training.make(json.loads(json.dumps(TRAINING)), Path("/nowhere"))
    names = rename(training_run.recipe)
    assert {"Unet", "Index", "Flip"} <= names
    assert settings_of_training() == before


@pytest.mark.parametrize(
    "changed",
    [
        {"network": {"kind": "unet", "width": 8}},
        {"network": {"kind": "fcn", "width": 4}},
        {"labels": {"kind": "instances"}},
        {"training": {"loss": {"kind": "dice"}, "augmentation": ["rotate90"]}},
        {"training": {"loss": {"kind": "dice"}, "augmentation": ["rotate90", "flip"]}},
        {"training": {"loss": {"kind": "focal"}, "augmentation": ["flip", "rotate90"]}},
    ],
    ids=json.dumps,
)
def test_a_changed_parameter_changes_the_record_of_a_training(changed):
    assert settings_of_training(**changed) != settings_of_training()


def test_a_run_has_nothing_to_do_after_a_renaming(tmp_path, rename):
    Image.fromarray(np.arange(64 * 48, dtype=np.uint8).reshape(48, 64)).save(tmp_path / "a.png")
    document = {"inputs": "a.png", "output": "out", "segmenter": SEGMENTERS["fitted_watershed"]}
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({**document, "cluster": "serial", "statistics": "objects"}))
    words = ["run", str(path), "--no-prefect", "--quiet"]
    first = CliRunner().invoke(app, words)
    assert first.exit_code == 0, first.output
    recipe = recipes.load(path)
    rename(recipe.segmenter, recipe.objects, *recipe.statistics.values())
    again = CliRunner().invoke(app, words)
    assert again.exit_code == 0, again.output
    assert "Nothing to do" in again.output
