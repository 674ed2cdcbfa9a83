"""The orchestrator that records a command's run at a Prefect server.

The server is the one that the environment or Prefect's profile names; otherwise an embedded server
that ends with the run. Servers record task runs from events, which are sent late and lost at
exit, so a flow ends only when the server has the end of all task runs.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Self, TypeVar

from maskloom.flows.importing import collector_off
from maskloom.flows.orchestration.server import EmbeddedServer, configured_server, import_prefect
from maskloom.flows.signals import Handlers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from uuid import UUID

    from maskloom.flows.stages import Stages, Watched

T = TypeVar("T")

log = logging.getLogger("maskloom.run")

_RECORDING_SECONDS = 60.0
"""How long the server may take to record all stages."""
_RETRIES = 4
"""How often a call to the embedded server is repeated, after 2, 4, 8 and 16 s: runs that share its
database may delay it.
"""
_FINAL_STATES = ["COMPLETED", "FAILED", "CRASHED", "CANCELLED"]


class Prefect:
    """Runs a flow, and records its stages as task runs of one flow run."""

    def __init__(self, parameters: Mapping[str, Any], server: EmbeddedServer | None = None) -> None:
        """`parameters` of `run_recipe` that the record shows: JSON values without secrets.
        `server`: one that was started early, for this run.
        """
        self.flow_run_id: UUID | None = None
        """The flow run, once it has begun."""
        self._parameters = dict(parameters)
        self._server, self._started_early = server, server is not None
        self._api: Future[str] | None = None

    def start(self) -> None:
        """Start the server and import Prefect in the background. Errors are raised by `flow`."""
        if self._api is not None:
            return
        # To ask a child process takes a second; the environment has the last word in any case.
        configured = configured_server()
        if configured is None and self._server is None:
            self._server = EmbeddedServer()
        address = partial(str, configured) if self._server is None else self._server.url
        pool = ThreadPoolExecutor(1, "prefect")
        self._api = pool.submit(self._import_and_wait, address)
        pool.shutdown(wait=False)

    @staticmethod
    def _import_and_wait(address: Callable[[], str]) -> str:
        """Import Prefect and the flow, which takes seconds. Returns the address of the server."""
        with collector_off():
            import_prefect()
            # Only to have them imported. Arrow wants pandas for its first table of rows, when the
            # run would wait for it.
            import pandas  # noqa: F401, ICN001

            import maskloom.flows.orchestration.flow  # noqa: F401

        return address()

    def flow(self, run: Watched, body: Callable[[Stages], T]) -> T:
        """The result of `body`. Raises its error, and `RunError` if the run cannot be recorded."""
        self.start()
        assert self._api is not None
        url = self._api.result()
        from maskloom.flows.orchestration.flow import Call, InFlowRun, run_recipe

        self.flow_run_id = None
        inside, handlers = InFlowRun(), Handlers.now()

        def with_our_handlers() -> T:
            self._note_run()
            # Prefect has installed its own handler of SIGTERM, which would abort running jobs.
            with handlers.installed():
                return inside.flow(run, body)

        with self._recording(url, inside.ended):
            return Call(run.name, with_our_handlers).through(
                lambda: run_recipe(**self._parameters, return_state=True)
            )

    def close(self) -> None:
        """End the embedded server. Whoever started it early waits for its end."""
        if self._server is not None:
            if self._started_early:
                self._server.end()
            else:
                self._server.close()
        if self._api is not None:
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
        """Keep the id of the flow run around this call."""
        from prefect.context import FlowRunContext

        context = FlowRunContext.get()
        assert context is not None
        assert context.flow_run is not None
        self.flow_run_id = context.flow_run.id

    @contextmanager
    def _recording(self, url: str, ended: Sequence[str]) -> Iterator[None]:
        """Let Prefect record the block at the server. Returns when the server has the end of every
        task run.
        """
        import httpx
        from prefect.events.clients import PrefectEventsClient
        from prefect.events.worker import EventsWorker

        from maskloom.flows.orchestration.settings import changed_settings

        settings: dict[str, Any] = {
            "api": {"url": url},
            "logging": {"to_api": {"when_missing_flow": "ignore"}},
        }
        if self._embedded:
            # Heartbeats are of no use on a server that ends with the run, and they delay its end by
            # a second.
            settings["flows"] = {"heartbeat_frequency": None}
            # If an embedded server does not answer, it has died; the usual retries would delay the
            # end by minutes. It has this version of Prefect.
            settings["client"] = {
                "max_retries": _RETRIES,
                "server_version_check_enabled": False,
            }
            EventsWorker.set_client_override(
                PrefectEventsClient, api_url=url, reconnection_attempts=1
            )
        with changed_settings(settings):
            try:
                yield
            finally:
                try:
                    self._wait_until_recorded(ended)
                except (httpx.HTTPError, OSError, RuntimeError) as error:
                    log.warning("Prefect may not have recorded all stages: %s", error)
                EventsWorker.set_client_override(None)

    def _wait_until_recorded(self, names: Sequence[str]) -> None:
        """Send pending events and logs, and wait until the server has the end of all task runs,
        whose names these are.
        """
        from prefect.client.orchestration import get_client
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        deadline = time.monotonic() + _RECORDING_SECONDS
        # In a thread of its own: where an event loop runs, as in a notebook, these would only
        # return coroutines.
        with ThreadPoolExecutor(1) as aside:
            for worker in (EventsWorker, APILogWorker):
                left = max(0.0, deadline - time.monotonic())
                aside.submit(worker.drain_all, timeout=left).result()
        if self.flow_run_id is None:
            return
        ended = {
            "flow_runs": {"id": {"any_": [str(self.flow_run_id)]}},
            "task_runs": {"state": {"type": {"any_": _FINAL_STATES}}},
        }
        expected = len(names)
        with get_client(sync_client=True) as client:
            while client.request("POST", "/task_runs/count", json=ended).json() < expected:
                if time.monotonic() > deadline:
                    log.warning(
                        "Prefect has not recorded all stages within %.0f s.", _RECORDING_SECONDS
                    )
                    return
                time.sleep(0.1)
