"""A read that never ends is one failed row, wherever it hangs; what hangs here is let go when the
test is over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from tests_support import photograph, read_masks, read_table, write_tiff

from maskloom.segcore.errors import RunError, TimedOut, WeightsError, WorkerDied
from maskloom.segcore.raster.spec import FORMATS
from maskloom.tasks import batching
from maskloom.tasks import select_engine as selection
from maskloom.tasks.fanout import serial as serial_fanout
from maskloom.tasks.fanout.serial import threads_left_behind

QUIET = ("--no-prefect", "--quiet", "--set", "cluster.kind=serial", "--set", "limits.read=0.5")


@pytest.fixture
def hang(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever is done with a file whose name begins with the name of a method ends when the test
    does.
    """
    over = threading.Event()
    for image_format in (FORMATS["picture"], FORMATS["tiff"]):
        for method in ("describe", "open"):
            real = getattr(type(image_format), method)

            def hanging(*arguments: object, method: str = method, real: object = real) -> object:
                location = getattr(arguments[1], "location", arguments[1])
                if Path(str(location)).name.startswith(method):
                    over.wait()
                return real(*arguments)  # type: ignore[operator]

            monkeypatch.setattr(type(image_format), method, hanging)
    yield
    over.set()
    for thread in threading.enumerate():
        if thread.name == "maskloom-job":
            thread.join()
    assert not threads_left_behind()


@pytest.mark.usefixtures("hang")
@pytest.mark.parametrize("fit", ["collection", "image"])
def test_an_image_that_hangs_is_one_failed_row_and_its_neighbours_are_done(
    tmp_path, maskloom, monkeypatch, fit
):
    monkeypatch.setattr(batching, "RANGE_PIXELS", 2**16)
    monkeypatch.setattr(serial_fanout, "_POLL_SECONDS", 0.05)
    images, output = tmp_path / "in", tmp_path / "out"
    images.mkdir()
    for name in ("a", "describe", "open", "z"):
        Image.fromarray(photograph(40, 50)).save(images / f"{name}.png")
    write_tiff(images / "open_large.tif", photograph(512, 512))

    result = maskloom(
        "segment",
        images,
        "-o",
        output,
        "-s",
        "threshold",
        "--fit",
        fit,
        "--set",
        "tiling.tile=256",
        *QUIET,
    )

    assert result.exit_code == 3, result.output
    rows = {row["image_id"]: row for row in read_table(output, "images")}
    assert {name: row["error_type"] for name, row in rows.items()} == {
        "a": None,
        "describe": "TimedOut",
        "open": "TimedOut",
        "open_large": "TimedOut",
        "z": None,
    }
    assert "did not end within 0.5 s" in rows["open"]["error"]
    assert "limits.read" in rows["open"]["error"]
    assert set(read_masks(output)) == {"masks/a.png", "masks/z.png"}


class Answers:
    """A fanout whose jobs were taken apart and have these answers."""

    def __init__(self, *answers: object) -> None:
        self.answers = answers

    def map(self, _: object, jobs: list[object]) -> Iterator[tuple[object, object]]:
        return (
            (job, answer)
            for job, answer in zip(jobs * len(self.answers), self.answers, strict=True)
        )


@pytest.mark.parametrize("death", [TimedOut("it hung"), WorkerDied("it died")])
def test_one_image_that_kills_does_not_keep_a_model_from_being_tried_on_others(monkeypatch, death):
    monkeypatch.setattr(
        selection,
        "pending_selections",
        lambda _: {"engine": SimpleNamespace(pending_selection="engine")},
    )
    items = [SimpleNamespace(spec=1, failure=None)] * 3
    assert selection.select_engines(Answers(death, {"engine": "fast"}), None, items) == {
        "engine": {"engine": "fast"}
    }
    with pytest.raises(
        WeightsError if isinstance(death, TimedOut) else RunError, match=f"cannot be tried: {death}"
    ):
        selection.select_engines(Answers(death, death, {"engine": "fast"}), None, items)
    with pytest.raises(WeightsError if isinstance(death, TimedOut) else RunError):
        selection.select_engines(Answers(death), None, items[:1])
