"""Feeding: batches are drawn ahead, so that the network never waits for them.

A processor that trains is fed by a thread: drawing takes a few per cent of its time. An accelerator
is fed by processes, as many as the machine has cores. Batches depend on (seed, epoch, step) alone
(`segcore.training.sampling`), so it makes no difference to the weights who draws them, nor if one
is drawn again because a process died. The arguments of a step are made where its batch is drawn,
and pass through shared memory.
"""

from __future__ import annotations

import importlib
import pickle
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, cycle
from typing import TYPE_CHECKING, Any, Protocol

import fsspec

from maskloom.segcore.deep.inference.runtime import import_tensorflow
from maskloom.segcore.processes.helpers import Helpers, cores
from maskloom.segcore.processes.shared_memory import SharedMemory
from maskloom.segcore.storage.filesystems import configure

if TYPE_CHECKING:
    from maskloom.segcore.training.recipe import Training
    from maskloom.segcore.training.sampling import Batch, Sampler

_AHEAD = 3
"""Batches that a thread draws ahead."""
_EACH = 2
"""Batches that a process draws ahead."""
_MOST_PROCESSES = 16
"""More than feed the fastest card."""
_SLOT_BYTES, _PIXEL_BYTES = 2**20, 32
"""Room for the arguments of a step in shared memory beside its pixels, and for each of these. Only
what is used takes memory; larger ones pass through a pipe.
"""
_ALIGNED = 64
Arguments = tuple[Any, ...]
"""Of `train_on_batch`."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """How the arguments of a step are drawn."""

    sampler: Sampler
    arguments: Callable[[Batch], Arguments]

    def __call__(self, epoch: int, step: int) -> Arguments:
        """The arguments of a step."""
        return self.arguments(self.sampler.batch(epoch, step))


class Feed(Protocol):
    """Gives the arguments of the steps of a training."""

    def batches(self, epoch: int, first: int) -> Generator[Arguments]:
        """Those of an epoch from a step on. Arrays are valid until the next is taken."""
        ...


@contextmanager
def feeding(drawing: Drawing, steps: int, wanted: Training) -> Iterator[Feed]:
    """A feed with this many steps an epoch, which ends with the block."""
    accelerated, processes = runs_on_accelerator(), wanted.processes
    if processes is None:
        usable = min(wanted.threads or cores(), _MOST_PROCESSES + 1)
        processes = max(1, usable - 1) if accelerated else 0
    if processes == 0:
        with _one_thread():
            yield ThreadFeed(drawing, steps)
        return
    place = on_device if accelerated else None
    with closing(ProcessFeed(drawing, steps, processes, place)) as feed:
        yield feed


@contextmanager
def _one_thread() -> Iterator[None]:
    """In this context OpenCV has one thread: patches are small, and its others would wait busily
    for the processors that the network has.
    """
    import cv2

    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def runs_on_accelerator() -> bool:
    """Whether the backend of keras computes on anything but the processor."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        return bool(import_tensorflow().config.get_visible_devices("GPU"))
    if backend == "jax":
        return str(importlib.import_module("jax").default_backend()) != "cpu"
    if backend == "torch":
        import torch

        return bool(torch.cuda.is_available() or torch.backends.mps.is_available())
    return False


def on_device(arguments: Arguments) -> Arguments:
    """Arguments as tensors of the backend, on its device."""
    import keras

    placed: Arguments = keras.tree.map_structure(keras.ops.convert_to_tensor, arguments)
    return placed


class ThreadFeed:
    """Arguments drawn by a thread of this process."""

    def __init__(self, drawing: Drawing, steps: int) -> None:
        self._drawing, self._steps = drawing, steps

    def batches(self, epoch: int, first: int) -> Generator[Arguments]:
        """See `Feed`. The thread ends with the generator."""
        waiting: list[Future[Arguments]] = []
        with ThreadPoolExecutor(1) as pool:
            for step in range(first, self._steps):
                wanted = range(step + len(waiting), min(step + _AHEAD, self._steps))
                waiting += [pool.submit(self._drawing, epoch, ahead) for ahead in wanted]
                yield waiting.pop(0).result()


