"""The dry run of a recipe."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

from maskloom.flows.inventory import Inventory, notes, take_inventory
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.terminal import count, failure
from maskloom.segcore.models.protocols import Fitter
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.records import PlannedImage, Shard
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.storage.filesystems import configure
from maskloom.tasks.clusters.local import LocalCluster
from maskloom.tasks.clusters.protocol import Cluster
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.describe import describe_sources
from maskloom.tasks.memory import peak_bytes, suitable
from maskloom.tasks.plan import in_order_of_files, make_shards

_FEW = 5_000
"""Inputs whose headers this process reads in the seconds that workers need to start."""
_FAILURES_NAMED = 100


def dry_run(recipe: RunRecipe) -> str:
    """What a run of this recipe would do now, in lines of text."""
    configure(recipe.storage)
    inventory = take_inventory(recipe)
    if inventory.nothing_to_do:
        done = count(inventory.images_outside(frozenset()), "image is", "images are")
        lines = [f"Nothing to do: {done} done and unchanged."]
    else:
        lines = list(_planned(recipe, inventory))
    return "\n".join([*lines, *notes(recipe, inventory)])


def _planned(recipe: RunRecipe, inventory: Inventory) -> Iterator[str]:
    """Lines on the images to do. Raises `RecipeError` if the tiling or the memory does not suit
    them.
    """
    settings = recipe.run_settings(inventory.run_id)
    prepare = partial(prepare_process, recipe.storage, time_limits=recipe.limits)
    sources = in_order_of_files(inventory.pending, inventory.committed)
    with _cluster(recipe, len(sources)).opened(prepare, threading.Event()) as fanout:
        images = suitable(
            settings,
            describe_sources(fanout, sources, recipe.format, recipe.options, lambda: inventory.ids),
            recipe.cluster.worker_memory,
        )
        apart = recipe.work.apart_by_crs
        totals = _Totals(settings)
        totals.take(make_shards(inventory.run_id, images, inventory.committed, apart))
    passes = 2 if isinstance(recipe.segmenter, Fitter) else 1
    yield f"run {inventory.run_id}"
    total = totals.images + inventory.images_outside({each.uri for each in inventory.pending})
    yield f"images {totals.images} of {total} ({totals.unreadable} unreadable)"
    yield f"pixels {totals.pixels}"
    yield f"tiles {sum(totals.tiles.values())} of {' or '.join(totals.tiles) or recipe.tiling}"
    yield f"shards {len(totals.files)}"
    yield f"bytes to read {passes * totals.size} ({passes} times the files)"
    yield f"peak memory of a worker {peak_bytes(settings, totals.kinds.values()) / 1e6:.0f} MB"
    yield from totals.failures
    unnamed = totals.unreadable - len(totals.failures)
    if unnamed > 0:
        yield f"unreadable: {unnamed} more"


def _cluster(recipe: RunRecipe, sources: int) -> Cluster:
    """This process for a few headers, and its cores for many, whatever cluster the recipe names: a
    dry run must not ask for machines.
    """
    return SerialCluster() if sources <= _FEW or recipe.cluster.in_process else LocalCluster()


@dataclass(slots=True)
class _Totals:
    """Sums over the images of a plan, none of which is kept."""

    settings: RunSettings
    images: int = 0
    unreadable: int = 0
    pixels: int = 0
    size: int = 0
    """Bytes of the readable files."""
    tiles: Counter[str] = field(default_factory=Counter)
    """Number of tiles by their size."""
    files: set[str] = field(default_factory=set)
    """Table files of the shards."""
    kinds: dict[object, PlannedImage] = field(default_factory=dict)
    """An image for each need of memory."""
    failures: list[str] = field(default_factory=list)
    """Lines on the first unreadable images."""

    def take(self, shards: Iterable[Shard]) -> None:
        """Add the images of shards."""
        location = ""
        for shard in shards:
            self.files.add(shard.file)
            for image in shard.images:
                self.images += 1
                self._take(image, is_new=image.source.location != location)
                location = image.source.location

    def _take(self, image: PlannedImage, is_new: bool) -> None:
        """`is_new`: it is the first of its file."""
        if image.failure is not None and len(self.failures) < _FAILURES_NAMED:
            self.failures.append(
                "unreadable: "
                + failure(image.source.uri, image.failure.error_type, image.failure.error)
            )
        spec = image.spec
        if spec is None:
            self.unreadable += 1
            return
        self.pixels += spec.pixels
        self.size += image.source.size if is_new else 0
        grid = self.settings.grid(spec)
        self.tiles[" x ".join(map(str, grid.tile))] += len(grid)
        self.kinds.setdefault((spec.shape, spec.chunks, spec.channels, spec.dtype), image)
