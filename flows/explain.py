"""Explanations without work: what a recipe would do, and what there is to choose from."""

from __future__ import annotations

import dataclasses
import inspect
import threading
import typing
from functools import partial
from typing import Any, Literal

from flows.recipe import Recipe
from flows.sections import help_of
from flows.segment import take_inventory
from segcore.geometry import Grid
from segcore.manifest import Item
from segcore.model import SEGMENTERS
from segcore.raster import FORMATS
from segcore.statistic import STATISTICS
from segcore.storage import configure
from segcore.work import prepare_process
from tasks import bundles
from tasks.fanout import InProcess, open_fanout
from tasks.plan import describe_sources, identify, make_plan

WORKER_BYTES = 350e6
"""What a worker takes before its first pixel, libraries and tables of labels included (measured, see README)."""


def explain(recipe: Recipe) -> str:
    """What a run of this recipe would do now."""
    configure(recipe.storage)
    inventory = take_inventory(recipe)
    if inventory.nothing_to_do:
        return f"Nothing to do: all {len(inventory.sources)} images are done and unchanged."
    with open_fanout(InProcess(), partial(prepare_process, recipe.storage), threading.Event()) as fanout:
        items = describe_sources(fanout, inventory.pending, recipe.format)
    work = recipe.work
    plan = make_plan(work, inventory.head, identify(work, inventory.head, inventory.sources), items, inventory.committed)
    good = [item for item in items if item.spec is not None]
    tiles = sum(len(Grid(item.spec.shape, (recipe.tile, recipe.tile))) for item in good if item.spec)
    lines = [
        f"run {plan.run_id}",
        f"images {len(items)} of {len(inventory.sources)} ({len(items) - len(good)} unreadable)",
        f"pixels {sum(item.spec.pixels for item in good if item.spec)}",
        f"tiles {tiles} of {recipe.tile} x {recipe.tile}",
        f"shards {len(plan.shards)}",
        f"bytes to read {_passes(recipe) * sum(item.source.size for item in good)} ({_passes(recipe)} times the files)",
        f"peak memory a worker {_peak_bytes(recipe, good) / 1e6:.0f} MB",
    ]
    lines += [f"unreadable: {item.source.uri}: {item.failure.error}" for item in items if item.failure is not None]
    return "\n".join(lines)


def catalogue(what: Literal["segmenters", "formats", "statistics"]) -> str:
    """The members of a registry with their parameters."""
    if what == "formats":
        lines = (
            f"{name}: {_first_line(item)} Suffixes {' '.join(item.suffixes)}; masks {item.mask_suffix}"
            for name, item in FORMATS.items()
        )
        return "\n".join(lines)
    registry: Any = SEGMENTERS if what == "segmenters" else STATISTICS
    return "\n\n".join(_member(name, kind) for name, kind in registry.items())


def _member(name: str, kind: Any) -> str:
    exactness = f" [{kind.exactness.value}]" if hasattr(kind, "exactness") else ""
    described = help_of(kind)
    lines = [f"{name}: {_first_line(kind)}{exactness}"]
    for field in dataclasses.fields(kind):
        default = field.default_factory() if field.default_factory is not dataclasses.MISSING else field.default
        shown = "needed" if default is dataclasses.MISSING else repr(default)
        lines.append(f"  {field.name} = {shown}: {described.get(field.name, typing.cast(str, field.type))}")
    return "\n".join(lines)


def _first_line(item: Any) -> str:
    return (inspect.getdoc(item) or "").partition("\n")[0]


def _passes(recipe: Recipe) -> int:
    from segcore.model import Segmenter

    return 1 if isinstance(recipe.segmenter, Segmenter) else 2


def _peak_bytes(recipe: Recipe, items: list[Item]) -> float:
    """Library and table memory, and the largest thing held at once: a tile with its copies, or a picture that can only be read whole."""
    halo = max(recipe.segmenter.footprint.halo)
    peak = 0.0
    for item in items:
        if item.spec is not None:
            read = min(item.spec.pixels, (recipe.tile + 2 * halo) ** 2)
            sample = item.spec.channels * _item_size(item.spec.dtype)
            whole = (
                0 if bundles.is_spread(item.spec) or item.spec.chunks != item.spec.shape else item.spec.pixels * (2 * sample + 1)
            )
            peak = max(peak, read * recipe.segmenter.footprint.bytes_per_pixel + whole)
    return WORKER_BYTES + peak


def _item_size(dtype: str) -> int:
    import numpy as np

    return int(np.dtype(dtype).itemsize)
