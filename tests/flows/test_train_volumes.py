"""Training on volumes, of networks of volumes and of images, and what their models are used for."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import yaml
from dicom_support import save, stack_of
from tests_support import assert_same_results, read_table
from training_support import patch_shape_of
from typer.testing import CliRunner

from maskloom.flows import train as flow
from maskloom.flows.cli import app
from maskloom.flows.progress.displays import Quiet
from maskloom.flows.progress.training import TrainingProgress
from maskloom.flows.recipes import training as training_recipes
from maskloom.segcore.annotations.masks import open_mask
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.errors import RecipeError, Stopped
from maskloom.segcore.geometry import Box
from maskloom.segcore.training import semantic
from maskloom.segcore.training.pairs import find_pairs
from maskloom.segcore.training.run import prepare, train
from maskloom.tasks import batching

SHAPE = (8, 24, 28)
TINY = {
    "name": "balls",
    "images": "images",
    "masks": "masks",
    "output": "out",
    "network": {"kind": "unet", "width": 2, "depth": 1, "dropout": 0.2},
    "classes": ["background", "ball"],
    "split": {"validation": 0.3},
    "training": {"batch": 2, "steps": 4, "epochs": 2, "rate": 0.02},
}
KINDS = {
    "volumes": ["network.dimensions=3", "network.pooling=[[1, 2, 2]]", "training.patch=[3, 12, 8]"],
    "slices": ["training.patch=16"],
}
CASES = [
    pytest.param(KINDS["volumes"], id="volumes"),
    pytest.param(KINDS["slices"], id="slices", marks=pytest.mark.nightly),
]
SERIAL = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial")


def balls(seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """Bright balls in noise, in slices twice as thick as pixels are wide, and where they are."""
    random, places = np.random.default_rng(seed), np.indices(shape)
    mask = np.zeros(shape, np.uint8)
    for _ in range(4):
        middle = [random.integers(size) for size in shape]
        offsets = [place - at for place, at in zip(places, middle, strict=True)]
        mask[(2 * offsets[0]) ** 2 + offsets[1] ** 2 + offsets[2] ** 2 < 30] = 1
    voxels = 90 + 60 * mask + random.normal(0, 40, shape)
    return voxels.clip(0, 255).astype(np.uint8), mask


def write(folder: Path, count: int, shape: tuple[int, ...] = SHAPE) -> None:
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(count):
        for kind, array in zip(("images", "masks"), balls(i, shape), strict=True):
            np.save(folder / kind / f"{i}.npy", array)


def test_series_are_trained_with_masks_named_by_their_folders(tmp_path):
    """Masks with turned axes are put in the order of the series."""
    nib = pytest.importorskip("nibabel")
    (tmp_path / "masks").mkdir()
    for i in range(2):
        voxels, mask = balls(i)
        save(tmp_path / "images" / f"ct{i}", stack_of(voxels.astype(np.uint16), series=str(i)))
        # That of a stack: x runs to the left, and y to the back.
        whole = nib.Nifti1Image(mask.T, np.diag([-0.8, -0.5, 2.0, 1.0]))
        turned = whole.as_reoriented(np.array([[2, -1], [0, 1], [1, -1]]))
        nib.save(turned, tmp_path / "masks" / f"ct{i}.nii.gz")
    training = training_recipes.make(TINY, tmp_path, [])
    pairs, notes = find_pairs(*flow.sources(training), training.recipe, lambda *_: None)
    assert notes == []
    for i, pair in enumerate(sorted(pairs, key=lambda each: each.mask.location)):
        assert f"/ct{i}/" in pair.image.location
        with open_mask(pair.mask, "index", pair.turn) as reader:
            np.testing.assert_array_equal(reader.read(Box.whole(SHAPE))[0], balls(i)[1])
    (tmp_path / "masks" / "ct1.nii.gz").rename(tmp_path / "masks" / "other.nii.gz")
    with pytest.raises(RecipeError, match=r"1 of 2 without a mask(.|\n)*for example ct1\.nii\.gz"):
        find_pairs(*flow.sources(training), training.recipe, lambda *_: None)


@pytest.fixture(autouse=True)
def measured_once(monkeypatch):
    """How far a network looks, which takes seconds to measure, is measured once for all tests."""
    monkeypatch.setattr(semantic, "patch_shape_of", patch_shape_of)


@pytest.fixture
def folder(tmp_path):
    write(tmp_path, 3)
    return tmp_path


def made(folder: Path, *changes: str, **keys: object):
    document = yaml.safe_load(yaml.safe_dump({**TINY, **keys}))
    return training_recipes.make(document, folder, changes)


class Watch(TrainingProgress):
    """Acts after a step, (epoch, step) from 1."""

    def __init__(self, moment=(0, 0), act=lambda: None):
        super().__init__(Quiet())
        self.moment, self.act, self.said = moment, act, []

    def say(self, text):
        self.said.append(text)

    def step(self, epoch, step, loss):
        if (epoch, step) == self.moment:
            self.act()


def trained(run, watch, stop=lambda: False):
    prepared = prepare(run.recipe, flow.sources(run), run.settings, Watch(), lambda: False)
    return train(prepared, watch, stop)


def stored(folder: Path) -> list[bytes]:
    import keras

    model = keras.saving.load_model(folder / "balls.keras", compile=False)
    return [weights.tobytes() for weights in model.get_weights()]


@pytest.mark.nightly
@pytest.mark.parametrize("changes", CASES)
def test_an_interrupted_training_ends_as_an_undisturbed_one(folder, changes):
    whole = trained(made(folder, *changes, output="whole"), Watch())
    stop = threading.Event()
    with pytest.raises(Stopped):
        trained(made(folder, *changes, output="cut"), Watch((2, 2), stop.set), stop.is_set)
    rest = trained(made(folder, *changes, output="cut"), Watch())
    assert (whole.score, whole.epoch) == (rest.score, rest.epoch)
    assert stored(folder / "whole") == stored(folder / "cut")
    card = Card.load((folder / "whole" / "balls.json").read_bytes(), "balls.json")
    # Of four convolutions above and two below the pooling, and its phases.
    wanted = (3, (6, 9, 9), (1, 2, 2)) if len(changes) > 1 else (2, 9, 2)
    assert (card.dimensions, card.reach.halo, card.reach.stride) == wanted
    assert (folder / "whole" / "examples.png").stat().st_size > 0


def test_networks_of_volumes_and_images_do_not_mix(folder):
    np.save(folder / "images" / "0.npy", balls(0)[0][0])
    np.save(folder / "masks" / "0.npy", balls(0)[1][0])
    with pytest.raises(RecipeError, match=r"1\.npy is a volume, .*0\.npy an image"):
        trained(made(folder), Watch())
    only_image = {"split": {"leave_out": ["1", "2"], "validation": 0}}
    with pytest.raises(RecipeError, match=r"learns from volumes, and these are images"):
        trained(made(folder, *KINDS["volumes"], **only_image), Watch())
    with pytest.raises(RecipeError, match="mask_rcnn is trained on images"):
        volumes = {"split": {"leave_out": ["0"], "validation": 0.5}}
        objects = {"network": "mask_rcnn", "labels": "instances", **volumes}
        trained(made(folder, **objects), Watch())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.patch=[3, 11, 8]"], r"not take 3 x 11 x 8 pixels; .* \[3, 10, 8\] or \[3, 12"),
        (["training.patch=[12, 8]"], r"one number or \[z, y, x\]; got \[12, 8\]"),
        (["network.pooling=[[2, 2]]"], "of 3 factors"),
    ],
)
def test_patches_that_do_not_fit_are_refused_with_those_that_do(folder, changes, message):
    with pytest.raises(RecipeError, match=message):
        trained(made(folder, *KINDS["volumes"], *changes), Watch())


@pytest.mark.nightly
@pytest.mark.parametrize("changes", CASES)
def test_models_are_used_in_any_tiling_by_any_workers(folder, changes, monkeypatch, two_workers):
    """The command prints how to use the model; tiles and workers change no voxel."""
    run = CliRunner().invoke
    recipe = folder / "train.yaml"
    recipe.write_text(yaml.safe_dump(TINY))
    flags = [part for change in changes for part in ("--set", change)]
    told = run(app, ["train", str(recipe), "--no-whole-images", *flags])
    assert told.exit_code == 0, told.output
    weights = folder / "out" / "balls.keras"
    assert f"-s unet -p weights={weights}" in told.output

    patch = [3, 8, 8] if len(changes) > 1 else 32
    (folder / "more").mkdir()
    np.save(folder / "more" / "volume.npy", balls(7, (9, 40, 30))[0])
    np.save(folder / "more" / "image.npy", balls(7)[0][0])
    segmenter = {"kind": "unet", "weights": str(weights), "patch": patch}
    segmenter |= {"engine": "tensorflow", "precision": "float32"}
    use = folder / "use.yaml"
    keys = {"inputs": "more", "output": "whole", "segmenter": segmenter}
    use.write_text(json.dumps({**keys, "max_failed_fraction": 0.9}))
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**11)
    monkeypatch.setattr(batching, "range_pixels", lambda _: 2**11)
    of_volumes = len(changes) > 1
    done = run(app, ["run", str(use), *SERIAL])
    assert done.exit_code == (3 if of_volumes else 0), done.output
    rows = {row["image_id"]: row for row in read_table(folder / "whole", "images")}
    assert rows["volume"]["status"] == "ok"
    assert rows["image"]["status"] == ("failed" if of_volumes else "ok")
    if of_volumes:
        assert "is a network of volumes" in rows["image"]["error"]
        (folder / "more" / "image.npy").unlink()
        assert run(app, ["run", str(use), *SERIAL, "--set", "output=alone"]).exit_code == 0
    tiles = "[4, 16, 12]" if of_volumes else "16"
    tiled = ["--set", f"tiling.tile={tiles}", "--set", "output=tiled"]
    workers = ["--no-prefect", "--quiet", "--set", f"cluster={two_workers}", *tiled]
    assert run(app, ["run", str(use), *workers]).exit_code == 0
    assert_same_results(folder / ("alone" if of_volumes else "whole"), folder / "tiled")
    audit = run(app, ["audit", str(use), "--tile", "16"])
    assert audit.exit_code == 0, audit.output
    assert "exact, halo 6 x 9 x 9" in audit.output or not of_volumes
    assert "differing pixels: 0 of " in audit.output


@pytest.mark.nightly
def test_balls_in_noise_are_learned(tmp_path):
    """A threshold finds them badly, the network well: it looks at their neighbourhood."""
    write(tmp_path, 5, (16, 40, 40))
    network = {"kind": "unet", "width": 8, "depth": 2, "dimensions": 3}
    network["pooling"] = [[1, 2, 2], [2, 2, 2]]
    training = {"patch": [8, 24, 24], "batch": 4, "steps": 80, "epochs": 10, "rate": 0.004}
    run = made(tmp_path, network=network, training=training)
    result = trained(run, Watch())
    card = Card.load((tmp_path / "out" / "balls.json").read_bytes(), "balls.json")
    dice = card.about["metrics"]["classes"]["ball"]["dice"]
    by_threshold = 0.0
    for seed in range(5):
        voxels, mask = balls(seed, (16, 40, 40))
        for level in range(60, 200, 5):
            found = voxels > level
            both = 2 * (found & (mask == 1)).sum() / (found.sum() + mask.sum())
            by_threshold = max(by_threshold, both)
    assert by_threshold < 0.7 < 0.8 < dice, (by_threshold, dice)
    assert result.score[1] > 0.8
