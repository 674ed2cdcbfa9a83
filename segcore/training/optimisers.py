"""Optimisers and precision of a training. keras does the arithmetic, on any of its backends."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskloom.segcore.training.recipe import Training, TrainingRecipe

_RATE_LEFT = 0.01


def optimiser(recipe: TrainingRecipe, steps: int, stages: Sequence[Sequence[Any]] = ()) -> Any:
    """The keras optimiser of a recipe, for epochs of `steps` steps. `stages`: variables with
    weights from another training, of one stage each, the last stage first.
    """
    import keras

    wanted = recipe.training
    rate, more = _rates(recipe, steps), averaging(wanted)
    if wanted.optimiser == "sgd":
        kind, more = keras.optimizers.SGD, {**more, "momentum": 0.9, "nesterov": True}
    elif wanted.optimiser == "adam":
        kind = keras.optimizers.Adam
    else:
        kind, more = keras.optimizers.AdamW, {**more, "weight_decay": wanted.decay}
    paces = _paces(wanted, steps, stages)
    if not paces:
        return kind(rate, **more)
    made = _paced(kind)(rate, **more)
    made.paces = paces
    # What is learnt already is not drawn to 0; keras would do so at the full rate.
    made.exclude_from_weight_decay(var_list=[variable for stage in stages for variable in stage])
    return made


@dataclass(frozen=True, slots=True)
class _Pace:
    """How a stage of variables learns."""

    factor: float
    """Of the rate."""
    begin: int
    """Its first step of the optimiser."""


def first_epoch(wanted: Training, stage: int) -> int:
    """Number of epochs for which a stage holds still; the last stage is 0.

    >>> from maskloom.segcore.training.recipe import Training
    >>> [first_epoch(Training(unfreeze=(2, 4)), stage) for stage in range(3)]
    [2, 4, 4]
    """
    return wanted.unfreeze[min(stage, len(wanted.unfreeze) - 1)] if wanted.unfreeze else 0


def take_over(
    now: Any, variables: Sequence[Any], before: Any, variables_before: Sequence[Any]
) -> None:
    """Give an optimiser that is built for some variables the state of the one before it, which was
    built for fewer of them.
    """
    from keras import ops

    known = _state(before, variables_before)
    values = {id(variable): variable for variable in variables}
    for (name, owner), variable in _state(now, variables).items():
        if (name, owner) in known:
            variable.assign(ops.convert_to_numpy(known[name, owner]))
        elif name.endswith("_average"):
            # What held still until now is its own average.
            variable.assign(ops.convert_to_numpy(values[owner]))


def _state(optimiser: Any, variables: Sequence[Any]) -> dict[tuple[str, int], Any]:
    """Variables of an optimiser that is built for `variables`, by their names and the id of the one
    that they are for, since layers of two models in a model may have the same name. 0: for all.
    """
    owners = defaultdict[str, list[int]](list)
    for variable in variables:
        for kind in ("average", "gradient_accumulator", "momentum", "velocity"):
            owners[f"{variable.path.replace('/', '_')}_{kind}"].append(id(variable))
    found = {
        (each.name, owners[each.name].pop(0) if owners[each.name] else 0): each
        for each in optimiser.variables
    }
    assert len(found) == len(optimiser.variables)
    return found


def _paces(wanted: Training, steps: int, stages: Sequence[Sequence[Any]]) -> dict[int, _Pace]:
    """Paces of variables by their ids: paths may come twice. Empty: all learn alike."""
    if not wanted.unfreeze and wanted.stage_rate == 1:
        return {}
    found: dict[int, _Pace] = {}
    for number, stage in enumerate(stages):
        pace = _Pace(wanted.stage_rate ** (number + 1), steps * first_epoch(wanted, number))
        found |= {id(variable): pace for variable in stage}
    return found


def _paced(kind: Any) -> Any:
    """A class of optimisers of keras whose variables may have paces."""

    class Paced(kind):  # type: ignore[misc]
        """The optimiser with paces of variables, by their ids."""

        paces: Mapping[int, _Pace]

        def _backend_update_step(
            self, grads: Sequence[Any], trainable_variables: Sequence[Any], learning_rate: Any
        ) -> None:
            """A step for each group of variables of one pace."""
            groups: dict[_Pace | None, tuple[list[Any], list[Any]]] = {}
            for gradient, variable in zip(grads, trainable_variables, strict=True):
                one = groups.setdefault(self.paces.get(id(variable)), ([], []))
                one[0].append(gradient)
                one[1].append(variable)
            for pace, (some, variables) in groups.items():
                rate = learning_rate
                if pace is not None:
                    rate = rate * pace.factor * _late_correction(self, pace.begin)
                super()._backend_update_step(some, variables, rate)

    return Paced


def _late_correction(optimiser: Any, begin: int) -> Any:
    """Factor on the rate of variables that learn from the step `begin` on. The averages of adam
    begin at 0, which it makes up for by the number of its steps; these variables have had fewer.
    """
    from keras import ops

    if begin == 0 or not hasattr(optimiser, "beta_1"):
        return 1.0

    def correction(steps: Any) -> Any:
        first, second = (
            1 - ops.power(ops.cast(beta, "float32"), steps)
            for beta in (optimiser.beta_1, optimiser.beta_2)
        )
        return ops.sqrt(second) / first

    step = ops.cast(optimiser.iterations + 1, "float32")
    return correction(step - begin) / correction(step)


def averaging(wanted: Training) -> dict[str, Any]:
    """Arguments of an optimiser of keras for averages of gradients and of weights."""
    arguments: dict[str, Any] = {"gradient_accumulation_steps": wanted.accumulation}
    if wanted.ema is not None:
        # Keras moves the average with each part of a batch.
        momentum = wanted.ema ** (1 / (wanted.accumulation or 1))
        arguments |= {"use_ema": True, "ema_momentum": momentum}
    return arguments


def _rates(recipe: TrainingRecipe, steps: int) -> Any:
    import keras

    wanted = recipe.training
    if wanted.schedule == "constant" and wanted.warmup == 0:
        return wanted.rate
    # Keras counts the parts of a batch as steps of a schedule.
    parts = wanted.accumulation or 1
    warmup = parts * wanted.warmup
    whole = max(1, parts * steps * wanted.epochs - warmup)
    left = _RATE_LEFT if wanted.schedule == "cosine" else 1.0
    if wanted.warmup == 0:
        return keras.optimizers.schedules.CosineDecay(wanted.rate, whole, alpha=left)
    return keras.optimizers.schedules.CosineDecay(
        0.0, whole, alpha=left, warmup_target=wanted.rate, warmup_steps=warmup
    )


def compiled(model: Any) -> bool | str:
    """Whether XLA compiles the step: not with TensorFlow on a CPU, whose kernels are faster;
    otherwise keras decides by its backend.
    """
    import keras

    on_cpu = keras.backend.backend() == "tensorflow" and not keras.distribution.list_devices("gpu")
    return False if on_cpu else "auto" if model.supports_jit else False


@contextmanager
def precision(name: str) -> Iterator[None]:
    """Networks built in this context compute in this precision; their weights are float32."""
    import keras

    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16" if name == "bfloat16" else name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)
