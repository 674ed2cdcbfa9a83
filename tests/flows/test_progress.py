"""What people see of a run or a training under way."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from rich.console import Console

from maskloom.flows.progress.displays import Bar, Lines, Position, Quiet
from maskloom.flows.progress.run import Counter, ItemProgress, RunProgress
from maskloom.flows.progress.training import TrainingProgress
from maskloom.segcore.geometry import Tiling
from maskloom.segcore.ground.space import AXES, Space
from maskloom.segcore.pipeline.jobs import FinishJob, ImagesJob, RunSettings, TileRangeJob
from maskloom.segcore.pipeline.records import PlannedImage
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.segmenters.threshold import Threshold
from maskloom.segcore.training.checkpoint import TrainingState

SETTINGS = RunSettings("out", "run", Threshold(), {}, tiling=Tiling(64))
SETUP = SimpleNamespace(
    recipe=SimpleNamespace(kind="unet", training=SimpleNamespace(epochs=3, batch=2)),
    training=(0, 1, 2),
    validation=(3,),
    steps=4,
)
EPOCH = {"epoch": 2, "seconds": 60.0, "loss": 0.5, "score": 0.75, "patches_per_second": 8.0}


def image(name: str, *shape: int) -> PlannedImage:
    """An image with this side, or a volume of this shape."""
    shape = shape if shape[1:] else shape * 2
    space = Space(axes=AXES[-len(shape) :])
    spec = RasterSpec(name, "tiff", shape, (1,), "uint8", (16,) * len(shape), "1", 1, space=space)
    return PlannedImage(Source(name, name, "1", 1), spec)


def comes_true(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 60
    while not (true := condition()) and time.monotonic() < deadline:
        time.sleep(0.02)
    return true


# Runs


def test_a_pass_ends_with_all_images_tiles_and_pixels_counted() -> None:
    small, large = image("small", 60), image("large", 200)
    counter = Counter(
        "segment", [small, large, PlannedImage(Source("broken", "broken", "1", 1), None)], SETTINGS
    )

    counter.add(ImagesJob(SETTINGS, (small,)))
    for first in range(0, 16, 4):
        counter.add(TileRangeJob(SETTINGS, large, first, first + 4))
    counter.add(FinishJob(SETTINGS, large, ()))

    assert (
        (counter.images, counter.tiles, counter.pixels)
        == (counter.all_images, counter.all_tiles, counter.all_pixels)
        == (3, 17, 43_600)
    )
    position = counter.position()
    assert (position.done, position.total) == (43_600, 43_600)
    assert str(position).startswith("segment: 3/3 images, 17/17 tiles, ")
    assert str(position).endswith("px/s, 0 s left")


def test_volumes_have_voxels() -> None:
    volumes = [image("volume", 60, 60, 60)]
    for images, unit in ((volumes, "vx"), ([*volumes, image("a", 9)], "px")):
        counter = Counter("fit", images, SETTINGS)
        counter.add(ImagesJob(SETTINGS, (images[0],)))
        assert f"{unit}/s, " in str(counter.position())


def test_a_bar_follows_a_run_from_pass_to_pass() -> None:
    small = image("small", 60)
    with Bar(Console(file=io.StringIO(), width=200)) as bar:
        progress = RunProgress(bar)
        for stage in ("fit", "segment"):
            progress.start(stage, [small], SETTINGS)
            (task,) = bar._bar.tasks
            assert (task.description.strip(), task.completed, task.total) == (stage, 0, 3600)
            progress.advance(ImagesJob(SETTINGS, (small,)))
            assert task.completed == 3600
            assert task.fields["detail"].startswith("1/1 images  1/1 tiles  ")


@pytest.mark.parametrize("width", [30, 45, 60, 80, 200])
def test_a_bar_stays_in_its_line_and_tells_what_fits(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    with Bar(console) as bar:
        progress = RunProgress(bar)
        progress.start("segment", [image(str(i), 60) for i in range(1200)], SETTINGS)
        progress.advance(ImagesJob(SETTINGS, (image("0", 60),)))
        console.file.seek(0)
        console.file.truncate()
        bar._bar.refresh()
        *_, drawn = re.findall(r"segment[^\r\n\x1b]*", console.file.getvalue())
    assert len(drawn.rstrip()) <= width
    assert ("1/1,200 images" in drawn) == (width > 40)
    assert ("/s" in drawn) == (width >= 80)


def test_lines_come_by_the_clock_even_when_no_job_ends() -> None:
    stream = io.StringIO()
    with Lines(stream, seconds=0.02) as lines:
        assert comes_true(lambda: stream.getvalue().count("starting\n") >= 3)
        RunProgress(lines).start("fit", [image("small", 60)], SETTINGS)
        assert comes_true(lambda: stream.getvalue().count("fit: 0/1 images, 0/1 tiles") >= 2)


def test_lines_wait_after_another_line() -> None:
    stream = io.StringIO()
    with Lines(stream, seconds=3600.0) as lines:
        lines.notice("evil\x1b[2J.png")
        lines.report("an epoch")
    assert stream.getvalue() == "evil\\x1b[2J.png\nan epoch\n"


# Trainings


def test_lines_tell_where_a_training_is() -> None:
    now: list[Callable[[], Position]] = []

    class Display(Quiet):
        def begin(self, position: Callable[[], Position]) -> None:
            now[:] = [position]

    progress = TrainingProgress(Display())
    seen = []
    for act in (
        lambda: progress.checked("digests", 3, 9),
        lambda: progress.begin(SETUP, "mean IoU", TrainingState()),
        lambda: progress.step(2, 3, 0.25),
        lambda: progress.measured(7, 40),
    ):
        act()
        seen.append(str(now[0]()))
    assert seen == [
        "looking at digests: 3/9",
        "train",
        "epoch 2/3: step 3/4, loss 0.2500",
        "measuring: 7/40 windows",
    ]


def test_a_bar_starts_at_the_state_of_the_training() -> None:
    console = Console(file=io.StringIO(), width=200)
    state = TrainingState(step=1, history=({"epoch": 1, "score": 0.5},), plans=((0, 3),))
    with Bar(console) as bar:
        progress = TrainingProgress(bar)
        progress.checked("digests", 3, 9)
        progress.begin(SETUP, "mean IoU", state)
        (task,) = bar._bar.tasks
        assert (task.completed, task.total, task.speed) == (5, 12, None)
        progress.step(2, 2, 0.5)
        assert task.completed == 6
        progress.measured(7, 40)
        assert (task.completed, task.total) == (6, 12)
        assert task.fields["detail"] == "7/40 windows"
        progress.epoch(EPOCH)
        progress.epoch({**EPOCH, "epoch": 3, "validation_loss": 0.25})
    shown = console.file.getvalue()
    assert "Training unet on 3 images, measuring on 1: 3 epochs of 4 steps of 2 patches" in shown
    assert "continuing after epoch 1, step 1" in shown
    assert "epoch 2/3: loss 0.5000, mean IoU 0.7500, 8.0 patches/s, 60 s left" in shown
    assert "epoch 3/3: loss 0.5000, validation cross-entropy 0.2500, mean IoU" in shown


def test_quiet_shows_notices_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Quiet() as quiet:
        training, run = TrainingProgress(quiet), RunProgress(quiet)
        training.begin(SETUP, "mean IoU", TrainingState())
        training.step(1, 1, 0.5)
        training.epoch(EPOCH)
        run.start("fit", [image("small", 60)], SETTINGS)
        training.say("a mask has no class")
    assert capsys.readouterr() == ("", "a mask has no class\n")


def test_items_of_equal_weight_are_counted() -> None:
    seen: list[str] = []

    class Display(Quiet):
        def begin(self, position: Callable[[], Position]) -> None:
            self.position = position
            self.update()

        def update(self) -> None:
            seen.append(str(self.position()))

    progress = ItemProgress(Display(), "evaluate", "images", 3)
    progress(1)
    progress(3)
    assert [text.split(",")[0] for text in seen] == [
        f"evaluate: {done}/3 images" for done in (0, 1, 3)
    ]
    assert seen[-1].endswith("/s, 0 s left")
