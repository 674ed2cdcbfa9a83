"""Learner: the loop that trains a network.

Steps go through `keras.Model.train_on_batch`, so any backend of keras does the arithmetic; the next
batches are drawn by a thread meanwhile. After each epoch the network is measured on the validation
images, and a checkpoint written: weights, optimiser, and how far it is. With what a step sees drawn
by (seed, epoch, step), a training that is stopped anywhere and started again ends with the same
weights as one that never was.

Under mixed precision the network computes in bfloat16 and keeps its weights in float32; what is
saved is the same network in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RecipeError, RunError, Stopped
from maskloom.segcore.training import checkpoint
from maskloom.segcore.training.checkpoint import TrainingState
from maskloom.segcore.training.optimisers import compiled, optimiser, precision
from maskloom.segcore.training.sampling import Batch, Sampler, SamplingOptions

if TYPE_CHECKING:
    from maskloom.segcore.storage.store import Store
    from maskloom.segcore.training.recipe import Training
    from maskloom.segcore.training.setup import ProgressMonitor, TrainingSetup, TrainingTask

STOPPED = "Training was stopped; the same command goes on."
"""What is said where somebody asked it to stop."""
_AHEAD = 3
"""Batches that are drawn before they are needed."""
_MOST_WINDOWS = 400
"""Windows that an epoch is measured on at most; of more, every n-th counts."""


class TrainingLoop:
    """A network in training."""

    def __init__(self, lesson: TrainingSetup, subject: TrainingTask, store: Store) -> None:
        import keras

        recipe = lesson.recipe
        # Counted once: it is a sum over all images.
        self._lesson, self._subject, self._store, self._steps = lesson, subject, store, lesson.steps
        with precision(recipe.training.precision):
            keras.utils.set_random_seed(recipe.training.seed)
            self._model = recipe.network.build(lesson.channels, len(recipe.classes))
            self._trainer, loss = subject.trainer(self._model)
        self._trainer.compile(
            optimizer=optimiser(recipe, self._steps), loss=loss, jit_compile=compiled(self._trainer)
        )
        self._trainer.optimizer.build(self._trainer.trainable_variables)
        self._standing = TrainingState(plans=((0, recipe.training.epochs),))

    @property
    def standing(self) -> TrainingState:
        """How far training is."""
        return self._standing

    def resume(self, watch: ProgressMonitor) -> None:
        """Go on from the last checkpoint, where there is one.

        Raises `RunError` where it is broken or of another network, `RecipeError` where so short a
        training would have ended before.
        """
        found = checkpoint.read(self._store)
        if found is None:
            return
        standing, values = found
        variables = self._variables()
        if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
            raise RunError(
                f"The checkpoint in {self._store.root} is of another version of the network. "
                "Remove the folder "
                f"{self._store.uri(checkpoint.FOLDER)} to start again."
            )
        self._standing = planned(standing, self._lesson.recipe.training, self._steps)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        if len(self._standing.plans) > len(standing.plans):
            watch.say(
                f"{self._lesson.recipe.training.epochs} epochs instead of {standing.plans[-1][1]}: "
                "the rate follows the longer schedule from "
                f"here on ({self._rate():.2g} now). The weights will not be those of a training "
                "that had as many from the start."
            )

    def run(self, watch: ProgressMonitor, stop: Callable[[], bool]) -> None:
        """Train to the end. Raises `Stopped` after a step where `stop` says so, or between windows
        that are measured, with a checkpoint written.
        """
        watch.begin(self._lesson, self._subject.score_name, self._standing)
        while not self._over:
            self._finish_steps(watch, stop)
            self._finish_epoch(watch, stop)
            self._write()
            checkpoint.forget_all_but(self._store, self._standing.best_epoch)
            watch.epoch(self._standing.history[-1])
            if stop() and not self._over:
                raise Stopped(STOPPED)

    def best(self) -> tuple[Any, Any]:
        """The network at its best, in float32: as it is saved, and as it is measured."""
        recipe, model, trainer = self._lesson.recipe, self._model, self._trainer
        if recipe.training.precision != "float32":
            with precision("float32"):
                model = recipe.network.build(self._lesson.channels, len(recipe.classes))
                trainer, _ = self._subject.trainer(model)
        model.set_weights(checkpoint.read_best(self._store, self._standing.best_epoch))
        return model, trainer

    @property
    def _over(self) -> bool:
        return self._lesson.recipe.training.end(self._standing.scores) is not None

    def _finish_steps(self, watch: ProgressMonitor, stop: Callable[[], bool]) -> None:
        started = time.monotonic()
        # Closed at once where this breaks off: what is drawn ahead reads files that others close
        # then.
        with closing(self._batches()) as batches:
            for batch in batches:
                loss = float(self._trainer.train_on_batch(*self._subject.arguments(batch)))
                self._advance(loss, started)
                started = time.monotonic()
                watch.step(self._standing.epoch + 1, self._standing.step, loss)
                if stop():
                    self._write()
                    raise Stopped(STOPPED)

    def _advance(self, loss: float, started: float) -> None:
        standing = self._standing
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} in epoch {standing.epoch + 1}, step {standing.step + 1}. "
                "Lower training.rate, check that `scaling` "
                "brings the pixels to about -1 to 1, and name another folder in `output`."
            )
        seconds = standing.seconds + time.monotonic() - started
        self._standing = replace(
            standing, step=standing.step + 1, losses=(*standing.losses, loss), seconds=seconds
        )

    def _batches(self) -> Generator[Batch]:
        """The rest of the epoch's batches, a few of them drawn ahead by a thread that ends with
        this generator.
        """
        lesson, wanted = self._lesson, self._lesson.recipe.training
        drawing = SamplingOptions(
            lesson.frame, wanted.batch, wanted.balance, wanted.seed, lesson.recipe.augmentation
        )
        sampler = Sampler(lesson.collection, lesson.found, lesson.training, lesson.scaling, drawing)
        epoch, first = self._standing.epoch, self._standing.step
        with ThreadPoolExecutor(1) as pool:
            waiting = [
                pool.submit(sampler.batch, epoch, step)
                for step in range(first, min(first + _AHEAD, self._steps))
            ]
            for step in range(first, self._steps):
                batch = waiting.pop(0).result()
                if step + _AHEAD < self._steps:
                    waiting.append(pool.submit(sampler.batch, epoch, step + _AHEAD))
                yield batch

    def _finish_epoch(self, watch: ProgressMonitor, stop: Callable[[], bool]) -> None:
        standing, started = self._standing, time.monotonic()

        def told(windows: int, of: int) -> None:
            watch.measured(windows, of)
            if stop():
                self._write()
                raise Stopped(STOPPED)

        measured = self._subject.measure(self._trainer, _MOST_WINDOWS, told)
        before = sum(record["seconds"] for record in standing.history)
        spent = standing.seconds - before
        record = {
            "epoch": standing.epoch + 1,
            "loss": round(float(np.mean(standing.losses)), 6),
            **measured.record,
            "score": round(measured.score, 6),
            "rate": float(f"{self._rate():.4g}"),
            "patches_per_second": round(
                self._steps * self._lesson.recipe.training.batch / max(spent, 1e-9), 2
            ),
            "seconds": round(spent + time.monotonic() - started, 3),
        }
        history = (*standing.history, record)
        self._standing = TrainingState(
            seconds=before + record["seconds"], history=history, plans=standing.plans
        )
        if self._standing.best_epoch == len(history):
            weights = [np.asarray(value) for value in self._model.get_weights()]
            checkpoint.write_best(self._store, len(history), weights)

    def _write(self) -> None:
        import keras

        values = [np.array(keras.ops.convert_to_numpy(variable)) for variable in self._variables()]
        checkpoint.write(self._store, self._standing, values)

    def _rate(self) -> float:
        """The learning rate now."""
        import keras

        return float(keras.ops.convert_to_numpy(self._trainer.optimizer.learning_rate))

    def _variables(self) -> list[Any]:
        # The state of random layers is among those that are not trained.
        model = self._trainer
        return [
            *model.trainable_variables,
            *model.non_trainable_variables,
            *model.optimizer.variables,
        ]


def planned(standing: TrainingState, wanted: Training, steps: int) -> TrainingState:
    """How far a training is, with the plan that it goes on by. Raises `RecipeError` where it cannot
    go on by this one.

    A rate that does not depend on the number of epochs stays what it would have been with this plan
    from the start. One that does goes on along the longer schedule; that it once followed another
    is kept. Nothing leads back from there, so a shorter schedule is refused.
    """
    end, done = wanted.end(standing.scores), standing.epoch * steps + standing.step
    if end is not None and end < standing.epoch:
        raise RecipeError(
            f"training: with {wanted.epochs} epochs and a patience of "
            f"{wanted.patience or 'any number'} this training would have ended with "
            f"epoch {end}; it has finished {standing.epoch}. Raise `epochs` or `patience`, or name "
            "another folder in `output`."
        )
    first, before = standing.plans[-1]
    if wanted.epochs == before or wanted.schedule == "constant" or done <= wanted.warmup:
        return replace(standing, plans=(*standing.plans[:-1], (first, wanted.epochs)))
    if wanted.epochs < before:
        raise RecipeError(
            f"training.epochs was {before} and is {wanted.epochs}: the rate of schedule "
            f"{wanted.schedule} follows the number of epochs, so such a "
            "training can be lengthened, but not shortened. Name another folder in `output`, or "
            "let it end as it was."
        )
    # Where patience ends it all the same, no step follows the longer schedule.
    return (
        standing
        if end is not None
        else replace(standing, plans=(*standing.plans, (done, wanted.epochs)))
    )
