"""Training with averages of weights, parts of batches, a log and an early look."""

from __future__ import annotations

import csv
import json
import threading
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
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

from maskloom.flows import series
from maskloom.flows import train as flow
from maskloom.flows.cli import app
from maskloom.flows.validation import border_of, segmenter_of
from maskloom.segcore.deep.inference.card import Card
from maskloom.segcore.deep.inference.files.model_cards import card_of_model
from maskloom.segcore.deep.inference.files.weights import Weights
from maskloom.segcore.deep.inference.network_model import NetworkModel
from maskloom.segcore.deep.inference.scaling import Scaling
from maskloom.segcore.deep.networks.recipe import NETWORKS
from maskloom.segcore.errors import RecipeError, RunError, Stopped
from maskloom.segcore.models.protocols import SEGMENTERS
from maskloom.segcore.storage.store import Store
from maskloom.segcore.testing.segmenters import Picture, fitted, labelled
from maskloom.segcore.training import semantic
from maskloom.segcore.training.log import write_curves
from maskloom.segcore.training.run import TrainingResult, train
from maskloom.segcore.training.steps import Steps

ALL = (
    "training.ema=0.8",
    "training.accumulation=2",
    "training.schedule=cosine",
    "training.sampling={classes: {bright: 3}, images: {'1': 2}}",
)
STAGES = ("initial=start.keras", "training.unfreeze=[1]", "training.stage_rate=0.5")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(semantic, "patch_shape_of", patch_shape_of)
    return blocks(tmp_path)


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def never() -> bool:
    return False


def write_start(folder: Path, classes: int = 3) -> list[np.ndarray]:
    """Write the network of another training; this one has two classes."""
    network = NETWORKS["unet"](width=2, depth=1, dropout=0.2, normalisation="batch")
    model, path = network.build(1, classes), folder / "start.keras"
    model.save(path)
    sha256 = Weights.of(str(path)).sha256
    card = card_of_model(model, "unet", tuple("abc"[:classes]), Scaling((0.0,), (1 / 255,)), sha256)
    card = replace(card, network=asdict(network), dtype="uint8")
    path.with_suffix(".json").write_bytes(card.dump())
    return model.get_weights()


@pytest.fixture
def uncompiled(request):
    """No graphs, which take most of the time of small trainings, except in nightly cases."""
    import tensorflow as tf

    eager = request.node.get_closest_marker("nightly") is None
    tf.config.run_functions_eagerly(eager)
    yield
    tf.config.run_functions_eagerly(False)


def require_averages(seen, paths, saved, tolerance):
    mean = seen[0]
    for values in seen[1:]:
        mean = [0.8 * a + 0.2 * b for a, b in zip(mean, values, strict=True)]
    for path, value in zip(paths, mean, strict=True):
        if "moving" not in path:
            found = [each for each in saved if each.shape == value.shape]
            assert min(np.abs(each - value).max() for each in found) < tolerance


@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
@pytest.mark.usefixtures("uncompiled")
def test_a_network_without_numbers_for_a_validation_image_ends_the_training(folder):
    for path in sorted((folder / "images").glob("*.png")):
        pixels = np.asarray(Image.open(path)).astype(np.float32) / 255
        if path.stem == "3":
            pixels[8:16] = [[3e38, -3e38][i % 2] for i in range(pixels.shape[1])]
        Image.fromarray(pixels).save(path.with_suffix(".tif"))
        path.unlink()
    training_run = made(
        folder,
        "training.epochs=1",
        split={"validation": ["3"]},
        scaling={"offset": [0.0], "factor": [1.0]},
    )
    with pytest.raises(RunError, match=r"validation loss became nan in epoch 1.*extreme pixels"):
        flow.run(training_run, quiet=True)


