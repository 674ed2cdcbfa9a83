"""The audit: checks on the user's recipe and image that tiling does not change the result.

A region is fitted and segmented twice, as one tile and in tiles, in one job each, with the
functions that runs use. Differences are counted by class or by object, and drawn.
"""

from __future__ import annotations

import json
import math
import threading
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from maskloom.flows.inventory import take_inventory
from maskloom.flows.progress.displays import display
from maskloom.flows.progress.run import ItemProgress
from maskloom.flows.recipes.run import RunRecipe
from maskloom.flows.recipes.run_file import effective_tile
from maskloom.flows.stopping import BreakOff, stoppable
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RunError
from maskloom.segcore.figures.differences import draw
from maskloom.segcore.geometry import Tile, sizes_text
from maskloom.segcore.ground.space import AXES
from maskloom.segcore.models.protocols import Exactness, ObjectSegmenter, requirements_of
from maskloom.segcore.objects.seam_audit import audit_seams
from maskloom.segcore.pipeline.in_memory import Mask, Region
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.storage.filesystems import configure
from maskloom.segcore.storage.store import Store
from maskloom.tasks.batching import require_tiling
from maskloom.tasks.clusters.serial import SerialCluster
from maskloom.tasks.describe import describe_sources
from maskloom.tasks.memory import require_memory
from maskloom.tasks.regions import RegionJob, segment_regions, select_engines_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.models.protocols import Model
    from maskloom.segcore.pipeline.records import PlannedImage
    from maskloom.tasks.clusters.protocol import Cluster
    from maskloom.tasks.fanout.protocol import Fanout
    from maskloom.tasks.regions import SegmentedRegion

RECORD = "runs/audit/audit.json"
RECORDED_BESIDE = "runs/head.json"
_TILES_ACROSS = 3
_SEAMS = {2: "line", 3: "plane"}
"""What a seam is, by number of axes."""
_PIXELS_IN_PROCESS = 4_000_000
"""Worker processes take seconds to start, so they are worth it only above this number."""


@dataclass(frozen=True, slots=True)
class Audit:
    """The result of an audit."""

    lines: tuple[str, ...]
    """The report."""
    broken: bool
    """Whether an exact segmenter differs."""


def audit(
    recipe: RunRecipe,
    pixels: int,
    tile: int | None,
    *,
    quiet: bool = True,
    break_off: BreakOff | None = None,
) -> Audit:
    """Audit the first readable image of a recipe, in this process, or on the recipe's cluster if
    the region is large. `break_off`: see `stoppable`.

    Raises `RunError` if no image can be read, `FitError` if it allows no model.
    """
    configure(recipe.storage)
    stop = threading.Event()
    with ExitStack() as stack:
        shown_by = stack.enter_context(display(quiet))
        signals = stack.enter_context(stoppable(stop, shown_by, break_off))
        image = _first_readable(recipe, stop)
        assert image.spec is not None
        require_tiling(recipe.run_settings("audit"), [image])
        region = Region.middle(image.spec, pixels)
        shape = region.spec.shape
        side = _tile_side(recipe.tiling.tile(image.spec.shape)[-1], shape, tile)
        cluster = _cluster(recipe, region)
        require_memory(recipe.run_settings("audit"), [image], cluster.worker_memory)
        fanout = signals.works_on(stack.enter_context(_opened(recipe, cluster, stop)))
        start = select_engines_on(fanout, recipe.segmenter, region)
        whole, tiled = segment_regions(
            fanout,
            [
                RegionJob(0, "the region as one tile", start, region),
                RegionJob(1, "the region in tiles", start, region, (side,) * len(shape)),
            ],
            ItemProgress(shown_by, "audit", "passes", 2),
        )
    found = _report(recipe, image, region, side, (whole, tiled))
    _record(recipe.output, found)
    return found


def _record(output: str, found: Audit) -> None:
    """Keep the result in an output that exists, for its report."""
    store = Store(output)
    if store.exists(RECORDED_BESIDE):
        content = {"lines": list(found.lines), "broken": found.broken}
        store.publish(RECORD, json.dumps(content, indent=1).encode())


