"""A whole run: the segmentation flow with signals, cluster, fan-out and progress.

Independent of the command line: `flows.commands` and `flows.orchestration.flow` call it.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from maskloom.flows.inventory import Inventory, Sharing, inventory_to_write, notes
from maskloom.flows.progress import ItemProgress, RunProgress, display
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.segment import Outcome, segment
from maskloom.flows.signals import stop_on_signals
from maskloom.flows.stages import Orchestrator, Plain
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.storage.filesystems import configure
from maskloom.segcore.storage.store import Store
from maskloom.tasks.clean import tidy
from maskloom.tasks.clusters.protocol import Cluster
from maskloom.tasks.commits.presence import single_writer_note
from maskloom.tasks.discovery.series import SeriesHeaders
from maskloom.tasks.fanout.protocol import Fanout

log = logging.getLogger("maskloom.run")


@dataclass(frozen=True, slots=True)
class RunOptions:
    """Options of a run that do not change its results."""

    quiet: bool = False
    """Show no progress."""
    keep_other_recipes: bool = False
    """Allow images of other recipes in the same output."""
    sole_writer: bool = False
    """The user asserts that no other run writes to the output."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run."""

    inventory: Inventory
    """The inputs and the output before the run."""
    outcome: Outcome | None
    """How the run ended. None: there was nothing to do."""
    seconds: float

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
        workers = _Workers(recipe, stack)
        headers = SeriesHeaders(
            Store(recipe.output), workers.fanout, partial(_shown_files, options.quiet)
        )
        inventory = inventory_to_write(recipe, sharing, headers)
        for line in notes(recipe, inventory):
            note(line)
        outcome = None
        if not inventory.nothing_to_do:
            single_writer = single_writer_note(Store(recipe.output))
            if single_writer is not None:
                note(single_writer)
            workers.listen()
            # The Prefect server and the cluster take seconds; both start in the background.
            stack.enter_context(orchestrator)
            fanout = workers.fanout()
            progress = RunProgress(stack.enter_context(display(options.quiet)))
            outcome = orchestrator.flow(
                recipe.name,
                lambda stages: segment(recipe, inventory, stages, fanout, progress, sharing),
            )
    tidy(recipe.output)
    return RunResult(inventory, outcome, time.monotonic() - started)


@contextmanager
def _shown_files(quiet: bool, total: int) -> Iterator[ItemProgress]:
    with display(quiet) as shown_by:
        yield ItemProgress(shown_by, "read headers", "files", total)


class _Workers:
    """The workers of a run. They start when first needed: a run without work needs none."""

    def __init__(self, recipe: RunRecipe, stack: ExitStack) -> None:
        self._recipe, self._stack = recipe, stack
        self._stop: threading.Event | None = None
        self._fanout: Fanout | None = None

    def listen(self) -> threading.Event:
        """The event that signals set from now on, instead of ending the process."""
        if self._stop is None:
            self._stop = threading.Event()
            self._stack.enter_context(stop_on_signals(self._stop))
        return self._stop

    def fanout(self) -> Fanout:
        """The fan-out to the workers, until the stack closes."""
        if self._fanout is None:
            cluster = _cluster(self._recipe)
            prepare = partial(
                prepare_process, self._recipe.storage, cluster.worker_threads, self._recipe.limits
            )
            self._fanout = self._stack.enter_context(cluster.opened(prepare, self.listen()))
        return self._fanout


def _cluster(recipe: RunRecipe) -> Cluster:
    """The recipe's cluster, with one worker per GPU for networks that use one."""
    if recipe.segmenter.requirements.device == "gpu":
        return recipe.cluster.with_one_worker_per_gpu()
    return recipe.cluster
