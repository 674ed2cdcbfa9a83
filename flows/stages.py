"""Stages of a run: what runs them, with a record or without.

A flow names its stages and calls them through an `Orchestrator`. `Plain` just calls them;
`flows.orchestration` records each at a Prefect server. The work is the same in both.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

T = TypeVar("T")
Item = TypeVar("Item")


class Orchestrator(Protocol):
    """Runs the stages of one run, and may record them."""

    def flow(self, name: str, body: Callable[[], T]) -> T:
        """The result of `body`, or its error. All stages run inside it."""
        ...

    def stage(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """The function's result, or its error."""
        ...

    def each(
        self,
        function: Callable[[Item], T],
        items: Sequence[Item],
        name: Callable[[Item], str],
        width: int,
    ) -> Iterator[T]:
        """The function's results for all items, each as a stage, in order of completion, at most
        `width` at once.

        After the first error no further item begins; the error is raised when those that run have
        ended.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Plain:
    """Runs stages without a record."""

    def flow(self, name: str, body: Callable[[], T]) -> T:  # noqa: ARG002 - nothing is recorded
        """The result of `body`, or its error."""
        return body()

    def stage(self, name: str, function: Callable[..., T], *args: Any) -> T:  # noqa: ARG002 - nothing is recorded
        """The function's result, or its error."""
        return function(*args)

    def each(
        self,
        function: Callable[[Item], T],
        items: Sequence[Item],
        name: Callable[[Item], str],
        width: int,
    ) -> Iterator[T]:
        """The function's results in order of completion, at most `width` items at once."""
        return concurrently(lambda item: self.stage(name(item), function, item), items, width)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


def concurrently(function: Callable[[Item], T], items: Sequence[Item], width: int) -> Iterator[T]:
    """The function's results for all items in order of completion, from `width` threads that have
    the context variables of the caller.

    After the first error no further item begins; the error is raised when those that run have
    ended.
    """
    waiting = deque(items)
    running: set[Future[T]] = set()
    failure: BaseException | None = None
    with ThreadPoolExecutor(width, "shard") as pool:
        while running or (waiting and failure is None):
            while waiting and failure is None and len(running) < width:
                running.add(pool.submit(copy_context().run, function, waiting.popleft()))
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                failure = failure or future.exception()
                if future.exception() is None:
                    yield future.result()
    if failure is not None:
        raise failure
