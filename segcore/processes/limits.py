"""Limits on time: how long one step of the work may take before it counts as one that never ends.

A store that hangs, a decoder or a network that loops would hold up a run for ever. A step is one
read (a header, the pixels of a tile, a picture as a whole) or the work on what was read. Whoever
begins one says so by `reading` or `working`; whoever runs the job has asked to be told
(`watched_by`), and decides what becomes of a step that is not over in time. Since a step is at most
a tile, or a picture that can only be read as a whole, a job may go on for as long as it gets on,
however slow its segmenter is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, fields

READ_PIXELS = 2**24
WORK_PIXELS = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds after which a step is given up."""

    read: float = 600.0
    """Seconds for one read of up to 16 megapixels (a tile, or a picture that can only be read as a
    whole), and in proportion for a larger one.
    """
    work: float = 3600.0
    """Seconds for the work on one tile of up to a megapixel, and in proportion for a larger one."""
    examine: float = 900.0
    """Seconds for finding out what a network without a card is."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < float("inf"):
                raise ValueError(
                    f"{field.name}: expected a number of seconds above 0; got "
                    f"{getattr(self, field.name)}"
                )


Watch = Callable[[float], None]
"""Hears, when a step begins, how many seconds it may take."""
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
_configured = [Limits()]


def configure(limits: Limits) -> None:
    """Use these limits in this process."""
    _configured[0] = limits


def configured() -> Limits:
    """The limits of this process."""
    return _configured[0]


@contextlib.contextmanager
def watched_by(watch: Watch) -> Iterator[None]:
    """Let `watch` hear of the steps that begin in this thread while the block runs."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def reading(pixels: int = 0) -> None:
    """A read of so many pixels begins."""
    _begin(configured().read * max(1.0, pixels / READ_PIXELS))


def working(pixels: int = 0) -> None:
    """Work on so many pixels begins."""
    _begin(configured().work * max(1.0, pixels / WORK_PIXELS))


def _begin(seconds: float) -> None:
    watch = _watch.get()
    if watch is not None:
        watch(seconds)
