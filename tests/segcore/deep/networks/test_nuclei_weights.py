"""The weights `nuclei` in the box: made from arrays of another library, they compute the same."""

from __future__ import annotations

import os
import sys
from importlib import util
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

ROOT = Path(__file__).parents[4]
ARRAYS = Path(os.environ.get("MASKLOOM_TEST_DATA", "/"), "..", "weights", "nuclei_flow_2M.npz")


def script(name: str):
    path = ROOT / "deploy" / "training" / f"{name}.py"
    spec = util.spec_from_file_location(name, path)
    module = util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def forward(arrays, pixels: np.ndarray) -> np.ndarray:
    """The output (y, x, 3) of a U-Net of these arrays for scaled pixels (y, x, 3), in float64, by
    NumPy alone and in PyTorch's order of axes.
    """
    arrays = {name: np.asarray(arrays[name], np.float64) for name in arrays}
    depth = max(int(name.split(".")[1]) for name in arrays if name.startswith("up.")) + 1

    def convolved(maps, kernel):
        reach = kernel.shape[-1] // 2
        padded = np.pad(maps, ((0, 0), (reach, reach), (reach, reach)))
        windows = sliding_window_view(padded, kernel.shape[-2:], axis=(1, 2))
        return np.einsum("iyxab,oiab->oyx", windows, kernel, optimize=True)

    def block(maps, name):
        for convolution, norm in (("0", "1"), ("3", "4")):
            maps = convolved(maps, arrays[f"{name}.{convolution}.weight"])
            gamma, beta, mean, variance = (
                arrays[f"{name}.{norm}.{part}"][:, None, None]
                for part in ("weight", "bias", "running_mean", "running_var")
            )
            maps = np.maximum(0, (maps - mean) / np.sqrt(variance + 1e-5) * gamma + beta)
        return maps

    maps, skips = pixels.transpose(2, 0, 1).astype(np.float64), []
    for level in range(depth):
        maps = block(maps, f"down.{level}")
        skips.append(maps)
        maps = np.maximum.reduce([maps[:, a::2, b::2] for a in (0, 1) for b in (0, 1)])
    maps = block(maps, f"down.{depth}")
    for level in reversed(range(depth)):
        kernel, bias = arrays[f"up.{level}.weight"], arrays[f"up.{level}.bias"]
        larger = np.empty((kernel.shape[1], *(2 * side for side in maps.shape[1:])))
        for a in (0, 1):
            for b in (0, 1):
                larger[:, a::2, b::2] = np.einsum("iyx,io->oyx", maps, kernel[:, :, a, b])
        maps = block(np.concatenate([larger + bias[:, None, None], skips[level]]), f"join.{level}")
    head = convolved(maps, arrays["head.weight"]) + arrays["head.bias"][:, None, None]
    return head.transpose(1, 2, 0)


def some_arrays(width: int, depth: int) -> dict[str, np.ndarray]:
    """Random arrays of a network, with variances as small as the difference of both epsilons."""
    random = np.random.default_rng(5)
    arrays = {}

    def block(name: str, before: int, channels: int) -> None:
        for convolution, norm, inputs in (("0", "1", before), ("3", "4", channels)):
            kernel = random.normal(0, (9 * inputs) ** -0.5, (channels, inputs, 3, 3))
            arrays[f"{name}.{convolution}.weight"] = kernel
            for part, values in (
                ("weight", random.uniform(0.5, 1.5, channels)),
                ("bias", random.normal(0, 0.3, channels)),
                ("running_mean", random.normal(0, 0.3, channels)),
                ("running_var", 10 ** random.uniform(-3, 0, channels)),
            ):
                arrays[f"{name}.{norm}.{part}"] = values

    for level in range(depth + 1):
        block(f"down.{level}", 3 if level == 0 else width << (level - 1), width << level)
    for level in range(depth):
        block(f"join.{level}", 2 * width << level, width << level)
        arrays[f"up.{level}.weight"] = random.normal(
            0, 0.3, (width << level + 1, width << level, 2, 2)
        )
        arrays[f"up.{level}.bias"] = random.normal(0, 0.3, width << level)
    arrays["head.weight"] = random.normal(0, 0.5, (3, width, 1, 1))
    arrays["head.bias"] = random.normal(0, 0.5, 3)
    return {name: array.astype(np.float16) for name, array in arrays.items()}


def assert_same_output(output: np.ndarray, expected: np.ndarray) -> None:
    """Output (y, x, 4) of ours and (y, x, 3) of the arrays."""
    assert (output[..., 0] == 0).all()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(output[..., 1:], expected, atol=1e-5 * scale)


def test_arrays_of_another_library_give_the_same_output_here() -> None:
    arrays = some_arrays(width=2, depth=2)
    pixels = np.random.default_rng(0).uniform(-0.5, 0.5, (24, 32, 3)).astype(np.float32)
    model = script("nuclei_weights").network(arrays)
    output = np.asarray(model(pixels[np.newaxis]))[0]
    assert_same_output(output, forward(arrays, pixels))


@pytest.mark.nightly
@pytest.mark.skipif(not ARRAYS.exists(), reason="needs the folder of test images")
def test_the_file_in_the_box_gives_the_output_of_its_arrays() -> None:
    """All of the way: the file as it is stored, the card, the segmenter's scaling."""
    from PIL import Image

    from maskloom.segcore.deep.inference.files.keras_files import load_keras
    from maskloom.segcore.deep.inference.files.weights import Weights

    weights = Weights.of("nuclei")
    path = Path(os.environ["MASKLOOM_TEST_DATA"], "dsb2018", "images", "nuc_057_purple_white.png")
    crop = np.asarray(Image.open(path).convert("RGB"))[:96, :128]
    output = np.asarray(load_keras(weights)(weights.card().scaling.apply(crop)[np.newaxis]))[0]
    with np.load(ARRAYS) as arrays:
        assert_same_output(output, forward(arrays, crop / 255 - 0.5))
