"""Batches of patches on a device.

The result of a patch must depend on the image alone, and libraries sum in another order for other
shapes. So the shape of a batch follows from the image: patches are filled up to the size of its
largest (rounded up to an eighth, so that images of many sizes share a few shapes), and a batch has
as many places as the image has patches, rounded up to a power of two and limited by the pixels that
a device takes at once. Places that a tile does not need repeat a patch.

While the device computes a batch, the next one is cut from the image and sent; at most two are on
the way. If the device lacks memory, batches halve.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from maskloom.segcore.deep.inference.engines.protocol import Key, PatchesOfImage
from maskloom.segcore.errors import WeightsError
from maskloom.segcore.geometry import sizes_text

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.deep.inference.card import Card
    from maskloom.segcore.deep.inference.engines.gpus import Hardware
    from maskloom.segcore.geometry import Shape

log = logging.getLogger(__name__)
Gives = Literal["labels", "scores", "scores of scaled pixels"]
_STEPS = 8
"""Sizes of batches between none and the largest patch, along an axis."""
_ON_THE_WAY = 2
"""Batches that are sent to a GPU and not fetched."""
_SENT_AS_THEY_ARE = frozenset("uint8 int8 uint16 int16 float16 float32".split())  # noqa: SIM905


class Device(Protocol):
    """A network on a device."""

    hardware: Hardware
    fills: bool
    """Whether patches may be filled up with zeros: `start` is then told their extents."""
    problems: tuple[type[Exception], ...]
    """What `start` and `fetch` may raise."""

    def start(self, gives: Gives, pixels: NDArray[np.generic], extents: NDArray[np.int32]) -> Any:
        """Begin to compute a batch (patch, y, x, band), of which each patch has its extents."""
        ...

    def fetch(self, running: Any) -> NDArray[np.generic]:
        """Wait for a batch: labels (patch, y, x) or scores (patch, y, x, k)."""
        ...


@dataclass(slots=True)
class _Batch:
    """Patches of one shape that wait for their places to be filled."""

    keys: list[Any] = field(default_factory=list)
    patches: list[NDArray[np.generic]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class _Running:
    """A batch on a device."""

    batch: _Batch
    sizes: Shape
    count: int
    """Places."""
    handle: Any
    """What the device gave, or the error that it raised."""


@dataclass(slots=True, eq=False)
class Batched:
    """An engine that runs patches on a device; see `protocol.BatchEngine`."""

    device: Device
    card: Card
    where: str
    """Location of the weights, for messages."""
    most_pixels: int
    """Pixels of a batch of more than one patch; less after the device lacked memory."""

    @property
    def hardware(self) -> Hardware:
        """What runs the network."""
        return self.device.hardware

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run scaled patches; see `Engine`."""
        require_fitting(self.card, self.where, batch.shape)
        of = PatchesOfImage(batch.shape[1:-1], len(batch))
        found = dict(self._run("scores of scaled pixels", enumerate(np.asarray(batch)), of))
        scores = np.stack([found[i] for i in range(len(batch))]).astype(np.float32, copy=False)
        scores.flags.writeable = False
        return scores

    def together(self, sizes: Shape) -> int:
        """Patches of these sizes at once; see `BatchEngine`."""
        return self._places(self._shape(sizes, sizes), 1 << 20)

    def labels(
        self, patches: Iterable[tuple[Key, NDArray[np.generic]]], of: PatchesOfImage
    ) -> Iterator[tuple[Key, NDArray[np.generic]]]:
        """The classes of patches; see `BatchEngine`."""
        return self._run("labels", patches, of)

    def scores(
        self, patches: Iterable[tuple[Key, NDArray[np.generic]]], of: PatchesOfImage
    ) -> Iterator[tuple[Key, NDArray[np.float32]]]:
        """The output for patches; see `BatchEngine`."""
        for key, found in self._run("scores", patches, of):
            yield key, found.astype(np.float32, copy=False)

    def _run(
        self, gives: Gives, patches: Iterable[tuple[Key, NDArray[np.generic]]], of: PatchesOfImage
    ) -> Iterator[tuple[Key, NDArray[Any]]]:
        waiting: dict[Shape, _Batch] = {}
        running: deque[_Running] = deque()
        # Two at once would take twice the memory of a processor, which is full with one.
        most = _ON_THE_WAY if self.hardware.is_gpu else 1
        for key, patch in patches:
            sizes = self._shape(patch.shape[:-1], of.sizes)
            batch = waiting.setdefault(sizes, _Batch())
            batch.keys.append(key)
            batch.patches.append(patch)
            if len(batch.keys) == self._places(sizes, of.count):
                running.append(self._started(gives, waiting.pop(sizes), sizes, of.count))
            if len(running) == most:
                yield from self._finished(gives, running.popleft(), of.count)
        for sizes, batch in waiting.items():
            running.append(self._started(gives, batch, sizes, of.count))
            if len(running) == most:
                yield from self._finished(gives, running.popleft(), of.count)
        while running:
            yield from self._finished(gives, running.popleft(), of.count)

    def _places(self, sizes: Shape, patches: int) -> int:
        """Patches of a batch, a power of two."""
        most = max(1, self.most_pixels // math.prod(sizes))
        return min(1 << (max(1, patches) - 1).bit_length(), 1 << most.bit_length() - 1)

    def _shape(self, lengths: Shape, largest: Shape) -> Shape:
        """The sizes in which a patch is computed."""
        if not self.device.fills or self.card.reach.fixed is not None:
            return lengths
        axes = self.card.reach.axes(len(lengths))
        return tuple(
            reach.fitting(_rounded(size)) for reach, size in zip(axes, largest, strict=True)
        )

    def _started(self, gives: Gives, batch: _Batch, sizes: Shape, patches: int) -> _Running:
        """Begin a batch; an error of the device waits in it too."""
        count = max(self._places(sizes, patches), len(batch.keys))
        dtype = batch.patches[0].dtype
        if dtype.name not in _SENT_AS_THEY_ARE:
            dtype = np.dtype(np.float32)
        pixels = np.zeros((count, *sizes, self.card.channels), dtype)
        extents = np.empty((count, len(sizes)), np.int32)
        for place in range(count):
            # The last patch again in places that are left.
            patch = batch.patches[min(place, len(batch.patches) - 1)]
            pixels[place][tuple(map(slice, patch.shape[:-1]))] = patch
            extents[place] = patch.shape[:-1]
        try:
            return _Running(batch, sizes, count, self.device.start(gives, pixels, extents))
        except self.device.problems as error:
            return _Running(batch, sizes, count, error)

    def _finished(
        self, gives: Gives, started: _Running, patches: int
    ) -> Iterator[tuple[Any, NDArray[Any]]]:
        batch, sizes = started.batch, started.sizes
        try:
            if isinstance(started.handle, Exception):
                raise started.handle
            found = self.device.fetch(started.handle)
        except self.device.problems as error:
            if not lacks_memory(error):
                raise WeightsError(
                    f"{self.where} cannot be run on a patch of {sizes_text(sizes)}: "
                    f"{first_line(error)}"
                ) from error
            self._halve(started, error)
        else:
            yield from self._cut(batch, sizes, found)
            return
        count = self._places(sizes, patches)
        for first in range(0, len(batch.keys), count):
            part = slice(first, first + count)
            some = _Batch(batch.keys[part], batch.patches[part])
            yield from self._finished(gives, self._started(gives, some, sizes, patches), patches)

    def _cut(
        self, batch: _Batch, sizes: Shape, found: NDArray[Any]
    ) -> Iterator[tuple[Any, NDArray[Any]]]:
        for key, patch, result in zip(batch.keys, batch.patches, found, strict=False):
            lengths = self.card.reach.output_sizes(patch.shape[:-1])
            # Whatever is wrong with the output of a patch in its own size is for the caller to say.
            yield key, result[tuple(map(slice, lengths)) if patch.shape[:-1] != sizes else ()]

    def _halve(self, failed: _Running, error: Exception) -> None:
        """Let batches take half the pixels from now on. Raises `WeightsError` for a single patch.

        The other batch that was on the way fails too, and halves nothing again.
        """
        if failed.count == 1:
            raise WeightsError(
                f"{self.where} needs more memory for a patch of {sizes_text(failed.sizes)} pixels "
                f"than {self.device.hardware.name} has: {first_line(error)} Set a smaller `patch`, "
                "or an engine that runs on the processor (openvino)."
            ) from error
        pixels = failed.count // 2 * math.prod(failed.sizes)
        if pixels < self.most_pixels:
            self.most_pixels = pixels
            log.warning(
                "%s: %d patches at once need more memory than there is. %d from now on.",
                self.device.hardware.name,
                failed.count,
                failed.count // 2,
            )


def require_fitting(card: Card, where: str, shape: tuple[int, ...]) -> None:
    """Raise `WeightsError` unless a network takes a batch (patch, y, x, band) of this shape. Not
    every library checks sizes; some read out of bounds.
    """
    dimensions = card.dimensions
    if len(shape) != dimensions + 2 or shape[0] == 0 or shape[-1] != card.channels:
        axes = "y, x" if dimensions == 2 else "z, y, x"
        raise WeightsError(
            f"{where} takes patches (patch, {axes}, {card.channels}); got "
            f"{shape}. Choose other bands or weights."
        )
    lengths = shape[1:-1]
    if any(
        size != reach.fitting(size)
        for size, reach in zip(lengths, card.reach.axes(dimensions), strict=True)
    ):
        raise WeightsError(
            f"{where} takes heights and widths of {sizes_wanted(card)}; got patches of {lengths}."
        )


def sizes_wanted(card: Card) -> str:
    """The heights and widths that a network takes, in words."""
    return str(card.reach.fixed or f"{card.reach.residue} modulo {card.reach.stride}")


def lacks_memory(error: Exception) -> bool:
    """Whether a library says that memory is exhausted; each says it in its own way."""
    text = f"{type(error).__name__} {error}".lower()
    return any(
        words in text
        for words in (
            "resource_exhausted",
            "resourceexhausted",
            "out of memory",
            "outofmemory",
            "failed to allocate memory",
            "can't allocate memory",
            "alloc_failed",  # cuDNN and cuBLAS
            "oom when allocating",
            "memoryerror",
        )
    )


def first_line(error: Exception) -> str:
    """The first line of a library's message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]


def _rounded(size: int) -> int:
    """A size rounded up to one of eight between two powers of two.

    >>> [_rounded(size) for size in (5, 100, 129, 520, 832)]
    [5, 104, 144, 576, 832]
    """
    step = 1 << max(0, math.ceil(math.log2(size)) - 4)
    return -(-size // step) * step
