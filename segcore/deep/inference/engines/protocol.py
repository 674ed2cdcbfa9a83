"""Engines: the library and precision that execute a network."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape

EngineName = Literal["tensorflow", "openvino", "onnxruntime", "litert", "jax", "torch"]
Precision = Literal["float32", "bfloat16", "float16"]
Key = TypeVar("Key")


class Engine(Protocol):
    """A network that is loaded and ready to run in this process."""

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run scaled patches (patch, y, x, band) to the output (patch, y, x, class).

        The result of a patch does not depend on the others of its batch. The array is read-only and
        valid until the next call.
        """
        ...


@dataclass(frozen=True, slots=True)
class PatchesOfImage:
    """The patches of a whole image, on which the shape of batches depends: never on a tile."""

    sizes: Shape
    """The largest along each axis."""
    count: int


class Run(Protocol):
    """Runs the patches of an image, (y, x, band) or (z, y, x, band), as they are in the file."""

    def __call__(
        self, patches: Iterable[tuple[Key, NDArray[np.generic]]], of: PatchesOfImage
    ) -> Iterator[tuple[Key, NDArray[Any]]]:
        """The output (y, x, k), or labels (y, x), of each patch with its key, in any order. An
        array is valid until the next is taken.
        """
        ...


@runtime_checkable
class BatchEngine(Engine, Protocol):
    """An engine that runs patches in batches, and scales pixels and chooses labels itself.

    It works ahead: the next patches are taken while a batch is computed. Results come in any order,
    each with the key of its patch.
    """

    def together(self, sizes: Shape) -> int:
        """Patches of these sizes that it computes at once, of a large image."""
        ...

    def labels(
        self, patches: Iterable[tuple[Key, NDArray[np.generic]]], of: PatchesOfImage
    ) -> Iterator[tuple[Key, NDArray[np.generic]]]:
        """The classes (y, x) of patches of pixels (y, x, band) as they are in the image."""
        ...

    def scores(
        self, patches: Iterable[tuple[Key, NDArray[np.generic]]], of: PatchesOfImage
    ) -> Iterator[tuple[Key, NDArray[np.float32]]]:
        """The output (y, x, k) of patches of pixels (y, x, band) as they are in the image."""
        ...


@dataclass(frozen=True, slots=True)
class Choice:
    """Engine and precision, selected once per run so that all workers give the same labels."""

    engine: EngineName
    precision: Precision
    record: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What was tried: agreement with float32 by engine and precision, and pixels per second of
    those that keep the labels; the device, and notes for the user.
    """
