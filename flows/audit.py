"""Audit: shows that tiled equals untiled, on the user's recipe and image.

A region is fitted and segmented twice, as one tile and in tiles, with the functions that runs use,
one job each. Differences are counted by class or by object and drawn.
"""

from __future__ import annotations

import threading
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from maskloom.flows.inventory import take_inventory
from maskloom.flows.progress import ItemProgress, display
from maskloom.flows.recipes.run import RunRecipe, effective_tile
from maskloom.flows.signals import stop_on_signals
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RunError
from maskloom.segcore.figures.differences import draw
from maskloom.segcore.geometry import Tile
from maskloom.segcore.models.protocols import Exactness, ObjectSegmenter
from maskloom.segcore.objects.seam_audit import audit_seams
from maskloom.segcore.pipeline.in_memory import Mask, Region
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.storage.filesystems import configure
from maskloom.segcore.storage.store import Store
from maskloom.tasks.batching import require_tiling
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.memory import require_memory
from maskloom.tasks.plan import describe_sources
from maskloom.tasks.regions import RegionJob, segment_regions, select_engines_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.models.protocols import Model
    from maskloom.segcore.pipeline.records import PlannedImage
    from maskloom.tasks.clusters.protocol import Cluster
    from maskloom.tasks.fanout.protocol import Fanout
    from maskloom.tasks.regions import SegmentedRegion

DEFAULT_PIXELS = 2_000_000
_TILES_ACROSS = 3
_PIXELS_IN_PROCESS = 4_000_000
"""Worker processes take seconds to start; they pay for larger regions than this."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit."""

    lines: tuple[str, ...]
    """The report."""
    broken: bool
    """Whether an exact segmenter differs."""


def audit(recipe: RunRecipe, pixels: int, tile: int | None, *, quiet: bool = True) -> Audit:
    """Audit the first readable image of a recipe, in this process; if the region is large, on the
    recipe's cluster.

    Raises `RunError` if no image can be read, `FitError` if it allows no model.
    """
    configure(recipe.storage)
    stop = threading.Event()
    with ExitStack() as stack:
        stack.enter_context(stop_on_signals(stop))
        item = _first_readable(recipe, stop)
        assert item.spec is not None
        require_tiling(recipe.run_settings("audit"), [item])
        region = Region.middle(item.spec, pixels)
        shape = region.spec.shape
        side = _tile_side(recipe.tiling.tile(item.spec.shape)[-1], shape, tile)
        cluster = _cluster(recipe, region)
        require_memory(recipe.run_settings("audit"), [item], cluster.worker_memory)
        fanout = stack.enter_context(_opened(recipe, cluster, stop))
        shown_by = stack.enter_context(display(quiet))
        start = select_engines_on(fanout, recipe.segmenter, region)
        whole, tiled = segment_regions(
            fanout,
            [
                RegionJob(0, "the region as one tile", start, region),
                RegionJob(1, "the region in tiles", start, region, (side,) * len(shape)),
            ],
            ItemProgress(shown_by, "audit", "passes", 2),
        )
    return _report(recipe, item, region, side, (whole, tiled))


