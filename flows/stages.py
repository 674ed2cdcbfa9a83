"""How a flow calls its stages, and how a flow is run.

A flow calls its stages by name through `Stages`, which only calls them. The subclass in
`flows.orchestration` records each call at a Prefect server. The work is the same in both.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from maskloom.flows.progress.displays import Quiet

T = TypeVar("T")
Item = TypeVar("Item")


def _nothing_said(*_: Any) -> str:
    return ""


class Stages:
    """Calls the stages of a flow, without a record."""

    def stage(
        self,
        name: str,  # noqa: ARG002
        function: Callable[..., T],
        *args: Any,
        said: Callable[[T], str] = _nothing_said,  # noqa: ARG002
    ) -> T:
        """The function's result, which `said` puts into words for a record. Raises its error."""
        return function(*args)

    def emit(self, event: str, name: str, payload: Mapping[str, Any]) -> None:
        """Tell a record of an event that concerns the thing with this name."""

    def shown_by(self, display: Quiet) -> Quiet:
        """The display of a run whose stages these are."""
        return display

    def each(
        self,
        function: Callable[[Item], T],
        items: Sequence[Item],
        name: Callable[[Item], str],
        width: int,
        said: Callable[[Item, T], str] = _nothing_said,
    ) -> Iterator[T]:
        """The function's results for all items, in order of completion. Each call is a stage; at
        most `width` run at once.

        After the first error no further call starts; the error is raised when the running calls
        have ended.
        """
        waiting = deque(items)
        running: set[Future[T]] = set()
        failure: BaseException | None = None
        with ThreadPoolExecutor(width, "shard") as pool:
            while running or (waiting and failure is None):
                while waiting and failure is None and len(running) < width:
                    item = waiting.popleft()
                    stage = partial(self.stage, said=partial(said, item))
                    # The record is found by a context variable, which threads do not inherit.
                    call = copy_context().run
                    running.add(pool.submit(call, stage, name(item), function, item))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    failure = failure or future.exception()
                    if future.exception() is None:
                        yield future.result()
        if failure is not None:
            raise failure


@dataclass(frozen=True, slots=True)
class Watched:
    """A run as its record names it, and how it is stopped from there."""

    name: str
    output: str = ""
    """Where its results are: a URI, which may hold a secret."""
    stop: Callable[[str], object] = _nothing_said
    """Asks the run to stop, for this reason."""
    notes: tuple[str, ...] = ()
    """Lines that were said before the record began."""


class Orchestrator(Protocol):
    """Runs a flow. Entering the context starts what it needs, in the background."""

    def flow(self, run: Watched, body: Callable[[Stages], T]) -> T:
        """The result of `body`. Raises its error."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


class Plain:
    """Runs a flow without a record."""

    def flow(self, run: Watched, body: Callable[[Stages], T]) -> T:  # noqa: ARG002
        """The result of `body`. Raises its error."""
        return body(Stages())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None
