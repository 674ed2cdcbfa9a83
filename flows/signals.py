"""Signals: Ctrl-C and SIGTERM ask a run to stop; a second Ctrl-C aborts it."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Handlers:
    """Signal handlers at one moment."""

    by_signal: tuple[tuple[signal.Signals, Any], ...]

    @classmethod
    def now(cls) -> Handlers:
        """The current handlers of SIGINT and SIGTERM. Empty outside the main thread, since only
        that may set handlers.
        """
        if threading.current_thread() is not threading.main_thread():
            return cls(())
        return cls(
            tuple((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Install these handlers for the block, then restore the previous ones."""
        before = [(number, signal.signal(number, handler)) for number, handler in self.by_signal]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """During the block, SIGINT and SIGTERM set the event instead of ending the process; a second
    SIGINT raises `KeyboardInterrupt`.
    """

    def request_stop(number: int, _: object) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = Handlers.now()
    with Handlers(tuple((number, request_stop) for number, _ in before.by_signal)).installed():
        yield
