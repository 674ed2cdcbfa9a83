"""The progress of a training: its steps, epochs and measurements."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from maskloom.flows.progress.displays import Position, Quiet
from maskloom.flows.terminal import count, duration

if TYPE_CHECKING:
    from maskloom.segcore.training.checkpoint import TrainingState
    from maskloom.segcore.training.setup import TrainingSetup

log = logging.getLogger("maskloom.train")


class TrainingProgress:
    """The progress of a training (`segcore.training.setup.ProgressMonitor`)."""

    def __init__(self, shown_by: Quiet) -> None:
        self._display = shown_by
        self._position = Position("starting")
        self._epochs = self._steps = 0
        self._score_name = ""
        shown_by.begin(lambda: self._position)

    def say(self, text: str) -> None:
        """Show a line that users must see."""
        self._display.notice(text)

    def checked(self, what: str, done: int, of: int) -> None:
        """Show how many images or masks are checked before training begins."""
        self._show(Position(f"looking at {what}", (f"{done}/{of}",), done, of))

    def begin(self, setup: TrainingSetup, score_name: str, state: TrainingState) -> None:
        """Report what is trained, and begin a pass at the present state of the training."""
        self._epochs, self._steps = setup.recipe.training.epochs, setup.steps
        self._score_name = score_name
        self._report(introduction(setup, state))
        done = state.epoch * self._steps + state.step
        self._position = Position("train", (), done, self._epochs * self._steps)
        self._display.begin(lambda: self._position)

    def step(self, epoch: int, step: int, loss: float) -> None:
        """Show a finished step of an epoch, both counted from 1."""
        details = (f"step {step}/{self._steps}", f"loss {loss:.4f}")
        done = (epoch - 1) * self._steps + step
        total = self._epochs * self._steps
        self._show(Position(f"epoch {epoch}/{self._epochs}", details, done, total))

    def measured(self, windows: int, of: int) -> None:
        """Show how many windows of the validation images are measured."""
        total = self._position.total
        self._show(Position("measuring", (f"{windows}/{of} windows",), total=total))

    def epoch(self, record: Mapping[str, Any]) -> None:
        """Report a finished epoch."""
        self._report(epoch_line(record, self._epochs, self._score_name))

    def look(self, location: str) -> None:
        """Report a picture of predictions, which is worth a look while training continues."""
        self._report(f"First predictions beside the truth: {location}")

    def _report(self, text: str) -> None:
        log.info("%s", text)
        self._display.report(text)

    def _show(self, position: Position) -> None:
        self._position = position
        self._display.update()


def introduction(setup: TrainingSetup, state: TrainingState) -> str:
    """A line on what is trained on which images, and on the state from which it continues."""
    wanted = setup.recipe.training
    step = f", step {state.step}" if state.step else ""
    after = f", continuing after epoch {state.epoch}{step}" if state.epoch or state.step else ""
    return (
        f"Training {setup.recipe.kind} on {count(len(setup.training), 'image')}, measuring on "
        f"{len(setup.validation)}: "
        f"{count(wanted.epochs, 'epoch')} of {count(setup.steps, 'step')} of "
        f"{count(wanted.batch, 'patch', 'patches')}{after}"
    )


def epoch_line(record: Mapping[str, Any], epochs: int, score_name: str) -> str:
    """A line with losses, score and speed of an epoch, and the time left."""
    left = (epochs - record["epoch"]) * record["seconds"]
    # Whatever the loss is: the two are not to be compared.
    validation = (
        f", validation cross-entropy {record['validation_loss']:.4f}"
        if "validation_loss" in record
        else ""
    )
    return (
        f"epoch {record['epoch']}/{epochs}: loss {record['loss']:.4f}{validation}, {score_name} "
        f"{record['score']:.4f}, "
        f"{record['patches_per_second']:.1f} patches/s, {duration(left)} left"
    )