@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize(
    "options",
    [
        pytest.param((*ALL, *STAGES), id="all"),
        pytest.param((*ALL, *STAGES), id="all-compiled", marks=pytest.mark.nightly),
        pytest.param(STAGES, id="stages", marks=pytest.mark.nightly),
        *(pytest.param((each,), id=each[:14], marks=pytest.mark.nightly) for each in ALL),
        pytest.param(
            (*ALL, "training.precision=bfloat16", "network.normalisation=batch"),
            id="bfloat16",
            marks=pytest.mark.nightly,
        ),
    ],
)
def test_a_training_with_options_ends_the_same_after_interruptions(folder, options, monkeypatch):
    """And saves the mean of the weights that its steps leave. Stages that wait hold still."""
    options = (*options, "training.epochs=2", "training.steps=2", "training.patch=32")
    if "initial=start.keras" in options:
        options = (*options, "network.normalisation=batch")
        start = write_start(folder)
    seen, paths = [], []
    take = Steps.take

    def taken(how, trainer, arguments):
        loss = take(how, trainer, arguments)
        seen.append([np.array(each, np.float64) for each in trainer.weights])
        paths[:] = [each.path for each in trainer.weights]
        return loss

    with monkeypatch.context() as patched:
        patched.setattr(Steps, "take", taken)
        whole = train(prepared(made(folder, *options, output="whole")), Watch(), never)

    def cut(watch, stop=never):
        return train(prepared(made(folder, *options, output="cut")), watch, stop)

    stop = threading.Event()
    with pytest.raises(Stopped):
        cut(Watch((1, 1), stop.set), stop.is_set)
    stop.clear()
    with pytest.raises(Stopped):
        cut(Watch((1, "measured"), stop.set), stop.is_set)
    with pytest.raises(Killed):
        cut(Watch((2, 1), kill))
    early = (folder / "cut" / "examples.png").stat().st_mtime_ns
    last = cut(Watch())
    assert (folder / "cut" / "examples.png").stat().st_mtime_ns > early
    assert (whole.score, whole.epoch) == (last.score, last.epoch)
    saved = weights(folder / "whole")
    for a, b in zip(saved, weights(folder / "cut"), strict=True):
        assert a.tobytes() == b.tobytes()

    if "initial=start.keras" in options:
        # But for the last layer, which has fewer classes. Means of batch normalisation hold too.
        for values in seen[:2]:
            same = [np.array_equal(a, b) for a, b in zip(values, start, strict=True)]
            assert same == [True] * (len(start) - 2) + [False] * 2
        assert not any(np.array_equal(a, b) for a, b in zip(seen[-1], seen[0], strict=True))

    if "training.ema=0.8" in options:
        # Of a batch in two parts, the average moves twice, half of the way each time.
        tolerance = 0.02 if "training.accumulation=2" in options else 1e-5
        require_averages(seen[: 2 * whole.epoch], paths, saved, tolerance)

    rows = table(folder / "cut" / "training_log.csv")
    history = json.loads((folder / "cut" / "training_history.json").read_text())["epochs"]
    assert [float(row["loss"]) for row in rows] == [record["loss"] for record in history]
    assert [float(row["iou_bright"]) for row in rows] == [record["iou"][1] for record in history]


