"""Optimisers and precision of a training. keras does the arithmetic, on any of its backends."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskloom.segcore.training.recipe import Training, TrainingRecipe

_RATE_LEFT = 0.01


def optimiser(recipe: TrainingRecipe, steps: int) -> Any:
    """The keras optimiser of a recipe, for epochs of `steps` steps."""
    import keras

    wanted = recipe.training
    rate, more = _rates(recipe, steps), averaging(wanted)
    if wanted.optimiser == "sgd":
        return keras.optimizers.SGD(rate, momentum=0.9, nesterov=True, **more)
    if wanted.optimiser == "adam":
        return keras.optimizers.Adam(rate, **more)
    return keras.optimizers.AdamW(rate, weight_decay=wanted.decay, **more)


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
