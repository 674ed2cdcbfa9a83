"""The Prefect flow of a run, with one task run for each stage and each shard.

`run_recipe` is the entry point of deployments: its parameters are JSON values. A command that has
already opened its run hands it over as a `Call`, which the flow then makes.

Prefect does not see the arguments and results of stages: a task has no arguments, and the result of
its call is returned beside it. So Prefect hashes, copies, stores and caches none of our values, and
if it fails to record something, finished work still counts.
"""

from __future__ import annotations

import logging
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from prefect import flow, runtime, task
from prefect.cache_policies import NO_CACHE
from prefect.states import Cancelled

from maskloom.flows.orchestration.endurance import endure, take_over
from maskloom.flows.recipes import run as recipes
from maskloom.flows.run import RunOptions, run
from maskloom.flows.stages import Plain, Stages
from maskloom.segcore.errors import RunError, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

log = logging.getLogger("maskloom.run")

_current_call: ContextVar[Call[Any] | None] = ContextVar("current_call", default=None)


class Call(Generic[T]):
    """A call that Prefect makes, whose result or error goes directly to its caller."""

    def __init__(self, name: str, function: Callable[[], T]) -> None:
        self.name = name
        self._function = function
        self._result: list[T] = []
        self._error: BaseException | None = None

    def run(self) -> None:
        """Call the function and keep its result. Its error is kept and raised."""
        try:
            self._result.append(self._function())
        except BaseException as error:
            self._error = error
            raise

    def through(self, engine: Callable[[], object]) -> T:
        """The function's result or error, called by the flow or task that `engine` runs. Raises
        `RunError` if Prefect fails before the call.
        """
        token = _current_call.set(self)
        problem: object = None
        try:
            problem = engine()
        except Exception as error:  # noqa: BLE001 - the result counts more
            problem = error
            if self._result:
                log.warning("Prefect did not record everything: %s", error)
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


class RecordedStages(Stages):
    """Calls each stage in a task run of the present flow run."""

    def __init__(self) -> None:
        self.ended: list[str] = []
        """Names of the task runs that have ended, in this order."""

    def stage(self, name: str, function: Callable[..., T], *args: Any) -> T:
        """The function's result, from a task run with this name. Raises its error."""
        recorded = _run_stage.with_options(name=name, task_run_name=lambda: name)
        try:
            return Call(name, lambda: function(*args)).through(recorded)
        finally:
            self.ended.append(name)


@task(persist_result=False, cache_policy=NO_CACHE)
def _run_stage() -> None:
    call = _current_call.get()
    assert call is not None
    call.run()


def _name_of_flow_run() -> str:
    """The recipe's name."""
    call = _current_call.get()
    if call is not None:
        return call.name
    recipe = runtime.flow_run.parameters["recipe"]
    return Path(recipe).stem if isinstance(recipe, str) else str(recipe.get("name") or "recipe")


endure()


@flow(
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

    The server stores parameters as plain text, so they must hold no secrets. A stopped run ends as
    Cancelled.

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
    try:
        if call is not None:
            call.run()
        else:
            loaded = (
                recipes.load(Path(recipe), changes or [])
                if isinstance(recipe, str)
                else recipes.make(recipe, Path.cwd(), changes or [])
            )
            options = RunOptions(keep_other_recipes=keep_other_recipes, sole_writer=sole_writer)
            run(loaded, options, Plain(RecordedStages()))
    except Stopped as stopped:
        return Cancelled(message=str(stopped))