def _tile_side(most: int, shape: Shape, tile: int | None) -> int:
    """The recipe's side `most`, or smaller than the region: without seams there is nothing to
    audit.
    """
    side = effective_tile(tile or min(most, max(16, -(-max(shape) // _TILES_ACROSS))))
    if tile is None and side >= max(shape):
        side = effective_tile(max(16, side // 4))
    return side


def _cluster(recipe: RunRecipe, region: Region) -> Cluster:
    return SerialCluster() if region.spec.pixels <= _PIXELS_IN_PROCESS else recipe.cluster


def _opened(recipe: RunRecipe, cluster: Cluster, stop: threading.Event) -> Fanout:
    prepare = partial(prepare_process, recipe.storage, cluster.worker_threads, recipe.limits)
    return cluster.open(prepare, stop)


def _report(
    recipe: RunRecipe,
    item: PlannedImage,
    region: Region,
    side: int,
    results: tuple[SegmentedRegion, SegmentedRegion],
) -> Audit:
    assert item.spec is not None
    (whole_model, whole), (tiled_model, tiled) = ((each.model, each.mask) for each in results)
    shape = region.spec.shape
    lines = [
        (
            f"{item.source.uri}: {_size(shape)} of {_size(item.spec.shape)} pixels, whole against "
            f"tiles of {side}"
        ),
        (
            f"segmenter {recipe.kind}: {whole_model.exactness.value}, halo "
            f"{whole_model.requirements.halo}{_planar(whole_model, shape)}"
        ),
    ]
    if whole_model != tiled_model:
        lines.append("The fitted models differ.")
    differing = (
        _changed(whole, tiled)
        if isinstance(whole_model, ObjectSegmenter)
        else whole.values != tiled.values
    )
    differing &= whole.valid
    lines += (
        _objects(whole, tiled, side)
        if isinstance(whole_model, ObjectSegmenter)
        else _classes(whole_model, whole, tiled)
    )
    count = int(np.count_nonzero(differing))
    if count and whole_model.exactness is Exactness.EXACT_IF_SMALLER_THAN_HALO:
        lines.append("Objects larger than the halo may differ; a larger halo makes them equal.")
    lines.append(f"differing pixels: {count} of {int(np.count_nonzero(whole.valid))}")
    if count:
        name = f"runs/audit/{item.source.image_id}.png"
        pixels = region.block(Tile.whole(shape), region.spec).pixels
        plane = _plane_to_show(differing)
        Store(recipe.output).publish(name, draw(pixels[plane], differing[plane], side))
        lines.append(f"Look at {recipe.output}/{name}: differences are red, seams blue.")
    broken = whole_model.exactness is Exactness.EXACT and (count > 0 or whole_model != tiled_model)
    return Audit(tuple(lines), broken)


def _plane_to_show(differing: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of the plane of a volume with most differences; nothing for an image."""
    if differing.ndim == len("yx"):
        return ()
    return (int(np.argmax(np.count_nonzero(differing, axis=(1, 2)))),)


def _planar(model: Model, shape: Shape) -> str:
    return ", plane by plane" if model.requirements.planar and len(shape) > len("yx") else ""


def _first_readable(recipe: RunRecipe, stop: threading.Event) -> PlannedImage:
    inventory = take_inventory(recipe)
    with _opened(recipe, SerialCluster(), stop) as fanout:
        reason = ""
        for source in inventory.sources:
            (item,) = describe_sources(fanout, [source], recipe.format, recipe.ground_control)
            if item.spec is not None:
                return item
            reason = reason or (item.failure.error if item.failure else "")
    raise RunError(f"None of {count(len(inventory.sources), 'input')} can be read. {reason}")


def _classes(model: Model, whole: Mask, tiled: Mask) -> list[str]:
    lines = []
    for number, name in enumerate(model.classes):
        one, other = (whole.values == number) & whole.valid, (tiled.values == number) & whole.valid
        changed = int(np.count_nonzero(one != other))
        lines.append(
            f"class {name}: {np.count_nonzero(one)} pixels whole, {np.count_nonzero(other)} tiled, "
            f"{changed} differ"
        )
    return lines


def _objects(whole: Mask, tiled: Mask, side: int) -> list[str]:
    one, other = (np.where(mask.valid, mask.values, 0) for mask in (whole, tiled))
    touched = len(np.setdiff1d(one[_changed(whole, tiled)], [0]))
    lines = [
        (
            f"objects: {int(one.max(initial=0))} whole, {int(other.max(initial=0))} tiled, "
            f"{touched} "
            "differ"
        )
    ]
    return [*lines, *_seams(other, side)]


def _changed(whole: Mask, tiled: Mask) -> NDArray[np.bool_]:
    """Pixels (y, x) whose object, as a set of pixels, is not in the other mask. Ids are not
    compared: one more object shifts all that follow.
    """
    one, other = (np.where(mask.valid, mask.values, 0).astype(np.uint64) for mask in (whole, tiled))
    pairs, places, common = np.unique(
        (one << np.uint64(32)) | other, return_inverse=True, return_counts=True
    )
    first, second = (
        (pairs >> np.uint64(32)).astype(np.int64),
        (pairs & np.uint64(0xFFFFFFFF)).astype(np.int64),
    )
    sizes = [np.bincount(ids, common) for ids in (first, second)]
    equal = (sizes[0][first] == common) & (sizes[1][second] == common) | (first == 0) & (
        second == 0
    )
    changed: NDArray[np.bool_] = ~equal[places].reshape(one.shape)
    return changed


def _seams(ids: NDArray[np.integer], side: int) -> list[str]:
    """What the seams show of the tiling; nothing for volumes."""
    from skimage.measure import regionprops_table

    if not ids.any() or max(ids.shape) <= side or ids.ndim > len("yx"):
        return []
    table = regionprops_table(ids.astype(np.int64), properties=("centroid", "bbox", "area"))
    names = {"centroid-0": "centroid_y", "centroid-1": "centroid_x"}
    names |= {f"bbox-{i}": f"bbox_{name}" for i, name in enumerate(("y0", "x0", "y1", "x1"))}
    radius = float(np.sqrt(np.median(table["area"]) / np.pi))
    band = int(np.clip(radius, 1, (side - 1) // 2))
    found = audit_seams(
        {names[key]: column for key, column in table.items() if key in names},
        ids.shape,
        (side, side),
        band,
    )
    return [
        (
            f"centroids along the seams: {found.ratio:.2f} times as dense as elsewhere "
            f"({found.centroid_score:+.1f} standard deviations)"
        ),
        (
            f"object sides on a seam: {found.cut_at_seams:.2f} a line, {found.cut_inside:.2f} "
            f"elsewhere ({found.cut_score:+.1f} standard deviations)"
        ),
        "The seams do not show."
        if found.clean
        else "The seams show: objects are cut or merged there.",
    ]


def _size(shape: Shape) -> str:
    return " x ".join(str(n) for n in reversed(shape))
