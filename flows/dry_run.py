"""The dry run of a recipe."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from functools import partial

from maskloom.flows.inventory import Inventory, notes, take_inventory
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.terminal import count, failure
from maskloom.segcore.models.protocols import Fitter
from maskloom.segcore.pipeline.records import PlannedImage
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.storage.filesystems import configure
from maskloom.tasks.batching import require_tiling
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.memory import peak_bytes, require_memory
from maskloom.tasks.plan import describe_sources, identify, make_plan


def dry_run(recipe: RunRecipe) -> str:
    """What a run of this recipe would do now, in lines of text."""
    configure(recipe.storage)
    inventory = take_inventory(recipe)
    if inventory.nothing_to_do:
        done = count(inventory.images_outside(frozenset()), "image is", "images are")
        lines = [f"Nothing to do: {done} done and unchanged."]
    else:
        lines = list(_planned(recipe, inventory, _pending_images(recipe, inventory)))
    return "\n".join([*lines, *notes(recipe, inventory)])


def _planned(
    recipe: RunRecipe, inventory: Inventory, images: Sequence[PlannedImage]
) -> Iterator[str]:
    """Lines on the images to do. Raises `RecipeError` if the tiling or the memory does not suit
    them.
    """
    work, head = recipe.work, inventory.head
    identity = identify(work, head, inventory.sources)
    plan = make_plan(work, head, identity, images, inventory.committed)
    readable = [image for image in images if image.spec is not None]
    settings = recipe.run_settings(plan.run_id)
    require_tiling(settings, readable)
    require_memory(settings, readable, recipe.cluster.worker_memory)
    grids = [settings.grid(image.spec) for image in readable if image.spec]
    sizes = dict.fromkeys(" x ".join(map(str, grid.tile)) for grid in grids)
    unreadable = len(images) - len(readable)
    passes = 2 if isinstance(recipe.segmenter, Fitter) else 1
    sizes_of_files = {image.source.location: image.source.size for image in readable}
    to_read = passes * sum(sizes_of_files.values())
    yield f"run {plan.run_id}"
    total = len(images) + inventory.images_outside({source.uri for source in inventory.pending})
    yield f"images {len(images)} of {total} ({unreadable} unreadable)"
    yield f"pixels {sum(image.spec.pixels for image in readable if image.spec)}"
    yield f"tiles {sum(map(len, grids))} of {' or '.join(sizes) or recipe.tiling}"
    yield f"shards {len(plan.shards)}"
    yield f"bytes to read {to_read} ({passes} times the files)"
    yield f"peak memory of a worker {peak_bytes(settings, readable) / 1e6:.0f} MB"
    for image in images:
        if image.failure is not None:
            reason = failure(image.source.uri, image.failure.error_type, image.failure.error)
            yield f"unreadable: {reason}"


def _pending_images(recipe: RunRecipe, inventory: Inventory) -> list[PlannedImage]:
    """The images to do, described by their headers, which are read in this process."""
    prepare = partial(prepare_process, recipe.storage, time_limits=recipe.limits)
    with SerialCluster().open(prepare, threading.Event()) as fanout:
        return describe_sources(
            fanout, inventory.pending, recipe.format, recipe.options, inventory.ids
        )
