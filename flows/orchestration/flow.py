"""The Prefect flow of a run, with one task run for each stage and each shard.

`run_recipe` is the entry point of deployments: its parameters are JSON values. A command that has
already opened its run hands it over as a `Call`, which the flow then makes.

Prefect does not see the arguments and results of stages: a task has no arguments, and the result of
its call is returned beside it. So Prefect hashes, copies, stores and caches none of our values, and
if it fails to record something, finished work still counts. It does not see our errors either,
whose texts may hold secrets: the states of runs say what happened in words that may be stored.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Self, TypeVar

from prefect import Flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.exceptions import TerminationSignal
from prefect.states import Cancelled, Completed, Failed

from maskloom.flows.orchestration.endurance import endure, take_over
from maskloom.flows.orchestration.record import RunRecord
from maskloom.flows.progress.displays import Both
from maskloom.flows.recipes import run as recipes
from maskloom.flows.run import RunOptions, RunResult, run
from maskloom.flows.stages import Stages, Watched
from maskloom.flows.terminal import recordable, told
from maskloom.segcore.errors import MaskloomError, RecipeError, RunError, Stopped
from maskloom.tasks.fanout.protocol import stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from maskloom.flows.progress.displays import Quiet

T = TypeVar("T")

log = logging.getLogger("maskloom.run")

_current_call: ContextVar[Call[Any] | None] = ContextVar("current_call", default=None)


class Call(Generic[T]):
    """A call that Prefect makes, whose result or error goes directly to its caller."""

    def __init__(
        self, name: str, function: Callable[[], T], said: Callable[[T], str] = lambda _: ""
    ) -> None:
        """`said` puts the result into words for the record."""
        self.name = name
        self._function, self._said = function, said
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> State[Any]:
        """Call the function and keep its result or error. Returns its state."""
        try:
            self._result.append(self._function())
        except Exception as error:  # noqa: BLE001 - raised by `through`
            self._error = error
            return state_of_error(error)
        except BaseException as error:
            self._error = error
            raise
        result = self._result[0]
        if isinstance(result, RunResult):
            return state_of_run(result)
        return Completed(message=self._said(result) or None)

    def through(self, engine: Callable[[], object]) -> T:
        """The function's result or error, called by the flow or task that `engine` runs. Raises
        `RunError` if Prefect fails before the call, and `Stopped` if it was asked to end.
        """
        token = _current_call.set(self)
        problem: object = None
        try:
            problem = engine()
        except Exception as error:  # noqa: BLE001 - the result counts more
            problem = error
            if self._result:
                log.warning("Prefect did not record everything: %s", error)
        except TerminationSignal:
            # It came while Prefect's handler was installed, not ours.
            if not self._result and self._error is None:
                raise stopped() from None
        finally:
            _current_call.reset(token)
        if self._error is not None:
            raise self._error
        if not self._result:
            raise RunError(
                f"Prefect did not let the run begin: {problem}. Look at its server and "
                "PREFECT_API_URL, or use --no-prefect."
            )
        return self._result[0]


def state_of_run(result: RunResult) -> State[Any]:
    """Completed where no image failed; a completed state named Partial where some did."""
    if result.some_failed:
        return Completed(name="Partial", message=str(result))
    return Completed(message=str(result))


def state_of_error(error: Exception) -> State[Any]:
    """Cancelled where the run was asked to stop, Failed otherwise, with how far it came."""
    if isinstance(error, Stopped):
        return Cancelled(message=told(error))
    if isinstance(error, MaskloomError):
        return Failed(message=told(error))
    return Failed(message=f"{type(error).__name__}: {told(error)}")


class InFlowRun:
    """Runs a flow inside of the present flow run, which records it."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        """Names of the task runs that have ended, in this order."""

    def flow(self, run: Watched, body: Callable[[Stages], T]) -> T:
        """The result of `body`. Raises its error."""
        record = RunRecord(run)
        with record.kept():
            result = body(RecordedStages(record, self.ended))
            if isinstance(result, RunResult):
                record.add_results(result)
            return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        return None


class RecordedStages(Stages):
    """Calls each stage in a task run of the present flow run."""

    def __init__(self, record: RunRecord, ended: list[str]) -> None:
        self._record, self._ended = record, ended

    def stage(
        self,
        name: str,
        function: Callable[..., T],
        *args: Any,
        said: Callable[[T], str] = lambda _: "",
    ) -> T:
        """The function's result, from a task run with this name. Raises its error."""
        recorded = _run_stage.with_options(name=name, task_run_name=lambda: name)
        try:
            return Call(name, lambda: function(*args), said).through(
                lambda: recorded(return_state=True)
            )
        finally:
            self._ended.append(name)

    def emit(self, event: str, name: str, payload: Mapping[str, Any]) -> None:
        """Send an event to the server, where automations can react to it."""
        from prefect.events import emit_event

        resource = {"prefect.resource.id": f"{event}.{name}", "prefect.resource.name": name}
        emit_event(event=event, resource=resource, payload=dict(payload))

    def shown_by(self, display: Quiet) -> Quiet:
        """The display, and the record as another one."""
        return Both(display, self._record)


