"""A whole run without a command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from tests_support import photograph

from maskloom.flows.recipes.run import make
from maskloom.flows.run import RunOptions, run
from maskloom.segcore.errors import RecipeError


@pytest.fixture
def document(tmp_path: Path) -> dict[str, object]:
    (tmp_path / "in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(photograph(40, 50)).save(tmp_path / "in" / f"{name}.png")
    (tmp_path / "in" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    (tmp_path / "in" / "notes.xyz").write_text("no image")
    return {
        "inputs": "in",
        "output": "out",
        "segmenter": {"kind": "threshold", "value": 100, "band": 1},
        "cluster": "serial",
        "schedule": {"cron": "0 3 * * *"},
    }


def test_a_run_gives_what_it_did_and_the_next_one_that_nothing_is_left(
    document: dict[str, object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, options, notes = make(document, tmp_path), RunOptions(quiet=True), []

    first = run(recipe, options, note=notes.append)

    assert first.outcome is not None
    assert (first.outcome.done, first.outcome.failed, first.outcome.pixels) == (2, 1, 4000)
    assert first.some_failed
    assert first.unchanged == 0
    assert {mask.name for mask in (tmp_path / "out" / "masks").iterdir()} == {"a.png", "b.png"}
    assert [note.partition(":")[0] for note in notes[:1]] == ["schedule"]
    assert ".xyz" in notes[1]

    again = run(recipe, options, note=notes.append)

    assert again.outcome is None
    assert (again.unchanged, again.some_failed) == (3, True)
    assert capfd.readouterr() == ("", "")


def test_another_recipe_in_the_same_output_is_refused_unless_asked_for(
    document: dict[str, object], tmp_path: Path
) -> None:
    quiet = RunOptions(quiet=True)
    run(make(document, tmp_path), quiet)
    (tmp_path / "in" / "a.png").unlink()
    other = make({**document, "segmenter": "threshold"}, tmp_path)
    with pytest.raises(RecipeError, match="--keep-other-recipes"):
        run(other, quiet)
    result = run(other, RunOptions(quiet=True, keep_other_recipes=True))
    assert result.outcome is not None
    assert result.outcome.done == 1
    assert result.inventory.removed == 1
