"""Fail-points: where drills make a process fail, chosen by the environment variable
`MASKLOOM_FAIL`.

Whatever a run leaves behind, it has written, moved or removed by way of a store. So a process that
is cut before and after each of these steps is cut everywhere. A fail-point is a step and a file:

    MASKLOOM_FAIL="write:runs/*/plan.json:kill"

One variable holds several, separated by `;`:

    STEP:FILE:ACTION[@N]

- STEP: `write`, `move` or `remove`, before it happens; `written`, `moved` or `removed`, after it
  has happened. `describe` and `open`, before the header and the pixels of an image are read. `*`
  matches each of them.
- FILE: how the location of the file ends, with `*` for anything.
- ACTION: `kill` (or `kill=TERM` and other signals: `kill=STOP` waits until somebody continues the
  process), `exit` (`os._exit`), `raise=EIO` (or another code of an `OSError`), `hang`, and
  `hang=0.5` for so many seconds.
- N: at the N-th time in this process; without it, every time.

Without the variable a fail-point costs a look at the environment.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal, get_args

from maskloom.segcore.errors import RecipeError

VARIABLE = "MASKLOOM_FAIL"
Step = Literal["write", "written", "move", "moved", "remove", "removed", "describe", "open"]


def failpoint(step: Step, location: str) -> None:
    """Fail here if the environment says so.

    Raises `OSError` where that is the action, and `RecipeError` if the variable is wrong.
    """
    if wanted := os.environ.get(VARIABLE):
        for fault in _faults(wanted):
            fault.meet(step, location)


@dataclass
class _Fault:
    """One fail-point of the variable, with the number of times that it was met."""

    step: str
    file: str
    action: str
    argument: str
    time: int | None
    """The only time at which it acts. None: each time."""
    met: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def parse(cls, text: str) -> _Fault:
        """The fail-point in the words of the variable. Raises `RecipeError`."""
        try:
            step, rest = text.strip().split(":", 1)
            file, action = rest.rsplit(":", 1)
            action, _, number = action.partition("@")
            action, _, argument = action.partition("=")
            if step not in (*get_args(Step), "*"):
                raise ValueError(f"there is no step {step!r}")
            fault = cls(step, file, action, argument, int(number) if number else None)
            fault.check()
        except (ValueError, KeyError, AttributeError) as error:
            raise RecipeError(
                f"{VARIABLE}: expected STEP:FILE:ACTION[@N], such as write:runs/*/plan.json:kill; "
                f"got {text!r} ({error}). Unset it unless you mean this run to fail."
            ) from error
        return fault

    def check(self) -> None:
        """Raise an error if there is no such action."""
        match self.action:
            case "kill":
                signal.Signals[f"SIG{self.argument or 'KILL'}"]
            case "raise":
                getattr(errno, self.argument)
            case "hang":
                float(self.argument or "inf")
            case "exit":
                pass
            case _:
                raise ValueError(f"there is no action {self.action!r}")

    def meet(self, step: str, location: str) -> None:
        """Act if the step and the file are those of this fail-point."""
        if self.step not in (step, "*") or not fnmatchcase(location, f"*{self.file}"):
            return
        with self._lock:
            self.met += 1
            if self.time not in (None, self.met):
                return
        match self.action:
            case "kill":
                _send(signal.Signals[f"SIG{self.argument or 'KILL'}"])
            case "raise":
                code = getattr(errno, self.argument)
                raise OSError(code, f"{os.strerror(code)} (by {VARIABLE})", location)
            case "hang":
                end = time.monotonic() + float(self.argument or "inf")
                while time.monotonic() < end:
                    time.sleep(min(1.0, max(end - time.monotonic(), 0.0)))
            case "exit":
                os._exit(1)


def _send(number: signal.Signals) -> None:
    """Send a signal to this process, which takes it before this thread continues unless it has a
    handler.
    """
    if signal.getsignal(number) == signal.SIG_DFL:
        signal.pthread_kill(threading.get_ident(), number)
    else:
        # Handlers of Python run in the main thread, which may have to be woken.
        os.kill(os.getpid(), number)


@cache
def _faults(wanted: str) -> tuple[_Fault, ...]:
    return tuple(_Fault.parse(text) for text in wanted.split(";") if text.strip())
