"""Lifelines: child processes that do not outlive whoever started them, even by kill -9.

The child holds the reading end of a pipe whose writing end only the parent has. When the parent
dies, the pipe closes and the child leaves. Linux can also be asked to end the child, which works
where native code holds the interpreter's lock for ever.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

_PR_SET_PDEATHSIG = 1


@contextlib.contextmanager
def tied() -> Iterator[int]:
    """A file descriptor for a child of this thread (`pass_fds`) to `hold`. The child ends with the
    block at the latest.
    """
    line, held = os.pipe()
    try:
        yield line
    finally:
        os.close(line)
        os.close(held)


def hold(line: int) -> None:
    """End this process when the parent, which passed the descriptor, is gone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_leave_when_closed, args=(line,), daemon=True).start()


def _leave_when_closed(line: int) -> None:
    os.read(line, 1)
    os._exit(1)
