"""Alerts of whole runs: raised once, ended, sent at least once, the same after a kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as ds
import pytest
import rasterio
import yaml
from affine import Affine
from hooks_support import Hook
from typer.testing import CliRunner

from maskloom.flows.cli import app

UTM = {"crs": "EPSG:32633", "transform": Affine(10, 0, 500000, 0, -10, 5300000)}
SIDE = 50
"""50 x 50 pixels of 100 m2 are 25 ha, and some 0.08 % more on the ground."""


@pytest.fixture
def hook() -> Iterator[Hook]:
    found = Hook()
    yield found
    found.close()


def scene(folder: Path, name: str, burned: int, date: str = "") -> None:
    """An image with so many burned rows of 0.5 ha."""
    pixels = np.full((SIDE, SIDE), 10, np.uint8)
    pixels[:burned] = 200
    folder.mkdir(exist_ok=True)
    with rasterio.open(
        folder / f"{name}.tif",
        "w",
        driver="GTiff",
        width=SIDE,
        height=SIDE,
        count=1,
        dtype="uint8",
        **UTM,
    ) as file:
        if date:
            file.update_tags(TIFFTAG_DATETIME=f"{date} 12:00:00")
        file.write(pixels, 1)


def run(folder: Path, alerts: Any, *more: str, hook: Hook | None = None, **recipe: Any) -> str:
    document = {
        "inputs": "images",
        "output": "out",
        "segmenter": {"kind": "threshold", "value": 100, "classes": ["land", "burned"]},
        "cluster": "serial",
        "alerts": alerts,
        **({"notify": [{"webhook": hook.url}]} if hook else {}),
        **recipe,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    command = ["run", str(folder / "recipe.yaml"), "--no-prefect", "--quiet", *more]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    return done.output


def table(folder: Path) -> list[dict[str, Any]]:
    found = ds.dataset(folder / "out" / "tables" / "alerts").to_table().to_pylist()
    return sorted(found, key=lambda row: (row["subject"], row["sequence"]))


def states(folder: Path) -> list[tuple[str, str]]:
    return [(row["subject"], row["state"]) for row in table(folder)]


def test_an_alert_is_raised_once_and_ends_once(tmp_path: Path, hook: Hook) -> None:
    images = tmp_path / "images"
    fire = {"fire": {"when": "burned > 5 ha", "until": "burned < 2 ha"}}
    scene(images, "a", 12)
    scene(images, "b", 3)
    said = run(tmp_path, fire, hook=hook)
    assert "alert: fire raised for a: burned > 5 ha (burned.area = 6.005 ha)" in said
    assert states(tmp_path) == [("a", "raised")]
    run(tmp_path, fire, hook=hook)
    scene(images, "a", 6)
    run(tmp_path, fire, hook=hook)
    assert states(tmp_path) == [("a", "raised")], "3 ha are between both conditions"
    scene(images, "a", 2)
    run(tmp_path, fire, hook=hook)
    assert states(tmp_path) == [("a", "raised"), ("a", "ended")]
    scene(images, "a", 40)
    run(tmp_path, fire, hook=hook)
    assert [event["state"] for event in hook.received] == ["raised", "ended", "raised"]
    assert [event["event_id"] for event in hook.received] == hook.keys
    assert len(set(hook.keys)) == 3
    kept = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"c0ffee-canary" not in kept


def test_what_was_not_received_is_sent_by_the_next_run(tmp_path: Path, hook: Hook) -> None:
    scene(tmp_path / "images", "a", 12)
    hook.broken = True
    said = run(tmp_path, {"fire": "burned > 5 ha"}, hook=hook)
    assert "not sent: fire: webhook at 127.0.0.1: it answered 503" in said
    assert "c0ffee-canary" not in said
    assert "the next run sends them again" in said
    hook.broken = False
    run(tmp_path, {"fire": "burned > 5 ha"}, hook=hook)
    run(tmp_path, {"fire": "burned > 5 ha"}, hook=hook)
    assert [event["subject"] for event in hook.received] == ["a"]


def test_a_run_that_died_in_between_sends_the_same_event(
    tmp_path: Path, hook: Hook, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskloom.flows import watching

    class Killed(BaseException):
        pass

    def die(*_: Any) -> None:
        raise Killed

    scene(tmp_path / "images", "a", 12)
    rules = {"fire": "burned > 5 ha"}
    for step in ("record", "unsent", "send", "note_sent"):
        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(watching, step, die)
            run(tmp_path, rules, hook=hook)
    run(tmp_path, rules, hook=hook)
    assert len(table(tmp_path)) == 1
    assert len(set(hook.keys)) == 1
    assert len(hook.received) == 2, "once more, since nobody noted that it was received"
    run(tmp_path, rules, hook=hook)
    assert len(hook.received) == 2


def test_growth_is_that_of_dates(tmp_path: Path) -> None:
    images = tmp_path / "images"
    spread = {
        "spread": {
            "when": "burned.area > 5 ha and burned.growth > 1 ha/day",
            "of": "collection",
        }
    }
    scene(images, "a", 4, "2026:07:01")
    run(tmp_path, spread)
    assert states(tmp_path) == [("", "unknown")]
    assert "burned.growth is not known: there is no earlier date" in table(tmp_path)[0]["reason"]
    scene(images, "b", 14, "2026:07:05")
    run(tmp_path, spread)
    # (7 ha - 2 ha) / 4 days
    assert table(tmp_path)[-1]["reason"] == "burned.area = 7.006 ha, burned.growth = 1.251 ha/day"
    assert [state for _, state in states(tmp_path)] == ["unknown", "raised"]
    scene(images, "c", 15, "2026:07:06")
    run(tmp_path, spread)
    assert [state for _, state in states(tmp_path)] == ["unknown", "raised", "ended"]


def test_zones_and_objects_raise_alerts(tmp_path: Path) -> None:
    geopandas = pytest.importorskip("geopandas")
    shapely = pytest.importorskip("shapely")
    pytest.importorskip("exactextract")
    scene(tmp_path / "images", "a", 12)
    fields = [
        shapely.box(500000, 5299500, 500250, 5300000),
        shapely.box(500250, 5299500, 500500, 5299700),
    ]
    geopandas.GeoDataFrame(geometry=fields, crs=32633).to_file(tmp_path / "fields.gpkg")
    rules = {
        "field": {"when": "burned.share > 0.2", "of": "zone"},
        "large": "burned.objects == 1 and burned.largest > 5 ha",
        "ratio": "land / burned > 1000000",
    }
    run(tmp_path, rules, zones="fields.gpkg", statistics=["objects"])
    assert [(row["alert"], row["subject"], row["state"]) for row in table(tmp_path)] == [
        ("field", "0", "raised"),
        ("large", "a", "raised"),
    ]


def test_a_dry_run_says_what_would_be_said_and_does_nothing(tmp_path: Path) -> None:
    scene(tmp_path / "images", "a", 12)
    scene(tmp_path / "images", "b", 0)
    run(tmp_path, {})
    run(tmp_path, {"fire": "burned > 5 ha", "ratio": "land / burned > 3"}, "--set", "output=o2")
    before = sorted((tmp_path / "out").rglob("*"))
    command = ["alerts", str(tmp_path / "recipe.yaml")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0
    assert "fire raised for a: burned > 5 ha (burned.area = 6.005 ha)" in done.output
    assert "ratio unknown for b: land / burned > 3 (a division by zero)" in done.output
    assert "ratio raised for a" in done.output
    assert "3 events that a run would record" in done.output
    assert sorted((tmp_path / "out").rglob("*")) == before


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alerts": {"a": "burnt > 1 ha"}}, "no class 'burnt'"),
        ({"alerts": {"a": {"when": "burned > 1 ha", "of": "zone"}}}, "needs `zones`"),
        ({"alerts": {"a": "burned.objects > 1"}}, "statistics: [objects]"),
        ({"notify": [{"webhook": "mailto:x"}]}, "expected an address that begins with https"),
        ({"notify": [{}]}, "expected either webhook or block"),
    ],
)
def test_false_alerts_are_refused_before_work(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    scene(tmp_path / "images", "a", 1)
    document = {
        "inputs": "images",
        "output": "out",
        "segmenter": {"kind": "threshold", "value": 100, "classes": ["land", "burned"]},
        "cluster": "serial",
        **changes,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    done = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--no-prefect"])
    assert done.exit_code == 2
    assert message in done.output
