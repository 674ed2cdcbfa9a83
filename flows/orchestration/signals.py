"""Signals: Ctrl-C and SIGTERM ask a run to stop, and the second Ctrl-C breaks it off."""

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
    """Handlers of signals at one moment."""

    by_signal: tuple[tuple[signal.Signals, Any], ...]

    @classmethod
    def now(cls) -> Handlers:
        """Those of SIGINT and SIGTERM now; none outside of the main thread, which alone may set
        them.
        """
        if threading.current_thread() is not threading.main_thread():
            return cls(())
        return cls(
            tuple((number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM))
        )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Puts them in place, and afterwards those back that were there."""
        before = [(number, signal.signal(number, handler)) for number, handler in self.by_signal]
        try:
            yield
        finally:
            for number, handler in before:
                signal.signal(number, handler)


@contextmanager
def stop_on_signals(stop: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM set the event instead of ending the process; a second SIGINT raises
    `KeyboardInterrupt`.
    """

    def note(number: int, _: object) -> None:
        if number == signal.SIGINT and stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = Handlers.now()
    with Handlers(tuple((number, note) for number, _ in before.by_signal)).installed():
        yield
