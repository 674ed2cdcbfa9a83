"""A run at work, as others see it: its state from any machine, and its log file."""

from __future__ import annotations

import json
import logging
import shutil
import time

import pytest

from maskloom.flows.commands.log_file import written_to
from maskloom.segcore.errors import RecipeError, RunError
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits import presence
from maskloom.tasks.publish import Tables

QUIET = ("--no-prefect", "--quiet")


def test_others_see_how_far_a_run_is(collection, maskloom, monkeypatch):
    """Looked at in the middle of a run, before its first commit."""
    recipe = collection.recipe(inputs=["images/*.png"])
    seen = {}
    publish = Tables.publish

    def looking(tables: Tables, *arguments: object) -> None:
        while True:
            (process,) = presence.processes(Store(str(collection.output)))
            if process.position.get("stage") == "segment":
                break
            time.sleep(0.01)
        seen["text"] = maskloom("status", collection.output)
        seen["json"] = maskloom("status", collection.output, "--json")
        # The same, as if the run were of another machine that has not been heard of for an hour.
        monkeypatch.setattr(presence, "is_writer_alive", lambda _: None)
        monkeypatch.setattr(time, "time", lambda clock=time.time: clock() + 3600)
        seen["silent"] = maskloom("status", collection.output)
        monkeypatch.undo()
        publish(tables, *arguments)

    monkeypatch.setattr(presence, "RENEWED_SECONDS", 0.01)
    monkeypatch.setattr(Tables, "publish", looking)
    assert maskloom("run", recipe, *QUIET).exit_code == 0

    first, *rest = seen["text"].stdout.splitlines()
    assert first.startswith("at work: recipe-")
    assert "segment: " in first
    assert rest == ["done 0", "failed 0", "left 2"]
    assert "Run the recipe again" not in seen["text"].stderr
    found = json.loads(seen["json"].stdout)
    (process,) = found["processes"]
    assert (found["left"], process["stage"], process["run_id"]) == (
        2,
        "segment",
        found["open_runs"][0],
    )
    assert process["pixels"] == 300 * 500 + 1
    assert seen["silent"].stdout.startswith("no sign of life: recipe-")
    assert "as of 1 h" in seen["silent"].stdout

    after = json.loads(maskloom("status", collection.output, "--json").stdout)
    assert (after["done"], after["processes"]) == (2, [])


@pytest.mark.parametrize("name", ["run.log", "run.jsonl"])
def test_the_log_file_has_the_lines_of_every_run(collection, maskloom, name):
    recipe = collection.recipe(inputs=["images/*.png"], max_failed_fraction=1)
    (collection.folder / "images" / "broken.png").write_text("no picture")
    log = collection.folder / "logs" / name
    for code in (3, 3):
        assert maskloom("run", recipe, *QUIET, "--log-file", log).exit_code == code
    shutil.rmtree(collection.folder / "images")
    assert maskloom("run", recipe, *QUIET, "--log-file", log).exit_code == 2
    lines = log.read_text().splitlines()
    if name.endswith(".jsonl"):
        assert [set(json.loads(each)) for each in lines] == [{"time", "level", "message"}] * len(
            lines
        )
    text = "\n".join(lines)
    assert text.count("run " + str(recipe)) == 3
    for said in ("broken.png: FormatError", "2 images done, 1 failed", "nothing to do: 3 images"):
        assert text.count(said) == 1
    assert "error" in lines[-1]
    assert "no sign" not in text


def test_the_log_file_has_no_secrets_and_no_forged_lines(tmp_path):
    path = tmp_path / "log"
    with pytest.raises(RunError), written_to(path, "run r.yaml"):
        logging.getLogger("a.library").warning("see https://me:canary@h/a?sig=canary\nforged")
        raise RunError("no https://h/a?token=canary\x1b[2J")
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert "canary" not in path.read_text()
    assert "\x1b" not in path.read_text()
    with pytest.raises(RecipeError, match="--log-file"), written_to(tmp_path, "run r.yaml"):
        pass
