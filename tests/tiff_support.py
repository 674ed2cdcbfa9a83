"""TIFF files, read whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS, RasterSpec

TIFF = FORMATS["tiff"]


def read(
    path: Path | str, bands: tuple[int, ...] | None = None
) -> tuple[np.ndarray, np.ndarray, RasterSpec]:
    """Pixels, `valid` and header of some bands; None: of all."""
    spec = TIFF.describe(str(path), "v").select(bands)
    with TIFF.open(spec) as reader:
        return *reader.read(Box.whole(spec.shape)), spec
