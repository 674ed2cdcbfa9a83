"""Files of volumes, read as the product does."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from maskloom.segcore import formats
from maskloom.segcore.geometry import Box
from maskloom.segcore.raster.spec import FORMATS, RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage


def describe(path: Path, part: str = "") -> RasterSpec:
    """The header of a file, or of a part of it."""
    name = formats.format_of(str(path), path.read_bytes()[:512])
    return FORMATS[name].describe_image(StoredImage(str(path), "1", part), ReadOptions())


def pixels_of(path: Path, part: str = "") -> np.ndarray:
    """All pixels of a file, or of a part of it."""
    spec = describe(path, part)
    with formats.open_image(spec) as reader:
        return reader.read(Box.whole(spec.shape))[0]
