"""A function that runs once, in a background thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Result = TypeVar("Result")


class Background(Generic[Result]):
    """A call that `start` begins, at most once, and whose result several threads may wait for."""

    def __init__(self, function: Callable[[], Result]) -> None:
        self._function = function
        self._lock = threading.Lock()
        self._future: Future[Result] | None = None

    def start(self) -> Future[Result]:
        """Start the call unless it has started, and return at once."""
        with self._lock:
            if self._future is None:
                pool = ThreadPoolExecutor(1)
                self._future = pool.submit(self._function)
                pool.shutdown(wait=False)
            return self._future

    def result(self) -> Result:
        """The function's result. Raises what it raised."""
        return self.start().result()

    def wait(self) -> None:
        """Wait for the end of the call; return at once if it was never started."""
        if self._future is not None:
            self._future.exception()
