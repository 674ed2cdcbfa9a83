"""The dry run of a recipe, and the catalogue of what recipes can name."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import typing
from collections.abc import Mapping
from functools import partial
from typing import Any, Literal

from maskloom.flows.inventory import Inventory, notes, take_inventory
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.recipes.schemas import help_of
from maskloom.flows.terminal import count, failure
from maskloom.segcore import formats
from maskloom.segcore.masks import MASKS
from maskloom.segcore.models.protocols import SEGMENTERS, Fitter
from maskloom.segcore.pipeline.records import PlannedImage
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.statistics.protocol import STATISTICS
from maskloom.segcore.storage.filesystems import configure
from maskloom.tasks.batching import require_tiling
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.memory import peak_bytes, require_memory
from maskloom.tasks.plan import describe_sources, identify, make_plan


def dry_run(recipe: RunRecipe) -> str:
    """Lines that say what a run of this recipe would do now."""
    configure(recipe.storage)
    inventory = take_inventory(recipe)
    if inventory.nothing_to_do:
        images = count(len(inventory.sources), "image is", "images are")
        return "\n".join(
            [f"Nothing to do: {images} done and unchanged.", *notes(recipe, inventory)]
        )
    items = _pending_images(recipe, inventory)
    work = recipe.work
    plan = make_plan(
        work,
        inventory.head,
        identify(work, inventory.head, inventory.sources),
        items,
        inventory.committed,
    )
    good = [item for item in items if item.spec is not None]
    order = recipe.run_settings(plan.run_id)
    require_tiling(order, good)
    require_memory(order, good, recipe.cluster.worker_memory)
    grids = [order.grid(item.spec) for item in good if item.spec]
    sizes = dict.fromkeys(" x ".join(map(str, grid.tile)) for grid in grids)
    lines = [
        f"run {plan.run_id}",
        f"images {len(items)} of {len(inventory.sources)} ({len(items) - len(good)} unreadable)",
        f"pixels {sum(item.spec.pixels for item in good if item.spec)}",
        f"tiles {sum(map(len, grids))} of {' or '.join(sizes) or recipe.tiling}",
        f"shards {len(plan.shards)}",
        (
            f"bytes to read {_passes(recipe) * sum(item.source.size for item in good)} "
            f"({_passes(recipe)} times the files)"
        ),
        f"peak memory a worker {peak_bytes(order, good) / 1e6:.0f} MB",
    ]
    failed = ((item.source.uri, item.failure) for item in items if item.failure is not None)
    lines += [
        f"unreadable: {failure(uri, reason.error_type, reason.error)}" for uri, reason in failed
    ]
    return "\n".join([*lines, *notes(recipe, inventory)])


def _pending_images(recipe: RunRecipe, inventory: Inventory) -> list[PlannedImage]:
    """The images to do, described by their headers, which are read in this process."""
    prepare = partial(prepare_process, recipe.storage, time_limits=recipe.limits)
    with SerialCluster().open(prepare, threading.Event()) as fanout:
        return describe_sources(fanout, inventory.pending, recipe.format, recipe.ground_control)


def catalogue(what: Literal["segmenters", "formats", "statistics"]) -> str:
    """The members of a registry with their parameters."""
    if what == "formats":
        readers = (
            f"  {name}: {_first_line(item)} Suffixes {' '.join(formats.suffixes(name))}; masks by "
            f"{item.mask}"
            for name, item in FORMATS.items()
        )
        writers = (
            f"  {name}: {_first_line(item)} Suffix {item.suffix}" for name, item in MASKS.items()
        )
        return "\n".join(("Readers of images", *readers, "", "Writers of masks", *writers))
    registry: Mapping[str, Any] = SEGMENTERS if what == "segmenters" else STATISTICS
    return "\n\n".join(_member(name, kind) for name, kind in registry.items())


def _member(name: str, kind: Any) -> str:
    exactness = f" [{kind.exactness.value}]" if hasattr(kind, "exactness") else ""
    described = help_of(kind)
    lines = [f"{name}: {_first_line(kind)}{exactness}"]
    if hasattr(kind, "units"):
        lines.append(f"  Change of units, x -> a x + b with a > 0: {kind.units}.")
    if hasattr(kind, "volumes"):
        lines.append(f"  Volumes: {kind.volumes}.")
    for field in dataclasses.fields(kind):
        default = (
            field.default_factory()
            if field.default_factory is not dataclasses.MISSING
            else field.default
        )
        shown = "needed" if default is dataclasses.MISSING else repr(default)
        lines.append(
            f"  {field.name} = {shown}: {described.get(field.name, typing.cast('str', field.type))}"
        )
    return "\n".join(lines)


def _first_line(item: Any) -> str:
    return (inspect.getdoc(item) or "").partition("\n")[0]


def _passes(recipe: RunRecipe) -> int:
    return 2 if isinstance(recipe.segmenter, Fitter) else 1
