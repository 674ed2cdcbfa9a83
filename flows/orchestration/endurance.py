"""What lets a run outlive its surroundings: its slot, the service that started it; and lets it do
the work of those that wait for its slot.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prefect import flow_engine
from prefect.concurrency._leases import maintain_concurrency_lease
from prefect.states import Cancelled
from rich.console import Console

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.schemas.objects import FlowRun, State
    from prefect.flows import Flow


def endure() -> None:
    """Let the runs of this process continue where Prefect and rich would end them.

    The slot of a run is lost when the server or its database was away for long; an overlap does us
    no harm. The service that reads its messages may have been killed.
    """

    @contextmanager
    def maintained(lease_id: Any, lease_duration: float, **_: Any) -> Iterator[None]:
        with maintain_concurrency_lease(lease_id, lease_duration):
            yield

    def go_on(console: Console) -> None:
        console.quiet = True

    # Prefect 3.9 has no setting for it.
    flow_engine.maintain_concurrency_lease = maintained  # type: ignore[attr-defined,assignment]
    Console.on_broken_pipe = go_on  # type: ignore[method-assign,assignment]


def take_over(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:  # noqa: ARG001
    """Cancel the runs of the same deployment that wait for this one, which has not yet listed its
    inputs: a thousand events during a run become one run, not a thousand.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterDeploymentId,
        FlowRunFilterState,
        FlowRunFilterStateName,
    )

    if flow_run.deployment_id is None:
        return
    waiting = FlowRunFilter(
        deployment_id=FlowRunFilterDeploymentId(any_=[flow_run.deployment_id]),
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=["AwaitingConcurrencySlot"])),
    )
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=waiting):
            message = f"The run {flow_run.id} does its work."
            client.set_flow_run_state(run.id, Cancelled(message=message))