def _tile_side(most: int, shape: Shape, tile: int | None) -> int:
    """The recipe's side `most`, or a smaller one if the region would have no seams to audit."""
    side = effective_tile(tile or min(most, max(16, -(-max(shape) // _TILES_ACROSS))))
    if tile is None and side >= max(shape):
        side = effective_tile(max(16, side // 4))
    return side


def _cluster(recipe: RunRecipe, region: Region) -> Cluster:
    return SerialCluster() if region.spec.pixels <= _PIXELS_IN_PROCESS else recipe.cluster


def _opened(
    recipe: RunRecipe, cluster: Cluster, stop: threading.Event
) -> AbstractContextManager[Fanout]:
    prepare = partial(prepare_process, recipe.storage, cluster.worker_threads, recipe.limits)
    return cluster.opened(prepare, stop)


def _report(
    recipe: RunRecipe,
    image: PlannedImage,
    region: Region,
    side: int,
    results: tuple[SegmentedRegion, SegmentedRegion],
) -> Audit:
    assert image.spec is not None
    (model, whole), (tiled_model, tiled) = ((each.model, each.mask) for each in results)
    shape = region.spec.shape
    differing = _differing_pixels(model, whole, tiled)
    count = int(np.count_nonzero(differing))
    lines = [
        (
            f"{image.source.uri}: {_size(shape)} of {_size(image.spec.shape)} pixels, whole and in "
            f"tiles of {side}"
        ),
        (
            f"segmenter {recipe.kind}: {model.exactness.value}, halo "
            f"{sizes_text(requirements_of(model, region.spec).halo)}{_planar(model, shape)}"
        ),
    ]
    if model != tiled_model:
        lines.append("The fitted models differ.")
    lines += (
        _objects(whole, tiled, side)
        if isinstance(model, ObjectSegmenter)
        else _classes(model, whole, tiled)
    )
    if count and model.exactness is Exactness.EXACT_IF_SMALLER_THAN_HALO:
        lines.append("Objects larger than the halo may differ; a larger halo makes them equal.")
    lines.append(f"differing pixels: {count} of {int(np.count_nonzero(whole.valid))}")
    if count:
        picture = _draw_differences(recipe.output, image.source.image_id, region, differing, side)
        lines.append(f"Look at {picture}: differences are red, seams blue.")
    broken = model.exactness is Exactness.EXACT and (count > 0 or model != tiled_model)
    return Audit(tuple(lines), broken)


def _differing_pixels(model: Model, whole: Mask, tiled: Mask) -> NDArray[np.bool_]:
    """Valid pixels whose class, or whose object as a set of pixels, differs."""
    differing = (
        _changed(whole, tiled)
        if isinstance(model, ObjectSegmenter)
        else whole.values != tiled.values
    )
    return differing & whole.valid


def _draw_differences(
    output: str, image_id: str, region: Region, differing: NDArray[np.bool_], side: int
) -> str:
    """Write a picture of the differences; return its location."""
    name = f"runs/audit/{image_id}.png"
    pixels = region.block(Tile.whole(region.spec.shape), region.spec).pixels
    plane = _plane_to_show(differing)
    Store(output).publish(name, draw(f"Audit of {image_id}", pixels[plane], differing[plane], side))
    return f"{output}/{name}"


def _plane_to_show(differing: NDArray[np.bool_]) -> tuple[int, ...]:
    """The index of a volume's plane with the most differences; empty for an image."""
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
            for image in describe_sources(fanout, [source], recipe.format, recipe.options):
                if image.spec is not None:
                    return image
                reason = reason or (image.failure.error if image.failure else "")
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
    """Pixels whose object, as a set of pixels, is not in the other mask. Ids are not compared,
    since one more object shifts all ids that follow.
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
    """What the seams show of the tiling."""
    from skimage.measure import regionprops_table

    if not ids.any() or max(ids.shape) <= side:
        return []
    table = regionprops_table(ids.astype(np.int64), properties=("centroid", "bbox", "area"))
    objects = {}
    for i, axis in enumerate(AXES[-ids.ndim :]):
        objects[f"centroid_{axis}"] = table[f"centroid-{i}"]
        objects[f"bbox_{axis}0"] = table[f"bbox-{i}"]
        objects[f"bbox_{axis}1"] = table[f"bbox-{i + ids.ndim}"]
    band = int(np.clip(_radius(float(np.median(table["area"])), ids.ndim), 1, (side - 1) // 2))
    found = audit_seams(objects, ids.shape, (side,) * ids.ndim, band)
    return [
        (
            f"centroids along the seams: {found.ratio:.2f} times as dense as elsewhere "
            f"({found.centroid_score:+.1f} standard deviations)"
        ),
        (
            f"object sides on a seam: {found.cut_at_seams:.2f} per {_SEAMS[ids.ndim]}, "
            f"{found.cut_inside:.2f} elsewhere ({found.cut_score:+.1f} standard deviations)"
        ),
        "The seams do not show."
        if found.clean
        else "The seams show: objects are cut or merged there.",
    ]


def _radius(pixels: float, axes: int) -> float:
    """Of the disk, or ball, with so many pixels."""
    unit = math.pi if axes == len("yx") else math.pi * 4 / 3
    return float((pixels / unit) ** (1 / axes))


def _size(shape: Shape) -> str:
    return " x ".join(str(n) for n in reversed(shape))
