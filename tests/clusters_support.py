"""Pictures whose pixels scatter about known centres."""

from __future__ import annotations

from typing import Any

import numpy as np

from maskloom.segcore.testing.segmenters import Picture


def full(pixels: np.ndarray, interpretation: Any = "rgb") -> Picture:
    return Picture(pixels, np.ones(pixels.shape[:2], bool), interpretation)


def blobs(
    centres: list[list[float]], dtype: str = "uint8", spread: float = 4.0
) -> tuple[Picture, np.ndarray]:
    """A picture whose pixels scatter about known centres, and which centre each pixel belongs
    to.
    """
    generator = np.random.default_rng(5)
    truth = generator.integers(0, len(centres), (90, 110))
    pixels = np.array(centres)[truth] + spread * generator.standard_normal(
        (90, 110, len(centres[0]))
    )
    if np.dtype(dtype).kind != "f":
        limits = np.iinfo(dtype)
        pixels = pixels.round().clip(limits.min, limits.max)
    return full(pixels.astype(dtype), "rgb" if len(centres[0]) == 3 else "bands"), truth
