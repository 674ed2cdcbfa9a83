"""Learner: the loop that trains a network.

Steps go through `keras.Model.train_on_batch`, so any backend of keras does the arithmetic; the next batches are drawn by a thread meanwhile. After
each epoch the network is measured on the validation images, and a checkpoint written: weights, optimiser, and how far it is. With what a step
sees drawn by (seed, epoch, step), a training that is stopped anywhere and started again ends with the same weights as one that never was.

Under mixed precision the network computes in bfloat16 and keeps its weights in float32; what is saved is the same network in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore.errors import RunError, Stopped
from segcore.training import checkpoint
from segcore.training.checkpoint import Standing
from segcore.training.optimisers import compiled, optimiser, precision, schedule
from segcore.training.samples import Batch, Drawing, Sampler

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from segcore.storage import Store
    from segcore.training.lesson import Lesson, Subject, Watch

_AHEAD = 3
"""Batches that are drawn before they are needed."""
_MOST_WINDOWS = 400
"""Windows that an epoch is measured on at most; of more, every n-th counts."""


class Learner:
    """A network in training."""

    def __init__(self, lesson: Lesson, subject: Subject, store: Store) -> None:
        import keras

        recipe = lesson.recipe
        self._lesson, self._subject, self._store = lesson, subject, store
        with precision(recipe.training.precision):
            keras.utils.set_random_seed(recipe.training.seed)
            self._model = recipe.network.build(lesson.channels, len(recipe.classes))
            self._trainer, loss = subject.trainer(self._model)
        self._trainer.compile(optimizer=optimiser(recipe, lesson.steps), loss=loss, jit_compile=compiled(self._trainer))
        self._trainer.optimizer.build(self._trainer.trainable_variables)
        self._standing = Standing()
        self._rates = schedule(recipe, lesson.steps)

    @property
    def standing(self) -> Standing:
        """How far training is."""
        return self._standing

    def resume(self) -> None:
        """Go on from the last checkpoint, where there is one. Raises `RunError` where it is of another network."""
        found = checkpoint.read(self._store)
        if found is None:
            return
        self._standing, values = found
        variables = self._variables()
        if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
            raise RunError(
                f"The checkpoint in {self._store.root} is of another version of the network. Remove the folder "
                f"{self._store.uri(checkpoint.FOLDER)} to start again."
            )
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    def run(self, watch: Watch, stop: Callable[[], bool]) -> None:
        """Train to the end. Raises `Stopped` after a step where `stop` says so, with a checkpoint written."""
        wanted = self._lesson.recipe.training
        watch.begin(self._lesson, self._subject.score_name)
        while not self._standing.over:
            started = time.monotonic()
            for batch in self._batches():
                loss = float(self._trainer.train_on_batch(*self._subject.arguments(batch)))
                self._advance(loss, started)
                started = time.monotonic()
                watch.step(self._standing.epoch + 1, self._standing.step, loss)
                if stop():
                    checkpoint.write(self._store, self._standing, self._values())
                    raise Stopped("Training was stopped; the same command goes on.")
            self._finish_epoch(watch)
            best = self._standing.best_epoch or 0
            tired = wanted.patience is not None and self._standing.epoch - best >= wanted.patience
            if self._standing.epoch >= wanted.epochs or tired:
                self._standing = replace(self._standing, over=True)
            checkpoint.write(self._store, self._standing, self._values())
            checkpoint.forget_all_but(self._store, self._standing.best_epoch)
            watch.epoch(self._standing.history[-1])
            if stop() and not self._standing.over:
                raise Stopped("Training was stopped; the same command goes on.")

    def best(self) -> tuple[Any, Any]:
        """The network at its best, in float32: as it is saved, and as it is measured."""
        recipe, model, trainer = self._lesson.recipe, self._model, self._trainer
        if recipe.training.precision != "float32":
            with precision("float32"):
                model = recipe.network.build(self._lesson.channels, len(recipe.classes))
                trainer, _ = self._subject.trainer(model)
        model.set_weights(checkpoint.read_best(self._store, self._standing.best_epoch or 0))
        return model, trainer

    def _advance(self, loss: float, started: float) -> None:
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} in epoch {self._standing.epoch + 1}, step {self._standing.step + 1}. "
                "Lower training.rate, and check that `scaling` brings the pixels to about -1 to 1."
            )
        standing = self._standing
        self._standing = replace(
            standing,
            step=standing.step + 1,
            losses=(*standing.losses, loss),
            seconds=standing.seconds + time.monotonic() - started,
        )

    def _batches(self) -> Iterator[Batch]:
        """The rest of the epoch's batches, a few of them drawn ahead by a thread."""
        lesson, wanted = self._lesson, self._lesson.recipe.training
        drawing = Drawing(lesson.frame, wanted.batch, wanted.balance, wanted.seed, lesson.recipe.augmentation)
        sampler = Sampler(lesson.collection, lesson.found, lesson.training, lesson.scaling, drawing)
        epoch, first = self._standing.epoch, self._standing.step
        with ThreadPoolExecutor(1) as pool:
            waiting = [pool.submit(sampler.batch, epoch, step) for step in range(first, min(first + _AHEAD, lesson.steps))]
            for step in range(first, lesson.steps):
                batch = waiting.pop(0).result()
                if step + _AHEAD < lesson.steps:
                    waiting.append(pool.submit(sampler.batch, epoch, step + _AHEAD))
                yield batch

    def _finish_epoch(self, watch: Watch) -> None:
        standing, started, lesson = self._standing, time.monotonic(), self._lesson
        measured, number = self._subject.measure(self._trainer, _MOST_WINDOWS, watch.measured), standing.epoch + 1
        before = sum(record["seconds"] for record in standing.history)
        spent = standing.seconds - before
        record = {
            "epoch": number,
            "loss": round(float(np.mean(standing.losses)), 6),
            **measured.record,
            "score": round(measured.score, 6),
            "rate": float(f"{self._rates(number * lesson.steps):.4g}"),
            "patches_per_second": round(lesson.steps * lesson.recipe.training.batch / max(spent, 1e-9), 2),
            "seconds": round(spent + time.monotonic() - started, 3),
        }
        score = measured.score
        better = standing.best_epoch is None or score > standing.best_score
        if better:
            checkpoint.write_best(self._store, number, [np.asarray(value) for value in self._model.get_weights()])
        self._standing = replace(
            standing,
            epoch=number,
            step=0,
            losses=(),
            best_epoch=number if better else standing.best_epoch,
            best_score=score if better else standing.best_score,
            seconds=before + record["seconds"],
            history=(*standing.history, record),
        )

    def _variables(self) -> list[Any]:
        # The state of random layers is among those that are not trained.
        model = self._trainer
        return [*model.trainable_variables, *model.non_trainable_variables, *model.optimizer.variables]

    def _values(self) -> list[NDArray[Any]]:
        import keras

        return [np.array(keras.ops.convert_to_numpy(variable)) for variable in self._variables()]
