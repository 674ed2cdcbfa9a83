"""Deployments of recipes on a Prefect server: schedules, events, no overlap, dead runs.

Each recipe gets two deployments of the flow `run_recipe`: `NAME` for its schedule, and
`NAME.events` for the event that says that new objects have come. Both share one slot, so runs of a
recipe never overlap. What finds the slot taken is cancelled in the first (one run does all that is
missing, so the rest of an outage need not be run), and waits in the second (the run at work may
have listed its inputs before the new ones came).

Automations of the server start the runs of events, and end runs whose heartbeats have stopped.
"""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID
from zoneinfo import ZoneInfo

from maskloom.segcore.errors import RecipeError, RunError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.objects import WorkPool
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
    from prefect.events.schemas.automations import AutomationCore

    from maskloom.flows.recipes.schedule import Schedule

log = logging.getLogger("maskloom.run")

HEARTBEAT_SECONDS = 30
"""Time between two heartbeats of a run: the shortest that Prefect allows."""
RUN_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_SECONDS),
    # A run that ends while the server is away tries for eight minutes to say how it ended. The
    # server answers 500 while its database is away.
    "PREFECT_CLIENT_MAX_RETRIES": "8",
    "PREFECT_CLIENT_RETRY_EXTRA_CODES": "500,504",
}
"""Settings of the processes of runs."""
SILENCE_SECONDS = 90
"""After so long without a heartbeat, a run counts as dead."""
ARRIVED = "maskloom.objects.arrived"
"""The event that starts a run. Its resource is `maskloom.recipe.NAME`."""
WATCHED = "maskloom-watched"
"""Tag of the runs whose heartbeats are watched."""
ENTRYPOINT = "maskloom.flows.orchestration.flow.run_recipe"
_FLOW = "maskloom"
_END_STATES = ("Completed", "Partial", "Failed", "TimedOut", "Crashed", "Cancelled")
_RESTS = ("Scheduled", "AwaitingRetry", "Paused", "Suspended")
_CLOCKS_DIFFER = timedelta(seconds=30)
_FIRST_MONDAY = datetime(2024, 1, 1)
"""From here intervals are counted, in the time zone of the schedule."""


@dataclass(frozen=True, slots=True)
class Deployed:
    """A recipe to deploy."""

    name: str
    """Name of the recipe, and of its deployments."""
    path: str
    """Path of the recipe where its runs are executed."""
    changes: tuple[str, ...] = ()
    schedule: Schedule | None = None

    @property
    def events(self) -> str:
        """Name of the deployment for events."""
        return f"{self.name}.events"


@dataclass(frozen=True, slots=True)
class Place:
    """The work pool that executes the runs."""

    pool: str
    image: str | None = None
    """Container image. None: that of the pool."""

    @property
    def job_variables(self) -> dict[str, Any]:
        """What the pool's workers need to know."""
        variables: dict[str, Any] = {"env": RUN_ENVIRONMENT}
        return variables if self.image is None else {**variables, "image": self.image}


@contextmanager
def connected() -> Iterator[SyncPrefectClient]:
    """A client of the configured server. Raises `RunError` if none is configured, or if it does not
    answer.
    """
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.settings import get_current_settings, temporary_settings

    url = get_current_settings().api.url
    if not url:
        raise RunError(
            "No Prefect server is configured. Start one with `prefect server start`, and set "
            "PREFECT_API_URL=http://127.0.0.1:4200/api, or `prefect config set` it."
        )
    with temporary_settings({"client.max_retries": 1}), get_client(sync_client=True) as client:
        try:
            client.request("GET", "/admin/version")
            yield client
        except httpx.HTTPStatusError as error:
            raise RunError(
                f"The Prefect server at {url} refused: {_reason(error.response)}. "
                "PREFECT_API_AUTH_STRING or PREFECT_API_KEY holds what it asks for."
                if error.response.status_code in {401, 403}
                else f"The Prefect server at {url} refused: {_reason(error.response)}."
            ) from error
        except (httpx.HTTPError, OSError) as error:
            raise RunError(
                f"The Prefect server at {url} does not answer ({type(error).__name__}: {error}). "
                "Start it with `prefect server start`, or correct PREFECT_API_URL."
            ) from error


