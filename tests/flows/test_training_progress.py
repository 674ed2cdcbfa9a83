"""Progress of trainings: lines and bars."""

from __future__ import annotations

import io
from types import SimpleNamespace

from rich.console import Console

from maskloom.flows import training_progress
from maskloom.segcore.training.checkpoint import TrainingState


def test_half_a_minute_is_the_longest_silence():
    now, out = [0.0], io.StringIO()
    lines = training_progress.Lines(out, lambda: now[0])
    for act in (
        lambda: lines.checked("digests", 3, 9),
        lambda: lines.step(2, 5, 0.25),
        lambda: lines.measured(7, 40),
    ):
        now[0] += 29
        act()
        now[0] += 2
        act()
        act()
    assert [line.split(":")[0] for line in out.getvalue().splitlines()] == [
        "looking at digests",
        "epoch 2/0",
        "measuring",
    ]


def test_a_bar_starts_where_training_stands():
    training = SimpleNamespace(epochs=3, batch=2)
    lesson = SimpleNamespace(
        recipe=SimpleNamespace(kind="unet", training=training),
        training=(0, 1, 2),
        validation=(3,),
        steps=4,
    )
    console = Console(file=io.StringIO(), width=200)
    standing = TrainingState(step=1, history=({"epoch": 1, "score": 0.5},), plans=((0, 3),))
    with training_progress.Bar(console) as bar:
        bar.checked("digests", 3, 9)
        bar.begin(lesson, "mean IoU", standing)
        (task,) = bar._bar.tasks
        assert (task.completed, task.total) == (5, 12)
        bar.step(2, 2, 0.5)
        assert task.completed == 6
    assert "going on after epoch 1, step 1" in console.file.getvalue()
