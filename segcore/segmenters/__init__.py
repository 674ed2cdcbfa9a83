"""One file a method. Importing this package registers all segmenters."""

from __future__ import annotations

from maskloom.segcore.segmenters import (
    connected_parts,
    ensemble,
    kmeans,
    mask_rcnn,
    mean_shift,
    mixture,
    network,
    quickshift,
    threshold,
    watershed,
)

__all__ = [
    "connected_parts",
    "ensemble",
    "kmeans",
    "mask_rcnn",
    "mean_shift",
    "mixture",
    "network",
    "quickshift",
    "threshold",
    "watershed",
]