class ProcessFeed:
    """Arguments drawn by processes, beyond the end of an epoch too, while the network is measured.

    A thread takes them over and, if told to, puts them on the device, while a step is computed.
    """

    def __init__(
        self,
        drawing: Drawing,
        steps: int,
        processes: int,
        place: Callable[[Arguments], Arguments] | None = None,
    ) -> None:
        self._steps, self._place = steps, place
        self._ahead = _EACH * processes
        # Beside those drawn ahead, one is taken over, and one is in use.
        self._slots = self._ahead + 2
        sampler = drawing.sampler
        self._room = _SLOT_BYTES + sampler.pixels * (_PIXEL_BYTES + 4 * sampler.channels)
        self._memory = SharedMemory(self._slots * self._room)
        prepare = partial(_drawer, dict(fsspec.config.conf), drawing, self._memory, self._room)
        self._helpers = Helpers(processes, prepare, [sampler.memory, self._memory])
        self._questions: Iterator[tuple[int, int, int]] = iter(())
        self._asked = 0
        self._next: tuple[int, int] | None = None
        # Helpers end with the thread that started them.
        self._thread = ThreadPoolExecutor(1)
        self._thread.submit(self._helpers.__enter__).result()

    def batches(self, epoch: int, first: int) -> Generator[Arguments]:
        """See `Feed`."""
        if self._next != (epoch, first):
            self._coming = self._thread.submit(self._begin, epoch, first)
        for step in range(first, self._steps):
            arguments = self._coming.result()
            self._next = (epoch, step + 1) if step + 1 < self._steps else (epoch + 1, 0)
            self._coming = self._thread.submit(self._take)
            yield arguments

    def close(self) -> None:
        """End the processes."""
        self._thread.submit(self._helpers.close).result()
        self._thread.shutdown()

    def _begin(self, epoch: int, first: int) -> Arguments:
        """Draw from a step on."""
        for _ in range(self._asked):
            self._helpers.answer()
        self._asked = 0
        slots = cycle(range(0, self._slots * self._room, self._room))
        self._questions = ((*each, next(slots)) for each in _steps_from(epoch, first, self._steps))
        return self._take()

    def _take(self) -> Arguments:
        """The next arguments."""
        while self._asked < self._ahead:
            self._helpers.ask(next(self._questions))
            self._asked += 1
        self._asked -= 1
        values, places = self._helpers.answer()
        arguments: Arguments = pickle.loads(
            values, buffers=[self._memory.view(*each) for each in places]
        )
        return arguments if self._place is None else self._place(arguments)


def _steps_from(epoch: int, first: int, steps: int) -> Iterator[tuple[int, int]]:
    """(epoch, step) of a step and all that follow."""
    for each in count(epoch):
        for step in range(first if each == epoch else 0, steps):
            yield each, step


def _drawer(
    stores: Mapping[str, Mapping[str, Any]], drawing: Drawing, memory: SharedMemory, room: int
) -> Callable[[tuple[int, int, int]], Any]:
    """What a process answers to (epoch, step, begin of the slot): the pickled arguments, and where
    their arrays are in the memory.
    """
    import cv2

    configure(stores)
    # There is a process for each core.
    cv2.setNumThreads(1)

    def answer(question: tuple[int, int, int]) -> tuple[bytes, list[tuple[int, int]]]:
        """Draw the arguments of a step, with their arrays in the slot if they fit into it."""
        epoch, step, start = question
        arguments, buffers, places = drawing(epoch, step), list[pickle.PickleBuffer](), []
        values = pickle.dumps(arguments, 5, buffer_callback=buffers.append)
        end = start + room
        for buffer in buffers:
            raw = buffer.raw()
            if start + raw.nbytes > end:
                return pickle.dumps(arguments, 5), []
            memory.view(start, raw.nbytes)[:] = raw
            places.append((start, raw.nbytes))
            start += -(-raw.nbytes // _ALIGNED) * _ALIGNED
        return values, places

    return answer
