"""A whole run: the segmentation flow with signals, cluster, fan-out and progress.

Independent of the command line: `flows.commands` and `flows.orchestration.flow` call it.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from maskloom.flows.inventory import Inventory, Sharing, inventory_to_write, notes
from maskloom.flows.outcome import Outcome
from maskloom.flows.progress.displays import Quiet, display
from maskloom.flows.progress.run import ItemProgress, RunProgress
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.report.write import NAME as REPORT
from maskloom.flows.report.write import try_to_write, write_of_stopped
from maskloom.flows.segment import segment
from maskloom.flows.signals import stop_on_signals
from maskloom.flows.stages import Orchestrator, Plain, Stages, Watched
from maskloom.flows.stopping import Stoppable
from maskloom.flows.terminal import count
from maskloom.flows.watching import watch
from maskloom.segcore.errors import RunError
from maskloom.segcore.models.selection import pending_selections
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.statistics.zones import Zones
from maskloom.segcore.storage.addresses import redacted
from maskloom.segcore.storage.filesystems import configure
from maskloom.segcore.storage.store import Store
from maskloom.tasks.clean import tidy
from maskloom.tasks.clusters.protocol import Cluster
from maskloom.tasks.commits.presence import single_writer_note
from maskloom.tasks.discovery.series import SeriesHeaders
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.zones import outside, prepare

log = logging.getLogger("maskloom.run")

_INPUTS_NAMED = 3
_SMALL_FILE = 4 * 2**20
"""Bytes of a file that is taken for a single tile before its header is read."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run that do not change its results."""

    quiet: bool = False
    """Show no progress."""
    keep_other_recipes: bool = False
    """Allow images of other recipes in the same output."""
    sole_writer: bool = False
    """The user asserts that no other run writes to the output."""
    break_off: Callable[[], object] | None = None
    """Called at a second Ctrl-C. None: that raises `KeyboardInterrupt`."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run."""

    output: str
    inventory: Inventory
    """The inputs and the output before the run."""
    outcome: Outcome | None
    """How the run ended. None: there was nothing to do."""
    seconds: float
    report: str | None = None
    """Where the report is. None: there is none."""

    @property
    def unchanged(self) -> int:
        """Number of images that an earlier, finished run has done."""
        # A resumed run includes what it did before it was interrupted.
        inputs = frozenset[str]() if self.outcome is None else self.outcome.inputs
        return self.inventory.images_outside(inputs)

    @property
    def some_failed(self) -> bool:
        """Whether an input failed, now or in an earlier run."""
        failed = self.outcome.failed if self.outcome is not None else 0
        return bool(failed or self.inventory.failed_before)

    def __str__(self) -> str:
        """How many images are done, failed and unchanged."""
        before = self.inventory.failed_before
        failed_before = f" ({before} of them failed before)" if before else ""
        if self.outcome is None:
            images = count(self.unchanged, "image is", "images are")
            return f"Nothing to do: {images} unchanged{failed_before}"
        unchanged = f", {self.unchanged} unchanged{failed_before}" if self.unchanged else ""
        return f"{self.outcome}{unchanged}"


def run(
    recipe: RunRecipe,
    options: RunOptions | None = None,
    orchestrator: Orchestrator | None = None,
    note: Callable[[str], None] = log.warning,
) -> RunResult:
    """Segment all images of a recipe, or those that are left; `note` is called with lines that
    users should read first.

    Raises `RecipeError` if the recipe does not suit the output, `RunError` if the run cannot
    continue, and `Stopped` on SIGINT and SIGTERM. The same call resumes the run.
    """
    options, orchestrator = options or RunOptions(), orchestrator or Plain()
    started = time.monotonic()
    configure(recipe.storage)
    sharing = Sharing(options.keep_other_recipes, options.sole_writer)
    with ExitStack() as stack:
        shown = stack.enter_context(display(options.quiet))
        workers = _Workers(recipe, stack, shown, options.break_off)
        inventory = _inventory(recipe, sharing, workers, shown)
        noted = tuple(notes(recipe, inventory))
        for line in noted:
            note(line)
        if inventory.nothing_to_do:
            _alert(recipe, Stages(), note)
            result = RunResult(recipe.output, inventory, None, time.monotonic() - started)
        else:
            single_writer = single_writer_note(Store(recipe.output))
            if single_writer is not None:
                note(single_writer)
                noted = (*noted, single_writer)
            for line in _prepared_zones(recipe):
                note(line)
                noted = (*noted, line)
            stop = workers.listen()
            # The cluster and the Prefect server take seconds; both start in the background. They
            # end in the other order: the server does so by itself, while the workers end.
            fanout = workers.fanout(_jobs_at_first(inventory))
            stack.enter_context(orchestrator)

            def body(stages: Stages) -> RunResult:
                progress = RunProgress(stages.shown_by(shown))
                outcome = segment(recipe, inventory, stages, fanout, progress, sharing)
                _alert(recipe, stages, note)
                return RunResult(recipe.output, inventory, outcome, time.monotonic() - started)

            try:
                result = orchestrator.flow(Watched(recipe.name, recipe.output, stop, noted), body)
            except RunError as error:
                report = write_of_stopped(recipe.output, error) if recipe.reports else None
                if report is not None:
                    note(f"Report of what is done: {redacted(report)}")
                raise
    for line in _zones_outside(recipe) if result.outcome is not None else ():
        note(line)
    result = replace(result, report=_report(recipe, changed=result.outcome is not None))
    tidy(recipe.output)
    return result


