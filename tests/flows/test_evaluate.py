"""`maskloom evaluate` on real runs: tables, picture, words, exit codes."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from cli_support import invoke
from matching_support import matched_share
from PIL import Image
from scipy import ndimage
from sklearn import metrics

from maskloom.flows.evaluation.evaluate import _quality
from maskloom.flows.recipes.training import make as make_training
from maskloom.flows.train import sources
from maskloom.segcore.annotations.label_mapping import LabelMapping, parse_values
from maskloom.segcore.annotations.metrics import Confusion
from maskloom.segcore.annotations.object_metrics import ObjectCounts
from maskloom.segcore.evaluation.boundary import Boundary
from maskloom.segcore.evaluation.scoring import (
    EvaluatedImage,
    EvaluationOptions,
    Score,
    _photo,
    view,
)
from maskloom.segcore.evaluation.tables import SCHEMAS
from maskloom.segcore.geometry import Grid
from maskloom.segcore.training.pairs import find_pairs

DATA = os.environ.get("MASKLOOM_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="MASKLOOM_TEST_DATA is not set")


def blobs(seed: int) -> np.ndarray:
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=(90, 120)), 4)
    return np.clip(128 + 2500 * field, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images, truth of two of them, and two runs: `out` of classes, `cells` of
    objects.
    """
    folder = tmp_path_factory.mktemp("evaluated")
    for name in ("images", "truth", "numbers"):
        (folder / name).mkdir()
    for i in range(3):
        photo = blobs(i)
        Image.fromarray(photo).save(folder / "images" / f"p{i}.png")
        if i < 2:
            truth = (photo > 150).astype(np.uint8) * 255
            truth[:5] = 7
            Image.fromarray(truth).save(folder / "truth" / f"p{i}_mask.png")
            Image.fromarray(ndimage.label(photo > 150)[0].astype(np.uint16)).save(
                folder / "numbers" / f"p{i}.png"
            )
    common = [
        *sorted((folder / "images").iterdir()),
        "--no-prefect",
        "--set",
        "cluster=serial",
        "-q",
    ]
    threshold = ["-s", "threshold", "-p", "value=140", "-p", "classes=[outside, cell]"]
    assert invoke("segment", *common, "-o", folder / "out", *threshold).exit_code == 0
    inner = "of={kind: threshold, value: 140, classes: [background, cell]}"
    assert (
        invoke(
            "segment", *common, "-o", folder / "cells", "-s", "connected_parts", "-p", inner
        ).exit_code
        == 0
    )
    return folder


def mask_of(folder: Path, name: str) -> np.ndarray:
    return np.array(Image.open(folder / "masks" / name))


def table(folder: Path, name: str) -> list[dict[str, object]]:
    found = pq.read_table(folder / f"{name}.parquet")
    assert found.schema.equals(SCHEMAS[name])
    rows: list[dict[str, object]] = found.to_pylist()
    return rows


SAID = ("--values", "0=outside,255=cell", "--void", "7", "--truth-suffix", "_mask")


def test_classes(made: Path) -> None:
    done = invoke("evaluate", made / "out", "--truth", made / "truth" / "*.png", *SAID)
    assert done.exit_code == 0, done.output
    assert "1 image has no truth and is not evaluated (p2.png)" in done.stderr
    assert "1200 pixels (5.6%) are void or no data in the truth" in done.stderr
    assert "not finished" not in done.stderr
    assert "recipes" not in done.stderr
    *rows, last, report = done.stdout.strip().splitlines()
    assert report == f"Report: {made / 'out' / 'evaluation' / 'report.html'}"
    ends = [[found.end() for found in re.finditer(r"\S+( F)?(?=  |$)", row)][1:] for row in rows]
    assert len({tuple(each) for each in ends}) == 1, "heads end where their numbers do"
    assert len(ends[0]) == 5
    assert "2 images" in last
    assert str(made / "out" / "evaluation" / "evaluation.png") in last
    truth = np.concatenate([blobs(i)[5:] > 150 for i in range(2)])
    predicted = np.concatenate([mask_of(made / "out", f"p{i}.png")[5:] for i in range(2)])
    (cell,) = (
        row
        for row in table(made / "out" / "evaluation", "classes")
        if row["image_id"] is None and row["class_name"] == "cell"
    )
    assert cell["iou"] == pytest.approx(metrics.jaccard_score(truth.ravel(), predicted.ravel()))
    assert f"{cell['iou']:.3f}" in done.stdout
    whole, *parts = table(made / "out" / "evaluation", "images")
    assert whole["accuracy"] == pytest.approx((truth == predicted).mean())
    assert whole["void_pixels"] == 2 * 5 * 120
    assert [row["image_id"] for row in parts] == ["p0", "p1"]
    assert sum(row["pixels"] for row in parts) == whole["pixels"] == truth.size  # type: ignore[misc]
    pixels = [
        row for row in table(made / "out" / "evaluation", "confusion") if row["image_id"] is None
    ]
    assert sum(row["pixels"] for row in pixels) == truth.size  # type: ignore[misc]
    for i, name in enumerate(("outside", "cell")):
        shares = [row["share_of_truth"] for row in pixels if row["truth_class"] == name]
        assert shares == [
            *(pytest.approx((predicted[truth == i] == j).mean()) for j in range(2)),
            None,
        ]
    assert table(made / "out" / "evaluation", "objects") == []
    with Image.open(made / "out" / "evaluation" / "evaluation.png") as picture:
        assert picture.width == 1280


