"""How a command that works for a while is stopped: the first Ctrl-C is answered at once and lets
what runs be finished, the second one ends the process.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from maskloom.flows.signals import stop_on_signals
from maskloom.flows.terminal import count
from maskloom.tasks.fanout.protocol import GRACE_SECONDS

if TYPE_CHECKING:
    import threading

    from maskloom.flows.progress.displays import Quiet
    from maskloom.tasks.fanout.protocol import Fanout

BreakOff = Callable[[], object]
"""Ends the process; called in any thread."""


class Stoppable:
    """A command that signals ask to stop."""

    def __init__(self, shown: Quiet) -> None:
        self._shown = shown
        self._fanout: Fanout | None = None

    def works_on(self, fanout: Fanout) -> Fanout:
        """Count the jobs of this fan-out when a signal comes; returns it."""
        self._fanout = fanout
        return fanout

    def answer(self, number: signal.Signals) -> None:
        """Say what is finished yet, and how to stop at once."""
        again = "Ctrl-C again stops at once" if number == signal.SIGINT else "Ctrl-C stops at once"
        busy = self._fanout.busy if self._fanout is not None else 0
        jobs = count(busy, "job is", "jobs are")
        doing = f": {jobs} being finished, for at most {GRACE_SECONDS:.0f} s" if busy else ""
        self._shown.notice(f"Stopping{doing}. {again}; nothing is lost.")


@contextmanager
def stoppable(
    stop: threading.Event, shown: Quiet, break_off: BreakOff | None
) -> Iterator[Stoppable]:
    """During the block, SIGINT and SIGTERM set the event, which is answered on the display, and a
    further SIGINT calls `break_off`. None: it raises `KeyboardInterrupt`.
    """
    command = Stoppable(shown)
    with stop_on_signals(stop, command.answer, break_off):
        yield command
