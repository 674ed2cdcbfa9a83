"""The segmentation flow: plan, choose, fit, segment shards, publish.

Only small values are handled here; pixels stay on the workers and in the stores. The same flow
resumes an interrupted run: the plan is found by its id, the model by its file, and an image is done
if the table `images` has it. Several runs may work on one output; `tasks/commits/log.py` describes
how they stay apart.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from maskloom.flows.fitting import with_engines, with_model
from maskloom.flows.inventory import Inventory, Sharing
from maskloom.flows.outcome import Outcome
from maskloom.flows.planning import plan_run
from maskloom.flows.progress.run import RunProgress
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.stages import Stages
from maskloom.flows.terminal import at, count, millions
from maskloom.segcore.errors import RunError, Stopped, StoreError, TooManyFailures
from maskloom.segcore.figures.thumbnails import PictureSizes
from maskloom.segcore.models.protocols import Fitter, fits_each_image
from maskloom.segcore.models.selection import pending_selections
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.records import ImageResult, ImagesOfShards, Plan, Shard
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.commits.presence import is_at_work, process_folder
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.last_run import LastRun, planned_runs, write_head
from maskloom.tasks.publish import Tables
from maskloom.tasks.segment import ShardContext, clear_staging, segment_shard

log = logging.getLogger("maskloom.run")
SHARDS_AT_ONCE = 8
_WARNINGS_SHOWN = 5


def segment(
    recipe: RunRecipe,
    inventory: Inventory,
    stages: Stages,
    fanout: Fanout,
    progress: RunProgress,
    sharing: Sharing,
) -> Outcome:
    """Bring the output up to date with the inputs. Raises `RunError` if the run cannot continue,
    with a note on how far it came; the same call resumes it.
    """
    store = Store(recipe.output)
    identity = inventory.run_id

    def position() -> Mapping[str, Any]:
        found = progress.position()
        if found:
            log.info("%s", at(found))
        return found

    with process_folder(store, identity, position, sole_writer=sharing.sole_writer) as folder:
        plan = stages.stage("plan", plan_run, recipe, inventory, fanout, progress, said=_planned)
        images = sum(len(shard.images) for shard in plan.shards)
        log.info("run %s: %s", plan.run_id, count(images, "image"))
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
        try:
            settings = replace(
                recipe.run_settings(plan.run_id),
                results=f"{folder}/results",
                pictures=_pictures(recipe, inventory),
            )
            if pending_selections(settings.model):
                settings = stages.stage(
                    "choose", with_engines, settings, plan, inventory, fanout, progress
                )
            if recipe.fit == "collection" and not fits_each_image(settings.model):
                settings, plan = stages.stage(
                    "fit",
                    with_model,
                    settings,
                    plan,
                    inventory,
                    fanout,
                    progress,
                    said=_model_found,
                )
            context = ShardContext(fanout, settings, _class_names(settings), progress)
            _segment_shards(recipe, plan, tables, context, stages)
            progress.begin("publish")
            return stages.stage("publish", _publish, store, plan, tables, inventory.head, said=str)
        except RunError as error:
            error.add_note(_how_far(plan, tables))
            raise


def _pictures(recipe: RunRecipe, inventory: Inventory) -> PictureSizes | None:
    """The sizes of pictures for the report, which shows the images of earlier runs too."""
    if not (recipe.reports and recipe.pictures):
        return None
    return PictureSizes.for_images(len({*inventory.ids}))


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
        "resume",
        lambda: [shard for shard in plan.shards if tables.left(shard).images],
        said=lambda left: f"{len(left)} of {count(len(plan.shards), 'shard')} left",
    )
    images = ImagesOfShards(tuple(tables.left(shard) for shard in left))
    context.progress.start("segment", images, context.settings)
    files = {shard.file for shard in left}
    failed = sum(tables.failed(shard) for shard in plan.shards if shard.file not in files)
    total = len(plan.images)
    _check_failures(failed, total, recipe)
    for failures in stages.each(
        partial(_do_shard, tables, context),
        left,
        lambda shard: f"segment {count(len(shard.images), 'image')}: {shard.file}",
        SHARDS_AT_ONCE,
        lambda shard, failures: (
            f"{count(len(shard.images) - failures, 'image')} done, {failures} failed"
        ),
    ):
        failed += failures
        _check_failures(failed, total, recipe)


def _planned(plan: Plan) -> str:
    images = sum(len(shard.images) for shard in plan.shards)
    return f"{count(images, 'image')} in {count(len(plan.shards), 'shard')}, run {plan.run_id}"


def _model_found(fitted: tuple[RunSettings, Plan]) -> str:
    names = _class_names(fitted[0])
    return f"{count(len(names), 'class', 'classes')}: {', '.join(names)}"


def _how_far(plan: Plan, tables: Tables) -> str:
    """How many images of the plan are in the tables, as this process knows them."""
    total = sum(len(shard.images) for shard in plan.shards)
    left = sum(len(tables.left(shard).images) for shard in plan.shards)
    failed = sum(tables.failed(shard) for shard in plan.shards)
    return f"{total - left - failed} of {count(total, 'image')} done, {failed} failed."


def _check_failures(failed: int, total: int, recipe: RunRecipe) -> None:
    if failed > recipe.max_failed_fraction * total:
        raise TooManyFailures(
            f"{failed} of {total} images failed, more than max_failed_fraction = "
            f"{recipe.max_failed_fraction:g} allows. "
            f"See `maskloom status {recipe.output}`. Fix the inputs or raise "
            "max_failed_fraction, then run the same command again to continue."
        )


def _do_shard(tables: Tables, context: ShardContext, shard: Shard) -> int:
    """Segment and commit the images of a shard that are left. Returns the number of its failed
    images. If the run is asked to stop, the images that are finished are committed.
    """
    tables.refresh()
    left = tables.left(shard)
    by_uri: dict[str, ImageResult] = {}
    try:
        try:
            results = segment_shard(left, context, by_uri)
        except Stopped:
            _commit(tables, context, left, list(by_uri.values()))
            raise
        _commit(tables, context, left, results)
    except (RunError, StoreError, FileNotFoundError):
        # Another process of the same run may have finished these images and removed the staged
        # files.
        tables.refresh()
        if tables.left(shard).images:
            raise
    return tables.failed(shard)


def _commit(
    tables: Tables, context: ShardContext, shard: Shard, results: Sequence[ImageResult]
) -> None:
    tables.publish(shard, results)
    clear_staging(results, context)
    _warn(results)


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
    inputs, shapes = set(), set()
    for image in plan.images:
        row = tables.ledger.rows.get(image.source.uri)
        # Shared with the ledger: a run may have a million.
        inputs.add(image.source.location if image.source.part or row is None else row.uri)
        if image.spec is not None:
            shapes.add(image.spec.shape)
    return Outcome(
        plan.run_id,
        result.done,
        result.failed,
        result.pixels,
        result.failures,
        result.areas,
        frozenset(inputs),
        millions(shapes),
    )


def _class_names(settings: RunSettings) -> tuple[str, ...]:
    model = settings.model
    return model.expected_classes if isinstance(model, Fitter) else model.classes