def test_two_workers_give_what_one_gives(made: Path, tmp_path: Path) -> None:
    for workers in (1, 2):
        done = invoke(
            "evaluate", made / "cells", "-t", made / "numbers", "--out", tmp_path / str(workers),
            "--workers", workers,
        )  # fmt: skip
        assert done.exit_code == 0, done.output
    files = [
        sorted(each for each in (tmp_path / name).glob("*.*") if each.suffix != ".html")
        for name in ("1", "2")
    ]
    assert len(files[0]) == len(SCHEMAS) + 1
    for one, two in zip(*files, strict=True):
        assert one.name == two.name
        assert one.read_bytes() == two.read_bytes(), one.name


@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.nightly)])
def test_an_image_that_fails_is_named_and_does_not_stop_the_others(
    made: Path, tmp_path: Path, workers: int
) -> None:
    shutil.copytree(made / "truth", tmp_path / "truth")
    broken = tmp_path / "truth" / "p0_mask.png"
    broken.write_bytes(broken.read_bytes()[:-200])
    (tmp_path / "truth" / "notes.xyz").write_text("no mask")
    done = invoke(
        "evaluate", made / "out", "-t", tmp_path / "truth", *SAID, "--out", tmp_path / "here",
        "--workers", workers,
    )  # fmt: skip
    assert done.exit_code == 3, done.output
    assert re.search(r"failed: p0: .*p0_mask\.png", done.stderr)
    assert "--truth: Passed over in folders" in done.stderr
    assert "1 .xyz" in done.stderr
    assert [row["image_id"] for row in table(tmp_path / "here", "images")] == [None, "p1"]
    # So does a truth of another size.
    Image.fromarray(np.zeros((90, 119), np.uint8)).save(broken)
    other = invoke(
        "evaluate", made / "out", "-t", tmp_path / "truth", *SAID, "--out", tmp_path / "here"
    )
    assert other.exit_code == 3, other.output
    assert re.search(r"failed: p0: .*119 x 90 pixels", other.stderr)


def test_folders_that_training_pairs_are_paired(made: Path, tmp_path: Path) -> None:
    for i, tile in enumerate(("t3", "t4")):
        for kind in ("rgb", "gt"):
            (tmp_path / tile / kind).mkdir(parents=True)
        Image.fromarray(blobs(i)).save(tmp_path / tile / "rgb" / "p1.png")
        Image.fromarray((blobs(i) > 140).astype(np.uint8)).save(tmp_path / tile / "gt" / "p1.png")
    images = sorted(tmp_path.glob("*/rgb/*.png"))
    common = ["--no-prefect", "--set", "cluster=serial", "-q", "-o", tmp_path / "out"]
    done = invoke("segment", *images, *common, "-s", "threshold", "-p", "value=140")
    assert done.exit_code == 0, done.output
    done = invoke("evaluate", tmp_path / "out", "-t", tmp_path / "*" / "gt" / "*.png", "-q")
    assert done.exit_code == 0, done.output
    assert "accuracy 1.000" in done.stdout
    recipe = {"network": "unet", "classes": ["out", "in"], "output": str(tmp_path / "model")}
    training_run = make_training(
        {**recipe, "images": "*/rgb/*.png", "masks": "*/gt/*.png"}, tmp_path
    )
    pairs, _ = find_pairs(*sources(training_run), training_run.recipe, lambda *_: None)
    assert [pair.mask.location for pair in pairs] == [
        str(tmp_path / tile / "gt" / "p1.png") for tile in ("t3", "t4")
    ]


