"""Time limits: how long one step of the work may take before it is given up.

A store that hangs, or a decoder or network in an endless loop, would block a run for ever. A step
is one read (a header, the pixels of a tile, a whole picture) or the work on those pixels. Code that
begins a step announces it by `begin_read` or `begin_work`. The caller of the job registers by
`steps_reported_to` and decides what to do with a step that exceeds its limit. A step covers at most
a tile, or a picture that can only be read as a whole. So a job may run as long as it makes
progress, however slow its segmenter is.
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
    """Time limits of the steps, in seconds. A step that exceeds its limit is given up."""

    read: float = 600.0
    """Seconds for one read of up to 16 megapixels (a tile, or a picture that can only be read as a
    whole); in proportion for a larger one.
    """
    work: float = 3600.0
    """Seconds for the work on one tile of up to one megapixel; in proportion for a larger one."""
    examine: float = 900.0
    """Seconds for the examination of a network without a card."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 < getattr(self, field.name) < float("inf"):
                raise ValueError(
                    f"{field.name}: expected a number of seconds above 0; got "
                    f"{getattr(self, field.name)}"
                )


Watch = Callable[[float], None]
"""Called at the begin of a step with the seconds that it may take."""
_watch: ContextVar[Watch | None] = ContextVar("watch", default=None)
_configured = [Limits()]


def configure(limits: Limits) -> None:
    """Set the limits of this process."""
    _configured[0] = limits


def configured() -> Limits:
    """The limits of this process."""
    return _configured[0]


@contextlib.contextmanager
def steps_reported_to(watch: Watch) -> Iterator[None]:
    """Call `watch` for each step that begins in this thread while the block runs."""
    token = _watch.set(watch)
    try:
        yield
    finally:
        _watch.reset(token)


def begin_read(pixels: int = 0) -> None:
    """Announce a read of this many pixels."""
    _begin(configured().read * max(1.0, pixels / READ_PIXELS))


def begin_work(pixels: int = 0) -> None:
    """Announce work on this many pixels."""
    _begin(configured().work * max(1.0, pixels / WORK_PIXELS))


def _begin(seconds: float) -> None:
    watch = _watch.get()
    if watch is not None:
        watch(seconds)
