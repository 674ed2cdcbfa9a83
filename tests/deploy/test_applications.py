"""The applications: each page shows its recipe as it is, and the recipes find what is in the images
that the pages make. tests/docs runs the pages' commands at night.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import docs_support
import jsonschema
import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import yaml
from applications_support import PAGES, RECIPES, ROOT, prepare
from PIL import Image
from typer.testing import CliRunner


def run(name: str, folder: Path) -> Path:
    """Run an application in an empty folder; its output."""
    from maskloom.flows.cli import app

    recipe = prepare(name, folder)
    command = ["run", str(recipe), "--no-prefect", "--quiet", "--set", "cluster=serial"]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return folder / name


def table(output: Path, name: str):
    return ds.dataset(output / "tables" / name).to_table()


def areas(output: Path, class_name: str) -> dict[str, float]:
    """Areas of a class by image."""
    rows = table(output, "areas").filter(pc.field("class_name") == class_name)
    return dict(zip(rows["image_id"].to_pylist(), rows["area"].to_pylist(), strict=True))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_shows_its_recipe_as_it_is(page):
    recipe = (RECIPES / page.name).with_suffix(".yaml").read_text(encoding="utf-8")
    text = page.read_text(encoding="utf-8")
    assert f"```yaml\n{recipe}```\n" in text
    assert f"(../../deploy/recipes/{page.stem}.yaml)" in text


@pytest.mark.parametrize("name", ["roofs", "street-scenes"])
def test_recipes_of_networks_that_are_still_to_be_trained_are_complete(name):
    from maskloom.flows.recipes import run_file

    recipe = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    jsonschema.validate(recipe, run_file.schema())
    assert recipe["name"] == name


@pytest.mark.parametrize("name", ["roofs", "street-scenes"])
def test_a_page_shows_its_training_as_it_is(name):
    training = (ROOT / "deploy" / "training" / f"{name}.yaml").read_text(encoding="utf-8")
    text = (ROOT / "docs" / "applications" / f"{name}.md").read_text(encoding="utf-8")
    assert f"```yaml\n# train.yaml\n{training}```\n" in text
    assert f"(../../deploy/training/{name}.yaml)" in text


def test_a_fire_has_its_hectares_and_its_growth(tmp_path):
    output = run("burned-area", tmp_path)
    hectares = {name: area / 1e4 for name, area in areas(output, "burned").items()}
    truth = {"S2_20260701": 0.0, "S2_20260705": math.pi * 4, "S2_20260707": math.pi * 16}
    assert hectares == pytest.approx(truth, rel=0.05)
    (event,) = table(output, "alerts").to_pylist()
    assert (event["alert"], event["of"], event["state"]) == ("fire", "collection", "raised")
    growth = float(event["reason"].split("burned.growth = ")[1].removesuffix(" ha/day"))
    assert growth == pytest.approx(math.pi * 6, rel=0.05)


def test_weeds_are_told_from_crop_and_raise_an_alert_where_they_outgrow_it(tmp_path):
    output = run("weeds", tmp_path)
    for name in ("clean", "weedy"):
        truth = np.asarray(Image.open(tmp_path / "truth" / f"{name}.png"))
        (mask,) = (output / "masks").glob(f"{name}*")
        found = np.asarray(Image.open(mask))
        for value, least in enumerate((0.99, 0.6, 0.99)):
            assert (found[truth == value] == value).mean() > least
    assert table(output, "alerts")["subject"].to_pylist() == ["weedy"]


@pytest.mark.nightly
def test_bodies_have_their_millilitres(tmp_path):
    output = run("organ-volume", tmp_path)
    rows = table(output, "objects").select(["image_id", "area", "area_unit"]).to_pylist()
    assert {row["area_unit"] for row in rows} == {"mm3"}
    truth = {"march": 4 / 3 * math.pi * 10**3, "june": 4 / 3 * math.pi * 14**3}
    assert {row["image_id"]: row["area"] for row in rows} == pytest.approx(truth, rel=0.05)
    assert table(output, "alerts")["subject"].to_pylist() == ["june"]


@pytest.mark.nightly
def test_nuclei_are_counted_and_have_their_size(tmp_path):
    from maskloom.flows.demo.cells import nuclei

    output = run("fluorescence-slide", tmp_path)
    inside = [each for each in nuclei() if max(each.x, each.y) < 512]
    found = table(output, "objects")
    assert found.num_rows == pytest.approx(len(inside), rel=0.1)
    truth = np.median([math.pi * each.long * each.short * 0.325**2 for each in inside])
    assert np.median(found["area"].to_numpy()) * 1e6 == pytest.approx(truth, rel=0.1)


@pytest.mark.nightly
@pytest.mark.parametrize("name", ["roofs", "street-scenes"])
def test_a_network_learns_its_classes(name, tmp_path):
    """All of the page: a training, a run, an evaluation."""
    page = ROOT / "docs" / "applications" / f"{name}.md"
    work = tmp_path / "work"
    work.mkdir()
    done = subprocess.run(
        [sys.executable, docs_support.__file__, str(page)],
        cwd=work,
        env={**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    classes = pq.read_table(work / name / "evaluation" / "classes.parquet").to_pylist()
    assert min(row["iou"] for row in classes) > 0.7, classes
