"""Lifelines: child processes that end with their parent, even if it is killed by SIGKILL.

The child holds the read end of a pipe; only the parent has the write end. When the parent dies, the
pipe closes and the child exits. On Linux the kernel is also asked to kill the child, which works
even while native code holds the global interpreter lock.
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
def child_lifeline() -> Iterator[int]:
    """A file descriptor (`pass_fds`) for a child of this thread, which passes it to
    `exit_with_parent`. The child ends when the block ends, if not earlier.
    """
    line, held = os.pipe()
    try:
        yield line
    finally:
        os.close(line)
        os.close(held)


def exit_with_parent(line: int) -> None:
    """End this process when the parent that passed the descriptor is gone."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    threading.Thread(target=_leave_when_closed, args=(line,), daemon=True).start()


def _leave_when_closed(line: int) -> None:
    os.read(line, 1)
    os._exit(1)
