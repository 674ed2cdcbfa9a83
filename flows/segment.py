"""The segmentation flow: discover, plan, fit, shards, publish. One line a stage.

Everything here is small values; pixels stay on the workers and in the stores. The same flow resumes an interrupted run: the plan is found
by its id, the model by its file, and a shard is done when the `images` table has it.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from flows.orchestrate import Orchestrator
from flows.recipe import Recipe
from segcore.choices import open_choices, with_choices
from segcore.errors import TooManyFailures
from segcore.jobs import Order
from segcore.manifest import Failure, Item, Plan, Receipt, Shard, Source, dump_model, load_model
from segcore.model import Fitter
from segcore.storage import STAGING, Store
from tasks.choose import choose
from tasks.discover import discover
from tasks.fanout import Fanout, memory_of
from tasks.fit import fit
from tasks.memory import require_memory
from tasks.plan import (
    HEAD,
    Committed,
    Head,
    describe_sources,
    identify,
    make_plan,
    pending,
    planned_runs,
    read_committed,
    read_head,
    read_plan,
    write_plan,
)
from tasks.progress import Progress
from tasks.publish import Tables
from tasks.segment import Bench, clear_staging, segment_shard

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
class Inventory:
    """The inputs as they are now, and what the output has of them."""

    sources: list[Source]
    committed: dict[str, Committed]
    head: Head
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
        rows = (self.committed.get(source.uri) for source in self.sources if source.uri not in waiting)
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


def take_inventory(recipe: Recipe) -> Inventory:
    """List the inputs and read what is committed."""
    store = Store(recipe.output)
    committed = read_committed(store)
    known = {row.uri: row.image_id for row in committed.values()}
    sources = discover(recipe.inputs, recipe.output, known)
    work, head = recipe.work, read_head(store)
    interrupted = store.exists(f"runs/{identify(work, head, sources)}/plan.json")
    return Inventory(sources, committed, head, pending(sources, committed, work.fingerprint), interrupted)


def run(recipe: Recipe, inventory: Inventory, orchestrator: Orchestrator, fanout: Fanout, progress: Progress) -> Outcome:
    """Bring the output up to date with the inputs. Raises `RunError` where it cannot go on; the same call resumes it."""
    parameters = {"recipe": recipe.name, "output": recipe.output, "segmenter": recipe.kind, "images": len(inventory.pending)}
    return orchestrator.flow(recipe.name, parameters, partial(_flow, recipe, inventory, orchestrator, fanout, progress))


def _flow(recipe: Recipe, inventory: Inventory, orchestrator: Orchestrator, fanout: Fanout, progress: Progress) -> Outcome:
    store = Store(recipe.output)
    plan = orchestrator.stage("plan", _plan, recipe, inventory, fanout)
    tables = Tables(store, plan, recipe.statistics, recipe.objects)
    order = recipe.order(plan.run_id)
    if open_choices(order.model):
        order = orchestrator.stage("choose", _choose, order, plan, inventory, fanout, progress)
    if recipe.fit == "collection":
        order, plan = orchestrator.stage("fit", _fit, order, plan, inventory, fanout, progress)
    bench = Bench(fanout, order, _class_names(order), progress)
    done = orchestrator.stage("resume", tables.done)
    left = [shard for shard in plan.shards if shard.file not in done]
    progress.start("segment", [item for shard in left for item in shard.items], order)
    failed = sum(done.values())
    images = sum(len(shard.items) for shard in plan.shards)
    _check_failures(failed, images, recipe)
    for failures in orchestrator.each(partial(_do_shard, tables, bench), left, lambda shard: shard.file, SHARDS_AT_ONCE):
        failed += failures
        _check_failures(failed, images, recipe)
    return orchestrator.stage("publish", _finish, store, plan, tables)


def _check_failures(failed: int, images: int, recipe: Recipe) -> None:
    if failed > recipe.max_failed_fraction * images:
        raise TooManyFailures(
            f"{failed} of {images} images failed, more than max_failed_fraction = {recipe.max_failed_fraction:g} allows. "
            f"See `maskloom status {recipe.output}`. Repair the inputs or raise max_failed_fraction; the same command goes on."
        )


def _plan(recipe: Recipe, inventory: Inventory, fanout: Fanout) -> Plan:
    store, work = Store(recipe.output), recipe.work
    head = inventory.head
    identity = identify(work, head, inventory.sources)
    order, available = recipe.order(identity), memory_of(recipe.cluster)
    interrupted = read_plan(store, identity)
    if interrupted is not None:
        require_memory(order, (item for shard in interrupted.shards for item in shard.items), available)
        return interrupted
    items = describe_sources(fanout, inventory.pending, recipe.format)
    require_memory(order, items, available)
    settings = {**work.settings, "libraries": _versions(), "machine": platform.machine(), "python": platform.python_version()}
    plan = make_plan(replace(work, settings=settings), head, identity, items, inventory.committed)
    write_plan(store, plan)
    return plan


def _choose(order: Order, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress) -> Order:
    """The order with what its model leaves to the machine, as an earlier run has chosen it or as suits now."""
    store, name = Store(order.output), "choices.json"
    recorded = _recorded(store, plan, inventory, name)
    if recorded is not None:
        return replace(order, model=with_choices(order.model, json.loads(recorded)))
    progress.start("load the network and try engines", [], order)
    choices = choose(fanout, order.model, [item for shard in plan.shards for item in shard.items])
    if choices:
        choices = json.loads(_first(store, f"runs/{plan.run_id}/{name}", json.dumps(choices, indent=1).encode()))
    return replace(order, model=with_choices(order.model, choices))


def _recorded(store: Store, plan: Plan, inventory: Inventory, name: str) -> bytes | None:
    """What this run or an earlier one of the same recipe recorded under a name; it is this run's from now on. None: nothing."""
    earlier = [row.run_id for row in inventory.committed.values() if row.fingerprint == plan.fingerprint]
    for candidate in dict.fromkeys((plan.run_id, *earlier)):
        if store.exists(f"runs/{candidate}/{name}"):
            return _first(store, f"runs/{plan.run_id}/{name}", store.read(f"runs/{candidate}/{name}"))
    return None


