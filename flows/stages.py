"""Stages of a run: what calls them, with a record or without.

A flow calls its stages by name through `Stages`, which just calls them. `flows.orchestration` has
another one that records each at a Prefect server. The work is the same in both.
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


class Stages:
    """Calls the stages of a flow, without a record."""

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
        """The function's results for all items, each as a stage, in order of completion, at most
        `width` at once.

        After the first error no further item begins; the error is raised when those that run have
        ended.
        """
        waiting = deque(items)
        running: set[Future[T]] = set()
        failure: BaseException | None = None
        with ThreadPoolExecutor(width, "shard") as pool:
            while running or (waiting and failure is None):
                while waiting and failure is None and len(running) < width:
                    item = waiting.popleft()
                    # The record belongs to a context variable, which threads do not inherit.
                    call = copy_context().run
                    running.add(pool.submit(call, self.stage, name(item), function, item))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    failure = failure or future.exception()
                    if future.exception() is None:
                        yield future.result()
        if failure is not None:
            raise failure


class Orchestrator(Protocol):
    """Runs a flow. Entering it starts what it needs, in the background."""

    def flow(self, name: str, body: Callable[[Stages], T]) -> T:
        """The result of `body`, or its error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Plain:
    """Runs a flow with the given stages, and nothing around it."""

    def __init__(self, stages: Stages | None = None) -> None:
        self._stages = stages or Stages()

    def flow(self, name: str, body: Callable[[Stages], T]) -> T:  # noqa: ARG002 - nothing is recorded
        """The result of `body`, or its error."""
        return body(self._stages)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None
