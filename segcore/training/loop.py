"""The loop that trains a network.

Steps go through `keras.Model.train_on_batch`, so that any backend of keras does the arithmetic; the
next batches are drawn meanwhile (`segcore.training.feeding`). After each epoch the network is
measured on the validation images, and a checkpoint is written: weights, optimiser and state.
Because the patches of a step are drawn by (seed, epoch, step), a training that is stopped anywhere
and started again ends with the same weights as one that never was.

A training that starts from other weights may let stages of them wait (`unfreeze`): until their
epoch their layers are not trained, so that steps go back no further than needed, and the optimiser
knows nothing of them. Then a new one takes over the state of the one before.

Under mixed precision the network computes in bfloat16 and keeps its weights in float32; the same
network is saved in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import RecipeError, RunError, Stopped
from maskloom.segcore.figures.training import examples
from maskloom.segcore.training import checkpoint, log
from maskloom.segcore.training.balance import class_rates, weighted
from maskloom.segcore.training.checkpoint import TrainingState
from maskloom.segcore.training.feeding import Drawing, Feed, feeding
from maskloom.segcore.training.optimisers import (
    compiled,
    first_epoch,
    optimiser,
    precision,
    take_over,
)
from maskloom.segcore.training.sampling import Sampler, SamplingOptions
from maskloom.segcore.training.steps import Steps, errors_of_memory

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.storage.store import Store
    from maskloom.segcore.training.recipe import Training
    from maskloom.segcore.training.setup import (
        MeasuredEpoch,
        ProgressMonitor,
        TrainingSetup,
        TrainingTask,
    )

STOPPED = "Training was stopped; the same command continues it."
"""Message of `Stopped`."""
_MOST_WINDOWS = 400
"""Most windows to measure after an epoch; of more, an even selection."""
EXAMPLES = "examples.png"
"""Name of the picture of predictions."""


class TrainingLoop:
    """A network in training."""

    def __init__(self, setup: TrainingSetup, task: TrainingTask, store: Store) -> None:
        import keras

        recipe = setup.recipe
        # `setup.steps` sums over all images: compute it once.
        self._setup, self._task, self._store, self._steps = setup, task, store, setup.steps
        self._how = Steps.of(recipe.training)
        with self._how.scope(), precision(recipe.training.precision):
            keras.utils.set_random_seed(recipe.training.seed)
            self._model = task.network()
            self._trainer, self._loss = task.trainer(self._model)
            self._stages = _stages(setup, self._model)
            # Variables that are not trained include the states of random layers.
            self._weights = [
                *self._trainer.trainable_variables,
                *self._trainer.non_trainable_variables,
            ]
            self._stage_variables = [
                [variable for layer in stage for variable in layer.trainable_variables]
                for stage in self._stages
            ]
        self._state = TrainingState(plans=((0, recipe.training.epochs),))
        # Which stages learn now.
        self._learn: list[bool] | None = None
        self._begin_phase()

    @property
    def state(self) -> TrainingState:
        """State of the training."""
        return self._state

    def resume(self, monitor: ProgressMonitor) -> None:
        """Continue from the last checkpoint, if there is one, or start from the weights that the
        recipe names.

        Raises `RunError` if it is broken or of another network, `RecipeError` if a training as
        short as the recipe's would have ended before.
        """
        found = checkpoint.read(self._store)
        if found is None:
            if self._setup.initial is not None:
                monitor.say(self._setup.initial.give(self._model))
            return
        state, values = found
        # The checkpoint holds what an optimiser knows of the layers that learn at its epoch.
        self._begin_phase(state.epoch)
        variables = self._variables()
        if [tuple(variable.shape) for variable in variables] != [value.shape for value in values]:
            raise RunError(
                f"The checkpoint in {self._store.root} is of another version of the network. "
                "Remove the folder "
                f"{self._store.uri(checkpoint.FOLDER)} to start again."
            )
        self._state = with_plan(state, self._setup.recipe.training, self._steps)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)
        if len(self._state.plans) > len(state.plans):
            monitor.say(
                f"{self._setup.recipe.training.epochs} epochs instead of {state.plans[-1][1]}: "
                "the rate follows the longer schedule from "
                f"here on ({self._rate():.2g} now). The weights will not be those of a training "
                "that had as many from the start."
            )

    def run(self, monitor: ProgressMonitor, stop: Callable[[], bool]) -> None:
        """Train to the end. Raises `Stopped` once `stop` returns True, after a step or between
        measured windows, with a checkpoint written.
        """
        monitor.begin(self._setup, self._task.score_name, self._state)
        training = self._setup.recipe.training
        with (
            self._how.scope(),
            errors_of_memory(training, self._setup.patch_shape),
            feeding(self._drawing, self._steps, training) as feed,
        ):
            if len(self._how.devices) > 1:
                monitor.say(f"Each batch is divided among {len(self._how.devices)} GPUs.")
            while not self._over:
                self._finish_steps(feed, monitor, stop)
                self._finish_epoch(monitor, stop)
                self._begin_phase(self._state.epoch)
                self._write()
                checkpoint.forget_all_but(self._store, self._state.best_epoch)
                self._log(monitor)
                if stop() and not self._over:
                    raise Stopped(STOPPED)

    def best(self) -> tuple[Any, Any]:
        """The best network, in float32: the model to save, and the one to measure."""
        recipe, model, trainer = self._setup.recipe, self._model, self._trainer
        if recipe.training.precision != "float32":
            with precision("float32"):
                model = self._task.network()
                trainer, _ = self._task.trainer(model)
        model.set_weights(checkpoint.read_best(self._store, self._state.best_epoch))
        return model, trainer

    @property
    def _over(self) -> bool:
        return self._setup.recipe.training.end(self._state.scores) is not None

    def _begin_phase(self, epoch: int = 0) -> None:
        """Let those stages learn that learn after so many epochs. Steps go back no further than the
        first layer that learns, and batch normalisation of the others keeps its means.
        """
        wanted = self._setup.recipe.training
        learn = [epoch >= first_epoch(wanted, number) for number in range(len(self._stages))]
        if self._learn == learn:
            return
        trainer, learned = self._trainer, self._trainer.trainable_variables
        for stage, learns in zip(self._stages, learn, strict=True):
            for layer in stage:
                layer.trainable = learns
        if not trainer.trainable_variables:
            raise RecipeError(
                "training.unfreeze: all layers of this network start from other weights, so none "
                f"would learn before epoch {min(wanted.unfreeze) + 1}. Leave `unfreeze` out."
            )
        before = None if self._learn is None else trainer.optimizer
        with self._how.scope(), precision(wanted.precision):
            trainer.compile(
                optimizer=optimiser(self._setup.recipe, self._steps, self._stage_variables),
                loss=self._how.loss(self._loss),
                jit_compile=compiled(trainer),
            )
            trainer.optimizer.build(trainer.trainable_variables)
        if before is not None:
            take_over(trainer.optimizer, trainer.trainable_variables, before, learned)
        self._learn = learn

    def _finish_steps(self, feed: Feed, monitor: ProgressMonitor, stop: Callable[[], bool]) -> None:
        started = time.monotonic()
        # Closed at once if this is interrupted: batches drawn ahead read files that are closed
        # next.
        with closing(feed.batches(self._state.epoch, self._state.step)) as batches:
            for arguments in batches:
                loss = self._how.take(self._trainer, arguments)
                self._advance(loss, started)
                started = time.monotonic()
                monitor.step(self._state.epoch + 1, self._state.step, loss)
                if stop():
                    self._write()
                    raise Stopped(STOPPED)

    def _advance(self, loss: float, started: float) -> None:
        state = self._state
        if not np.isfinite(loss):
            raise RunError(
                f"The loss became {loss} in epoch {state.epoch + 1}, step {state.step + 1}. "
                "Lower training.rate, check that `scaling` "
                "brings the pixels to about -1 to 1, and name another folder in `output`."
            )
        seconds = state.seconds + time.monotonic() - started
        self._state = replace(
            state, step=state.step + 1, losses=(*state.losses, loss), seconds=seconds
        )

    @property
    def _drawing(self) -> Drawing:
        setup, wanted = self._setup, self._setup.recipe.training
        options = SamplingOptions(
            setup.patch_shape,
            wanted.batch,
            wanted.balance,
            wanted.seed,
            setup.recipe.augmentation,
            class_rates(wanted.sampling, setup.recipe.classes),
        )
        counts = weighted(setup.class_counts, wanted.sampling, setup.dataset.names)
        sampler = Sampler(setup.dataset, counts, setup.training, setup.scalings, options)
        return Drawing(sampler, self._task.arguments)

    def _finish_epoch(self, monitor: ProgressMonitor, stop: Callable[[], bool]) -> None:
        started = time.monotonic()

        def on_progress(windows: int, of: int) -> None:
            monitor.measured(windows, of)
            if stop():
                raise Stopped(STOPPED)

        try:
            with self._averaged():
                measured = self._task.measure(self._trainer, _MOST_WINDOWS, on_progress)
                self._record(measured, started)
                self._look(monitor)
        except Stopped:
            self._write()
            raise

    def _record(self, measured: MeasuredEpoch, started: float) -> None:
        """End an epoch with these measures, and keep the network if it is the best."""
        state = self._state
        validation = measured.record.get("validation_loss", 0.0)
        if not np.isfinite(validation):
            raise RunError(
                f"The validation loss became {validation} in epoch {state.epoch + 1}: for some "
                "validation images the network gives numbers that are not finite. Look for extreme "
                "pixels in them, lower training.rate, set training.precision: float32, and name "
                "another folder in `output`."
            )
        before = sum(record["seconds"] for record in state.history)
        spent = state.seconds - before
        record = {
            "epoch": state.epoch + 1,
            "loss": round(float(np.mean(state.losses)), 6),
            **measured.record,
            "score": round(measured.score, 6),
            "rate": float(f"{self._rate():.4g}"),
            "patches_per_second": round(
                self._steps * self._setup.recipe.training.batch / max(spent, 1e-9), 2
            ),
            "seconds": round(spent + time.monotonic() - started, 3),
        }
        history = (*state.history, record)
        self._state = TrainingState(
            seconds=before + record["seconds"], history=history, plans=state.plans
        )
        if self._state.best_epoch == len(history):
            weights = [np.asarray(value) for value in self._model.get_weights()]
            checkpoint.write_best(self._store, len(history), weights)

    def _look(self, monitor: ProgressMonitor) -> None:
        """After the first epoch, draw what the network makes of some images: whether labels are
        read as they are meant can be seen early.
        """
        if self._state.epoch != 1:
            return
        recipe = self._setup.recipe
        drawn = examples(
            self._task.examples(self._trainer), recipe.classes, recipe.class_table.colours
        )
        self._store.publish(EXAMPLES, drawn)
        monitor.look(self._store.uri(EXAMPLES))

    def _log(self, monitor: ProgressMonitor) -> None:
        """Report a finished epoch, once its checkpoint is written."""
        recipe, history = self._setup.recipe, self._state.history
        self._store.publish(log.NAME, log.log_of(history, recipe.classes))
        if recipe.training.tensorboard:
            log.write_curves(self._store, history[-1], recipe.classes)
        monitor.epoch(history[-1])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """In this context the network has the averages of its weights, if the recipe wants them."""
        if self._setup.recipe.training.ema is None:
            yield
            return
        variables = self._trainer.trainable_variables
        live = [_value(variable) for variable in variables]
        self._trainer.optimizer.finalize_variable_values(variables)
        for variable in variables:
            # A copy: on JAX both would share their memory, which measuring gives back.
            variable.assign(_value(variable))
        try:
            yield
        finally:
            for variable, value in zip(variables, live, strict=True):
                variable.assign(value)

    def _write(self) -> None:

        values = [_value(variable) for variable in self._variables()]
        checkpoint.write(self._store, self._state, values)

    def _rate(self) -> float:
        """The current learning rate."""
        import keras

        return float(keras.ops.convert_to_numpy(self._trainer.optimizer.learning_rate))

    def _variables(self) -> list[Any]:
        return [*self._weights, *self._trainer.optimizer.variables]


def _value(variable: Any) -> NDArray[Any]:
    """A copy of the value of a variable of keras."""
    import keras

    return np.array(keras.ops.convert_to_numpy(variable))


def _stages(setup: TrainingSetup, model: Any) -> list[list[Any]]:
    """The layers that learn of each stage with weights of another training, if stages differ."""
    start, wanted = setup.initial, setup.recipe.training
    if start is None:
        return []
    start.prepare(model)
    if not wanted.unfreeze and wanted.stage_rate == 1:
        return []
    return [[layer for layer in stage if layer.trainable] for stage in start.stages(model)]


def with_plan(state: TrainingState, wanted: Training, steps: int) -> TrainingState:
    """The state with the plan by which it continues. Raises `RecipeError` if it cannot.

    A learning rate that does not depend on the number of epochs stays what it would have been with
    this plan from the start. One that does follows the longer schedule from here on; the state
    records that it followed another before. It cannot be undone, so a shorter schedule is refused.
    """
    end, done = wanted.end(state.scores), state.epoch * steps + state.step
    if end is not None and end < state.epoch:
        raise RecipeError(
            f"training: with {wanted.epochs} epochs and a patience of "
            f"{wanted.patience or 'any number'} this training would have ended with "
            f"epoch {end}; it has finished {state.epoch}. Raise `epochs` or `patience`, or name "
            "another folder in `output`."
        )
    first, before = state.plans[-1]
    if wanted.epochs == before or wanted.schedule == "constant" or done <= wanted.warmup:
        return replace(state, plans=(*state.plans[:-1], (first, wanted.epochs)))
    if wanted.epochs < before:
        raise RecipeError(
            f"training.epochs was {before} and is {wanted.epochs}: the rate of schedule "
            f"{wanted.schedule} follows the number of epochs, so this training can be lengthened, "
            "but not shortened. Name another folder in `output`, or let it end as planned."
        )
    # If patience ends it anyway, no step follows the longer schedule.
    return state if end is not None else replace(state, plans=(*state.plans, (done, wanted.epochs)))