def _alert(recipe: RunRecipe, stages: Stages, note: Callable[[str], None]) -> None:
    """Find and send the alerts, as a stage of the run."""
    if recipe.alerts:
        watched = (recipe.output, recipe.alerts, recipe.notify, stages)
        found = stages.stage(
            "alerts", watch, *watched, said=lambda each: count(len(each.events), "new alert")
        )
        for line in found.lines:
            note(line)


def _prepared_zones(recipe: RunRecipe) -> list[str]:
    """Prepare the file of zones for workers; what users should know about it."""
    zones = recipe.statistics.get("zones")
    if recipe.zones is None or not isinstance(zones, Zones):
        return []
    prepared = prepare(zones, recipe.zones, Store(recipe.output))
    return [] if prepared is None else prepared.notes


def _zones_outside(recipe: RunRecipe) -> Iterator[str]:
    zones = recipe.statistics.get("zones")
    if isinstance(zones, Zones):
        lacking, number = outside(zones, Store(recipe.output))
        if lacking:
            verb = "meets" if lacking == 1 else "meet"
            yield f"zones: {lacking} of {number} {verb} no image with a CRS"


def _report(recipe: RunRecipe, *, changed: bool) -> str | None:
    """The location of the report, which is written anew after a change. None: not wanted, or it
    could not be written.
    """
    if not recipe.reports:
        return None
    store = Store(recipe.output)
    if not changed and store.exists(REPORT):
        return store.uri(REPORT)
    return try_to_write(recipe.output)


def _inventory(recipe: RunRecipe, sharing: Sharing, workers: _Workers, shown: Quiet) -> Inventory:
    """The inputs and what the output has of them, with progress."""
    RunProgress(shown).begin("list inputs")
    named = ", ".join(map(redacted, recipe.inputs[:_INPUTS_NAMED]))
    more = len(recipe.inputs) - _INPUTS_NAMED
    shown.report(f"Inputs: {named}{f' and {more} more' if more > 0 else ''}")
    shown.report(f"Output: {redacted(recipe.output)}")

    @contextmanager
    def headers_shown(total: int) -> Iterator[ItemProgress]:
        yield RunProgress(shown).items("read headers", "files", total)

    headers = SeriesHeaders(Store(recipe.output), workers.fanout, headers_shown)
    inventory = inventory_to_write(recipe, sharing, headers)
    found = count(len(inventory.sources), "image")
    shown.report(f"Found {found}, {len(inventory.pending):,} to do")
    return inventory


def _jobs_at_first(inventory: Inventory) -> int | None:
    """Jobs at the beginning of a run, so that a single picture does not start all workers of a
    large machine. None: unknown.
    """
    if inventory.interrupted or any(source.is_folder for source in inventory.pending):
        return None
    return sum(1 + source.size // _SMALL_FILE for source in inventory.pending)


class _Workers:
    """The workers of a run. They start when first needed: a run without work needs none."""

    def __init__(
        self,
        recipe: RunRecipe,
        stack: ExitStack,
        shown: Quiet,
        break_off: Callable[[], object] | None,
    ) -> None:
        self._recipe, self._stack = recipe, stack
        self._shown, self._break_off = shown, break_off
        self._stoppable = Stoppable(shown)
        self._stop = threading.Event()
        self._hears = self._listens = False
        self._fanout: Fanout | None = None
        if break_off is not None:
            self._hear()

    def listen(self) -> Callable[[str], None]:
        """From now on signals ask the run to stop, instead of ending the process. So does the
        function that is returned, for a reason.
        """
        self._listens = True
        self._hear()
        return self._asked_to_stop

    def _hear(self) -> None:
        if not self._hears:
            self._hears = True
            self._stack.enter_context(stop_on_signals(self._stop, self._answer, self._break_off))

    def fanout(self, jobs: int | None = None) -> Fanout:
        """The fan-out to the workers, until the stack closes. `jobs`: how many come at first."""
        if self._fanout is None:
            cluster = _cluster(self._recipe)
            prepare = partial(
                prepare_process,
                self._recipe.storage,
                cluster.worker_threads,
                self._recipe.limits,
                _libraries(self._recipe),
            )
            self.listen()
            fanout = self._stack.enter_context(cluster.opened(prepare, self._stop, jobs))
            self._fanout = self._stoppable.works_on(fanout)
        return self._fanout

    def _answer(self, number: signal.Signals) -> None:
        if not self._listens and self._break_off is not None:
            # Nothing has begun that would have to be finished.
            self._break_off()
            return
        self._stoppable.answer(number)

    def _asked_to_stop(self, reason: str) -> None:
        if not self._stop.is_set():
            self._shown.notice(f"Stopping: {reason}.")
            self._stop.set()


def _libraries(recipe: RunRecipe) -> tuple[str, ...]:
    """Libraries that workers need for their first jobs."""
    # The selection of a network's engine asks it about the processor.
    return ("openvino",) if pending_selections(recipe.segmenter) else ()


def _cluster(recipe: RunRecipe) -> Cluster:
    """The recipe's cluster, with one worker per GPU for networks that use one."""
    if recipe.segmenter.requirements.device == "gpu":
        return recipe.cluster.with_one_worker_per_gpu()
    return recipe.cluster