def test_areas_are_of_all_images_of_the_run(made: Path) -> None:
    assert invoke("evaluate", made / "out", "-t", made / "truth", *SAID, "-q").exit_code == 0
    rows = {row["class_name"]: row for row in table(made / "out" / "evaluation", "areas")}
    masks = np.stack([mask_of(made / "out", f"p{i}.png") for i in range(3)])
    sample, truth = masks[:2, 5:], np.stack([blobs(i)[5:] > 150 for i in range(2)])
    mapped = np.array([(masks == i).sum() for i in range(2)])
    share = np.array([truth[sample == i].mean() for i in range(2)])
    assert rows["cell"]["mapped_area"] == mapped[1]
    assert rows["cell"]["adjusted_area"] == pytest.approx(mapped @ share)
    spread = np.sqrt(
        sum(
            (mapped[i] ** 2 * share[i] * (1 - share[i]) / ((sample == i).sum() - 1))
            for i in range(2)
        )
    )
    assert rows["cell"]["high_95"] == pytest.approx(mapped @ share + 1.96 * spread)
    assert rows["cell"]["low_95"] == pytest.approx(mapped @ share - 1.96 * spread)
    assert rows["cell"]["area_unit"] == "px"


def test_objects_are_compared_where_the_masks_hold_them(made: Path) -> None:
    done = invoke("evaluate", made / "cells", "-t", made / "numbers", "--out", made / "here", "-q")
    assert done.exit_code == 0, done.output
    assert "PQ" in done.stdout
    rows = [row for row in table(made / "here", "objects") if row["image_id"] == "p0"]
    ids, truth = mask_of(made / "cells", "p0.png"), ndimage.label(blobs(0) > 150)[0]
    for row in rows:
        assert row["ap_dsb2018"] == pytest.approx(matched_share(ids, truth, row["threshold"]))  # type: ignore[arg-type]
        assert row["ap_coco"] is None
        found = int((np.unique(ids) > 0).sum())
        assert row["precision"] == row["matched"] / found  # type: ignore[operator]
        assert row["recall"] == row["matched"] / truth.max()  # type: ignore[operator]
        assert row["f1"] == pytest.approx(2 * row["matched"] / (found + truth.max()))  # type: ignore[operator]
        assert (row["pq"] is None) == (row["threshold"] != 0.5)
    assert found != truth.max()
    assert rows[0]["pq"] == pytest.approx(rows[0]["sq"] * rows[0]["rq"])  # type: ignore[operator]
    assert len(rows) == 10
    assert rows[0]["matched"]
    # The same objects, found as connected parts of classes.
    both = invoke(
        "evaluate",
        made / "out",
        "-t",
        made / "numbers",
        "-v",
        "0=outside,1..=cell",
        "--objects",
        "--out",
        made / "there",
        "-q",
    )
    assert both.exit_code == 0, both.output
    again = [
        row
        for row in table(made / "there", "objects")
        if row["image_id"] == "p0" and row["class_name"] == "cell"
    ]
    assert [row["matched"] for row in again] == [row["matched"] for row in rows]
    plain = invoke(
        "evaluate",
        made / "cells",
        "-t",
        made / "numbers",
        "--no-objects",
        "--out",
        made / "here",
        "-q",
    )
    assert "PQ" not in plain.stdout
    assert table(made / "here", "objects") == []


