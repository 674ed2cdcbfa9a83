"""GPUs as engines see them: which device runs a network, and why not a GPU that is there."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path

_DRIVER = Path("/proc/driver/nvidia/gpus")
_DEVICES = Path("/dev")
CUDA, TENSORRT = "CUDAExecutionProvider", "TensorrtExecutionProvider"
"""Providers of ONNX Runtime that run on NVIDIA GPUs."""


_FOR_CUDA = {
    "tensorflow": "pip install 'tensorflow[and-cuda]'",
    "jax": "pip install 'jax[cuda13]'",
    "torch": "Install the PyTorch of your CUDA version",
    "onnxruntime": "pip install onnxruntime-gpu in place of onnxruntime",
}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What runs a network."""

    name: str
    """Of the card, or cpu."""
    is_gpu: bool


CPU = Hardware("cpu", is_gpu=False)


def has_gpu_provider() -> bool:
    """Whether the installed ONNX Runtime is one for GPUs, and this process may use one."""
    return CUDA in providers()


def providers() -> tuple[str, ...]:
    """What ONNX Runtime could run networks on; none where this process may use no GPU."""
    if not nvidia_gpus() or importlib.util.find_spec("onnxruntime") is None:
        return ()
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def nvidia_gpus() -> tuple[str, ...]:
    """The names of the NVIDIA GPUs of this machine; none if this process may use none."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None and allowed.strip() in ("", "-1"):
        return ()
    found = sorted(each for each in _DEVICES.glob("nvidia[0-9]*"))
    names = [_model(file) for file in sorted(_DRIVER.glob("*/information"))]
    return tuple(names) if len(names) == len(found) else ("NVIDIA GPU",) * len(found)


def idle_gpu(library: str) -> str | None:
    """A note that a GPU of this machine runs nothing, because a library does not see it; None if
    there is no such GPU.
    """
    names, hint = nvidia_gpus(), _FOR_CUDA.get(library)
    if not names or hint is None:
        return None
    return (
        f"This machine has a GPU ({names[0]}), but {library} cannot use it, so the network runs on "
        f"the processor. {hint}, and check with nvidia-smi that the driver works"
    )


def _model(file: Path) -> str:
    for line in file.read_text(errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "Model":
            return value.strip()
    return "NVIDIA GPU"
