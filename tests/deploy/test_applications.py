"""The applications: each page shows its recipe as it is, and the recipes find what is in the images
that the pages make. tests/docs runs the pages' commands at night.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pytest
from applications_support import PAGES, RECIPES, prepare
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