def test_a_file_of_colours_and_an_output_in_a_store(made: Path, tmp_path: Path) -> None:
    (tmp_path / "classes.yaml").write_text(
        'cell: "#FF0000"\noutside: [[0, 0, 255], "#00FF00"]\nvoid: "#FFFFFF"\n'
    )
    for i in range(2):
        colours = np.where((blobs(i) > 150)[..., None], [255, 0, 0], [0, 0, 255]).astype(np.uint8)
        colours[:9], colours[9, :50] = 255, [0, 255, 0]
        Image.fromarray(colours).save(tmp_path / f"p{i}.png")
    fs = fsspec.filesystem("memory")
    fs.put(str(made / "out"), "/evaluated-run", recursive=True)
    done = invoke(
        "evaluate",
        "memory://evaluated-run",
        "-t",
        f"{tmp_path}/*.png",
        "--colours",
        tmp_path / "classes.yaml",
        "-q",
    )
    assert done.exit_code == 0, done.output
    assert fs.exists("/evaluated-run/evaluation/evaluation.png")
    whole = pq.read_table(fs.open("/evaluated-run/evaluation/images.parquet")).to_pylist()[0]
    assert whole["void_pixels"] == 2 * 9 * 120
    # Names that a shell has expanded come as further arguments.
    files = sorted(tmp_path.glob("*.png"))
    more = invoke(
        "evaluate",
        made / "out",
        "-t",
        *files,
        "--colours",
        tmp_path / "classes.yaml",
        "--out",
        tmp_path / "o",
        "-q",
    )
    assert more.stdout.split("Look")[0] == done.stdout.split("Look")[0]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["nothing", "-t", "truth"], "not an output of maskloom"),
        (["out", "-t", "none/*.png"], "matches no image"),
        (["out", "-t", "none.png"], "does not exist"),
        (["out", "-t", "truth"], "p0_mask.*--truth-suffix"),
        (["out", "-t", "numbers"], r"mean no class.*'0=outside,1\.\.=cell'"),
        (["out", "-t", "numbers", "-v", "1..=cell"], r"0 \(.*'0=outside'"),
        (
            ["out", "-t", "truth", "--truth-suffix", "_mask", "-v", "0=outside,255=cell"],
            r"p0_mask\.png.*7 \(600 pixels\).*--void '7'",
        ),
        (
            ["out", "-t", "truth", "--truth-suffix", "_mask", "-v", "0=outside,255=nucleus"],
            "no class 'nucleus'",
        ),
        (["out", "-t", "truth", "--truth-suffix", "_mask", "--void", "0..255"], "is void"),
        (
            ["out", "-t", "truth", "--truth-suffix", "_mask", "--colours", "absent.yaml"],
            "Cannot read the file of --colours 'absent.yaml'",
        ),
        (["out", "-t", "small", "-v", "0=outside,255=cell"], r"119 x 90 pixels.*120 x 90"),
        (["out", "-t", "broken", "-v", "0=outside"], "p0.png"),
    ],
)
def test_wrong_usage_ends_with_2(
    made: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(made)
    for name in ("small", "broken"):
        (made / name).mkdir(exist_ok=True)
    Image.fromarray(np.zeros((90, 119), np.uint8)).save(made / "small" / "p0.png")
    (made / "broken" / "p0.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    done = invoke("evaluate", *arguments)
    assert done.exit_code == 2, done.output
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert re.search(told, done.stderr.replace("\n", " ")), done.stderr


def test_a_mask_that_is_gone_ends_with_1(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    (tmp_path / "out" / "masks" / "p1.png").unlink()
    done = invoke("evaluate", tmp_path / "out", "-t", made / "truth", *SAID)
    assert done.exit_code == 1, done.output
    assert "p1.png" in done.stderr


def interrupted(made: Path, output: Path, *kept: str) -> None:
    """The output as a run leaves it that is killed when the rows of these images are committed;
    areas are written before.
    """
    shutil.copytree(made / "out", output)
    (output / "runs" / "head.json").unlink()
    for manifest in output.glob("runs/*/manifest.json"):
        manifest.unlink()
    (file,) = (output / "tables" / "images").iterdir()
    rows = pq.read_table(file)
    file.unlink()
    if kept:
        pq.write_table(rows.filter(pc.is_in(rows["image_id"], value_set=pa.array(kept))), file)


def test_a_run_that_is_not_finished(made: Path, tmp_path: Path) -> None:
    interrupted(made, tmp_path / "nothing")
    done = invoke("evaluate", tmp_path / "nothing", "-t", made / "truth", *SAID)
    assert done.exit_code == 2
    assert re.search(
        "not finished: it has no mask yet, and 3 images are left. Run its recipe again", done.stderr
    )
    # What is there is evaluated as it will be when the run is finished.
    interrupted(made, tmp_path / "some", "p1")
    done = invoke("evaluate", tmp_path / "some", "-t", made / "truth", *SAID)
    assert done.exit_code == 0, done.output
    assert "not finished, 2 images are left" in done.stderr
    assert (
        invoke(
            "evaluate", made / "out", "-t", made / "truth", *SAID, "--out", tmp_path / "whole"
        ).exit_code
        == 0
    )
    (row,) = (row for row in table(tmp_path / "whole", "images") if row["image_id"] == "p1")
    assert row in table(tmp_path / "some" / "evaluation", "images")
    assert (
        sum(row["mapped_area"] for row in table(tmp_path / "some" / "evaluation", "areas"))
        == 90 * 120
    )  # type: ignore[misc]


def test_masks_of_several_recipes_are_told_and_never_confused(made: Path, tmp_path: Path) -> None:
    shutil.copytree(made / "out", tmp_path / "out")
    common = [
        "-o",
        tmp_path / "out",
        "--no-prefect",
        "--set",
        "cluster=serial",
        "-q",
        "--keep-other-recipes",
    ]
    inner = "of={kind: threshold, value: 140, classes: [outside, cell]}"
    assert (
        invoke(
            "segment", made / "images" / "p1.png", *common, "-s", "connected_parts", "-p", inner
        ).exit_code
        == 0
    )
    done = invoke("evaluate", tmp_path / "out", "-t", made / "truth", *SAID)
    assert done.exit_code == 2, done.output
    assert re.search(r"p1\.png holds ids of objects, other masks .* classes", done.stderr)
    done = invoke("evaluate", tmp_path / "out", "-t", made / "truth" / "p0_mask.png", *SAID)
    assert done.exit_code == 0, done.output
    assert "made by 2 recipes" in done.stderr


def test_nothing_to_find_and_an_image_that_has_changed(tmp_path: Path) -> None:
    black = Image.fromarray(np.zeros((40, 50), np.uint8))
    black.save(tmp_path / "a.png")
    (tmp_path / "truth").mkdir()
    black.save(tmp_path / "truth" / "a.png")
    common = [
        "-o",
        tmp_path / "out",
        "--no-prefect",
        "--set",
        "cluster=serial",
        "-q",
        "-s",
        "threshold",
        "-p",
        "value=9",
    ]
    assert invoke("segment", tmp_path / "a.png", *common).exit_code == 0
    # The picture is drawn without an image that has another size than its mask.
    Image.fromarray(np.zeros((60, 70), np.uint8)).save(tmp_path / "a.png")
    done = invoke("evaluate", tmp_path / "out", "-t", tmp_path / "truth", "--objects", "-q")
    assert done.exit_code == 0, done.output
    assert "mean IoU 1.000, PQ -, AP (DSB2018) @0.5 -." in done.stdout
    assert (tmp_path / "out" / "evaluation" / "evaluation.png").exists()


def test_the_worst_images_are_those_with_errors() -> None:
    def made_of(matched: int, false: int, right: int) -> Score:
        tallies = np.zeros((1, 10, 3), np.int64)
        tallies[:, :, :2] = matched, false
        confusion = Confusion(np.array([[right, 100 - right, 0], [0, 0, 0]]))
        return Score("a", "a", confusion, Boundary.none(2), ObjectCounts(tallies, np.zeros(1)), 0)

    nothing, perfect, poor, worse = (
        made_of(0, 0, 100),
        made_of(5, 0, 99),
        made_of(1, 1, 100),
        made_of(1, 1, 50),
    )
    assert sorted([nothing, perfect, poor, worse], key=_quality) == [worse, poor, perfect, nothing]
    # Images may be in a store that cannot be read here.
    grid = Grid((40, 50), (40, 50))
    assert _photo("nosuch://a/a.png", grid, grid[0]) is None


@real
def test_a_threshold_on_a_real_slice_scores_as_scikit_learn_says(tmp_path: Path) -> None:
    """A threshold on a real slice: the figures are those of scikit-learn on the files
    themselves.
    """
    assert DATA is not None
    image, truth = (
        Path(DATA) / "membrane" / name / "slice_18.png" for name in ("images", "labels")
    )
    common = ["--no-prefect", "--set", "cluster=serial", "-q", "-p", "classes=[membrane, inside]"]
    assert invoke("segment", image, "-o", tmp_path / "o", "-s", "threshold", *common).exit_code == 0
    done = invoke("evaluate", tmp_path / "o", "-t", truth, "-v", "0=membrane,255=inside", "-q")
    assert done.exit_code == 0, done.output
    true, mask = np.array(Image.open(truth)) > 0, mask_of(tmp_path / "o", "slice_18.png")
    rows = [
        row for row in table(tmp_path / "o" / "evaluation", "classes") if row["image_id"] is None
    ]
    np.testing.assert_allclose(
        [row["dice"] for row in rows], metrics.f1_score(true.ravel(), mask.ravel(), average=None)
    )
    # Truth and mask are the whole image here, so the adjusted areas are the true ones.
    areas = table(tmp_path / "o" / "evaluation", "areas")
    np.testing.assert_allclose([row["adjusted_area"] for row in areas], [(~true).sum(), true.sum()])


def save_volume(path: Path, values: np.ndarray) -> None:
    """As an array of NumPy or, in chunks, of Zarr."""
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        zarr = pytest.importorskip("zarr")
        zarr.create_array(path, data=values, chunks=(8, 16, 16))


@pytest.mark.parametrize("suffix", [".npy", ".zarr"])
@pytest.mark.parametrize("objects", [False, True], ids=["classes", "objects"])
def test_measures_of_volumes_are_those_of_other_libraries(
    tmp_path: Path, suffix: str, objects: bool
) -> None:
    """Measures are those of scikit-learn, objects those of SciPy; boundaries go plane by plane."""
    shape = (10, 40, 50)
    field = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=shape), 2)
    volume = np.clip(128 + 1500 * field, 0, 255).astype(np.uint8)
    truth = volume > 160
    truth[:3] = False
    numbers = ndimage.label(truth, np.ones((3, 3, 3)))[0]
    for name in ("images", "truth"):
        (tmp_path / name).mkdir()
    save_volume(tmp_path / "images" / f"v{suffix}", volume)
    values = numbers.astype(np.uint16) if objects else truth.astype(np.uint8)
    save_volume(tmp_path / "truth" / f"v{suffix}", values)
    threshold = "{kind: threshold, value: 150, classes: [background, cell]}"
    segmenter = f"{{kind: connected_parts, of: {threshold}}}" if objects else threshold
    (tmp_path / "recipe.yaml").write_text(
        f"inputs: images\noutput: out\nsegmenter: {segmenter}\ntiling: {{tile: 16}}\n"
        "cluster: serial\n"
    )
    done = invoke("run", tmp_path / "recipe.yaml", "--no-prefect", "-q")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "out" / "masks" / f"v{suffix}").exists()
    done = invoke("evaluate", tmp_path / "out", "-t", tmp_path / "truth", "-q")
    assert done.exit_code == 0, done.output

    found = volume > 150
    whole = table(tmp_path / "out" / "evaluation", "images")[0]
    assert whole["pixels"] == volume.size
    assert whole["accuracy"] == pytest.approx(metrics.accuracy_score(truth.ravel(), found.ravel()))
    assert whole["kappa"] == pytest.approx(metrics.cohen_kappa_score(truth.ravel(), found.ravel()))
    cell = table(tmp_path / "out" / "evaluation", "classes")[1]
    assert cell["iou"] == pytest.approx(metrics.jaccard_score(truth.ravel(), found.ravel()))
    assert 0 < cell["boundary_precision"] < 1  # type: ignore[operator]
    rows = table(tmp_path / "out" / "evaluation", "objects")
    if objects:
        ours = ndimage.label(found, np.ones((3, 3, 3)))[0]
        overlaps = np.zeros((ours.max() + 1, numbers.max() + 1))
        np.add.at(overlaps, (ours, numbers), 1)
        sizes = overlaps.sum(axis=1)[1:, None] + overlaps.sum(axis=0)[None, 1:]
        iou = overlaps[1:, 1:] / (sizes - overlaps[1:, 1:])
        matched = int((iou > 0.5).sum())
        counts = (matched, ours.max() - matched, numbers.max() - matched)
        assert matched
        assert tuple(rows[0][name] for name in ("matched", "false", "missed")) == counts
    else:
        assert rows == []
    with Image.open(tmp_path / "out" / "evaluation" / "evaluation.png") as picture:
        assert picture.width == 1280


def test_a_volume_is_shown_by_its_plane_with_the_most_errors(tmp_path: Path) -> None:
    mask = np.zeros((5, 20, 30), np.uint8)
    truth = mask.copy()
    truth[1, 3], truth[3, :4] = 1, 1
    photo = np.broadcast_to(np.arange(5, dtype=np.uint8)[:, None, None] * 50, mask.shape)
    for name, values in (("mask", mask), ("truth", truth), ("photo", photo)):
        np.save(tmp_path / f"{name}.npy", values)
    uris = [str(tmp_path / f"{name}.npy") for name in ("photo", "mask", "truth")]
    mapping = LabelMapping.of(parse_values(["0=out", "1=in"]), ("out", "in"))
    options = EvaluationOptions(mapping, 2, (), numbered=False)
    shown = view(EvaluatedImage("v", *uris, np.arange(2), -1), options, 0)
    np.testing.assert_array_equal(shown.truth, truth[3])
    assert shown.photo is not None
    assert (shown.photo == 150).all()
