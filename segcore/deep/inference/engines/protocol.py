"""Engines: the library and precision that execute a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

EngineName = Literal["tensorflow", "openvino", "onnxruntime", "litert"]
Precision = Literal["float32", "bfloat16"]


class Engine(Protocol):
    """A network that is loaded and ready to run in this process."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run scaled patches (patch, y, x, band) to the output (patch, y, x, class).

        The result of a patch does not depend on the others of its batch. The array is read-only and
        valid until the next call.
        """
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Engine and precision, selected once per run so that all workers give the same labels."""

    engine: EngineName
    precision: Precision
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What was tried: agreement with float32 by engine and precision, and pixels per second of
    those that keep the labels.
    """