def register(
    client: SyncPrefectClient, recipe: Deployed, place: Place | None = None
) -> dict[UUID, str]:
    """Create or update the deployments of a recipe and what starts and watches them. Returns their
    names by id.

    Without a place, the process that registers them also executes their runs. What an operator has
    paused at the server stays paused. Raises `RecipeError` if a work pool already has them.
    """
    from prefect.client.schemas.objects import ConcurrencyLimitStrategy

    client.upsert_global_concurrency_limit_by_name(f"{_FLOW}.{recipe.name}", 1)
    slot = client.read_global_concurrency_limit_by_name(f"{_FLOW}.{recipe.name}")
    flow = client.create_flow_from_name(_FLOW)
    ids = {}
    for name, schedule, strategy in (
        (recipe.name, recipe.schedule, ConcurrencyLimitStrategy.CANCEL_NEW),
        (recipe.events, None, ConcurrencyLimitStrategy.ENQUEUE),
    ):
        _refuse_pool_of_others(client, name, place)
        answer = client.request(
            "POST",
            "/deployments/",
            json={
                "name": name,
                "flow_id": str(flow),
                "entrypoint": ENTRYPOINT,
                "parameters": {"recipe": recipe.path, "changes": list(recipe.changes)},
                "parameter_openapi_schema": _parameter_schema(),
                "global_concurrency_limit_id": str(slot.id),
                "concurrency_options": {"collision_strategy": strategy.value},
                "schedules": _schedules(client, name, schedule),
                "tags": [WATCHED, recipe.name],
                "pull_steps": [],
                **(
                    {"work_pool_name": place.pool, "job_variables": place.job_variables}
                    if place is not None
                    else {}
                ),
            },
        )
        ids[name] = UUID(answer.json()["id"])
    _put(client, _starts_on_event(recipe, ids[recipe.events]))
    _put(client, _ends_dead_runs())
    return {deployment_id: name for name, deployment_id in ids.items()}


def work_pool(client: SyncPrefectClient, name: str, image: str | None) -> WorkPool:
    """A work pool that can execute runs. Raises `RecipeError`."""
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_work_pool(name)
    except ObjectNotFound:
        raise RecipeError(
            f"--pool {name}: the server has no such work pool. Create it: "
            f"prefect work-pool create {name} --type process"
        ) from None
    variables = pool.base_job_template.get("variables", {}).get("properties", {})
    in_container = "image" in variables
    if image is not None and not in_container:
        raise RecipeError(f"--image: the pool {name} ({pool.type}) runs no containers.")
    if image is None and in_container and not variables["image"].get("default"):
        raise RecipeError(
            f"--pool {name} ({pool.type}): expected --image with an image that has maskloom, since "
            "the pool names none."
        )
    return pool


def warnings_about(client: SyncPrefectClient) -> list[str]:
    """What of the server's settings, and of the clock here, does not suit unattended runs. Empty if
    the server does not tell.
    """
    import httpx

    try:
        answer = client.request("GET", "/admin/settings")
        ahead = datetime.now(UTC) - parsedate_to_datetime(answer.headers["date"])
        settings = answer.json()["server"]
        off = {name for name, each in settings["services"].items() if each.get("enabled") is False}
        storage = str(settings["concurrency"]["lease_storage"])
    except (httpx.HTTPError, KeyError, AttributeError, TypeError, ValueError):
        return []
    seconds = round(ahead.total_seconds())
    warnings = {
        f"The clock of this machine is {abs(seconds)} s {'ahead of' if seconds > 0 else 'behind'} "
        "the server's: runs start too early or too late. Correct the clocks.": (
            abs(ahead) > _CLOCKS_DIFFER
        ),
        "The scheduler of the Prefect server is off: no schedule starts a run. Set "
        "PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED=true there.": "scheduler" in off,
        "The triggers of the Prefect server are off: no event starts a run, and dead runs are not "
        "found. Set PREFECT_SERVER_SERVICES_TRIGGERS_ENABLED=true there.": "triggers" in off,
        "The Prefect server keeps its leases in memory: a restart of it may leave the slot of a "
        "run taken for ever, so that no other one starts. Set "
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE="
        "prefect.server.concurrency.lease_storage.filesystem there.": storage.endswith(".memory"),
    }
    return [line for line, true in warnings.items() if true]


