"""A whole run without a command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from PIL import Image
from tests_support import assert_same_results, photograph

from maskloom.flows.progress.displays import Both, Position, Quiet
from maskloom.flows.recipes.run import make
from maskloom.flows.run import RunOptions, run
from maskloom.flows.stages import Plain, Stages, Watched
from maskloom.segcore.errors import RecipeError, Stopped

T = TypeVar("T")


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
    assert ".xyz" in notes[0]

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


class StopsAfterAJob(Plain):
    """Asks the run to stop when its first job of segmenting is done."""

    def flow(self, run: Watched, body: Callable[[Stages], T]) -> T:
        class Stopping(Quiet):
            def begin(self, position: Callable[[], Position]) -> None:
                self.segments = position().label == "segment"

            def update(self) -> None:
                if self.segments:
                    run.stop("enough")

        class Watching(Stages):
            def shown_by(self, display: Quiet) -> Quiet:
                return Both(display, Stopping())

        return body(Watching())


def test_a_stopped_run_commits_what_is_finished(tmp_path: Path) -> None:
    for i in range(8):
        Image.linear_gradient("L").rotate(45 * i).save(tmp_path / f"{i}.png")
    document = {
        "inputs": str(tmp_path / "*.png"),
        "output": "out",
        "segmenter": {"kind": "kmeans", "clusters": 2},
        "cluster": "serial",
    }
    recipe = make(document, tmp_path)
    with pytest.raises(Stopped) as stopped:
        run(recipe, RunOptions(quiet=True), StopsAfterAJob())
    (note,) = stopped.value.__notes__
    done = int(note.removesuffix(" of 8 images done, 0 failed."))
    assert 0 < done < 8
    assert len(list((tmp_path / "out" / "masks").iterdir())) == done
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "masks").iterdir()}

    result = run(recipe, RunOptions(quiet=True))
    assert result.outcome is not None
    assert (result.outcome.done, result.outcome.failed) == (8, 0)
    assert {path: path.stat().st_mtime_ns for path in made} == made, "done again"
    undisturbed = make({**document, "output": "whole"}, tmp_path)
    run(undisturbed, RunOptions(quiet=True))
    assert_same_results(tmp_path / "out", tmp_path / "whole")


def test_a_dry_run_names_the_first_unreadable_images_and_counts_the_others(
    document: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from maskloom.flows import dry_run

    monkeypatch.setattr(dry_run, "_FAILURES_NAMED", 2)
    for number in range(4):
        (tmp_path / "in" / f"{number}.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")

    said = dry_run.dry_run(make(document, tmp_path)).splitlines()

    assert "images 7 of 7 (5 unreadable)" in said
    unreadable = [line for line in said if line.startswith("unreadable: ")]
    assert len(unreadable) == 3
    assert unreadable[-1] == "unreadable: 3 more"
