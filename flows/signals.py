"""Signals: Ctrl-C and SIGTERM ask a run to stop; a second Ctrl-C breaks it off.

Python calls signal handlers in the main thread, between two instructions, and so late while that
thread is in native code. A thread of our own therefore listens at the socket to which the
interpreter writes the number of each signal as it arrives, and answers.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

STOPPED = "maskloom: stopped. Nothing is lost: run the same command again to continue."
"""Said when a run is broken off."""
_CLEAR = "\r\x1b[K\x1b[?25h"
"""Clears the line of a progress bar, and shows the cursor that it has hidden."""

_last_acts: list[Callable[[], None]] = []
_ending = threading.Lock()
"""Held by the thread that ends the process: the others must not repeat its message."""


def _no_answer(_: signal.Signals) -> None:
    return None


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
def stop_on_signals(
    stop: threading.Event,
    answer: Callable[[signal.Signals], None] = _no_answer,
    break_off: Callable[[], object] | None = None,
) -> Iterator[None]:
    """During the block, SIGINT and SIGTERM set the event instead of ending the process.

    `answer` is called with the first signal, in a thread of its own. A SIGINT after that calls
    `break_off`; without one it raises `KeyboardInterrupt`.
    """
    before = Handlers.now()
    if not before.by_signal:
        yield
        return
    seen, heard = _Signals(stop, break_off), _Signals(stop, break_off or (lambda: None), answer)

    def in_main_thread(number: int, _: object) -> None:
        seen.arrived(signal.Signals(number))

    with (
        _listening(heard.arrived),
        Handlers(tuple((number, in_main_thread) for number, _ in before.by_signal)).installed(),
    ):
        yield


class _Signals:
    """The signals that one thread has seen: the handler in the main thread and the listener both
    get each signal, whichever is first.
    """

    def __init__(
        self,
        stop: threading.Event,
        break_off: Callable[[], object] | None,
        answer: Callable[[signal.Signals], None] = _no_answer,
    ) -> None:
        self._stop, self._break_off, self._answer = stop, break_off, answer
        self._asked = False

    def arrived(self, number: signal.Signals) -> None:
        """Ask the work to stop at the first signal; break it off at a second SIGINT, if that can be
        done.
        """
        if self._asked and number == signal.SIGINT:
            if self._break_off is None:
                raise KeyboardInterrupt
            self._break_off()
        elif not self._asked:
            self._asked = True
            self._stop.set()
            self._answer(number)


@contextmanager
def _listening(arrived: Callable[[signal.Signals], None]) -> Iterator[None]:
    """Call the function, in a thread of its own, with each SIGINT and SIGTERM during the block."""
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)

    def listen() -> None:
        while numbers := ours.recv(64):
            for number in numbers:
                if number in (signal.SIGINT, signal.SIGTERM):
                    arrived(signal.Signals(number))

    with ours:
        thread = threading.Thread(target=listen, name="signals", daemon=True)
        thread.start()
        before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            pythons.close()
            thread.join()


@contextmanager
def last_act(act: Callable[[], None]) -> Iterator[None]:
    """Call `act`, which must be quick, if `end_process` ends the process during the block."""
    _last_acts.append(act)
    try:
        yield
    finally:
        _last_acts.remove(act)


def end_process() -> None:
    """End this process now, whatever its threads are doing. Its child processes notice and end."""
    if not _ending.acquire(blocking=False):
        return
    clear = _CLEAR if os.isatty(sys.stderr.fileno()) else ""
    _write(f"{clear}{STOPPED}\n")
    for act in _last_acts:
        with suppress(Exception):
            act()
    # A progress bar may have been drawn again meanwhile.
    _write(clear)
    os._exit(1)


def _write(text: str) -> None:
    with suppress(OSError):
        os.write(sys.stderr.fileno(), text.encode())
