"""Audit: proves that tiled equals untiled, on the user's own recipe and image.

A region is fitted and segmented twice, as one tile and in tiles, with the very functions that runs
use. What differs is counted by class or by object and drawn.
"""

from __future__ import annotations

import io
import threading
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from maskloom.flows.recipes.run import RunRecipe, effective_tile
from maskloom.flows.segment import take_inventory
from maskloom.flows.terminal import count
from maskloom.segcore.errors import RunError
from maskloom.segcore.models.protocols import Exactness, ObjectSegmenter
from maskloom.segcore.objects.seam_audit import audit_seams
from maskloom.segcore.pipeline.in_memory import Mask, Region, fit_to, segment_scene, select_engines
from maskloom.segcore.pipeline.worker import prepare_process
from maskloom.segcore.storage.store import Store, configure
from maskloom.tasks.fanout.dask import InProcess, memory_of, open_fanout
from maskloom.tasks.memory import require_memory
from maskloom.tasks.plan import describe_sources

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.models.protocols import Model
    from maskloom.segcore.pipeline.records import PlannedImage

DEFAULT_PIXELS = 2_000_000
_TILES_ACROSS = 3
_PICTURE_SIDE = 1600


@dataclass(frozen=True, slots=True)
class Audit:
    """What an audit found."""

    lines: tuple[str, ...]
    """What to tell the user."""
    broken: bool
    """Whether something differs that must not."""


def audit(recipe: RunRecipe, pixels: int, tile: int | None) -> Audit:
    """Audit the first readable image of a recipe. Raises `RunError` where there is none, `FitError`
    where it allows no model.
    """
    configure(recipe.storage)
    item = _first_readable(recipe)
    assert item.spec is not None
    region = Region.middle(item.spec, pixels)
    shape = region.spec.shape
    # Smaller than the region even where the recipe's tile is not: without seams there would be
    # nothing to audit.
    side = effective_tile(tile or min(recipe.tile, max(16, -(-max(shape) // _TILES_ACROSS))))
    if tile is None and side >= max(shape):
        side = effective_tile(max(16, side // 4))
    require_memory(recipe.order("audit"), [item], memory_of(InProcess()))
    start = select_engines(recipe.segmenter, region)
    whole_model, tiled_model = (fit_to(start, [region], cut) for cut in (None, (side, side)))
    whole, tiled = (segment_scene(whole_model, region, cut) for cut in (None, (side, side)))
    lines = [
        (
            f"{item.source.uri}: {_size(shape)} of {_size(item.spec.shape)} pixels, whole against "
            f"tiles of {side}"
        ),
        (
            f"segmenter {recipe.kind}: {whole_model.exactness.value}, halo "
            f"{max(whole_model.footprint.halo)}"
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
        Store(recipe.output).publish(name, _picture(region, differing, side))
        lines.append(f"Look at {recipe.output}/{name}: differences are red, seams blue.")
    broken = whole_model.exactness is Exactness.EXACT and (count > 0 or whole_model != tiled_model)
    return Audit(tuple(lines), broken)


def _first_readable(recipe: RunRecipe) -> PlannedImage:
    inventory = take_inventory(recipe)
    with open_fanout(
        InProcess(),
        partial(prepare_process, recipe.storage, time_limits=recipe.limits),
        threading.Event(),
    ) as fanout:
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
    """Pixels whose object, as a set of pixels, is not in the other mask. Numbers do not count: one
    object more shifts all behind it.
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


def _picture(region: Region, differing: NDArray[np.bool_], side: int) -> bytes:
    """The region in grey with its differences and seams, reduced so that no difference is lost."""
    from PIL import Image

    from maskloom.segcore.geometry import Box, Tile

    whole = Box.whole(region.spec.shape)
    block = region.block(Tile((0, 0), whole, whole), region.spec)
    grey = np.nan_to_num(block.pixels[..., :3].astype(np.float32).mean(axis=2))
    low, high = np.percentile(grey, [2, 98])
    shown = np.clip((grey - low) / max(float(high - low), 1e-9) * 160 + 40, 0, 200)
    step = max(1, -(-max(shown.shape) // _PICTURE_SIDE))
    rows, columns = (np.arange(0, n, step) for n in shown.shape)
    picture = np.repeat(shown[::step, ::step, None], 3, axis=2)
    picture[(rows % side < step) & (rows > 0)] = (60, 90, 220)
    picture[:, (columns % side < step) & (columns > 0)] = (60, 90, 220)
    padded = np.pad(differing, [(0, -n % step) for n in differing.shape])
    any_in_cell = padded.reshape(len(rows), step, len(columns), step).any(axis=(1, 3))
    picture[any_in_cell] = (230, 30, 30)
    out = io.BytesIO()
    Image.fromarray(picture.astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def _size(shape: Shape) -> str:
    return " x ".join(str(n) for n in reversed(shape))
