"""The segmentation flow: discover, plan, fit, shards, publish. One line a stage.

Everything here is small values; pixels stay on the workers and in the stores. The same flow resumes
an interrupted run: the plan is found by its id, the model by its file, and an image is done when
the `images` table has it. Several runs may work on one output: `tasks/commits/log.py` says how they
do not get into each other's way.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

from maskloom.flows.orchestration.orchestrate import Orchestrator
from maskloom.flows.recipes.run import RunRecipe
from maskloom.segcore.errors import RecipeError, RunError, StoreError, TooManyFailures
from maskloom.segcore.models.files import dump_model, model_of
from maskloom.segcore.models.protocols import Fitter, is_blank
from maskloom.segcore.models.selection import pending_selections, with_selections
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.records import Failure, ImageResult, Plan, PlannedImage, Shard
from maskloom.segcore.raster.source import Source
from maskloom.segcore.statistics.objects.options import Objects
from maskloom.segcore.storage.records import damaged, parse_json, read_json
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.choose import select_engines
from maskloom.tasks.commits.ledger import Committed, Ledger
from maskloom.tasks.commits.presence import is_at_work, present
from maskloom.tasks.discover import discover
from maskloom.tasks.fanout.dask import Fanout, memory_of
from maskloom.tasks.fit import fit
from maskloom.tasks.memory import WORKER_MEMORY, require_memory, retried, without_room
from maskloom.tasks.plan import (
    LastRun,
    describe_sources,
    identify,
    make_plan,
    pending,
    planned_runs,
    read_head,
    read_plan,
    with_addresses,
    write_head,
    write_plan,
)
from maskloom.tasks.progress import Progress
from maskloom.tasks.publish import Tables, heal
from maskloom.tasks.segment import ShardContext, clear_staging, segment_shard

T = TypeVar("T")
log = logging.getLogger("maskloom.run")

SHARDS_AT_ONCE = 8
_WARNINGS_SHOWN = 5
_LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-image",
    "scikit-learn",
    "opencv-python-headless",
    "rasterio",
    "pyarrow",
    "dask",
    "prefect",
    "tensorflow",
    "keras",
    "openvino",
    "onnxruntime",
)


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
    """How many files of folders no format claims, by suffix."""
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
        """Inputs that failed in an earlier run for a reason that is still there."""
        waiting = {source.uri for source in self.pending}
        rows = (
            self.committed.get(source.uri) for source in self.sources if source.uri not in waiting
        )
        return sum(1 for row in rows if row is not None and not row.ok)

    @property
    def removed(self) -> int:
        """Images in the tables that are no longer among the inputs; their rows and masks stay."""
        return len(self.committed.keys() - {source.uri for source in self.sources})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    run_id: str | None
    """None: there was nothing to do."""
    done: int
    failed: int
    pixels: int
    failures: tuple[tuple[str, Failure], ...] = ()
    """URI and reason of the first failures."""


def take_inventory(recipe: RunRecipe, *, to_write: bool = False) -> Inventory:
    """List the inputs and read what is committed. `to_write`: carry out a commit that a dead run
    has left half done.
    """
    store = Store(recipe.output)
    tables = [statistic.table for statistic in recipe.statistics.values()] + [Objects.table] * (
        recipe.objects is not None
    )
    ledger = (Ledger.open if to_write else Ledger.read)(store, tables)
    committed = retried(store, ledger.rows, memory_of(recipe.cluster))
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


def healed(recipe: RunRecipe, inventory: Inventory, sharing: Sharing) -> Inventory:
    """The inventory after rows have gone that an earlier version left beside another row of their
    image.
    """
    store = Store(recipe.output)
    with present(store, "heal", sole_writer=sharing.sole_writer) as folder:
        count = heal(inventory.ledger, folder)
    # None where what seemed to be left over was the commit of another run, under way.
    if count:
        log.warning(
            "%d table files held rows of images that another file has too, or that the table "
            "`images` has not (a file was lost or "
            "copied, or an earlier version of maskloom left them). These rows are gone.",
            count,
        )
    return take_inventory(recipe, to_write=True)


def refuse_other_recipes(recipe: RunRecipe, inventory: Inventory) -> None:
    """Raise `RecipeError` where images of another recipe would stay in the tables beside those of
    this one.
    """
    work, inputs = recipe.work, {source.uri for source in inventory.sources}
    staying: dict[str, list[Committed]] = {}
    for row in inventory.committed.values():
        if row.ok and row.fingerprint != work.fingerprint and row.uri not in inputs:
            staying.setdefault(row.run_id, []).append(row)
    for run_id, rows in staying.items():
        plan = read_plan(Store(recipe.output), run_id)
        if plan is None or _without_versions(plan.settings) != _without_versions(work.settings):
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


def run(
    recipe: RunRecipe,
    inventory: Inventory,
    orchestrator: Orchestrator,
    fanout: Fanout,
    progress: Progress,
    sharing: Sharing | None = None,
) -> Outcome:
    """Bring the output up to date with the inputs. Raises `RunError` where it cannot go on; the
    same call resumes it.
    """
    parameters = {
        "recipe": recipe.name,
        "output": recipe.output,
        "segmenter": recipe.kind,
        "images": len(inventory.pending),
    }
    return orchestrator.flow(
        recipe.name,
        parameters,
        partial(_flow, recipe, inventory, orchestrator, fanout, progress, sharing or Sharing()),
    )


def _flow(
    recipe: RunRecipe,
    inventory: Inventory,
    orchestrator: Orchestrator,
    fanout: Fanout,
    progress: Progress,
    sharing: Sharing,
) -> Outcome:
    store = Store(recipe.output)
    identity = identify(recipe.work, inventory.head, inventory.sources)
    with present(store, identity, sole_writer=sharing.sole_writer) as folder:
        plan = orchestrator.stage("plan", _plan, recipe, inventory, fanout)
        tables = Tables(
            inventory.ledger,
            folder,
            plan,
            recipe.statistics,
            recipe.objects,
            sharing.keep_other_recipes,
            inventory.committed,
        )
        order = replace(recipe.order(plan.run_id), results=f"{folder}/results")
        if pending_selections(order.model):
            order = orchestrator.stage(
                "choose", _select_engines, order, plan, inventory, fanout, progress
            )
        if recipe.fit == "collection":
            order, plan = orchestrator.stage("fit", _fit, order, plan, inventory, fanout, progress)
        bench = ShardContext(fanout, order, _class_names(order), progress)
        tables.refresh()
        left = orchestrator.stage(
            "resume", lambda: [shard for shard in plan.shards if tables.left(shard).items]
        )
        progress.start(
            "segment", [item for shard in left for item in tables.left(shard).items], order
        )
        failed = sum(tables.failed(shard) for shard in plan.shards if shard not in left)
        images = sum(len(shard.items) for shard in plan.shards)
        _check_failures(failed, images, recipe)
        for failures in orchestrator.each(
            partial(_do_shard, tables, bench), left, lambda shard: shard.file, SHARDS_AT_ONCE
        ):
            failed += failures
            _check_failures(failed, images, recipe)
        return orchestrator.stage("publish", _finish, store, plan, tables, inventory.head)


def _check_failures(failed: int, images: int, recipe: RunRecipe) -> None:
    if failed > recipe.max_failed_fraction * images:
        raise TooManyFailures(
            f"{failed} of {images} images failed, more than max_failed_fraction = "
            f"{recipe.max_failed_fraction:g} allows. "
            f"See `maskloom status {recipe.output}`. Repair the inputs or raise "
            "max_failed_fraction; the same command goes on."
        )


def _plan(recipe: RunRecipe, inventory: Inventory, fanout: Fanout) -> Plan:
    store, work = Store(recipe.output), recipe.work
    head = inventory.head
    identity = identify(work, head, inventory.sources)
    order, available = recipe.order(identity), memory_of(recipe.cluster)
    interrupted = read_plan(store, identity)
    if interrupted is not None:
        require_memory(
            order, (item for shard in interrupted.shards for item in shard.items), available
        )
        return with_addresses(interrupted, inventory.sources)
    items = describe_sources(fanout, inventory.pending, recipe.format, recipe.ground_control)
    items = without_room(items, available)
    require_memory(order, (item for item in items if item.failure is None), available)
    passed_over = {"passed_over": dict(inventory.passed_over)} if inventory.passed_over else {}
    settings = {
        **work.settings,
        **passed_over,
        "libraries": _versions(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        WORKER_MEMORY: available,
    }
    plan = make_plan(replace(work, settings=settings), head, identity, items, inventory.committed)
    write_plan(store, plan)
    return plan


def _select_engines(
    order: RunSettings, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress
) -> RunSettings:
    """The order with the engines of its model selected, as recorded by an earlier run or now."""
    store, name = Store(order.output), "choices.json"
    with_recorded = partial(with_selections, order.model)
    recorded = _recorded(store, plan, inventory, name, with_recorded)
    if recorded is not None:
        return replace(order, model=recorded)
    progress.start("load the network and try engines", [], order)
    selections = select_engines(
        fanout, order.model, [item for shard in plan.shards for item in shard.items]
    )
    if not selections:
        return replace(order, model=with_recorded(selections))
    content = json.dumps(selections, indent=1).encode()
    return replace(order, model=_record(store, plan, name, content, with_recorded))


def _require_not_lost(store: Store, plan: Plan, inventory: Inventory) -> None:
    """Raise `DamagedRecord` where images were done with a model that is missing: another one would
    give classes another meaning.
    """
    earlier = {
        row.run_id
        for row in inventory.committed.values()
        if row.ok and row.fingerprint == plan.fingerprint
    }
    for run in sorted(earlier - {plan.run_id}):
        name, manifest = f"runs/{run}/model.json", f"runs/{run}/manifest.json"
        if store.exists(manifest) and name in read_json(
            store, manifest, lambda found: dict(found["files"])
        ):
            raise damaged(store, name)


def _recorded(
    store: Store, plan: Plan, inventory: Inventory, name: str, load: Callable[[Any], T]
) -> T | None:
    """What this run or an earlier one of the same recipe recorded under a name; it is this run's
    from now on. None: nothing.
    """
    earlier = [
        row.run_id for row in inventory.committed.values() if row.fingerprint == plan.fingerprint
    ]
    for candidate in (
        f"runs/{plan.run_id}/{name}",
        _shared(plan, name),
        *dict.fromkeys(f"runs/{run_id}/{name}" for run_id in earlier),
    ):
        if store.exists(candidate):
            content = store.read(candidate)
            # Before it is handed on: what is damaged must not become this run's.
            parse_json(store, candidate, content, load)
            return _record(store, plan, name, content, load)
    return None


def _record(store: Store, plan: Plan, name: str, content: bytes, load: Callable[[Any], T]) -> T:
    """Record what was fitted or chosen for the recipe and for this run; what another run was
    quicker to record takes its place.
    """
    own = f"runs/{plan.run_id}/{name}"
    return parse_json(
        store, own, _agreed(store, own, _agreed(store, _shared(plan, name), content)), load
    )


def _shared(plan: Plan, name: str) -> str:
    # Of the recipe, not of the run: of two runs that overlap, neither finds rows of the other, and
    # classes must mean the same in both.
    return f"runs/recipes/{plan.fingerprint}/{name}"


def _agreed(store: Store, name: str, content: bytes) -> bytes:
    """What is recorded under a name: the content, or what another process was quicker to record."""
    return content if store.publish_new(name, content) else store.read(name)


def _fit(
    order: RunSettings, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress
) -> tuple[RunSettings, Plan]:
    """The order with its model, and the plan with the images that cannot take part marked as
    failed.
    """
    store = Store(order.output)
    recorded = _recorded(store, plan, inventory, "model.json", model_of)
    if recorded is not None:
        return replace(order, model=recorded), plan
    _require_not_lost(store, plan, inventory)
    items = [item for shard in plan.shards for item in shard.items]
    if all(item.spec is None for item in items):
        return order, plan
    fitted = fit(fanout, order, items, progress)
    model = fitted.model
    if is_blank(model):
        # Not recorded: the next run, whose images may have valid pixels, fits a model of them.
        log.warning(
            "No image has a valid pixel: there is nothing to fit, and all masks are nodata."
        )
    else:
        model = _record(store, plan, "model.json", dump_model(model).encode(), model_of)
    return replace(order, model=model), replace(
        plan, shards=tuple(_with_failures(shard, fitted.failures) for shard in plan.shards)
    )


def _with_failures(shard: Shard, failures: Mapping[str, Failure]) -> Shard:
    def marked(item: PlannedImage) -> PlannedImage:
        return (
            replace(item, failure=failures[item.source.uri])
            if item.source.uri in failures and item.failure is None
            else item
        )

    return replace(shard, items=tuple(map(marked, shard.items)))


def _do_shard(tables: Tables, bench: ShardContext, shard: Shard) -> int:
    """Segment and commit what is left of a shard; how many of its images failed."""
    tables.refresh()
    left = tables.left(shard)
    try:
        receipts = segment_shard(left, bench)
        tables.publish(left, receipts)
    except (RunError, StoreError, FileNotFoundError):
        # Another process that does the same run may have finished these images, and cleared up
        # behind us.
        tables.refresh()
        if tables.left(shard).items:
            raise
    else:
        clear_staging(receipts, bench)
        _warn(receipts)
    return tables.failed(shard)


def _warn(receipts: Sequence[ImageResult]) -> None:
    """Say what is known against results that were committed, each thing once."""
    images: dict[str, list[str]] = {}
    for receipt in receipts:
        if receipt.warning is not None:
            images.setdefault(receipt.warning, []).append(receipt.source.image_id)
    for warning, ids in list(images.items())[:_WARNINGS_SHOWN]:
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        log.warning("%s%s: %s.", ids[0], more, warning)
    if len(images) > _WARNINGS_SHOWN:
        left = sum(len(ids) for ids in list(images.values())[_WARNINGS_SHOWN:])
        log.warning(
            "%d more images have warnings: see the column `warning` of the table `images`.", left
        )


def _finish(store: Store, plan: Plan, tables: Tables, before: LastRun) -> Outcome:
    record = tables.record()
    manifest = {
        "run_id": plan.run_id,
        "parent": plan.parent,
        "sequence": plan.sequence,
        "fingerprint": plan.fingerprint,
        "settings": plan.settings,
        "images": record.done + record.failed,
        "failed": record.failed,
        "pixels": record.pixels,
        "files": record.files,
    }
    store.publish(f"runs/{plan.run_id}/manifest.json", json.dumps(manifest, indent=1).encode())
    write_head(store, before, plan)
    for run_id, parent in planned_runs(store):
        # Nobody goes on with a run that follows a former head, but one that is at work beside this
        # one still needs its parts.
        if run_id == plan.run_id or (parent != plan.run_id and not is_at_work(store, run_id)):
            store.remove(f"{STAGING}/{run_id}")
    return Outcome(plan.run_id, record.done, record.failed, record.pixels, record.failures)


def _without_versions(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a recipe says, without what the code and the machine add to it."""
    return {
        key: value
        for key, value in settings.items()
        if key not in {"maskloom", "libraries", "machine", "python", "passed_over", WORKER_MEMORY}
    }


def _class_names(order: RunSettings) -> tuple[str, ...]:
    return order.model.expected_classes if isinstance(order.model, Fitter) else order.model.classes


def _versions() -> dict[str, Any]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
