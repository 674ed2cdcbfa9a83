"""The inventory of a run: the present inputs, and their rows in the output.

A run that would leave images of another recipe in its output is refused, unless the user allows it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from maskloom.flows.recipes.run import IDENTIFYING_MASKS, RunRecipe
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RecipeError
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.stored import split_part
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.storage.store import Store
from maskloom.tasks.commits.ledger import Committed, Ledger, RowsByFile
from maskloom.tasks.commits.presence import process_folder
from maskloom.tasks.discovery.discover import discover, passed_over_advice, passed_over_note
from maskloom.tasks.discovery.series import ReadHeaders, SeriesHeaders
from maskloom.tasks.last_run import LastRun, read_head
from maskloom.tasks.memory import WORKER_MEMORY, with_retries
from maskloom.tasks.plan import identify, pending, replaced_by_series
from maskloom.tasks.plan_file import read_plan
from maskloom.tasks.table_files import heal

log = logging.getLogger("maskloom.run")

WRITTEN = "written"
"""The setting of a plan with the recipe as its user wrote it."""
_NOT_OF_THE_RECIPE = {
    "maskloom",
    "libraries",
    "machine",
    "python",
    "passed_over",
    WORKER_MEMORY,
    WRITTEN,
}
"""Settings of a plan that do not decide its results, or come from the code and the machine."""


@dataclass(frozen=True, slots=True)
class Sharing:
    """How a run shares its output with others."""

    keep_other_recipes: bool = False
    """Keep the rows of other recipes."""
    sole_writer: bool = False
    """The user asserts that no other run writes to the output."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """The present inputs, and their rows in the output."""

    sources: list[Source]
    passed_over: Mapping[str, int]
    """Number of files in input folders that no format claims, by suffix."""
    ledger: Ledger
    committed: dict[str, Committed]
    """The rows of the tables at this moment, by URI."""
    head: LastRun
    pending: list[Source]
    interrupted: bool
    """Whether a run over exactly these inputs was planned and has not finished."""
    replaced: Mapping[str, Set[str]]
    """See `replaced_by_series`."""
    run_id: str
    """The id of the run over these inputs that follows the last one."""

    @property
    def nothing_to_do(self) -> bool:
        """Whether all inputs are done, and the run that did them finished."""
        return not self.pending and not self.interrupted

    @property
    def failed_before(self) -> int:
        """Number of inputs that failed in an earlier run and would fail again."""
        waiting = {source.uri for source in self.pending}
        rows = RowsByFile(self.committed)
        return sum(
            not row.ok
            for source in self.sources
            if source.uri not in waiting
            for row in rows.get(source.uri, ())
        )

    @property
    def ids(self) -> dict[str, str]:
        """Ids of all inputs, and of all images in the tables, by URI."""
        known = {row.uri: row.image_id for row in self.committed.values()}
        return known | {source.uri: source.image_id for source in self.sources}

    def images_outside(self, inputs: Set[str]) -> int:
        """Number of images that are not in these inputs, which are given by URI."""
        rows = RowsByFile(self.committed)
        others = (source.uri for source in self.sources if source.uri not in inputs)
        return sum(len(rows.get(uri, ())) or 1 for uri in others)

    @property
    def removed(self) -> int:
        """Number of images in the tables that are no longer inputs; their rows and masks stay."""
        files = {source.uri for source in self.sources}.union(*self.replaced.values())
        return sum(split_part(uri)[0] not in files for uri in self.committed)


def take_inventory(
    recipe: RunRecipe, *, to_write: bool = False, read_headers: ReadHeaders | None = None
) -> Inventory:
    """List the inputs and read the committed rows. `to_write`: also complete a commit that a killed
    run left incomplete. `read_headers` reads files that may belong to series. None: this process
    reads those that no run has read.
    """
    store = Store(recipe.output)
    read_headers = read_headers or SeriesHeaders(store)
    tables = [statistic.table for statistic in recipe.statistics.values()] + [Objects.table] * (
        recipe.objects is not None
    )
    ledger = (Ledger.open if to_write else Ledger.read)(store, tables)
    committed = with_retries(store, ledger.rows, recipe.cluster.worker_memory)
    known = _known_ids(committed)
    found = discover(recipe.inputs, recipe.output, known, read_headers, recipe.options)
    sources = found.sources
    work, head = recipe.work, read_head(store)
    run_id = identify(work, head, sources)
    interrupted = store.exists(f"runs/{run_id}/plan.json")
    waiting = pending(sources, committed, work.fingerprint)
    return Inventory(
        sources,
        found.passed_over,
        ledger,
        committed,
        head,
        waiting,
        interrupted,
        replaced_by_series(store, waiting, sources, committed),
        run_id,
    )


def inventory_to_write(
    recipe: RunRecipe, sharing: Sharing, read_headers: ReadHeaders | None = None
) -> Inventory:
    """The inventory of a run that is about to write. Raises `RecipeError` if images of another
    recipe would stay in the output.
    """
    inventory = take_inventory(recipe, to_write=True, read_headers=read_headers)
    if inventory.ledger.superseded:
        inventory = _healed(recipe, inventory, sharing, read_headers)
    if not sharing.keep_other_recipes:
        _refuse_other_recipes(recipe, inventory)
    return inventory


def notes(recipe: RunRecipe, inventory: Inventory) -> list[str]:
    """Lines that users should read before the run: on the recipe and on its inputs."""
    skipped = inventory.passed_over
    return [
        *([IDENTIFYING_MASKS] if "dicom" in recipe.masks else []),
        *([(passed_over_note(skipped) + passed_over_advice(skipped)).strip()] if skipped else []),
    ]


def _known_ids(committed: Mapping[str, Committed]) -> dict[str, str]:
    """Image ids by the URIs of images, and of the files that hold several."""
    ids = {row.uri: row.image_id for row in committed.values()}
    for row in committed.values():
        file, part, _ = split_part(row.uri)
        if part and row.image_id.endswith(f"_{part}"):
            ids[file] = row.image_id.removesuffix(f"_{part}")
    return ids


def _healed(
    recipe: RunRecipe, inventory: Inventory, sharing: Sharing, read_headers: ReadHeaders | None
) -> Inventory:
    """The inventory after removing superseded rows, which an earlier version of maskloom or a lost
    file left.
    """
    store = Store(recipe.output)
    with process_folder(store, "heal", sole_writer=sharing.sole_writer) as folder:
        healed = heal(inventory.ledger, folder)
    # Zero if the supposed leftovers belonged to a commit of another run that was not complete.
    if healed:
        log.warning(
            "%d table files held rows of images that are also in another file, or that are not in "
            "the table `images` (a file was lost or copied, or an earlier version of maskloom left "
            "them). These rows were removed.",
            healed,
        )
    return take_inventory(recipe, to_write=True, read_headers=read_headers)


def _refuse_other_recipes(recipe: RunRecipe, inventory: Inventory) -> None:
    work, inputs = recipe.work, {source.uri for source in inventory.sources}
    staying: dict[str, list[Committed]] = {}
    for row in inventory.committed.values():
        if row.ok and row.fingerprint != work.fingerprint and split_part(row.uri)[0] not in inputs:
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
                f"output: {recipe.output} holds {count(len(rows), 'image')} of run {run_id}, of "
                f"{kind}, that this run would leave there, e.g. {rows[0].image_id}: sums over the "
                "tables would mix their classes with those of this recipe. Use another output, or "
                "add --keep-other-recipes and group the tables by the column `fingerprint`."
            )


def _of_recipe(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that come from the recipe, without those of the code and the machine."""
    return {key: value for key, value in settings.items() if key not in _NOT_OF_THE_RECIPE}
