"""The memory that a worker will need, estimated before the work begins."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np

from maskloom.segcore.errors import OutOfMemory, RecipeError
from maskloom.segcore.geometry import sizes_text
from maskloom.segcore.models.protocols import Fitter, requirements_of
from maskloom.segcore.pipeline.jobs import RunSettings
from maskloom.segcore.pipeline.records import Failure, PlannedImage
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.storage.records import read_json
from maskloom.segcore.storage.store import Store
from maskloom.tasks import batching
from maskloom.tasks.commits.ledger import Committed

WORKER_BYTES = 350_000_000
"""Memory of a worker before its first pixel, with libraries and tables of labels (measured, see
docs/benchmarks.md).
"""
WORKER_MEMORY = "worker_memory"
"""Key in a plan's settings: the memory of a worker in bytes."""
_ID_BYTES = 24
"""Bytes per pixel for the objects of a tile, while they are numbered, packed and measured."""

_SCORE_BYTES = 14
"""Bytes per pixel and class for scores: as floats, of the core again, and as whole numbers."""
_USUAL_CLASSES = 8


def peak_bytes(settings: RunSettings, images: Iterable[PlannedImage]) -> int:
    """The peak memory of a worker in bytes: libraries, a tile with its halo and copies, and an
    image that can only be read as a whole.
    """
    peaks = (
        _tile_bytes(settings, image.spec) + _whole_bytes(settings, image.spec)
        for image, is_first in _firsts(settings, images)
        if image.spec is not None and is_first
    )
    return WORKER_BYTES + settings.model.requirements.process_bytes + max(peaks, default=0)


def require_memory(
    settings: RunSettings, images: Iterable[PlannedImage], available: int | None
) -> None:
    """Raise `RecipeError` if the segmenter alone, or a tile with its halo, needs more memory than a
    worker has. `available`: in bytes; None if unknown.
    """
    if available is None:
        return
    always = WORKER_BYTES + settings.model.requirements.process_bytes
    if always > available:
        raise RecipeError(
            "segmenter: its network, the libraries that run it and one patch need about "
            f"{always / 1e9:.1f} GB before the first tile; a worker has {available / 1e9:.1f} GB. "
            "Give each worker more memory (fewer workers on this machine, or `memory` of "
            "`cluster`), set a smaller `patch`, or use a smaller network."
        )
    for image in images:
        if image.spec is None:
            continue
        needed = always + _tile_bytes(settings, image.spec)
        if needed > available:
            raise RecipeError(
                f"tiling.tile: a tile of {settings.tiling} pixels with the segmenter's halo of "
                f"{sizes_text(requirements_of(settings.model, image.spec).halo)} needs about "
                f"{needed / 1e9:.1f} GB on {image.source.uri}; a "
                f"worker has {available / 1e9:.1f} GB. "
                "Use a smaller tile or fewer workers, or a segmenter with a smaller halo (radius, "
                "iterations, window) or patch."
            )


def suitable(
    settings: RunSettings, images: Iterable[PlannedImage], available: int | None
) -> Iterator[PlannedImage]:
    """The images, one after the other. Raises `RecipeError` at the first that the tiling does not
    suit, or one of whose tiles needs more memory than a worker has.
    """
    for image, is_first in _firsts(settings, images):
        if is_first:
            batching.require_tiling(settings, [image])
            if image.failure is None:
                require_memory(settings, [image], available)
        yield image


def _firsts(
    settings: RunSettings, images: Iterable[PlannedImage]
) -> Iterator[tuple[PlannedImage, bool]]:
    """The images, and whether each is the first of its kind: those of a kind need the same
    memory.
    """
    seen = set()
    for image in images:
        spec = image.spec
        kind = spec and (
            spec.shape,
            spec.chunks,
            spec.channels,
            spec.dtype,
            requirements_of(settings.model, spec),
            image.failure is None,
        )
        yield image, kind not in seen
        seen.add(kind)


def without_room(images: Iterable[PlannedImage], available: int | None) -> Iterator[PlannedImage]:
    """The images, where those whose pixels alone need more memory than a worker has, decoded as a
    whole, are marked as failed. `available`: in bytes; None if unknown.
    """
    for image in images:
        if available is None or _fits(image, available):
            yield image
        else:
            yield _refused(image, available)


def with_retries(
    store: Store, committed: Mapping[str, Committed], available: int | None
) -> dict[str, Committed]:
    """The committed rows, where images that failed for lack of memory are retried once workers have
    more memory than at that time.
    """
    short_of_memory = [row for row in committed.values() if row.error_type == OutOfMemory.__name__]
    memory = {
        run_id: _memory_in(store, run_id) for run_id in {row.run_id for row in short_of_memory}
    }

    def needs_no_retry(row: Committed) -> bool:
        before = memory[row.run_id]
        return available is not None and before is not None and available <= before

    return {
        **committed,
        **{row.uri: replace(row, needs_no_retry=needs_no_retry(row)) for row in short_of_memory},
    }


def _memory_in(store: Store, run_id: str) -> int | None:
    try:
        recorded = read_json(
            store, f"runs/{run_id}/plan.json", lambda plan: plan["settings"].get(WORKER_MEMORY)
        )
    except FileNotFoundError:
        return None
    return None if recorded is None else int(recorded)


def _fits(image: PlannedImage, available: int) -> bool:
    return (
        image.spec is None
        or image.spec.chunks != image.spec.shape
        or WORKER_BYTES + _pixel_bytes(image.spec) <= available
    )


def _refused(image: PlannedImage, available: int) -> PlannedImage:
    assert image.spec is not None
    size = " x ".join(map(str, reversed(image.spec.shape)))
    by_parts = (
        "the image to a tiled TIFF (gdal_translate -of COG)"
        if len(image.spec.shape) == len("yx")
        else "the volume to Zarr, which is read chunk by chunk"
    )
    error = OutOfMemory(
        f"{image.source.uri} can only be decoded as a whole, and its {size} pixels alone "
        f"take {_pixel_bytes(image.spec) / 1e9:.2f} GB, beside {WORKER_BYTES / 1e9:.2f} GB for the "
        f"worker itself; a worker has {available / 1e9:.2f} GB. Raise cluster.memory, lower "
        f"cluster.workers, or convert {by_parts}."
    )
    return replace(image, failure=image.failure or Failure.of(error))


def _pixel_bytes(spec: RasterSpec) -> int:
    return spec.pixels * spec.file_bands * np.dtype(spec.dtype).itemsize


def _tile_bytes(settings: RunSettings, spec: RasterSpec) -> int:
    grid = settings.grid(spec)
    read = np.minimum(spec.shape, np.array(grid.tile) + 2 * np.array(grid.margin))
    core = np.minimum(spec.shape, grid.tile)
    return (
        int(np.prod(read)) * requirements_of(settings.model, spec).bytes_per_pixel
        + int(np.prod(core)) * _ID_BYTES * settings.joins
        + int(np.prod(read)) * _SCORE_BYTES * _classes(settings) * settings.scores
    )


def _classes(settings: RunSettings) -> int:
    """Number of classes; a usual one where it is found by fitting."""
    model = settings.model
    names = model.expected_classes if isinstance(model, Fitter) else model.classes
    return len(names) or _USUAL_CLASSES


def _whole_bytes(settings: RunSettings, spec: RasterSpec) -> int:
    if batching.is_spread(spec, settings) or spec.chunks != spec.shape:
        return 0
    return spec.pixels * (2 * spec.channels * np.dtype(spec.dtype).itemsize + 1)
