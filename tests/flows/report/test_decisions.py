"""The report shows alerts, and areas with their intervals."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from maskloom.flows.cli import app

pytestmark = pytest.mark.reports


def command(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.output


def test_alerts_and_intervals_are_on_the_page(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60), np.uint8)
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images" / "a.png")
    recipe = {
        "inputs": "images",
        "output": "out",
        "segmenter": {"kind": "threshold", "value": 128, "classes": ["dark", "bright"]},
        "cluster": "serial",
        "alerts": {"glare": "bright.share > 0.3", "night": "bright.share < 0.1"},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command("run", tmp_path / "recipe.yaml", "--no-prefect", "-q")
    page = (tmp_path / "out" / "report.html").read_text()
    assert "1 alert is raised." in page
    assert "<code>bright.share &gt; 0.3</code>" in page
    assert "Corrected" not in page
    assert "night" not in page.partition('id="alerts"')[2].partition("</section>")[0]

    command("sample", tmp_path / "out", "--per-class", 20, "--no-pictures")
    samples, design = tmp_path / "out" / "samples" / "samples.csv", "design.json"
    stratum_of = json.loads((samples.parent / design).read_text())["stratum_of"]
    with samples.open(newline="") as file:
        rows = list(csv.DictReader(file))
    for number, row in enumerate(rows):
        row["label"] = "dark" if number % 10 == 0 else stratum_of[row["sample_id"]]
    with samples.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    said = command("evaluate", tmp_path / "out", "--samples", samples)
    command("report", tmp_path / "out")
    page = (tmp_path / "out" / "report.html").read_text()
    shown = page.partition("Accuracy and corrected areas")[2]
    for line in said.splitlines()[1:3]:
        # The area and its interval, as the command has printed them.
        size, interval = line.split("px")[0].split()[-1], line.split("±")[-1].strip()
        assert f"{size} px" in shown
        assert f"± {interval}" in shown
