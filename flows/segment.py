"""The segmentation flow: plan, choose, fit, segment shards, publish.

Only small values are handled here; pixels stay on the workers and in the stores. The same flow
resumes an interrupted run: the plan is found by its id, the model by its file, and an image is done
if the table `images` has it. Several runs may work on one output; `tasks/commits/log.py` describes
how they stay apart.
"""

from __future__ import annotations

import json
import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from maskloom.flows.inventory import Inventory, Sharing
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.stages import Stages
from maskloom.flows.terminal import millions
from maskloom.segcore.errors import RunError, StoreError, TooManyFailures
from maskloom.segcore.models.files import dump_model, model_of
from maskloom.segcore.models.protocols import Fitter, is_blank
from maskloom.segcore.models.selection import pending_selections, with_selections
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.records import Failure, ImageResult, Plan, PlannedImage, Shard
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.batching import require_tiling
from maskloom.tasks.commits.presence import is_at_work, process_folder
from maskloom.tasks.commits.recorded import CHOICES, MODEL, record, recorded, require_model
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.fit import fit
from maskloom.tasks.memory import WORKER_MEMORY, require_memory, without_room
from maskloom.tasks.plan import (
    LastRun,
    describe_sources,
    identify,
    make_plan,
    planned_runs,
    read_plan,
    with_addresses,
    write_head,
    write_plan,
)
from maskloom.tasks.progress import Progress
from maskloom.tasks.publish import Tables
from maskloom.tasks.segment import ShardContext, clear_staging, segment_shard
from maskloom.tasks.select_engine import select_engines

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
    "tensorflow-cpu",
    "keras",
    "openvino",
    "onnxruntime",
)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended."""

    run_id: str
    done: int
    failed: int
    pixels: int
    failures: tuple[tuple[str, Failure], ...] = ()
    """URI and reason of the first failures."""
    areas: Mapping[tuple[str, str], float] = field(default_factory=dict)
    """Total area of each class in these images, by its name and the unit."""
    inputs: frozenset[str] = frozenset()
    """URIs of the files, folders and series in which its images are."""
    unit: str = "megapixels"
    """The unit for sums of its pixels: megavoxels if all images are volumes."""


def segment(
    recipe: RunRecipe,
    inventory: Inventory,
    stages: Stages,
    fanout: Fanout,
    progress: Progress,
    sharing: Sharing,
) -> Outcome:
    """Bring the output up to date with the inputs. Raises `RunError` if the run cannot continue;
    the same call resumes it.
    """
    store = Store(recipe.output)
    identity = identify(recipe.work, inventory.head, inventory.sources)
    with process_folder(store, identity, sole_writer=sharing.sole_writer) as folder:
        plan = stages.stage("plan", _plan, recipe, inventory, fanout)
        tables = Tables(
            inventory.ledger,
            folder,
            plan,
            recipe.statistics,
            recipe.objects,
            sharing.keep_other_recipes,
            inventory.committed,
            inventory.replaced,
        )
        settings = replace(recipe.run_settings(plan.run_id), results=f"{folder}/results")
        if pending_selections(settings.model):
            settings = stages.stage(
                "choose", _select_engines, settings, plan, inventory, fanout, progress
            )
        if recipe.fit == "collection":
            settings, plan = stages.stage("fit", _fit, settings, plan, inventory, fanout, progress)
        context = ShardContext(fanout, settings, _class_names(settings), progress)
        _segment_shards(recipe, plan, tables, context, stages)
        return stages.stage("publish", _publish, store, plan, tables, inventory.head)


def _segment_shards(
    recipe: RunRecipe,
    plan: Plan,
    tables: Tables,
    context: ShardContext,
    stages: Stages,
) -> None:
    """Segment and commit all shards that are left. Raises `TooManyFailures`."""
    tables.refresh()
    left = stages.stage(
        "resume", lambda: [shard for shard in plan.shards if tables.left(shard).images]
    )
    images = [image for shard in left for image in tables.left(shard).images]
    context.progress.start("segment", images, context.settings)
    failed = sum(tables.failed(shard) for shard in plan.shards if shard not in left)
    total = sum(len(shard.images) for shard in plan.shards)
    _check_failures(failed, total, recipe)
    for failures in stages.each(
        partial(_do_shard, tables, context), left, lambda shard: shard.file, SHARDS_AT_ONCE
    ):
        failed += failures
        _check_failures(failed, total, recipe)


def _check_failures(failed: int, total: int, recipe: RunRecipe) -> None:
    if failed > recipe.max_failed_fraction * total:
        raise TooManyFailures(
            f"{failed} of {total} images failed, more than max_failed_fraction = "
            f"{recipe.max_failed_fraction:g} allows. "
            f"See `maskloom status {recipe.output}`. Fix the inputs or raise "
            "max_failed_fraction, then run the same command again to continue."
        )


def _plan(recipe: RunRecipe, inventory: Inventory, fanout: Fanout) -> Plan:
    """The plan of the interrupted run, or a new one from the headers of the pending images."""
    store, work = Store(recipe.output), recipe.work
    head = inventory.head
    identity = identify(work, head, inventory.sources)
    settings, available = recipe.run_settings(identity), recipe.cluster.worker_memory
    interrupted = read_plan(store, identity)
    if interrupted is not None:
        require_tiling(settings, (image for shard in interrupted.shards for image in shard.images))
        require_memory(
            settings, (image for shard in interrupted.shards for image in shard.images), available
        )
        return with_addresses(interrupted, inventory.sources)
    images = describe_sources(
        fanout, inventory.pending, recipe.format, recipe.options, inventory.ids
    )
    require_tiling(settings, images)
    images = without_room(images, available)
    require_memory(settings, (image for image in images if image.failure is None), available)
    passed_over = {"passed_over": dict(inventory.passed_over)} if inventory.passed_over else {}
    recorded_settings = {
        **work.settings,
        **passed_over,
        "libraries": _versions(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        WORKER_MEMORY: available,
    }
    plan = make_plan(
        replace(work, settings=recorded_settings), head, identity, images, inventory.committed
    )
    write_plan(store, plan)
    return plan


def _select_engines(
    settings: RunSettings, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress
) -> RunSettings:
    """The settings with the engine and precision that an earlier run selected, or selected now."""
    store = Store(settings.output)
    load = partial(with_selections, settings.model)
    model = recorded(store, plan, inventory.committed, CHOICES, load)
    if model is not None:
        return replace(settings, model=model)
    progress.start("load the network and try engines", [], settings)
    images = [image for shard in plan.shards for image in shard.images]
    selections = select_engines(fanout, settings.model, images)
    if not selections:
        return replace(settings, model=load(selections))
    content = json.dumps(selections, indent=1).encode()
    return replace(settings, model=record(store, plan, CHOICES, content, load))


def _fit(
    settings: RunSettings, plan: Plan, inventory: Inventory, fanout: Fanout, progress: Progress
) -> tuple[RunSettings, Plan]:
    """The settings with the fitted model, and the plan, in which images that cannot be fitted are
    marked as failed.
    """
    store = Store(settings.output)
    known = recorded(store, plan, inventory.committed, MODEL, model_of)
    if known is not None:
        return replace(settings, model=known), plan
    require_model(store, plan, inventory.committed)
    images = [image for shard in plan.shards for image in shard.images]
    if all(image.spec is None for image in images):
        return settings, plan
    fitted = fit(fanout, settings, images, progress)
    model = fitted.model
    if is_blank(model):
        # Not recorded, so that the next run, whose images may have valid pixels, fits a model.
        log.warning(
            "No image has a valid pixel: there is nothing to fit, and all masks are nodata."
        )
    else:
        model = record(store, plan, MODEL, dump_model(model).encode(), model_of)
    return replace(settings, model=model), replace(
        plan, shards=tuple(_with_failures(shard, fitted.failures) for shard in plan.shards)
    )


def _with_failures(shard: Shard, failures: Mapping[str, Failure]) -> Shard:
    def marked(image: PlannedImage) -> PlannedImage:
        return (
            replace(image, failure=failures[image.source.uri])
            if image.source.uri in failures and image.failure is None
            else image
        )

    return replace(shard, images=tuple(map(marked, shard.images)))


def _do_shard(tables: Tables, context: ShardContext, shard: Shard) -> int:
    """Segment and commit the images of a shard that are left. Returns the number of its failed
    images.
    """
    tables.refresh()
    left = tables.left(shard)
    try:
        results = segment_shard(left, context)
        tables.publish(left, results)
    except (RunError, StoreError, FileNotFoundError):
        # Another process of the same run may have finished these images and removed the staged
        # files.
        tables.refresh()
        if tables.left(shard).images:
            raise
    else:
        clear_staging(results, context)
        _warn(results)
    return tables.failed(shard)


def _warn(results: Sequence[ImageResult]) -> None:
    """Log the warnings of committed results, each text once."""
    ids_by_warning: dict[str, list[str]] = {}
    for result in results:
        if result.warning is not None:
            ids_by_warning.setdefault(result.warning, []).append(result.source.image_id)
    for warning, ids in list(ids_by_warning.items())[:_WARNINGS_SHOWN]:
        more = f" and {len(ids) - 1} more" if len(ids) > 1 else ""
        log.warning("%s%s: %s.", ids[0], more, warning)
    if len(ids_by_warning) > _WARNINGS_SHOWN:
        left = sum(len(ids) for ids in list(ids_by_warning.values())[_WARNINGS_SHOWN:])
        log.warning(
            "%d more images have warnings: see the column `warning` of the table `images`.", left
        )


def _publish(store: Store, plan: Plan, tables: Tables, before: LastRun) -> Outcome:
    """Write the run's manifest, make it the output's last run, and remove staged files."""
    result = tables.record()
    manifest = {
        "run_id": plan.run_id,
        "parent": plan.parent,
        "sequence": plan.sequence,
        "fingerprint": plan.fingerprint,
        "settings": plan.settings,
        "images": result.done + result.failed,
        "failed": result.failed,
        "pixels": result.pixels,
        "files": result.files,
    }
    store.publish(f"runs/{plan.run_id}/manifest.json", json.dumps(manifest, indent=1).encode())
    write_head(store, before, plan)
    for run_id, parent in planned_runs(store):
        # A run that follows an earlier head cannot be resumed, but it needs its staged files while
        # it is at work beside this run.
        if run_id == plan.run_id or (parent != plan.run_id and not is_at_work(store, run_id)):
            store.remove(f"{STAGING}/{run_id}")
    images = [image for shard in plan.shards for image in shard.images]
    return Outcome(
        plan.run_id,
        result.done,
        result.failed,
        result.pixels,
        result.failures,
        result.areas,
        frozenset(image.source.location for image in images),
        millions(image.spec.shape for image in images if image.spec is not None),
    )


def _class_names(settings: RunSettings) -> tuple[str, ...]:
    model = settings.model
    return model.expected_classes if isinstance(model, Fitter) else model.classes


def _versions() -> dict[str, Any]:
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