def _first(store: Store, name: str, content: bytes) -> bytes:
    """What is recorded under a name: the content, or what another process that does the same run was quicker to record."""
    return content if store.publish_new(name, content) else store.read(name)


def _fit(order: Order, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress) -> tuple[Order, Plan]:
    """The order with its model, and the plan with the images that cannot take part marked as failed."""
    store = Store(order.output)
    recorded = _recorded(store, plan, inventory, "model.json")
    if recorded is not None:
        return replace(order, model=load_model(recorded.decode())), plan
    items = [item for shard in plan.shards for item in shard.items]
    if all(item.spec is None for item in items):
        return order, plan
    fitted = fit(fanout, order, items, progress)
    model = load_model(_first(store, f"runs/{plan.run_id}/model.json", dump_model(fitted.model).encode()).decode())
    return replace(order, model=model), replace(
        plan, shards=tuple(_with_failures(shard, fitted.failures) for shard in plan.shards)
    )


def _with_failures(shard: Shard, failures: Mapping[str, Failure]) -> Shard:
    def marked(item: Item) -> Item:
        return replace(item, failure=failures[item.source.uri]) if item.source.uri in failures and item.failure is None else item

    return replace(shard, items=tuple(map(marked, shard.items)))


def _do_shard(tables: Tables, bench: Bench, shard: Shard) -> int:
    """Segment and commit a shard; how many of its images failed."""
    receipts = segment_shard(shard, bench)
    tables.publish(shard, receipts)
    clear_staging(receipts, bench)
    _warn(receipts)
    return sum(1 for receipt in receipts if receipt.failure is not None)


def _warn(receipts: Sequence[Receipt]) -> None:
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
        log.warning("%d more images have warnings: see the column `warning` of the table `images`.", left)


def _finish(store: Store, plan: Plan, tables: Tables) -> Outcome:
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
    store.publish(HEAD, json.dumps({"run_id": plan.run_id, "sequence": plan.sequence}).encode())
    for abandoned in (run_id for run_id, parent in planned_runs(store) if parent == plan.parent):
        # This run's, where it was killed between a commit and clearing up; nobody will go on with others behind the former head.
        store.remove(f"{STAGING}/{abandoned}")
    store.sweep()
    return Outcome(plan.run_id, record.done, record.failed, record.pixels, record.failures)


def _class_names(order: Order) -> tuple[str, ...]:
    return order.model.expected_classes if isinstance(order.model, Fitter) else order.model.classes


def _versions() -> dict[str, Any]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
