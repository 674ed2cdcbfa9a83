"""The report of a real output with hostile names, as text and in headless Chromium."""

from __future__ import annotations

import datetime as dt
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from typer.testing import CliRunner
from view_support import findings

from maskloom.flows.cli import app

pytestmark = pytest.mark.reports

HOSTILE = "<script>alert(1)<⁄script>"
IMAGES = [f"2026-05-{number:02d} <b>.png" for number in range(1, 11)]


def run(folder: Path, *more: str) -> str:
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "name: look\ninputs: images\noutput: out\nsegmenter: {kind: kmeans, clusters: 3}\n"
        "statistics: [objects]\ncluster: serial\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe), "--no-prefect", "--quiet", *more])
    assert result.exit_code == 3, result.output
    return result.output


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output of ten images, one of which is odd, and of a broken one whose name is a script."""
    folder = tmp_path_factory.mktemp("report")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number, name in enumerate(IMAGES):
        pixels = rng.integers(0, 256, (60, 90, 3), np.uint8)
        pixels[:30] = 240 if number == 7 else 20
        Image.fromarray(pixels).save(folder / "images" / name)
    (folder / "images" / f"{HOSTILE}.png").write_bytes(b"<img src=x onerror=alert(1)>")
    said = run(folder)
    assert said.splitlines()[-1] == f"Report: {folder}/out/report.html"
    return folder / "out"


def test_foreign_text_is_escaped(output: Path) -> None:
    page = (output / "report.html").read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "<b>" not in page


def test_a_run_in_which_every_image_failed_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    said = run(tmp_path)
    assert said.splitlines()[-1] == f"Report: {tmp_path}/out/report.html"
    assert "FormatError" in (tmp_path / "out" / "report.html").read_text()


def test_the_report_is_made_again(output: Path) -> None:
    before = (output / "report.html").read_bytes()
    (output / "report.html").unlink()
    assert CliRunner().invoke(app, ["report", str(output)]).exit_code == 0
    assert (output / "report.html").read_bytes() == before


def test_a_report_that_fails_fails_no_run(
    output: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> bytes:
        raise RuntimeError("no ink")

    monkeypatch.setattr("maskloom.flows.report.write.page", broken)
    (output / "report.html").rename(output / "kept.html")
    said = run(output.parent)
    (output / "kept.html").rename(output / "report.html")
    assert "Report:" not in said
    assert "no ink" in caplog.text


def test_pictures_and_the_report_itself_may_be_left_out(output: Path) -> None:
    run(output.parent, "--set", "output=bare", "--set", "report={pictures: false}")
    bare = output.parent / "bare"
    assert not (bare / "tables" / "pictures").exists()
    assert b"image/webp;base64,U" not in (bare / "report.html").read_bytes()
    run(output.parent, "--set", "output=none", "--set", "report=false")
    assert not (output.parent / "none" / "report.html").exists()


def test_a_run_that_stops_has_a_report_that_says_so(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").write_bytes(b"no picture")
    Image.new("L", (20, 20)).save(tmp_path / "images" / "b.png")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "inputs: images\noutput: out\nsegmenter: {kind: threshold, value: 1}\ncluster: serial\n"
        "max_failed_fraction: 0\n"
    )
    result = CliRunner().invoke(app, ["run", str(recipe), "--no-prefect", "--quiet"])
    assert result.exit_code == 1
    assert f"Report of what is done: {tmp_path}/out/report.html" in result.stderr
    page = (tmp_path / "out" / "report.html").read_text()
    assert '<span class="state stopped">' in page
    assert "max_failed_fraction = 0 allows" in page
    assert f"maskloom run {recipe}" in page
    # Before the first image is committed there is a plan only.
    shutil.rmtree(tmp_path / "out" / "tables")
    assert CliRunner().invoke(app, ["report", str(tmp_path / "out")]).exit_code == 0
    assert "stopped: 2 left" in (tmp_path / "out" / "report.html").read_text()


def test_dates_of_acquisition_come_before_those_in_names(output: Path, tmp_path: Path) -> None:
    out = shutil.copytree(output, tmp_path / "out")
    for file in (out / "tables" / "images").glob("*.parquet"):
        table = pq.read_table(file)
        days = [dt.datetime(2031, 1, 1 + number, tzinfo=dt.UTC) for number in range(len(table))]
        kept = [name for name in table.column_names if name != "acquired"]
        column = pa.array(days, pa.timestamp("us", "UTC"))
        pq.write_table(table.select(kept).append_column("acquired", column), file)
    before = (output / "report.html").read_text()
    assert "from 2026-05-01 to 2026-05-10" in before
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    assert re.search("dates from 2031-01-01 to 2031-01-1[01]", (out / "report.html").read_text())


def evaluate(output: Path, folder: Path) -> str:
    """Evaluate the masks against themselves; what the command says."""
    (folder / "truth").mkdir()
    for image in IMAGES:
        (mask,) = (output / "masks").glob(f"{image[:10]}*.png")
        shutil.copy(mask, folder / "truth" / image)
    command = ["evaluate", str(output), "--truth", str(folder / "truth"), "--no-objects"]
    return CliRunner().invoke(app, [*command, "--quiet"]).output


def test_evaluations_and_audits_have_a_place(output: Path, tmp_path: Path) -> None:
    out, recipe = tmp_path / "out", str(output.parent / "recipe.yaml")
    said = evaluate(shutil.copytree(output, out), tmp_path)
    assert f"Report: {out}/evaluation/report.html" in said
    # The masks are their own truth.
    assert "<dd>1.000</dd>" in (out / "evaluation" / "report.html").read_text()
    audited = CliRunner().invoke(app, ["audit", recipe, "--set", f"output={out}"])
    assert CliRunner().invoke(app, ["report", str(out)]).exit_code == 0
    line = next(each for each in audited.output.splitlines() if "differing pixels" in each)
    assert line in (out / "report.html").read_text()


def training(folder: Path) -> None:
    """The records of a training of two epochs."""
    folder.mkdir()
    epochs = [
        {"loss": 1.0 / n, "validation_loss": 1.2 / n, "mean_iou": n / 4, "iou": [n / 4, None]}
        for n in (1, 2)
    ]
    history = {"classes": ["soil", "<b>weed"], "best_epoch": 2, "epochs": epochs}
    card = {"kind": "unet", "parameters": 9, "about": {"minutes": 1, "licence": "<i>CC0"}}
    (folder / "training_history.json").write_text(json.dumps(history))
    (folder / "weeds.json").write_text(json.dumps(card))
    (folder / "weeds.keras").write_bytes(b"")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(output: Path, browser: Any, scheme: str) -> None:
    context = browser.new_context(offline=True, color_scheme=scheme, bypass_csp=True)
    page, requests, errors = context.new_page(), [], []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto((output / "report.html").as_uri())
    assert findings(page) == []
    # The broken image needs a look first, and the odd one next.
    names = page.locator("#grid .name").all_inner_texts()
    assert "alert" in names[0]
    assert "05-08" in names[1]
    # By keyboard alone: the second image, its slider, the next image, and back to the grid.
    page.locator("#grid .card").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    assert "05-08" in page.locator("#view-name").inner_text()
    page.keyboard.press("ArrowRight")
    assert page.locator("#slide").input_value() == "51"
    assert findings(page) == []
    # Other colours: those of the mask change, and come back.
    masks = [page.locator("#over").get_attribute("src")]
    for _ in range(2):
        page.evaluate("document.getElementById('safe').click()")
        page.wait_for_function("was => document.getElementById('over').src !== was", arg=masks[-1])
        masks.append(page.locator("#over").get_attribute("src"))
    assert masks[0] == masks[2]
    page.keyboard.press("PageDown")
    assert "05-08" not in page.locator("#view-name").inner_text()
    page.keyboard.press("Escape")
    page.wait_for_function("document.activeElement.dataset.at === '2'", timeout=5000)
    page.select_option("select[name=status]", "failed")
    assert page.locator("#grid .card").count() == 1
    outside = [url for url in requests if not url.startswith("data:")]
    assert len(outside) == 1, outside
    assert errors == []
    # The check finds a planted fault.
    page.evaluate("document.querySelector('h1').style.color = '#fefefe'")
    page.evaluate("document.body.append(document.createElement('button'))")
    assert findings(page) != []
    context.close()


@pytest.mark.nightly
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_other_reports_in_a_browser(
    output: Path, browser: Any, scheme: str, tmp_path: Path
) -> None:
    training(tmp_path / "trained")
    evaluate(shutil.copytree(output, tmp_path / "out"), tmp_path)
    assert CliRunner().invoke(app, ["report", str(tmp_path / "trained")]).exit_code == 0
    for page_of in ("trained", "out/evaluation"):
        context = browser.new_context(offline=True, color_scheme=scheme, bypass_csp=True)
        page = context.new_page()
        page.goto((tmp_path / page_of / "report.html").as_uri())
        assert findings(page) == []
        assert page.locator("i, b").count() == 0
        context.close()