def _reason(response: Any) -> str:
    """What a server says about a refusal, in one line."""
    return " ".join(f"{response.status_code} {response.text[:300]}".split())


def _refuse_pool_of_others(client: SyncPrefectClient, name: str, place: Place | None) -> None:
    from prefect.exceptions import ObjectNotFound

    try:
        pool = client.read_deployment_by_name(f"{_FLOW}/{name}").work_pool_name
    except ObjectNotFound:
        return
    if pool is not None and place is None:
        raise RecipeError(
            f"The work pool {pool} executes the runs of {name}. To execute them here, first "
            f"delete its deployment: prefect deployment delete {_FLOW}/{name}"
        )


def _parameter_schema() -> dict[str, Any]:
    from maskloom.flows.orchestration.flow import run_recipe

    return run_recipe.parameters.model_dump(mode="json", exclude_unset=True)


def when(schedule: Schedule) -> CronSchedule | IntervalSchedule:
    """The schedule as Prefect takes it."""
    from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule

    every, zone = schedule.every, schedule.timezone
    if every is None:
        return CronSchedule(cron=schedule.cron, timezone=zone)
    anchor = _FIRST_MONDAY.replace(tzinfo=ZoneInfo(zone))
    # In a zone, Prefect 3.9 leaves out the second of the two equal hours in autumn.
    elapsed = every < timedelta(days=1)
    return IntervalSchedule(interval=every, anchor_date=anchor, timezone="UTC" if elapsed else zone)


def _schedules(
    client: SyncPrefectClient, name: str, schedule: Schedule | None
) -> list[dict[str, Any]]:
    """The schedules of a deployment; paused if an operator has paused the present one."""
    from prefect.exceptions import ObjectNotFound

    if schedule is None:
        return []
    try:
        present = client.read_deployment_by_name(f"{_FLOW}/{name}").schedules
    except ObjectNotFound:
        present = []
    active = all(each.active for each in present)
    return [{"schedule": when(schedule).model_dump(mode="json"), "active": active}]


def _starts_on_event(recipe: Deployed, deployment_id: UUID) -> AutomationCore:
    """Starts a run of the recipe for each event."""
    from prefect.events.actions import RunDeployment
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    return AutomationCore(
        name=f"maskloom: new objects for {recipe.name}",
        description=f"Runs {recipe.events} on the event {ARRIVED}.",
        trigger=EventTrigger(
            expect={ARRIVED},
            match={"prefect.resource.id": f"maskloom.recipe.{recipe.name}"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected", deployment_id=deployment_id, parameters=None, job_variables=None
            )
        ],
        owner_resource=f"prefect.deployment.{deployment_id}",
    )


def _ends_dead_runs() -> AutomationCore:
    """Ends watched runs whose heartbeats have stopped, which frees their slots."""
    from prefect.client.schemas.objects import StateType
    from prefect.events.actions import ChangeFlowRunState
    from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

    heartbeat = "prefect.flow-run.heartbeat"
    return AutomationCore(
        name="maskloom: dead runs",
        description=(
            f"Ends a run as Crashed that has sent no heartbeat for {SILENCE_SECONDS} s: its "
            "process was killed, or its machine is gone."
        ),
        trigger=EventTrigger(
            after={heartbeat},
            # The event of a state has the state's name.
            expect={heartbeat, *(f"prefect.flow-run.{name}" for name in (*_END_STATES, *_RESTS))},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={
                "prefect.resource.role": "tag",
                "prefect.resource.id": f"prefect.tag.{WATCHED}",
            },
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_SECONDS),
        ),
        actions=[
            ChangeFlowRunState(
                name="Crashed",
                force=False,
                state=StateType.CRASHED,
                message=(
                    f"No heartbeat for {SILENCE_SECONDS} s: its process was killed, or its machine "
                    "is gone. The next run continues where it ended."
                ),
            )
        ],
    )


def _put(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Create an automation, or update that of the same name, which stays as it is switched."""
    present = client.read_automations_by_name(automation.name)
    if not present:
        client.create_automation(automation)
        return
    # The owner stays; an update must not name it.
    update = {**automation.model_dump(exclude={"owner_resource"}), "enabled": present[0].enabled}
    client.update_automation(present[0].id, type(automation).model_validate(update))
