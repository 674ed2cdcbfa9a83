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
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from maskloom.flows.inventory import WRITTEN, Inventory, Sharing
from maskloom.flows.progress import RunProgress
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.stages import Stages
from maskloom.flows.terminal import at, count, millions, pixels
from maskloom.segcore.errors import RunError, Stopped, StoreError, TooManyFailures
from maskloom.segcore.figures.thumbnails import PictureSizes
from maskloom.segcore.ground.amounts import amount
from maskloom.segcore.models.files import dump_model, model_of
from maskloom.segcore.models.protocols import Fitter, fits_each_image, is_blank
from maskloom.segcore.models.selection import pending_selections, with_selections
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.records import (
    Failure,
    ImageResult,
    ImagesOfShards,
    Plan,
    PlannedImage,
    Shard,
)
from maskloom.segcore.storage.records import damaged_record
from maskloom.segcore.storage.store import STAGING, Store
from maskloom.tasks.commits.presence import is_at_work, process_folder
from maskloom.tasks.commits.recorded import CHOICES, MODEL, record, recorded, require_model
from maskloom.tasks.fanout.protocol import Fanout
from maskloom.tasks.fit import fit
from maskloom.tasks.memory import WORKER_MEMORY, suitable, without_room
from maskloom.tasks.plan import (
    LastRun,
    describe_sources,
    empty_plan,
    in_order_of_files,
    make_shards,
    planned_runs,
    read_plan,
    with_addresses,
    with_changed,
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
    "jax",
    "torch",
    "openvino",
    "onnxruntime",
    "onnxruntime-gpu",
)


@dataclass(frozen=True, slots=True)
class ClassRow:
    """The total area, or volume, of a class."""

    name: str
    size: str
    """With its unit."""
    share: float
    """Of all classes in this unit."""
    kind: str
    """Area or volume."""


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

    @property
    def classes(self) -> list[ClassRow]:
        """The classes that were found, the largest first."""
        totals: dict[str, float] = {}
        for (_, unit), size in self.areas.items():
            totals[unit] = totals.get(unit, 0.0) + size
        found = sorted(((size, *key) for key, size in self.areas.items() if size), reverse=True)
        return [
            ClassRow(
                name,
                amount(size, unit),
                size / totals[unit],
                "volume" if unit == "mm3" else "area",
            )
            for size, name, unit in found
        ]

    def __str__(self) -> str:
        """How many images are done and failed, and their size."""
        size = pixels(self.pixels, self.unit)
        return f"{count(self.done, 'image')} done, {self.failed} failed, {size}"


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
        plan = stages.stage("plan", _plan, recipe, inventory, fanout, progress, said=_planned)
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
                    "choose", _select_engines, settings, plan, inventory, fanout, progress
                )
            if recipe.fit == "collection" and not fits_each_image(settings.model):
                settings, plan = stages.stage(
                    "fit", _fit, settings, plan, inventory, fanout, progress, said=_model_found
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


def _plan(recipe: RunRecipe, inventory: Inventory, fanout: Fanout, progress: RunProgress) -> Plan:
    """The plan of the interrupted run, or a new one from the headers of the pending images."""
    store, work = Store(recipe.output), recipe.work
    head = inventory.head
    identity = inventory.run_id
    settings, available = recipe.run_settings(identity), recipe.cluster.worker_memory
    interrupted = read_plan(store, identity)
    if interrupted is not None:
        for _ in suitable(settings, interrupted.images, available):
            pass
        return with_addresses(interrupted, inventory.sources)
    read = progress.items("read headers", "files", len(inventory.pending))
    found = describe_sources(
        fanout,
        in_order_of_files(inventory.pending, inventory.committed),
        recipe.format,
        recipe.options,
        lambda: inventory.ids,
        read,
    )
    images = suitable(settings, without_room(found, available), available)
    passed_over = {"passed_over": dict(inventory.passed_over)} if inventory.passed_over else {}
    recorded_settings = {
        **work.settings,
        **passed_over,
        "libraries": _versions(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        WORKER_MEMORY: available,
        WRITTEN: dict(recipe.written),
    }
    plan = empty_plan(replace(work, settings=recorded_settings), head, identity)
    shards = make_shards(identity, images, inventory.committed, work.apart_by_crs)
    write_plan(store, plan, shards)
    written = read_plan(store, identity)
    if written is None:
        raise damaged_record(store, f"runs/{identity}/plan.json")
    return with_addresses(written, inventory.sources)


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
    selections = select_engines(fanout, settings.model, plan.images)
    if not selections:
        return replace(settings, model=load(selections))
    for selection in selections.values():
        if note := selection["record"].get("note"):
            log.warning("%s.", note)
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
    if all(image.spec is None for image in plan.images):
        return settings, plan
    fitted = fit(fanout, settings, plan.images, progress)
    model = fitted.model
    if is_blank(model):
        # Not recorded, so that the next run, whose images may have valid pixels, fits a model.
        log.warning(
            "No image has a valid pixel: there is nothing to fit, and all masks are nodata."
        )
    else:
        model = record(store, plan, MODEL, dump_model(model).encode(), model_of)
    failures = fitted.failures

    def marked(image: PlannedImage) -> PlannedImage:
        return (
            replace(image, failure=failures[image.source.uri])
            if image.source.uri in failures and image.failure is None
            else image
        )

    return replace(settings, model=model), with_changed(plan, marked) if failures else plan


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


@cache
def _versions() -> dict[str, Any]:
    # The metadata of a distribution are read and parsed each time.
    found = {}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found
