"""One step of a training: on one device or several, with the batch at once or in parts.

On several GPUs each holds the same weights and takes its share of a batch; their gradients are
averaged: by `keras.distribution.DataParallel` on JAX, by `tf.distribute.MirroredStrategy` on
TensorFlow. JAX computes as one device would. Under TensorFlow each GPU has the means of its own
patches: those of batch normalisation, and of a loss over labelled pixels.

A batch too large for the memory is not cut without being asked: normalisation by batches, and
losses that are means over a batch, would make it another training than the recipe says, on this
machine only. The error names the keys to set instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.deep.inference.engines.batches import lacks_memory
from maskloom.segcore.errors import RecipeError, RunError
from maskloom.segcore.geometry import sizes_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from maskloom.segcore.training.recipe import Training
    from maskloom.segcore.training.sampling import PatchShape

Loss = Callable[[Any, Any], Any]
Arguments = tuple[Any, ...]
"""Of `train_on_batch`; arrays in them have the patches of a batch along their first axis."""


@dataclass(frozen=True, slots=True)
class Steps:
    """How a network takes its steps."""

    parts: int = 1
    """Parts of a batch, one after the other."""
    devices: tuple[str, ...] = ()
    """Several devices among which each part is divided. Empty: keras' own choice of one."""
    distribution: Any = None
    """Of the backend, for several devices."""

    @classmethod
    def of(cls, wanted: Training) -> Steps:
        """As the recipe says, on this machine. Raises `RecipeError` if it lacks the devices."""
        import keras

        parts = wanted.accumulation or 1
        found, backend = _gpus(), keras.backend.backend()
        number = _number(wanted, wanted.batch // parts, len(found), backend)
        if number == 1:
            return cls(parts)
        return cls(parts, tuple(found[:number]), _distribution(found[:number], backend))

    def scope(self) -> AbstractContextManager[Any]:
        """In which the network is built and trained."""
        context: AbstractContextManager[Any] = (
            nullcontext() if self.distribution is None else self.distribution.scope()
        )
        return context

    def loss(self, loss: Loss | None) -> Loss | None:
        """The loss to compile, for one that gives a number."""
        if loss is None or not self._is_mirrored:
            return loss
        from keras import ops

        # Keras divides by the number of devices what it reduces itself, and no scalar is reduced.
        return lambda truth, predicted: ops.reshape(loss(truth, predicted), (1,))

    def take(self, trainer: Any, arguments: Arguments) -> float:
        """Train on a batch; the mean loss."""
        losses = [self._take(trainer, part) for part in _cut(arguments, self.parts)]
        return sum(losses) / len(losses)

    @property
    def _is_mirrored(self) -> bool:
        """Whether each device has a network of its own, as under TensorFlow."""
        return hasattr(self.distribution, "experimental_distribute_values_from_function")

    def _take(self, trainer: Any, arguments: Arguments) -> float:
        if not self._is_mirrored:
            return float(trainer.train_on_batch(*arguments))
        # `train_on_batch` under TensorFlow would give all patches to each device.
        shares = _cut(arguments, len(self.devices))
        divided = self.distribution.experimental_distribute_values_from_function(
            lambda context: shares[context.replica_id_in_sync_group]
        )
        trainer.make_train_function()
        trainer.reset_metrics()
        return float(trainer.train_function(iter([divided]))["loss"])


@contextmanager
def errors_of_memory(wanted: Training, patch_shape: PatchShape) -> Iterator[None]:
    """Raise `RunError`, which says what to set, in place of the backend's error that a device has
    too little memory.
    """
    try:
        yield
    except Exception as error:
        if not lacks_memory(error):
            raise
        raise RunError(_advice(wanted, patch_shape)) from error


def _advice(wanted: Training, patch_shape: PatchShape) -> str:
    parts = wanted.accumulation or 1
    at_once = wanted.batch // parts
    said = (
        f"The memory is too small to train on {at_once} "
        f"{'patch' if at_once == 1 else 'patches'} of {sizes_text(patch_shape.patch)} pixels at "
        "once."
    )
    if at_once == 1:
        return f"{said} Set a smaller training.patch or network."
    more = next(each for each in range(parts + 1, wanted.batch + 1) if wanted.batch % each == 0)
    half = max(1, at_once // 2)
    return (
        f"{said} Set training.accumulation: {more}, which takes the same {wanted.batch} patches a "
        f"step, {wanted.batch // more} at once, or training.batch: {half}. In a folder that has a "
        "checkpoint already, name another `output`."
    )


def _gpus() -> list[str]:
    """The GPUs that keras can share a training among."""
    import keras

    try:
        return list(keras.distribution.list_devices("gpu"))
    # JAX raises where there are none, and PyTorch has no such function.
    except (RuntimeError, AttributeError):
        return []


def _number(wanted: Training, batch: int, found: int, backend: str) -> int:
    """Number of devices to use. Raises `RecipeError`."""
    if wanted.devices is None:
        most = 1 if backend == "torch" else max(found, 1)
        return max(each for each in range(1, most + 1) if batch % each == 0)
    if wanted.devices > max(found, 1):
        raise RecipeError(
            f"training.devices: {wanted.devices} GPUs are wanted, and keras finds {found} on this "
            "machine. Leave it out to use all there are."
        )
    if batch % wanted.devices:
        raise RecipeError(
            f"training.devices: {batch} patches at once cannot be divided among {wanted.devices} "
            "GPUs. Set training.batch to a multiple of it."
        )
    if wanted.devices > 1 and backend == "torch":
        raise RecipeError(
            "training.devices: keras on PyTorch trains on one GPU. Set it to 1, or choose another "
            "backend by the variable KERAS_BACKEND."
        )
    return wanted.devices


def _distribution(devices: Sequence[str], backend: str) -> Any:
    """The backend's way to divide batches among devices."""
    if backend == "jax":
        import keras

        return keras.distribution.DataParallel(devices=list(devices), auto_shard_dataset=False)
    import tensorflow as tf

    return tf.distribute.MirroredStrategy([name.upper() for name in devices])


def _cut(arguments: Arguments, parts: int) -> list[Arguments]:
    """The arguments for each of some parts of a batch."""
    if parts == 1:
        return [arguments]
    import keras

    def part(number: int) -> Callable[[Any], Any]:
        def cut(array: Any) -> Any:
            size = len(array) // parts
            return array[number * size : (number + 1) * size]

        return cut

    return [keras.tree.map_structure(part(number), arguments) for number in range(parts)]
