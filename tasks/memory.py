"""Memory: what a worker will need, told before the work begins."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from segcore.errors import RecipeError
from segcore.jobs import Order
from segcore.manifest import Item
from segcore.raster import RasterSpec
from tasks import bundles

WORKER_BYTES = 350_000_000
"""What a worker takes before its first pixel, libraries and tables of labels included (measured, see README)."""
_ID_BYTES = 24
"""Bytes a pixel for the fragments of a tile, while they are numbered, packed and measured."""


def peak_bytes(order: Order, items: Iterable[Item]) -> int:
    """Most that a worker holds at once: libraries, a tile with its halo and copies, and a picture that can only be read whole."""
    peaks = (_tile_bytes(order, item.spec) + _whole_bytes(order, item.spec) for item in items if item.spec is not None)
    return WORKER_BYTES + order.model.footprint.process_bytes + max(peaks, default=0)


def require_memory(order: Order, items: Iterable[Item], available: int | None) -> None:
    """Raise `RecipeError` where a tile with its halo is more than a worker may hold. None: nobody knows how much that is."""
    if available is None:
        return
    always = WORKER_BYTES + order.model.footprint.process_bytes
    for item in items:
        if item.spec is not None and always + _tile_bytes(order, item.spec) > available:
            halo = max(order.model.footprint.halo)
            raise RecipeError(
                f"tiling.tile: a tile of {order.tile} pixels with the segmenter's halo of {halo} needs about "
                f"{(always + _tile_bytes(order, item.spec)) / 1e9:.1f} GB on {item.source.uri}; a worker has {available / 1e9:.1f} GB. "
                "Use a smaller tile or fewer workers, or a segmenter with a smaller halo (radius, iterations, window) or patch."
            )


def _tile_bytes(order: Order, spec: RasterSpec) -> int:
    footprint = order.model.footprint
    read = np.minimum(spec.shape, order.tile + 2 * np.array(footprint.halo))
    core = np.minimum(spec.shape, order.tile)
    return int(np.prod(read)) * footprint.bytes_per_pixel + int(np.prod(core)) * _ID_BYTES * order.joins


def _whole_bytes(order: Order, spec: RasterSpec) -> int:
    if bundles.is_spread(spec, order) or spec.chunks != spec.shape:
        return 0
    return spec.pixels * (2 * spec.channels * np.dtype(spec.dtype).itemsize + 1)
