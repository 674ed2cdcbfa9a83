"""The process that calls maskloom: its interrupts, and its script, which workers do not import."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


def import_whole(name: str) -> None:
    """Import a package, and only then answer Ctrl-C: an import that is cut short leaves parts of
    the package behind, with which no later run of this process, such as a kernel, would work.
    """
    from maskloom.flows.signals import stop_on_signals

    stop = threading.Event()
    with stop_on_signals(stop):
        import_module(name)
    if stop.is_set():
        raise KeyboardInterrupt


_hiding = threading.Lock()
_hidden = 0
_kept: dict[str, Any] = {}


@contextmanager
def main_hidden() -> Iterator[None]:
    """Worker processes do not import the script that started them: they need nothing of it, and
    without `if __name__ == "__main__"` it would start itself again in each of them.

    They are spawned at any moment of a run, so the script has no file until the last run ends.
    """
    global _hidden  # noqa: PLW0603  one for the process, as __main__ is
    main = sys.modules["__main__"]
    with _hiding:
        _hidden += 1
        if _hidden == 1:
            _kept.update({name: vars(main)[name] for name in _NAMING if name in vars(main)})
            for name in _kept:
                setattr(main, name, None)
    try:
        yield
    finally:
        with _hiding:
            _hidden -= 1
            if not _hidden:
                for name, value in _kept.items():
                    setattr(main, name, value)
                _kept.clear()


_NAMING = ("__spec__", "__file__")
"""What `multiprocessing` finds a script by."""
