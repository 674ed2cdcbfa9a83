"""Who watches a run: nobody (`Plain`), or Prefect with one flow run, one task run a stage and one a
shard (`Prefect`).

The work is the same in both. Prefect never sees what stages take and give: a task run is a closure
without arguments, whose outcome comes back beside it. So nothing of ours is hashed, copied, stored
or cached, and where Prefect fails to write something down, finished work still counts.

Prefect's server hears of task runs by events that are sent late and lost at exit, so a flow ends
only when the server knows all of them.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

from maskloom.flows.orchestration.signals import Handlers, stop_on_signals
from maskloom.segcore.errors import RunError, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from maskloom.flows.orchestration.server import EmbeddedServer

__all__ = ["Orchestrator", "Plain", "Prefect", "stop_on_signals"]

T = TypeVar("T")
Item = TypeVar("Item")

log = logging.getLogger("maskloom.run")

_SECONDS_TO_RECORD = 60.0
"""How long the server may take to know what has run."""
_RETRIES = 4
"""How often a call to the embedded server is repeated, after 2, 4, 8 and 16 s: runs that share its
database may hold it up.
"""
_FINAL_STATES = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


class Orchestrator(Protocol):
    """Runs the stages of one run, and may keep a record of them."""

    def flow(self, name: str, parameters: Mapping[str, Any], body: Callable[[], T]) -> T:
        """What `body` returns or raises. `parameters` may be shown to people, so no secrets."""
        ...

    def stage(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """What the function returns or raises. Only inside of `flow`."""
        ...

    def each(
        self,
        function: Callable[[Item], T],
        items: Sequence[Item],
        name: Callable[[Item], str],
        width: int,
    ) -> Iterator[T]:
        """What the function returns for each item, in order of completion, at most `width` of them
        at once.

        After the first error no item begins any more; it is raised when those that run have ended.
        """
        ...


class Plain:
    """Runs the stages, and nothing else."""

    def flow(self, name: str, parameters: Mapping[str, Any], body: Callable[[], T]) -> T:  # noqa: ARG002 - nothing is recorded
        """What `body` returns or raises."""
        return body()

    def stage(self, name: str, function: Callable[..., T], *args: Any) -> T:  # noqa: ARG002 - nothing is recorded
        """What the function returns or raises."""
        return function(*args)

    def each(
        self,
        function: Callable[[Item], T],
        items: Sequence[Item],
        name: Callable[[Item], str],  # noqa: ARG002 - nothing is recorded
        width: int,
    ) -> Iterator[T]:
        """What the function returns for each item, in order of completion."""
        with ThreadPoolExecutor(width, "shard") as pool:
            yield from _as_completed(lambda item: pool.submit(function, item), items, width)


class Prefect:
    """Runs the stages, and records each as a task run of one flow run.

    The server is the one that the environment or Prefect's profile names. Where neither does, it is
    an embedded server that ends with this object.
    """

    def __init__(self) -> None:
        self.flow_run_id: UUID | None = None
        """The flow run, once it has begun."""
        self.run_url: str | None = None
        """Its page. None where the server has no pages."""
        self._server: EmbeddedServer | None = None
        self._api: Future[str] | None = None
        self._ended: list[str] = []
        """Names of the task runs that have ended, in the order in which they did."""

    def start(self) -> None:
        """Begins to start what is needed, and returns at once. What goes wrong meanwhile is raised
        by `flow`.
        """
        if self._api is not None:
            return
        from maskloom.flows.orchestration.server import EmbeddedServer

        self._server = EmbeddedServer()
        pool = ThreadPoolExecutor(1, "prefect")
        self._api = pool.submit(self._server.import_prefect)
        pool.shutdown(wait=False)

    def flow(self, name: str, parameters: Mapping[str, Any], body: Callable[[], T]) -> T:
        """What `body` returns or raises. Raises `RunError` if the run cannot be recorded."""
        self.start()
        assert self._api is not None
        url = self._api.result()
        import prefect
        from prefect.states import Cancelled

        self.flow_run_id, self._ended = None, []
        handlers = Handlers.now()
        outcome = _Outcome(body)

        @prefect.flow(
            name="maskloom",
            flow_run_name=lambda: name,
            persist_result=False,
            validate_parameters=False,
        )
        def maskloom(parameters: dict[str, Any]) -> Any:  # noqa: ARG001 - Prefect shows them
            self._note_run()
            try:
                # Prefect has put its own handler of SIGTERM in place, which would break off what
                # ours lets end.
                with handlers.installed():
                    outcome.run()
            except Stopped as stopped:
                return Cancelled(message=str(stopped))

        with self._recording(url):
            return outcome.after(lambda: maskloom(dict(parameters), return_state=True))

    def stage(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """What the function returns or raises, from a task run of this name."""
        from prefect import task
        from prefect.cache_policies import NO_CACHE

        outcome = _Outcome(lambda: function(*args))

        @task(name=name, task_run_name=lambda: name, persist_result=False, cache_policy=NO_CACHE)
        def recorded() -> None:
            outcome.run()

        try:
            return outcome.after(recorded)
        finally:
            self._ended.append(name)

    def each(
        self,
        function: Callable[[Item], T],
        items: Sequence[Item],
        name: Callable[[Item], str],
        width: int,
    ) -> Iterator[T]:
        """What the function returns for each item, in order of completion, each from a task run of
        its own.
        """

        def submit(item: Item) -> Future[T]:
            # The flow run that a task run belongs to is a context variable, which threads do not
            # inherit.
            return pool.submit(copy_context().run, self.stage, name(item), function, item)

        with ThreadPoolExecutor(width, "shard") as pool:
            yield from _as_completed(submit, items, width)

    def close(self) -> None:
        """Ends the embedded server."""
        if self._server is not None and self._api is not None:
            self._server.close()
            self._api.exception()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def _embedded(self) -> bool:
        return self._server is not None and self._server.serves

    def _note_run(self) -> None:
        """Keeps the identity of the flow run around this call."""
        from prefect.context import FlowRunContext
        from prefect.utilities.urls import url_for

        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        self.flow_run_id = context.flow_run.id
        self.run_url = None if self._embedded else url_for("flow-run", self.flow_run_id)

    @contextmanager
    def _recording(self, url: str) -> Iterator[None]:
        """Lets Prefect record the block at the server, and ends when the server knows the end of
        every task run.
        """
        import httpx
        from prefect.events.clients import PrefectEventsClient
        from prefect.events.worker import EventsWorker
        from prefect.settings import temporary_settings

        settings: dict[str, Any] = {"api.url": url, "logging.to_api.when_missing_flow": "ignore"}
        if self._embedded:
            # Nobody listens for signs of life on a server that lives and dies with the run, and
            # they delay its end by a second.
            settings["flows.heartbeat_frequency"] = None
            # A server of our own that does not answer is dead; the usual patience would hold up the
            # end for minutes.
            settings["client.max_retries"] = _RETRIES
            EventsWorker.set_client_override(
                PrefectEventsClient, api_url=url, reconnection_attempts=1
            )
        with temporary_settings(settings):
            try:
                yield
            finally:
                try:
                    self._wait_until_recorded()
                except (httpx.HTTPError, OSError, RuntimeError) as error:
                    log.warning("Prefect may not have recorded all stages: %s", error)
                EventsWorker.set_client_override(None)

    def _wait_until_recorded(self) -> None:
        """Sends what is still to be sent, and waits until the server knows the end of every task
        run.
        """
        from prefect.client.orchestration import get_client
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        deadline = time.monotonic() + _SECONDS_TO_RECORD
        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=max(0.0, deadline - time.monotonic()))
        if self.flow_run_id is None:
            return
        ended = {
            "flow_runs": {"id": {"any_": [str(self.flow_run_id)]}},
            "task_runs": {"state": {"type": {"any_": _FINAL_STATES}}},
        }
        with get_client(sync_client=True) as client:
            while client.request("POST", "/task_runs/count", json=ended).json() < len(self._ended):
                if time.monotonic() > deadline:
                    log.warning(
                        "Prefect has not recorded all stages within %.0f s.", _SECONDS_TO_RECORD
                    )
                    return
                time.sleep(0.1)


def _as_completed(
    submit: Callable[[Item], Future[T]], items: Sequence[Item], width: int
) -> Iterator[T]:
    """Keeps `width` items running and yields their results; the first error stops that, and is
    raised when the rest has ended.
    """
    waiting = deque(items)
    running: set[Future[T]] = set()
    failure: BaseException | None = None
    while running or (waiting and failure is None):
        while waiting and failure is None and len(running) < width:
            running.add(submit(waiting.popleft()))
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for future in done:
            failure = failure or future.exception()
            if future.exception() is None:
                yield future.result()
    if failure is not None:
        raise failure


class _Outcome(Generic[T]):
    """What a function returned or raised, kept beside what Prefect makes of it."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Calls the function, keeps its result, and lets its error pass."""
        try:
            self._result.append(self._function())
        except BaseException as error:
            self._error = error
            raise

    def after(self, record: Callable[[], object]) -> T:
        """What the function did while `record` ran it. Raises `RunError` if Prefect failed before
        it could do anything.
        """
        complaint: object = None
        try:
            complaint = record()
        except Exception as error:  # noqa: BLE001 - whatever Prefect raises is weighed against what the function did
            complaint = error
            if self._result:
                log.warning("Prefect did not record everything: %s", error)
        if self._error is not None:
            raise self._error
        if not self._result:
            raise RunError(
                f"Prefect did not let the run begin: {complaint}. Look at its server and "
                "PREFECT_API_URL, or use --no-prefect."
            )
        return self._result[0]
