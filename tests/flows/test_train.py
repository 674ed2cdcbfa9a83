"""Training: recipes that are refused, models that come out, interruptions that leave no trace."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from several_files import Film, save_rows
from training_support import (
    TINY,
    Killed,
    Watch,
    blocks,
    kill,
    made,
    patch_shape_of,
    prepared,
    weights,
)
from typer.testing import CliRunner

from maskloom.flows import train as flow
from maskloom.flows.cli import app
from maskloom.flows.recipes import run as run_recipes
from maskloom.flows.recipes import training as training_recipes
from maskloom.segcore import formats
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.errors import RecipeError, Stopped
from maskloom.segcore.geometry import Box
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.training import semantic
from maskloom.segcore.training.dataset import Dataset
from maskloom.segcore.training.feeding import Drawing, ProcessFeed, ThreadFeed
from maskloom.segcore.training.pairs import data_digest, file_digests, find_pairs
from maskloom.segcore.training.run import TrainingResult, prepare, train
from maskloom.segcore.training.sampling import Sampler, SamplingOptions

COLOURS = {"dark": "#12305a", "bright": "#e07b10"}


@pytest.fixture(autouse=True)
def measured_once(monkeypatch):
    """How far a network looks, which takes a second to measure, is measured once for all tests."""
    monkeypatch.setattr(semantic, "patch_shape_of", patch_shape_of)


@pytest.fixture
def folder(tmp_path):
    return blocks(tmp_path)


def digest_of(pairs):
    return data_digest(pairs, file_digests(pairs, lambda *_: None))


def test_inputs_of_a_training_are_looked_at_as_those_of_a_run(folder, caplog):
    (folder / "images" / "scan.xyz").write_bytes(b"x")
    assert [len(found) for found in flow.sources(made(folder))] == [4, 4]
    assert (
        "images: Passed over in folders, since no format claims such files: 1 .xyz." in caplog.text
    )
    with pytest.raises(
        RecipeError, match=r"masks: '.*/nomasks' does not exist\. Did you mean 'masks'\?"
    ):
        flow.sources(made(folder, "masks=nomasks"))
    with pytest.raises(
        RecipeError, match=r"training\.epoch: unknown key\. Did you mean `epochs`\?"
    ):
        made(folder, "training.epoch=3")


def test_a_training_ends_the_same_however_often_it_was_stopped_killed_and_lengthened(folder):
    steady = "training.schedule=constant"
    whole = Watch()
    learned = train(prepared(made(folder, steady, output="whole")), whole, lambda: False)
    assert whole.seen == [(epoch, step) for epoch in (1, 2, 3) for step in (1, 2, 3, 4)]

    def cut(watch, *changes, stop=lambda: False):
        return train(prepared(made(folder, steady, *changes, output="cut")), watch, stop)

    stop = threading.Event()
    with pytest.raises(Stopped):
        cut(Watch((1, 2), stop.set), "training.epochs=1", stop=stop.is_set)
    # Whoever draws the patches.
    first = cut(Watch(), "training.epochs=1", "training.processes=2")
    assert (first.epoch, first.epochs) == (1, 1)
    # The folder may move between two commands.
    (folder / "cut").rename(folder / "moved")
    (folder / "moved").rename(folder / "cut")
    stop.clear()
    with pytest.raises(Stopped):
        cut(
            Watch((2, "measured"), stop.set),
            "training.epochs=3",
            "training.patience=9",
            stop=stop.is_set,
        )
    # What a kill leaves behind: nothing written since the last epoch.
    with pytest.raises(Killed):
        cut(Watch((3, 2), kill), "training.patience=8")
    rest = Watch()
    last = cut(rest)
    assert rest.seen == [(3, 1), (3, 2), (3, 3), (3, 4)]

    assert (learned.score, learned.epoch, learned.epochs) == (last.score, last.epoch, last.epochs)
    for a, b in zip(weights(folder / "whole"), weights(folder / "cut"), strict=True):
        assert a.tobytes() == b.tobytes()
    histories = [
        json.loads((folder / name / "training_history.json").read_text())
        for name in ("whole", "cut")
    ]
    for history in histories:
        for epoch in history["epochs"]:
            del epoch["seconds"], epoch["patches_per_second"]
    assert histories[0] == histories[1]
    assert (
        "lengthened"
        not in Card.load((folder / "cut" / "tiny.json").read_bytes(), "tiny.json").about
    )


def test_the_command_trains_once_goes_on_for_more_epochs_and_tells_how_to_use_the_model(folder):
    # Its records must not take the place of a card, whatever the recipe is called.
    (folder / "training.yaml").write_text(
        yaml.safe_dump({**TINY, "licence": "CC0", "purpose": "Blocks.", "colours": COLOURS})
    )
    run = CliRunner().invoke
    # bfloat16 inside, float32 in the file; convolutions without padding, whose target is the middle
    # of the patch.
    flags = [
        "--set",
        "training.precision=bfloat16",
        "--set",
        "network.padding=valid",
        "--set",
        "training.patch=28",
        "--quiet",
        "--no-whole-images",
    ]
    command = ["train", str(folder / "training.yaml"), *flags, "--set"]
    first = run(app, [*command, "training.epochs=1"])
    assert first.exit_code == 0, first.output
    assert "at epoch 1, the best of 1" in first.stdout
    assert "-s unet -p weights=" in first.stdout
    made_files = sorted(path.name for path in (folder / "out").iterdir())
    records = ["training_history.json", "training_log.csv", "training_state.json"]
    assert made_files == [
        "checkpoint",
        "curves.png",
        "examples.png",
        "reliability.png",
        "report.html",
        "training.json",
        "training.keras",
        *records,
    ]

    import keras

    path = folder / "out" / "training.keras"
    model = keras.saving.load_model(path, compile=False)
    assert {layer.dtype_policy.name for layer in model.layers} == {"float32"}
    card = Card.load((folder / "out" / "training.json").read_bytes(), "training.json")
    assert (card.kind, card.channels, card.classes, card.dtype) == (
        "unet",
        1,
        ("dark", "bright"),
        "uint8",
    )
    calibration = card.about["metrics"]["calibration"]
    assert card.temperature == calibration["temperature"] > 0
    assert calibration["cross_entropy"] <= calibration["cross_entropy_before"]
    # The colours of the recipe are in the card, and so in masks that the model makes.
    assert card.colours == COLOURS
    segmenter = {"kind": "unet", "weights": str(path)}
    document = {"inputs": "images", "output": "masks-out", "segmenter": segmenter}
    settings = run_recipes.make(document, folder).run_settings("1")
    rgb = [tuple(bytes.fromhex(colour[1:])) for colour in COLOURS.values()]
    assert list(settings.colours.table(card.classes).colours) == rgb
    with Image.open(folder / "out" / "examples.png") as picture:
        shown = picture.convert("RGB").getcolors(picture.width * picture.height)
    assert {colour for count, colour in shown if count > 30} >= set(rgb)
    assert card.reach.margin == 8
    assert (card.about["licence"], card.about["purpose"]) == ("CC0", "Blocks.")
    masks = {path.stem: np.asarray(Image.open(path)) for path in (folder / "masks").iterdir()}
    trained = [mask for name, mask in masks.items() if name not in card.about["data"]["validation"]]
    shares = [float((mask == 1).sum() / (mask <= 1).sum()) for mask in trained]
    assert len(shares) == 3
    assert card.shares[1] == pytest.approx((min(shares), max(shares)), abs=1e-6)
    assert card.shares[1][0] <= min(shares) < max(shares) <= card.shares[1][1]
    assert card.about["metrics"]["classes"]["bright"]["pixels"] > 0
    assert model(np.zeros((1, 28, 28, 1), np.float32)).shape == (1, 12, 12, 2)

    before = path.stat().st_mtime_ns
    # Neither threads nor memory change what is learned, nor does what it is for.
    second = run(
        app,
        [*command, "training.epochs=1", "--set", "training.memory=7", "--set", "purpose=Bricks."],
    )
    assert second.exit_code == 0
    assert second.stdout.startswith("Nothing to do")
    assert path.stat().st_mtime_ns == before
    # Begun with a version of maskloom that had fewer keys: they were what is their default now.
    record = folder / "out" / "training_state.json"
    state = json.loads(record.read_text())
    settings = state["settings"]
    for section, keys in (
        (settings, ["mask_suffix"]),
        (settings["network"], ["encoder", "pooling"]),
        (settings["augmentation"][0], ["horizontal", "z"]),
        (settings["training"], ["optimiser", "unfreeze", "stage_rate"]),
        (settings["split"], ["folds", "fold", "leave_out"]),
    ):
        for key in keys:
            del section[key]
    record.write_text(json.dumps(state))
    assert run(app, [*command, "training.epochs=1"]).stdout.startswith("Nothing to do")
    changed = run(app, [*command, "training.rate=0.5", "--set", "training.optimiser=sgd"])
    assert changed.exit_code == 2
    assert 'training.optimiser was "adamw" and is "sgd"' in changed.stderr
    assert "training.rate was 0.02 and is 0.5" in changed.stderr

    # The rate of the default schedule follows the number of epochs: said, and kept in the card.
    longer = run(app, [*command, "training.epochs=2"])
    assert longer.exit_code == 0, longer.output
    assert "2 epochs instead of 1" in longer.stderr
    assert "the best of 2" in longer.stdout
    about = Card.load((folder / "out" / "training.json").read_bytes(), "training.json").about
    assert about["lengthened"] == [{"after_steps": 4, "epochs": 2}]
    assert about["recipe"]["training"]["epochs"] == 2
    history = json.loads((folder / "out" / "training_history.json").read_text())["epochs"]
    # To a hundredth at the end of each plan, in optimiser steps 4 of 4 and 8 of 8.
    assert [record["rate"] for record in history] == pytest.approx([0.0002, 0.0002])
    shorter = run(app, [*command, "training.epochs=1"])
    assert shorter.exit_code == 2
    assert "it has finished 2" in shorter.stderr

    # What was lost is made again from the checkpoint.
    content, curves = path.read_bytes(), folder / "out" / "curves.png"
    path.write_bytes(content[:1000])
    curves.unlink()
    mended = run(app, [*command, "training.epochs=2"])
    assert mended.exit_code == 0, mended.output
    assert curves.exists()
    assert keras.saving.load_model(path, compile=False).count_params() == model.count_params()

    shutil.rmtree(folder / "out" / "checkpoint")
    curves.unlink()
    assert run(app, [*command, "training.epochs=2"]).stdout.startswith("Nothing to do")
    gone = run(app, [*command, "training.epochs=3"])
    assert gone.exit_code == 2
    assert "training.epochs was 2 and is 3" in gone.stderr
    assert "checkpoint has been removed" in gone.stderr
    Image.fromarray(np.zeros((48, 56), np.uint8)).save(folder / "images" / "0.png")
    other = run(app, [*command, "training.epochs=2"])
    assert other.exit_code == 2
    assert "images or masks" in other.stderr


def test_a_model_of_unknown_origin_is_not_overwritten(folder):
    (folder / "out").mkdir()
    (folder / "out" / "tiny.keras").write_bytes(b"mine")
    with pytest.raises(RecipeError, match=r"tiny\.keras exists"):
        train(prepared(made(folder)), Watch(), lambda: False)
    assert [path.name for path in (folder / "out").iterdir() if path.is_file()] == ["tiny.keras"]


def test_checks_before_training_can_be_stopped(folder):
    stop, training_run = threading.Event(), made(folder)
    watch = Watch()
    watch.checked = lambda what, done, of: stop.set() if (what, done) == ("digests", 2) else None
    with pytest.raises(Stopped, match="begins again"):
        prepare(
            training_run.recipe,
            flow.sources(training_run),
            training_run.settings,
            watch,
            stop.is_set,
        )


def test_what_an_earlier_check_has_found_is_not_looked_for_again(folder, monkeypatch):
    monkeypatch.setenv("MASKLOOM_CACHE", str(folder / "cache"))
    decoded, strips, seen, blocks = [], Dataset.strips, [], Dataset.blocks
    monkeypatch.setattr(
        Dataset, "blocks", lambda self, number: seen.append(number) or blocks(self, number)
    )
    monkeypatch.setattr(
        Dataset,
        "strips",
        lambda self, number, multiple: decoded.append(number) or strips(self, number, multiple),
    )

    def check(*changes):
        decoded.clear()
        found = prepared(made(folder, *changes))
        cells = [each.tolist() for each in found.setup.class_counts.cells]
        return decoded.copy(), cells, found.data

    first = check()
    assert first[0] == [0, 1, 2, 3]
    assert check() == ([], *first[1:])
    # By all that decides it: the classes, and each file.
    assert check("labels={kind: index, void: [255, 7]}")[0] == [0, 1, 2, 3]
    changed = np.array(Image.open(folder / "masks" / "2.png"))
    changed[:9] = 0
    Image.fromarray(changed).save(folder / "masks" / "2.png")
    again = check()
    assert again[0] == [2]
    assert sum(np.array(again[1][2]).sum((0, 1))) > sum(np.array(first[1][2]).sum((0, 1)))
    assert again[2] != first[2]
    # Numbers that scale an image by its own values are found once too.
    by_image = [prepared(made(folder, "scaling={by: deviation}")).setup.scalings for _ in range(2)]
    assert by_image[0] == by_image[1]
    assert len(by_image[0].found) == 4
    assert seen == [0, 1, 2, 3]
    for path in (folder / "cache" / "training").iterdir():
        path.write_bytes(path.read_bytes()[:200])
    assert check() == ([0, 1, 2, 3], *again[1:])
    assert check() == ([], *again[1:])
    monkeypatch.setenv("MASKLOOM_CACHE", "")
    assert check()[0] == [0, 1, 2, 3]


@pytest.mark.nightly
@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"labels": {"kind": "instances", "target": "flow", "void": 255}},
        {"labels": {"kind": "instances", "void": 255}, "network": "mask_rcnn"},
    ],
    ids=["semantic", "flow", "objects"],
)
def test_processes_draw_for_every_task_what_a_thread_draws(folder, keys):
    changes = (
        "training.augmentation=[flip, scale, elastic, noise, cutmix]",
        "training.patch=64",
        "scaling={by: range, percentiles: [1, 99]}",
    )
    course = prepared(made(folder, *changes, **keys))
    setup, training = course.setup, course.recipe.training
    options = SamplingOptions(setup.patch_shape, training.batch, 0.5, 0, course.recipe.augmentation)
    sampler = Sampler(setup.dataset, setup.class_counts, setup.training, setup.scalings, options)
    drawing = Drawing(sampler, course.task.arguments)
    with closing(ProcessFeed(drawing, 3, 1)) as feed:
        batches, others = feed.batches(0, 0), ThreadFeed(drawing, 3).batches(0, 0)
        for ours, theirs in zip(batches, others, strict=True):
            for a, b in zip(leaves(ours), leaves(theirs), strict=True):
                np.testing.assert_array_equal(a, b)


def leaves(arguments):
    import keras

    return keras.tree.flatten(arguments)


def test_what_is_measured_is_what_the_model_says_of_whole_images(folder):
    """Windows put together equal the whole image, where no window sees less than the network's
    reach.
    """
    from sklearn.metrics import jaccard_score

    valid = {"kind": "unet", "width": 2, "depth": 1, "padding": "valid"}
    training_run = made(
        folder, "training.epochs=2", "split.validation=0", "training.patch=28", network=valid
    )
    course = prepared(training_run)
    learned = train(course, Watch(), lambda: False)
    import keras

    model = keras.saving.load_model(folder / "out" / "tiny.keras", compile=False)
    said, true = [], []
    for i in range(4):
        pixels, mask = (
            np.asarray(Image.open(folder / kind / f"{i}.png")) for kind in ("images", "masks")
        )
        padded = np.pad(pixels, 8, mode="reflect").astype(np.float32)[None, ..., None] * np.float32(
            1 / 255
        )
        labels = np.asarray(model(padded))[0].argmax(axis=-1)
        said.append(labels[mask != 255])
        true.append(mask[mask != 255])
    assert isinstance(course.task, semantic.SemanticTask)
    assert learned.score[1] == pytest.approx(
        jaccard_score(np.concatenate(true), np.concatenate(said), average="macro"), abs=1e-6
    )


def save(folder: Path, name: str, array: np.ndarray) -> None:
    Image.fromarray(array).save(folder / name)


def remove_mask(folder):
    (folder / "masks" / "2.png").unlink()


def other_size(folder):
    save(folder, "masks/1.png", np.zeros((40, 56), np.uint8))


def unknown_value(folder):
    save(folder, "masks/1.png", np.full((48, 56), 7, np.uint8))


def colours(folder):
    save(folder, "masks/1.png", np.full((48, 56, 3), (200, 0, 90), np.uint8))


def other_bands(folder):
    save(folder, "images/1.png", np.zeros((48, 56, 3), np.uint8))


def other_type(folder):
    save(folder, "images/1.png", np.zeros((48, 56), np.uint16))


def nothing_labelled(folder):
    for i in range(4):
        save(folder, f"masks/{i}.png", np.full((48, 56), 255, np.uint8))


def nothing_to_validate_on(folder):
    for i in range(4):
        if i != 1:
            save(folder, f"masks/{i}.png", np.full((48, 56), 255, np.uint8))
    save(folder, "masks/1.png", (np.arange(48 * 56).reshape(48, 56) % 2).astype(np.uint8))


def one_class(folder):
    for i in range(4):
        save(folder, f"masks/{i}.png", np.ones((48, 56), np.uint8))


def broken(folder):
    path = folder / "images" / "1.png"
    path.write_bytes(path.read_bytes()[:-300])


@pytest.mark.parametrize(
    ("spoil", "messages"),
    [
        (remove_mask, ["1 of 4 without a mask", "images/2.png", "leave_out"]),
        (other_size, ["masks/1.png is 56 x 40", "56 x 48"]),
        (unknown_value, ["masks/1.png", "7 (2688 pixels)", "void"]),
        (colours, ["masks/1.png", "#C8005A", "kind: colours"]),
        (other_bands, ["images/1.png has 3 band", "bands"]),
        (other_type, ["uint16", "scaling"]),
        (nothing_labelled, ["no pixel", "labelled"]),
        (nothing_to_validate_on, ["no pixel of the validation images", "split.validation"]),
        (one_class, ["'bright'", "nothing to tell apart"]),
        (broken, ["images/1.png"]),
    ],
)
def test_bad_data_are_refused_before_any_training(folder, spoil, messages):
    spoil(folder)
    with pytest.raises(RecipeError) as found:
        prepared(made(folder))
    assert all(message in str(found.value) for message in messages), found.value


def test_what_is_left_out_may_lack_a_mask(folder):
    remove_mask(folder)
    course = prepared(made(folder, "split.leave_out=['2']"))
    assert [pair.name for pair in course.setup.dataset.pairs] == ["0", "1", "3"]


def test_masks_of_other_images_are_not_used_and_counted(folder):
    (folder / "images" / "2.png").unlink()
    # What an earlier training left among the images is none of them.
    save(folder, "images/curves.png", np.zeros((9, 9), np.uint8))
    course = prepared(made(folder, output="images"))
    assert [pair.name for pair in course.setup.dataset.pairs] == ["0", "1", "3"]
    (note,) = course.notes
    assert note.startswith("1 of 4 masks have no image")
    assert "masks/2.png" in note
    (folder / "masks" / "3.png").unlink()
    with pytest.raises(
        RecipeError,
        match=r"1 of 3 without a mask: \S*images/3\.png\. Masks without an image: \S*masks/2\.png",
    ):
        prepared(made(folder, output="images"))


def test_masks_are_found_by_suffix_and_beside_their_images(folder):
    for path in (folder / "masks").iterdir():
        path.rename(folder / "images" / f"{path.stem}_mask.png")
    course = prepared(made(folder, masks="images/*_mask.png", mask_suffix="_mask"))
    assert [pair.name for pair in course.setup.dataset.pairs] == ["0", "1", "2", "3"]
    assert all(pair.mask.location.endswith("_mask.png") for pair in course.setup.dataset.pairs)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["network.kind=unett"], r"network\.kind.*unet"),
        (["network.widht=3"], r"network\.widht.*width"),
        (["classes=[a]"], "classes: expected 2"),
        (["classes=[a, a]"], "different names"),
        (["training.epochs=0"], r"training.*epochs: expected 1"),
        (["training.epoch=2"], r"training\.epoch: unknown key.*epochs"),
        (["training.loss=dise"], r"training\.loss\.kind.*dice"),
        (["training.loss={kind: dice, weights: [1, 2, 3]}"], "expected 2 numbers"),
        (["training.augmentation=[flip, turn]"], r"training\.augmentation\.1"),
        (["training.augmentation=flip"], "expected a list"),
        (["labels={kind: values, values: {0: dark}}"], "bright"),
        (["split.validation=1.5"], "validation"),
        (["split.group='('"], "regular expression"),
        (["scaling={factor: x}"], r"scaling"),
        (["scaling={by: mean}"], r"scaling\.by: expected deviation or range, got 'mean'"),
        (["scaling={by: range, percentiles: [99, 1]}"], r"scaling\.percentiles: .*ascending"),
        (["scaling={by: range, percentile: [1, 99]}"], "Did you mean `percentiles`"),
        (["scaling={percentiles: [1, 99]}"], r"scaling\.by: this key is required"),
        (["scaling={by: deviation, factor: 2}"], "got by, factor. Leave one out"),
        (["imags=x"], "imags: unknown key"),
        (["images=${NO_SUCH_PLACE}/x"], "NO_SUCH_PLACE"),
        (["storage={s3: {secret: x}}"], "secrets"),
    ],
)
def test_wrong_recipes_are_refused_with_their_place(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        made(tmp_path, *changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["training.patch=15"], "Set it to 14 or 16"),
        (["images=nothing/*.png"], "images: .*matches no image"),
        (["network.padding=valid"], "18 or more by steps of 2. Set it to 18"),
        (["split.validation=['none*']"], "leave none for validation"),
        (["scaling={factor: [1, 2]}"], "one number, or 1"),
        (["scaling={by: deviation, of: fit}"], r"scaling\.of: expected image"),
        (["bands=[2]"], "band"),
        (["network=mask_rcnn"], "instances"),
    ],
)
def test_recipes_that_do_not_suit_the_data_are_refused(folder, changes, message):
    with pytest.raises(RecipeError, match=message):
        prepared(made(folder, *changes))


def test_colours_of_labels_are_those_of_masks_and_decide_no_weight(folder):
    labels = {"kind": "colours", "colours": {"dark": "123456", "bright": "#fedcba"}}
    plain = made(folder, labels=labels)
    assert plain.recipe.colours == {"dark": "#123456", "bright": "#fedcba"}
    stated = made(folder, labels=labels, colours={"dark": "navy"})
    assert stated.recipe.colours == {"dark": "#000080", "bright": "#fedcba"}
    assert stated.settings == plain.settings
    for wrong, said in (({"dark": "redd"}, "'redd'"), ({"drak": "red"}, "Did you mean `dark`")):
        with pytest.raises(RecipeError, match=rf"colours.*{said}"):
            made(folder, colours=wrong)


def test_groups_are_never_on_both_sides():
    split = training_recipes.Split(validation=0.3, group=r"^tile\d", seed=5)
    names = [f"tile{tile}_part{part}" for tile in range(5) for part in range(4)]
    training, validation = split.divide(names, names)
    assert sorted(training + validation) == list(range(20))
    assert not {names[i][:5] for i in training} & {names[i][:5] for i in validation}
    assert len(validation) in (4, 8)
    assert split.divide(names, names) == (training, validation)


@pytest.fixture
def uncompiled():
    """No graphs, which take twenty seconds to build of Mask R-CNN and are built in tests of the
    network.
    """
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.mark.usefixtures("uncompiled")
def test_objects_are_learned_end_to_end(folder):
    random = np.random.default_rng(2)
    for i in range(4):
        ids, pixels = np.zeros((48, 56), np.uint16), random.integers(0, 40, (48, 56))
        for number, (top, left) in enumerate([(4, 6), (28, 10), (10, 34)], 300):
            ids[top : top + 12, left : left + 10] = number
        save(folder, f"masks/{i}.png", ids)
        save(folder, f"images/{i}.png", (pixels + 150 * (ids > 0)).astype(np.uint8))
    small = {
        "width": 8,
        "pyramid": 8,
        "dense": 8,
        "proposals": 16,
        "candidates": 32,
        "detections": 8,
        "sampled": 8,
    }
    training_run = made(
        folder,
        "training.patch=64",
        "training.epochs=1",
        "training.steps=1",
        labels="instances",
        network={"kind": "mask_rcnn", "anchors": [8, 12, 16, 24], **small},
        scaling={"by": "range", "percentiles": [1, 99]},
    )
    course = prepared(training_run)
    arguments = course.task.arguments(drawn(course))[0]
    there = arguments["boxes"][0][arguments["classes"][0] > 0]
    assert len(there) == 3
    assert sorted((there[:, 2:] - there[:, :2]).tolist()) == [[12, 10]] * 3
    learned = train(course, Watch(), lambda: False)
    assert learned.score[0] == "AP@0.5"
    card = Card.load((folder / "out" / "tiny.json").read_bytes(), "tiny.json")
    assert (card.kind, card.output, card.classes) == ("mask_rcnn", "objects", ("dark", "bright"))
    assert card.about["metrics"]["missed"] + card.about["metrics"]["found"] == 3
    from maskloom.segcore.deep.inference.image_scaling import ScalingFitter
    from maskloom.segcore.segmenters.mask_rcnn import MaskRcnnObjects

    assert card.image_scaling == training_run.recipe.scaling
    started = MaskRcnnObjects(weights=learned.model).start()
    assert isinstance(started, ScalingFitter)
    assert started.expected_classes == ("dark", "bright")


def touching(random):
    """Cells in pairs that share a side: pixels, and one number for each."""
    ids = np.zeros((48, 64), np.uint16)
    for number, (top, left) in enumerate([(3, 4), (26, 8), (8, 34), (30, 36)], 7):
        ids[top : top + 14, left : left + 9] = 2 * number
        ids[top : top + 14, left + 9 : left + 20] = 2 * number + 1
    rows, columns = np.indices(ids.shape)
    pixels = 40 + 60 * (ids > 0)
    for each in np.unique(ids[ids > 0]):
        there = ids == each
        away = np.hypot(rows - rows[there].mean(), columns - columns[there].mean())
        pixels = pixels + np.where(there, 80 - 8 * away, 0)
    return (pixels + random.normal(0, 4, ids.shape)).clip(0, 255).astype(np.uint8), ids


@pytest.mark.nightly
def test_touching_objects_are_learned_end_to_end(folder):
    random = np.random.default_rng(2)
    for i in range(4):
        pixels, ids = touching(random)
        save(folder, f"masks/{i}.png", ids)
        save(folder, f"images/{i}.png", pixels)
    training_run = made(
        folder,
        "training.patch=32",
        "training.batch=4",
        "training.epochs=6",
        "training.steps=30",
        labels={"kind": "instances", "target": "flow"},
        network={"kind": "unet", "width": 8, "depth": 2, "normalisation": "batch"},
    )
    course = prepared(training_run)
    learned = train(course, Watch(), lambda: False)
    assert learned.score[0] == "AP@0.5"
    card = Card.load((folder / "out" / "tiny.json").read_bytes(), "tiny.json")
    assert (card.vectors, card.output, card.classes) == (2, "logits", ("dark", "bright"))
    # That of the side of a cell.
    assert card.about["largest_object"] == 14
    words = shlex.split(flow.usage(training_run, learned))
    assert words[words.index("-s") + 1] == "instances"
    from maskloom.segcore.segmenters.instances import Instances
    from maskloom.segcore.testing.segmenters import Picture, labelled

    pixels, ids = touching(random)
    model = Instances(learned.model, engine="tensorflow", precision="float32").start()
    found = labelled(model, Picture(pixels[..., None], np.ones(ids.shape, bool)))
    shared = [np.bincount(found[ids == each]).argmax() for each in np.unique(ids[ids > 0])]
    assert len(set(shared) - {0}) == 8


def drawn(course):
    setup = course.setup
    drawing = SamplingOptions(setup.patch_shape, 1, 0.0, 0)
    return Sampler(
        setup.dataset, setup.class_counts, setup.training, setup.scalings, drawing
    ).batch(0, 0)


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "deploy" / "training").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_the_examples_are_training_recipes(path, monkeypatch):
    for variable in re.findall(r"\$\{(\w+)\}", path.read_text()):
        monkeypatch.setenv(variable, variable.lower())
    assert training_recipes.load(path).recipe.name == path.stem
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.validate(yaml.safe_load(path.read_text()), training_recipes.schema())


def test_the_schema_takes_what_training_recipes_take_and_refuses_what_they_refuse(tmp_path):
    jsonschema = pytest.importorskip("jsonschema")
    printed = CliRunner().invoke(app, ["schema", "train"])
    schema = json.loads(printed.stdout)
    assert schema == json.loads(json.dumps(training_recipes.schema()))
    assert json.loads(CliRunner().invoke(app, ["schema"]).stdout)["title"] == "maskloom recipe"
    base = {
        **TINY,
        "labels": "index",
        "scaling": {"offset": [3, 4], "factor": 0.5},
        "split": {"validation": ["a*"]},
    }
    good = [
        base,
        {
            **base,
            "network": "fcn",
            "labels": {"kind": "values", "values": {"0": "dark", "255": "bright"}, "void": "rest"},
        },
        {
            **base,
            "training": {
                "loss": {"kind": "focal", "gamma": 1},
                "augmentation": ["flip", {"kind": "gain", "by": 0.1}],
            },
        },
        {**base, "scaling": {"by": "range", "percentiles": [1, 99], "clip": [0, 1], "of": "image"}},
    ]
    bad = [
        {**base, "imags": "x"},
        {**base, "network": {"kind": "unet", "widht": 3}},
        {**base, "network": "unett"},
        {**base, "labels": {"kind": "colours"}},
        {**base, "training": {"epoch": 3}},
        {**base, "training": {"loss": "dise"}},
        {**base, "training": {"augmentation": ["turn"]}},
        {**base, "split": {"by": 3}},
        {**base, "scaling": {"by": "mean"}},
        {**base, "scaling": {"by": "deviation", "factor": 2}},
    ]
    for document in good:
        jsonschema.validate(document, schema)
        training_recipes.make(document, tmp_path)
    for document in bad:
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document, schema)
        with pytest.raises(RecipeError):
            training_recipes.make(document, tmp_path)


def test_how_to_use_a_model_can_be_pasted(folder):
    training_run = made(folder, "bands=[1]")
    learned = TrainingResult("/a b/it's.keras", ("mean IoU", 0.5), 1, 2, 0.1, False)
    assert shlex.split(flow.usage(training_run, learned))[-4:] == [
        "-p",
        "weights=/a b/it's.keras",
        "-p",
        "bands=[1]",
    ]


def test_a_model_that_learned_a_border_makes_objects(folder):
    labels = {"kind": "instances", "border": "rim", "outline": 1}
    training_run = made(folder, classes=["dark", "bright", "rim"], labels=labels)
    learned = TrainingResult("model.keras", ("mean IoU", 0.5), 1, 2, 0.1, False)
    words = shlex.split(flow.usage(training_run, learned))
    assert words[words.index("-s") + 1] == "instances"
    assert "border=rim" in words


def test_vectors_are_learned_of_objects_in_images_only(folder):
    training_run = made(folder, labels={"kind": "instances", "target": "flow"})
    # Cross-entropy and Dice are its usual loss.
    assert (training_run.recipe.loss.cross_entropy, training_run.recipe.loss.dice) == (1, 1)
    for labels, message in (
        ({"kind": "instances", "target": "flow", "border": "edge"}, "border"),
        ({"kind": "polygons", "target": "flow"}, "objects: true"),
        ({"kind": "instances", "target": "flows"}, "target"),
        ({"kind": "index", "target": "flow"}, "target"),
    ):
        with pytest.raises(RecipeError, match=message):
            made(folder, labels=labels)


@pytest.mark.parametrize(
    ("network", "segmenter"),
    [("unet", "unet"), ("mask_rcnn", "mask_rcnn"), ("of_a_plugin", "network")],
)
def test_a_model_is_used_by_the_segmenter_that_runs_its_network(folder, network, segmenter):
    training_run = made(folder)
    training_run = replace(training_run, recipe=replace(training_run.recipe, kind=network))
    learned = TrainingResult("model.keras", ("mean IoU", 0.5), 1, 2, 0.1, False)
    words = shlex.split(flow.usage(training_run, learned))
    assert words[words.index("-s") + 1] == segmenter
    assert segmenter in SEGMENTERS


def test_folders_are_trained_on_but_not_images_and_volumes_together(folder):
    """Images and masks of Zarr are those of PNG; the digest of the data is over all their files."""
    zarr = pytest.importorskip("zarr")
    for kind in ("images", "masks"):
        for path in (folder / kind).glob("*.png"):
            zarr.create_array(path.with_suffix(".zarr"), data=np.array(Image.open(path)))
            path.unlink()
    order = made(folder)
    pairs, _ = find_pairs(*flow.sources(order), order.recipe, lambda *_: None)
    assert [pair.name for pair in pairs] == ["0", "1", "2", "3"]
    before = digest_of(pairs)
    chunk = next(path for path in (folder / "masks" / "3.zarr" / "c").rglob("*") if path.is_file())
    chunk.write_bytes(chunk.read_bytes()[:-1])
    assert digest_of(pairs) != before
    np.save(folder / "images" / "4.npy", np.zeros((3, 8, 8), np.uint8))
    np.save(folder / "masks" / "4.npy", np.zeros((3, 8, 8), np.uint8))
    with pytest.raises(RecipeError, match=r"4\.npy is a volume, .*0\.zarr an image\. Train on"):
        find_pairs(*flow.sources(order), order.recipe, lambda *_: None)


def test_images_of_one_file_are_trained_on(folder, monkeypatch):
    """Their masks are in one file too, or in a file for each image."""
    monkeypatch.setitem(FORMATS._loaded, "film", Film())
    films = {}
    for kind in ("images", "masks"):
        paths = sorted((folder / kind).glob("*.png"))
        frames = np.stack([np.array(Image.open(path)) for path in paths])
        films[kind] = frames.reshape(*frames.shape[:3], -1)
        for path in paths:
            path.unlink()
        save_rows(str(folder / kind / "a.film"), films[kind])
    order = made(folder)

    pairs, notes = find_pairs(*flow.sources(order), order.recipe, lambda *_: None)

    assert notes == []
    assert [pair.name for pair in pairs] == [f"a_t{i + 1:04d}" for i in range(4)]
    for i, pair in enumerate(pairs):
        for spec, frames in ((pair.image, films["images"]), (pair.mask, films["masks"])):
            with formats.open_image(spec) as reader:
                pixels, _ = reader.read(Box.whole(spec.shape))
            np.testing.assert_array_equal(pixels, frames[i])
    before = digest_of(pairs)
    (folder / "masks" / "a.film").unlink()
    for i, frame in enumerate(films["masks"]):
        Image.fromarray(frame[..., 0]).save(folder / "masks" / f"a_t{i + 1:04d}.png")
    pairs, _ = find_pairs(*flow.sources(order), order.recipe, lambda *_: None)
    assert [Path(pair.mask.location).stem for pair in pairs] == [pair.name for pair in pairs]
    assert digest_of(pairs) != before
