"""What is to do: the inputs as they are now, and what the output already has.

Also how a run shares its output with other runs: it refuses to mix recipes unless told to.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from maskloom.flows.recipes.run import SCHEDULE_NOTE, RunRecipe
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.source import Source
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Committed, Ledger
from maskloom.tasks.commits.presence import present
from maskloom.tasks.discovery.discover import discover, passed_over_advice, passed_over_note
from maskloom.tasks.memory import WORKER_MEMORY, retried
from maskloom.tasks.plan import LastRun, identify, pending, read_head, read_plan
from maskloom.tasks.publish import heal

log = logging.getLogger("maskloom.run")

_NOT_OF_THE_RECIPE = {"maskloom", "libraries", "machine", "python", "passed_over", WORKER_MEMORY}
"""Settings of a plan that the code and the machine add to the recipe's."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a run shares its output with others."""

    keep_other_recipes: bool = False
    """Leave rows of other recipes where they are."""
    sole_writer: bool = False
    """No other run works on the output, whatever its store shows."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The inputs as they are now, and what the output has of them."""

    sources: list[Source]
    passed_over: Mapping[str, int]
    """Number of files in input folders that no format claims, by suffix."""
    ledger: Ledger
    committed: dict[str, Committed]
    """The rows of the tables at this moment, by URI."""
    head: LastRun
    pending: list[Source]
    interrupted: bool
    """Whether a run over just these inputs was planned and not finished."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether all inputs are done, and the run that did them finished."""
        return not self.pending and not self.interrupted

    @property
    def failed_before(self) -> int:
        """Inputs that failed in an earlier run for a reason that still holds."""
        waiting = {source.uri for source in self.pending}
        rows = (
            self.committed.get(source.uri) for source in self.sources if source.uri not in waiting
        )
        return sum(1 for row in rows if row is not None and not row.ok)

    @property
    def removed(self) -> int:
        """Images in the tables that are no longer among the inputs; their rows and masks stay."""
        return len(self.committed.keys() - {source.uri for source in self.sources})


def take_inventory(recipe: RunRecipe, *, to_write: bool = False) -> Inventory:
    """List the inputs and read what is committed. `to_write`: complete a commit that a dead run
    left half done.
    """
    store = Store(recipe.output)
    tables = [statistic.table for statistic in recipe.statistics.values()] + [Objects.table] * (
        recipe.objects is not None
    )
    ledger = (Ledger.open if to_write else Ledger.read)(store, tables)
    committed = retried(store, ledger.rows, recipe.cluster.worker_memory)
    known = {row.uri: row.image_id for row in committed.values()}
    found = discover(recipe.inputs, recipe.output, known)
    sources = found.sources
    work, head = recipe.work, read_head(store)
    interrupted = store.exists(f"runs/{identify(work, head, sources)}/plan.json")
    return Inventory(
        sources,
        found.passed_over,
        ledger,
        committed,
        head,
        pending(sources, committed, work.fingerprint),
        interrupted,
    )


def inventory_to_write(recipe: RunRecipe, sharing: Sharing) -> Inventory:
    """The inventory of a run that is about to write. Raises `RecipeError` where images of another
    recipe would stay beside those of this one.
    """
    inventory = take_inventory(recipe, to_write=True)
    if inventory.ledger.superseded:
        inventory = _healed(recipe, inventory, sharing)
    if not sharing.keep_other_recipes:
        _refuse_other_recipes(recipe, inventory)
    return inventory


def notes(recipe: RunRecipe, inventory: Inventory) -> list[str]:
    """What users should know of a recipe and its inputs before the run."""
    skipped = inventory.passed_over
    return [
        *([SCHEDULE_NOTE] if recipe.scheduled else []),
        *([(passed_over_note(skipped) + passed_over_advice(skipped)).strip()] if skipped else []),
    ]


def _healed(recipe: RunRecipe, inventory: Inventory, sharing: Sharing) -> Inventory:
    """The inventory after removing rows that an earlier version left beside another row of their
    image.
    """
    store = Store(recipe.output)
    with present(store, "heal", sole_writer=sharing.sole_writer) as folder:
        count = heal(inventory.ledger, folder)
    # Zero where the supposed leftovers were a commit of another run, under way.
    if count:
        log.warning(
            "%d table files held rows of images that another file has too, or that the table "
            "`images` has not (a file was lost or "
            "copied, or an earlier version of maskloom left them). These rows are gone.",
            count,
        )
    return take_inventory(recipe, to_write=True)


def _refuse_other_recipes(recipe: RunRecipe, inventory: Inventory) -> None:
    work, inputs = recipe.work, {source.uri for source in inventory.sources}
    staying: dict[str, list[Committed]] = {}
    for row in inventory.committed.values():
        if row.ok and row.fingerprint != work.fingerprint and row.uri not in inputs:
            staying.setdefault(row.run_id, []).append(row)
    for run_id, rows in staying.items():
        plan = read_plan(Store(recipe.output), run_id)
        if plan is None or _of_recipe(plan.settings) != _of_recipe(work.settings):
            kind = (
                "another recipe"
                if plan is None
                else f"another recipe ({plan.settings['segmenter']['kind']})"
            )
            raise RecipeError(
                f"output: {recipe.output} holds {len(rows)} "
                f"{'image' if len(rows) == 1 else 'images'} of run {run_id}, of {kind}, that "
                f"this run would leave there, such as {rows[0].image_id}: its classes would add up "
                "with those of this recipe. Give this "
                "recipe an output of its own, or say --keep-other-recipes and group by the column "
                "`fingerprint`."
            )


def _of_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a recipe gives, without those that the code and the machine add."""
    return {key: value for key, value in settings.items() if key not in _NOT_OF_THE_RECIPE}
