"""The checks of a machine and of what a recipe needs."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import psutil
import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings
from typer.testing import CliRunner

from maskloom.flows import doctor
from maskloom.flows.cli import app
from maskloom.segcore.storage.store import Store

SECRET = "canary"


@pytest.fixture(autouse=True)
def _without_server():
    with temporary_settings(restore_defaults={PREFECT_API_URL}):
        yield


def recipe(folder: Path, **keys: object) -> Path:
    (folder / "in").mkdir(exist_ok=True)
    path = folder / "r.yaml"
    document = {
        "inputs": ["in"],
        "output": "out",
        "segmenter": "threshold",
        "cluster": {"kind": "serial"},
        **keys,
    }
    path.write_text(json.dumps(document))
    return path


def checks(*arguments: object) -> tuple[int, dict[str, list[dict[str, str]]]]:
    result = CliRunner().invoke(app, ["doctor", *map(str, arguments), "--json"])
    assert SECRET not in result.output
    found: dict[str, list[dict[str, str]]] = {}
    for each in json.loads(result.stdout):
        found.setdefault(each["name"], []).append(each)
    return result.exit_code, found


def verdicts(found: dict[str, list[dict[str, str]]]) -> dict[str, list[str]]:
    return {name: [each["verdict"] for each in every] for name, every in found.items()}


def test_all_is_well_and_nothing_is_left(tmp_path):
    code, found = checks(recipe(tmp_path))
    assert code == 0
    assert {"maskloom", "libraries", "extras", "inputs", "output", "writes", "clock"} <= set(found)
    assert {name for every in verdicts(found).values() for name in every} <= {"ok", "warning"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "r.yaml"]


def test_it_says_what_is_wrong_with_each_and_goes_on(tmp_path):
    path = recipe(tmp_path, inputs=["in", "away/*.png", "gone.png"], output="in/a file/out")
    (tmp_path / "in" / "a file").write_text("where a folder should be")
    # Nobody listens there.
    with temporary_settings({PREFECT_API_URL: f"http://me:{SECRET}@127.0.0.1:9/api"}):
        code, found = checks(path)
    assert code == 1
    said = verdicts(found)
    assert said["inputs"] == ["ok", "failed", "failed"]
    assert (said["output"], said["prefect"]) == (["failed"], ["failed"])
    assert "Correct `inputs`" in found["inputs"][1]["text"]
    assert "use --no-prefect" in found["prefect"][0]["text"]
    assert said["cluster"] == ["ok"]


def test_a_wrong_recipe_is_wrong_usage(tmp_path):
    code, found = checks(recipe(tmp_path, segmenter="thresold"))
    assert code == 2
    assert "threshold" in found["recipe"][0]["text"]
    assert checks(tmp_path / "no-such.yaml")[0] == 2


def test_a_schedule_needs_a_server(tmp_path):
    scheduled = recipe(tmp_path, schedule={"cron": "0 3 * * *"})
    assert verdicts(checks(scheduled)[1])["prefect"] == ["warning"]


def test_a_store_that_ignores_conditions_or_has_another_clock(tmp_path, monkeypatch):
    there = Store.now
    monkeypatch.setattr(Store, "now", lambda self: there(self) + 3600)
    code, found = checks(recipe(tmp_path, output="memory://doctor"))
    assert code == 0
    assert "differ by 36" in found["clock"][0]["text"]
    # fsspec's memory cannot write on condition that a file has not changed.
    assert "only one run at a time" in found["writes"][0]["text"]


def test_little_memory_and_room_are_warnings(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("M", (), {"available": 2**30}))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("D", (), {"free": 2**20}))
    code, found = checks()
    assert code == 0
    assert verdicts(found)["machine"] == verdicts(found)["temporary files"] == ["warning"]


def test_a_library_of_another_version_is_named_with_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "_installed", lambda name: None if name == "s3fs" else "0.0.1")
    code, found = checks()
    assert code == 1
    assert any("pip install 'pyarrow" in each["text"] for each in found["libraries"])
    assert "s3 (pip install 'maskloom[s3]')" in found["extras"][0]["text"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_without_permission(tmp_path):
    (tmp_path / "out").mkdir(mode=0o500)
    assert verdicts(checks(recipe(tmp_path))[1])["output"] == ["failed"]


@pytest.mark.nightly
def test_a_cluster_is_joined_and_a_store_is_tried(tmp_path, s3_bucket, two_workers):
    path = recipe(tmp_path, output=f"{s3_bucket}/doctor", cluster=json.loads(two_workers))
    code, found = checks(path)
    assert code == 0
    assert found["cluster"][0]["text"] == "address: 2 threads, the same code as here"
    assert verdicts(found)["writes"] == ["ok"]
    assert Store(f"{s3_bucket}/doctor").names("", "") == []
