"""Steps: batches in parts and on several devices are one batch; too little memory is said."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from maskloom.segcore.errors import RecipeError, RunError
from maskloom.segcore.training import steps
from maskloom.segcore.training.recipe import Training
from maskloom.segcore.training.sampling import PatchShape

PROGRAM = """
import sys
import numpy as np
import keras
if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    two = [tf.config.LogicalDeviceConfiguration()] * 2
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
found = keras.distribution.list_devices("cpu")
keras.distribution.list_devices = lambda kind=None: found
from maskloom.segcore.training.optimisers import averaging
from maskloom.segcore.training.recipe import Training
from maskloom.segcore.training.steps import Steps

def trained(**changes):
    wanted = Training(batch=4, ema=0.9, **changes)
    how = Steps.of(wanted)
    assert len(how.devices) == (2 if wanted.devices == 2 else 0), how
    keras.utils.set_random_seed(0)
    with how.scope():
        model = keras.Sequential([
            keras.Input((8, 8, 1)),
            keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
            keras.layers.Conv2D(2, 1),
        ])
        def loss(truth, logits):
            actual = keras.ops.one_hot(keras.ops.cast(truth, "int32"), 2)
            return -keras.ops.mean(keras.ops.sum(actual * keras.ops.log_softmax(logits), -1))
        # Not Adam, for which the size of a gradient hardly matters.
        optimiser = keras.optimizers.SGD(0.1, momentum=0.9, **averaging(wanted))
        model.compile(optimizer=optimiser, loss=how.loss(loss), jit_compile=False)
        optimiser.build(model.trainable_variables)
        random, losses = np.random.default_rng(0), []
        for _ in range(4):
            pixels = random.normal(size=(4, 8, 8, 1)).astype(np.float32)
            losses.append(how.take(model, (pixels, (pixels[..., 0] > 0).astype(np.uint8))))
        live = [np.array(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]
        optimiser.finalize_variable_values(model.trainable_variables)
        mean = [np.array(keras.ops.convert_to_numpy(v)) for v in model.trainable_variables]
    return losses, live, mean

one, two, parts = trained(devices=1), trained(devices=2), trained(devices=1, accumulation=2)
for other in (two, parts):
    assert np.allclose(one[0], other[0], atol=1e-6), (one[0], other[0])
    for a, b in zip(one[1], other[1], strict=True):
        assert np.allclose(a, b, atol=1e-6), abs(a - b).max()
for a, b in zip(one[2], two[2], strict=True):
    assert np.allclose(a, b, atol=1e-6), abs(a - b).max()
assert any(not np.allclose(a, b, atol=1e-4) for a, b in zip(one[1], one[2]))
"""


@pytest.mark.nightly
@pytest.mark.parametrize("backend", ["tensorflow", "jax"])
def test_several_devices_and_parts_of_a_batch_train_as_one_device_does(backend: str) -> None:
    if find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")
    environment = {
        **os.environ,
        "KERAS_BACKEND": backend,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    ("changes", "found", "backend", "expected"),
    [
        ({}, 0, "tensorflow", 1),
        ({}, 4, "tensorflow", 4),
        ({"batch": 6}, 4, "jax", 3),
        ({"accumulation": 4}, 4, "jax", 2),
        ({}, 4, "torch", 1),
        ({"devices": 1}, 0, "jax", 1),
        ({"devices": 2}, 4, "tensorflow", 2),
        ({"devices": 2}, 1, "jax", "2 GPUs are wanted, and keras finds 1"),
        ({"devices": 3}, 4, "jax", "8 patches at once cannot be divided among 3"),
        ({"devices": 2}, 4, "torch", "PyTorch trains on one GPU"),
    ],
)
def test_as_many_devices_as_divide_a_batch(
    changes: dict[str, int], found: int, backend: str, expected: int | str
) -> None:
    wanted = Training(**{"batch": 8, **changes})
    batch = wanted.batch // (wanted.accumulation or 1)
    if isinstance(expected, str):
        with pytest.raises(RecipeError, match=expected):
            steps._number(wanted, batch, found, backend)
    else:
        assert steps._number(wanted, batch, found, backend) == expected


class ResourceExhaustedError(Exception):
    """As TensorFlow's."""


@pytest.mark.parametrize(
    "error",
    [
        ResourceExhaustedError("failed to allocate memory"),
        RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes"),
        RuntimeError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        MemoryError(),
    ],
)
def test_too_little_memory_says_what_to_set(error: Exception) -> None:
    for changes, said in (
        ({}, r"8 patches of 64 x 64 pixels.*accumulation: 2, .* 4 at once, or training\.batch: 4"),
        ({"accumulation": 2}, r"4 patches of .*accumulation: 4, .* 2 at once, or .*batch: 2"),
        ({"batch": 3}, r"3 patches of .*accumulation: 3, .* 1 at once, or training\.batch: 1"),
        ({"batch": 1}, r"1 patch of 64 x 64 pixels at once\. Set a smaller training\.patch"),
    ):
        wanted = Training(**{"batch": 8, **changes})
        with (
            pytest.raises(RunError, match=said),
            steps.errors_of_memory(wanted, PatchShape.square(64)),
        ):
            raise error


def test_other_errors_pass() -> None:
    with (
        pytest.raises(ValueError, match="shape"),
        steps.errors_of_memory(Training(), PatchShape.square(64)),
    ):
        raise ValueError("a wrong shape")
