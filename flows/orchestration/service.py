"""The service that executes the runs of its deployments, until it is asked to stop.

It is Prefect's runner, except that it continues to ask for runs however long the server is away,
and that it leaves at the server what it interrupts. Each run is a process of its own.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

import httpx
from prefect._internal import _observation_delivery
from prefect.runner import Runner
from prefect.settings import temporary_settings
from prefect.states import Scheduled

from maskloom.flows.orchestration.deployments import HEARTBEAT_SECONDS, RUN_ENVIRONMENT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from uuid import UUID

log = logging.getLogger("maskloom.run")

_POLL_SECONDS = 5.0
_GRACE_SECONDS = 60.0
"""How long runs may take to end when the service is stopped. Then they are killed."""


async def _repeat(workload: Callable[[], Awaitable[None]], interval: float, **_: object) -> None:
    """Call the workload for ever. Prefect's own loop gives up after three errors, prints their
    tracebacks, and so ends the service, or its ear for cancelled runs, in a longer outage.
    """
    while True:
        with suppress(httpx.HTTPError, OSError):
            await workload()
        await asyncio.sleep(interval)


class Service(Runner):
    """Executes the runs of deployments."""

    def __init__(self, deployments: Mapping[UUID, str]) -> None:
        """`deployments` that are registered at the server: their names by id."""
        super().__init__(
            name="maskloom",
            heartbeat_seconds=HEARTBEAT_SECONDS,
            # Slots at the server keep a recipe from overlapping itself.
            limit=None,
            # Otherwise each restart of the service would leave the schedules paused.
            pause_on_shutdown=False,
        )
        self._away = False
        # For the processes of runs alone, since Prefect has read its settings here.
        os.environ.update(RUN_ENVIRONMENT)
        _observation_delivery.critical_service_loop = _repeat  # type: ignore[attr-defined,assignment]
        for deployment_id, name in deployments.items():
            self._deployment_registry.register_deployment(deployment_id, name)

    async def serve(self) -> None:
        """Execute runs until SIGTERM or SIGINT; then end those that are at work. The next service
        continues them. A second signal ends everything at once.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        signals = (signal.SIGTERM, signal.SIGINT)
        for number in signals:
            loop.add_signal_handler(number, stop.set)
        async with self:
            polling = asyncio.create_task(_repeat(self._start_runs, _POLL_SECONDS))
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({polling, stopped}, return_when=asyncio.FIRST_COMPLETED)
            for number in signals:
                loop.remove_signal_handler(number)
            self.stopping = True
            polling.cancel()
            await self._end_runs()
        if not stop.is_set():
            # An unexpected error of the loop ends the service; its supervisor starts it again.
            await polling

    async def _end_runs(self) -> None:
        """End the runs that are at work, and those that are about to be."""
        begun = self._scheduled_run_poller._submitting_flow_run_ids  # noqa: SLF001
        if begun:
            log.warning("Stopping: %d runs end first.", len(begun))
        interrupted: set[UUID] = set()
        while begun:
            running = self._process_manager.flow_run_ids() - interrupted
            interrupted |= running
            await asyncio.gather(*(self._interrupt(flow_run_id) for flow_run_id in running))
            await asyncio.sleep(0.2)

    async def _start_runs(self) -> None:
        """Start the runs whose time has come, if the server answers."""
        try:
            # Without retries, so that an outage and its end are noticed at once.
            with temporary_settings({"client.max_retries": 0}):
                await self._client.request("GET", "/ready")
            await self._get_and_submit_flow_runs()  # type: ignore[no-untyped-call]
        except (httpx.HTTPError, OSError) as error:
            if not self._away:
                log.warning(
                    "The Prefect server does not answer (%s). Runs that are at work continue; the "
                    "next ones start when it is back.",
                    " ".join(str(error).split())[:300],
                )
            self._away = True
            raise
        if self._away:
            log.warning("The Prefect server answers again.")
        self._away = False

    async def _interrupt(self, flow_run_id: UUID) -> None:
        """End a run, and leave another one at the server that continues it."""
        await self._process_manager.kill(flow_run_id, grace_seconds=_GRACE_SECONDS)
        try:
            flow_run = await self._client.read_flow_run(flow_run_id)
            done = flow_run.state is not None and flow_run.state.is_completed()
            if flow_run.deployment_id is not None and not done:
                await self._client.create_flow_run_from_deployment(
                    flow_run.deployment_id, state=Scheduled()
                )
        except (httpx.HTTPError, OSError) as error:
            log.warning("The run that was interrupted continues at its next time only: %s", error)