@task(persist_result=False, cache_policy=NO_CACHE)
def _run_stage() -> State[Any]:
    call = _current_call.get()
    assert call is not None
    return call.run()


def _name_of_flow_run() -> str:
    """The recipe's name."""
    call = _current_call.get()
    if call is not None:
        return call.name
    recipe = runtime.flow_run.parameters["recipe"]
    return Path(recipe).stem if isinstance(recipe, str) else str(recipe.get("name") or "recipe")


endure()


class _FlowOfRecipes(Flow[..., Any]):
    """A flow of this module, whose parameters are JSON values."""

    def __reduce__(self) -> tuple[Callable[[], Flow[..., Any]], tuple[()]]:
        """A process that serves the flow sends it to others by its name."""
        return _flow_of_recipes, ()

    def serialize_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        """The parameters. Flow would import FastAPI to convert them, for a third of a second."""
        return parameters


@partial(
    _FlowOfRecipes,
    name="maskloom",
    flow_run_name=_name_of_flow_run,
    persist_result=False,
    on_running=[take_over],
)
def run_recipe(
    recipe: str | dict[str, Any],
    changes: list[str] | None = None,
    keep_other_recipes: bool = False,
    sole_writer: bool = False,
) -> Any:
    """Segment all images of a recipe, or those that are left.

    The server stores parameters as plain text, so they must hold no secrets. The run ends as
    Completed, as Partial (a completed state) if some images failed, as Cancelled if it was stopped,
    and as Failed if it could not continue or if more images failed than the recipe allows.

    Parameters
    ----------
    recipe
        Absolute path of a YAML file, or the recipe itself with absolute paths.
    changes
        Changes of keys, e.g. "tiling.tile=1024".
    keep_other_recipes
        Allow images of other recipes in the same output.
    sole_writer
        Assert that no other run writes to the output.
    """
    call = _current_call.get()
    if call is not None:
        return call.run()
    options = RunOptions(keep_other_recipes=keep_other_recipes, sole_writer=sole_writer)
    try:
        return Call("", lambda: _run(recipe, changes or [], options), str).run()
    except TerminationSignal:
        # It came before the run had installed its own handler.
        return Cancelled(message="The run was asked to stop before its work began.")


def _flow_of_recipes() -> Flow[..., Any]:
    return run_recipe


def _run(recipe: str | dict[str, Any], changes: list[str], options: RunOptions) -> RunResult:
    """Run the recipe of a deployment inside of the present flow run."""
    if recordable([recipe, changes]) != [recipe, changes]:
        raise RecipeError(
            "The parameters of this flow run hold a secret (a password or signature in an "
            "address), and the Prefect server stores them as plain text. Put the address into the "
            "recipe file as ${NAME}, set NAME in the worker's environment, and take the secret out "
            "of the deployment."
        )
    loaded = (
        recipes.load(Path(recipe), changes)
        if isinstance(recipe, str)
        else recipes.make(recipe, Path.cwd(), changes)
    )
    return run(loaded, options, InFlowRun(), note=lambda _: None)