@pytest.mark.filterwarnings("ignore:The structure of `inputs`:UserWarning")
@pytest.mark.usefixtures("uncompiled")
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("how", "keys"),
    [
        pytest.param({"by": "range", "percentiles": [1, 99]}, {}, id="classes"),
        *(
            pytest.param({"by": "deviation"}, keys, id=name)
            for name, keys in {
                "volumes": {"network": {"kind": "unet", "width": 2, "depth": 1, "dimensions": 3}},
                "flow": {"labels": {"kind": "instances", "target": "flow", "void": 255}},
                "border": {"labels": {"kind": "instances", "border": "bright", "void": 255}},
            }.items()
        ),
    ],
)
def test_gain_and_offset_of_images_change_neither_weights_nor_masks(folder, how, keys):
    """Where each image is scaled by its own values: of 3 x + 10 the network learns what it learns
    of x, and shows both the same mask.
    """
    depth = 4 if "dimensions" in keys.get("network", ()) else 0
    if "border" in keys.get("labels", ()):
        keys = {**keys, "classes": ["dark", "cell", "bright"]}
    for path in sorted((folder / "images").iterdir()):
        mask = np.asarray(Image.open(folder / "masks" / path.name))
        for name, gain, offset in (("x", 1, 0), ("other", 3, 10)):
            (folder / name).mkdir(exist_ok=True)
            shown = gain * np.asarray(Image.open(path)).astype(np.uint16) + np.uint16(offset)
            if depth:
                np.save(folder / name / f"{path.stem}.npy", np.stack([shown] * depth))
            else:
                Image.fromarray(shown).save(folder / name / path.name)
        if depth:
            np.save(folder / "masks" / f"{path.stem}.npy", np.stack([mask] * depth))
            (folder / "masks" / path.name).unlink()
    patch = [2, 16, 16] if depth else 16
    training = {**TINY["training"], "epochs": 1, "optimiser": "sgd", "rate": 0.1, "patch": patch}
    trained = []
    for name in ("x", "other"):
        run = made(
            folder, images=name, output=f"{name}-out", scaling=how, training=training, **keys
        )
        learned = train(prepared(run), Watch(), never)
        card = Card.load((folder / f"{name}-out" / "tiny.json").read_bytes(), "")
        assert card.image_scaling == run.recipe.scaling
        trained.append((learned.score[1], *weights(folder / f"{name}-out")))
    for one, two in zip(*trained, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-5)
    border = {} if border_of(run.recipe) is None else {"border": border_of(run.recipe)}
    recipe = SEGMENTERS[segmenter_of(run.recipe)](
        learned.model, engine="tensorflow", precision="float32", **border
    )
    masks = []
    for name in ("x", "other"):
        (path, *_) = sorted((folder / name).iterdir())
        pixels = np.load(path) if depth else np.asarray(Image.open(path))
        picture = Picture(pixels[..., None], np.ones(pixels.shape, bool))
        masks.append(labelled(fitted(recipe, [picture]), picture))
    np.testing.assert_array_equal(*masks)


@pytest.mark.nightly
def test_a_training_in_which_nothing_would_learn_is_refused(folder):
    write_start(folder, 2)
    options = (*STAGES, "network.normalisation=batch", "training.patch=32")
    with pytest.raises(ValueError, match=r"none would learn before epoch 2\. Leave `unfreeze` out"):
        train(prepared(made(folder, *options)), Watch(), never)


@pytest.mark.nightly
def test_a_training_without_a_checkpoint_may_begin_again_with_other_settings(folder, monkeypatch):
    def full(how, trainer, arguments):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    with monkeypatch.context() as patched:
        patched.setattr(Steps, "take", full)
        with pytest.raises(RunError, match=r"Set training\.accumulation: 2, .*1 at once"):
            train(prepared(made(folder, "training.epochs=1")), Watch(), never)
    smaller = made(folder, "training.epochs=1", "training.accumulation=2", "training.steps=1")
    assert train(prepared(smaller), Watch(), never).epochs == 1


@pytest.mark.nightly
def test_tensorboard_gets_each_number_of_each_epoch_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    for epoch in (1, 2):
        record = {"epoch": epoch, "loss": 0.5 / epoch, "iou": [None, 0.25]}
        write_curves(Store(str(tmp_path)), record, ("a", "b"))
    found = EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    for name, values in (("loss", [0.5, 0.25]), ("iou_b", [0.25, 0.25])):
        events = found.Tensors(name)
        assert [event.step for event in events] == [1, 2]
        assert [float(make_ndarray(event.tensor_proto)) for event in events] == values
    assert "iou_a" not in found.Tags()["tensors"]


def test_tensorboard_that_is_absent_is_said_before_anything_is_read(tmp_path, monkeypatch):
    from maskloom.segcore.training import log

    monkeypatch.setattr(log.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(flow, "import_keras", lambda: pytest.fail("Keras was imported"))
    recipe = write_recipe(tmp_path)  # of images that do not exist
    told = CliRunner().invoke(app, ["train", recipe, "--set", "training.tensorboard=true"])
    assert told.exit_code == 2, told.output
    assert "pip install 'maskloom[tensorboard]'" in told.output


def write_recipe(folder: Path, **keys: object) -> str:
    (folder / "train.yaml").write_text(yaml.safe_dump({**TINY, "name": "tiny", **keys}))
    return str(folder / "train.yaml")


SHORT = ["--set", "training.epochs=1", "--set", "training.steps=1", "--no-whole-images", "--quiet"]


@pytest.mark.nightly
def test_a_sweep_trains_all_combinations_once_and_names_the_best(folder, monkeypatch):
    run = CliRunner().invoke
    command = ["train", write_recipe(folder), *SHORT, "--sweep", "rate=1e-3,0.02"]
    # The second is stopped.
    started = []
    whole = flow.run

    def stopped(training_run, *args, **more):
        started.append(training_run.recipe.training.rate)
        if len(started) == 2:
            raise Stopped("stopped")
        return whole(training_run, *args, **more)

    with monkeypatch.context() as patched:
        patched.setattr(flow, "run", stopped)
        first = run(app, command)
    assert first.exit_code == 1
    assert started == [0.001, 0.02]
    weight = folder / "out" / "rate-0.001" / "tiny.keras"
    written = weight.stat().st_mtime_ns
    ended = run(app, command)
    assert ended.exit_code == 0, ended.output
    assert weight.stat().st_mtime_ns == written
    rows = table(folder / "out" / "sweep.csv")
    assert [row["rate"] for row in rows] == ["0.001", "0.02"]
    scores = [float(row["score"]) for row in rows]
    best = rows[int(np.argmax(scores))]
    assert f"Best of 2: rate {best['rate']}: mean IoU {max(scores):.4f} at epoch 1" in ended.stdout
    assert f"weights={best['model']}" in ended.stdout
    import pyarrow.parquet as pq

    columns = pq.read_table(folder / "out" / "sweep.parquet").to_pydict()
    assert columns["score"] == scores
    assert (folder / "out" / "sweep.png").exists()


def pretended(training_run, *_, **__):
    """A training without a network: its score is its rate, or its fold."""
    recipe = training_run.recipe
    if recipe.training.rate > 0.5:
        raise RunError("The loss became nan in epoch 1, step 1.")
    score = recipe.training.rate * (recipe.split.fold or 1)
    store = Store(recipe.output)
    epochs = [{"epoch": 1, "loss": 0.5, "score": score}]
    store.publish("training_history.json", json.dumps({"epochs": epochs}).encode())
    metrics = {"mean_iou": score, "classes": {"dark": {"iou": 0.25, "dice": None}}}
    card = {"kind": "unet", "about": {"metrics": metrics}}
    store.publish("tiny.json", json.dumps(card).encode())
    store.publish("tiny.keras", b"")
    if recipe.training.rate == 0.5:
        store.publish("report.html", b"")
    return TrainingResult(store.uri("tiny.keras"), ("mean IoU", score), 1, 1, 0.1, True)


def test_the_table_has_all_trials_and_the_last_line_the_best(folder, monkeypatch):
    monkeypatch.setattr(flow, "run", pretended)
    monkeypatch.setattr(series, "_forget_networks", lambda: None)
    command = ["train", write_recipe(folder), "--quiet"]
    run = CliRunner().invoke
    sweep = ["--sweep", "rate=0.25,0.9,0.5", "--sweep", "width=2,4"]
    ended = run(app, [*command, *sweep])
    assert ended.exit_code == 3, ended.output
    assert "2 of 6 trainings failed" in ended.stdout
    assert "Best of 6: rate 0.5, width 2: mean IoU 0.5000 at epoch 1." in ended.stdout
    assert "weights=" + str(folder / "out" / "rate-0.5_width-2" / "tiny.keras") in ended.stdout
    rows = table(folder / "out" / "sweep.csv")
    settings = [(row["rate"], row["width"], row["score"]) for row in rows]
    assert settings == [
        (rate, width, score)
        for rate, score in (("0.25", "0.25"), ("0.9", ""), ("0.5", "0.5"))
        for width in "24"
    ]
    assert rows[2]["error"].startswith("The loss became nan")
    assert {row["iou_dark"] for row in rows} == {"0.25", ""}
    import pyarrow.parquet as pq

    columns = pq.read_table(folder / "out" / "sweep.parquet").to_pydict()
    assert columns["score"] == [0.25, 0.25, None, None, 0.5, 0.5]
    assert columns["width"] == [2, 4, 2, 4, 2, 4]
    with Image.open(folder / "out" / "sweep.png") as picture:
        assert picture.size[0] > 100

    # The page, which `maskloom report` writes again.
    report = folder / "out" / "report.html"
    assert f"Report: {report}" in ended.stdout
    page = report.read_text()
    assert "The best: rate 0.5, width 2, with a score of 0.5000." in page
    assert page.count("failed: The loss became nan") == 2
    assert '<a href="rate-0.5_width-2/report.html">' in page
    assert "<td>rate-0.25_width-4</td>" in page
    assert f"-s unet -p weights={folder / 'out' / 'rate-0.5_width-2' / 'tiny.keras'}" in page
    report.unlink()
    assert run(app, ["report", str(folder / "out")]).exit_code == 0
    assert report.read_text() == page

    none = run(app, [*command, "--sweep", "rate=0.8,0.9"])
    assert none.exit_code == 1
    assert "All 2 trainings failed. The first: The loss became nan" in none.stderr

    # Folds: their scores are 0.25, 0.5 and 0.75 times 0.25 or 0.5.
    folds = [*command, "--set", "split.folds=3", "--set", "output=folds"]
    ended = run(app, [*folds, "--sweep", "rate=0.125,0.25"])
    assert ended.exit_code == 0, ended.output
    best = "mean IoU 0.5000 over 3 folds, from 0.2500 to 0.7500, standard deviation 0.2500"
    assert f"Best of 2: rate 0.25: {best}." in ended.stdout
    rows = table(folder / "folds" / "sweep.csv")
    assert [row["fold"] for row in rows] == ["1", "2", "3", "mean", "spread"] * 2
    assert [row["score"] for row in rows[3:5]] == ["0.25", "0.125"]
    assert (folder / "folds" / "rate-0.25" / "fold-3" / "tiny.json").exists()
    page = (folder / "folds" / "report.html").read_text()
    assert "The best: rate 0.25, mean of the folds, with a score of 0.5000." in page
    assert "<td>rate-0.125/fold-2</td>" in page


@pytest.mark.parametrize(
    ("sweeps", "message"),
    [
        (["rates=1,2"], "unknown key. Did you mean `rate`"),
        (["rate"], "expected KEY=VALUE"),
        (["rate="], "expected values"),
        (["rate=[1"], "is not YAML"),
        (["rate=1,-3"], r"with training\.rate=-3: training\.rate: expected"),
        (["rate=1e-3,0.001"], "are the same training"),
        (["rate=1,2", "training.rate=3,4"], "is swept twice"),
        (["training.ratee=1,2"], r"training\.ratee: unknown key. Did you mean `rate`"),
        (["output=a,b"], "output must be the same"),
        (["folds=2,3"], r"split: \{folds: 5\}"),
        (["split.validation=0.1,0.2"], "split must be the same"),
        (["seed=1,2,3,4,5,6,7,8,9,10,11", f"rate={','.join('1' * n for n in range(1, 11))}"],
         "110 trainings; expected 100 at most"),
    ],
)  # fmt: skip
def test_wrong_sweeps_are_refused_before_any_training(tmp_path, sweeps, message):
    from maskloom.flows.recipes import sweeps as recipes

    path = Path(write_recipe(tmp_path))
    with pytest.raises(RecipeError, match=message):
        recipes.trials(path, [], sweeps)


@pytest.mark.nightly
def test_folds_validate_each_image_once(folder):
    (folder / "images.csv").write_text(
        "uri,plot\n" + "".join(f"images/{i}.png,{'ab'[i // 3]}\n" for i in range(4))
    )
    path = write_recipe(folder, images="images.csv", split={"folds": 2, "group_column": "plot"})
    ended = CliRunner().invoke(app, ["train", path, *SHORT])
    assert ended.exit_code == 0, ended.output
    held = []
    for number in (1, 2):
        card = json.loads((folder / "out" / f"fold-{number}" / "tiny.json").read_text())
        held.append(card["about"]["data"]["validation"])
    assert sorted(held) == [["0", "1", "2"], ["3"]]
    *folds, mean, spread = table(folder / "out" / "folds.csv")
    scores = [float(row["score"]) for row in folds]
    assert float(mean["score"]) == pytest.approx(np.mean(scores), abs=1e-6)
    assert float(spread["score"]) == pytest.approx(np.std(scores, ddof=1), abs=1e-6)
    assert f"mean IoU {np.mean(scores):.4f} over 2 folds" in ended.stdout
    missing = CliRunner().invoke(app, ["train", path, *SHORT, "--set", "split.group_column=plots"])
    assert missing.exit_code == 2
    assert "has no column 'plots'; it has uri, plot" in missing.stderr
    many = CliRunner().invoke(app, ["train", path, *SHORT, "--set", "split.folds=3"])
    assert many.exit_code == 2
    assert "3 folds need as many groups; there are 2. Set it to 2 or fewer." in many.stderr


@pytest.mark.nightly
@pytest.mark.reports
@pytest.mark.parametrize(
    "labels",
    [
        "index",
        {"kind": "values", "values": {0: "dark", 1: "bright"}, "void": 255},
        {"kind": "values", "values": {0: "dark", 1: "bright"}, "void": "rest"},
    ],
)
def test_whole_images_are_measured_as_evaluation_measures_them(folder, labels, monkeypatch, caplog):
    """The card has what `maskloom evaluate` says of masks that `maskloom segment` makes; if the
    training is quiet, so is that run.
    """
    from maskloom.flows.evaluation import evaluate as evaluation
    from maskloom.flows.evaluation.options import EvaluationRequest

    path = write_recipe(folder, labels=labels)
    run = CliRunner().invoke
    with monkeypatch.context() as patched:
        patched.setattr(NetworkModel, "caution", lambda *_: "unlike those of training")
        told = run(app, ["train", path, "--quiet"])
    assert told.exit_code == 0, told.output
    cautions = [each for each in caplog.records if "unlike those" in each.getMessage()]
    assert [each.levelname for each in cautions] == ["INFO"]
    card = json.loads((folder / "out" / "tiny.json").read_text())
    whole = card["about"]["metrics"]["whole_images"]
    assert f"On 1 whole image: mean IoU {whole['mean_iou']:.4f}" in told.stdout
    [name] = card["about"]["data"]["validation"]
    model = str(folder / "out" / "tiny.keras")
    segment = ["segment", str(folder / "images" / f"{name}.png"), "-o", str(folder / "masked")]
    done = run(app, [*segment, "-s", "unet", "-p", f"weights={model}", "--no-prefect", "--quiet"])
    assert done.exit_code == 0, done.output
    request = EvaluationRequest(truth=(str(folder / "masks"),), void=("255",))
    rows = evaluation.evaluate(str(folder / "masked"), request).result.rows()
    expected = next(row for row in rows["images"] if row["image_id"] is None)
    for measure in ("accuracy", "mean_iou", "mean_dice", "mean_boundary_f"):
        # The engine, and so the precision, is chosen by its speed at that moment.
        assert whole[measure] == pytest.approx(expected[measure], abs=0.01)
    again = run(app, ["train", path, "--quiet"])
    assert again.stdout.startswith("Nothing to do")
    assert replace(made(folder), whole_images=False).recipe == made(folder).recipe


@pytest.mark.nightly
@pytest.mark.parametrize(
    "changes",
    [
        {"labels": "instances"},
        {"labels": {"kind": "instances", "border": "rim"}, "classes": ["dark", "bright", "rim"]},
    ],
)
def test_objects_of_whole_images_are_measured(folder, changes):
    """By labels that number objects; the network finds none or some, and that is said."""
    from scipy import ndimage

    for path in (folder / "masks").iterdir():
        ids, _ = ndimage.label(np.asarray(Image.open(path)) == 1)
        Image.fromarray(ids.astype(np.uint16)).save(path)
    told = CliRunner().invoke(app, ["train", write_recipe(folder, **changes), "--quiet"])
    assert told.exit_code == 0, told.output
    card = json.loads((folder / "out" / "tiny.json").read_text())
    whole = card["about"]["metrics"]["whole_images"]
    assert whole["classes"].keys() == {"dark", "bright"}
    for measure in ("ap_dsb2018_50", "ap_dsb2018_50_by_image"):
        assert (measure in whole) == ("border" in changes["labels"])
    # As sure as it is of objects in validation images, of which it may have found none.
    tables = (folder / "out" / "validation").glob("*/tables/objects/*.parquet")
    found = [each for path in tables for each in pq.read_table(path)["score"].to_pylist()]
    known = [each for each in found if each is not None]
    scores = {"bright": pytest.approx([np.median(known)] * 2, abs=1e-4)} if known else {}
    assert card["about"].get("scores", {}) == scores
