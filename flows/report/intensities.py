"""Values of pixels for the histogram of a threshold."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.flows.report.collect import Images
from maskloom.segcore.geometry import Box
from maskloom.segcore.methods.intensity import intensity, select_source
from maskloom.tasks.output import Output

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger("maskloom.run")

_IMAGES = 6
_SIDE = 512


def values_of(output: Output, images: Images, band: Any) -> tuple[NDArray[np.float64], int]:
    """Finite values in the middle of a few images, spread over all of them, and the number of these
    images. Those that are not there any more are left out.
    """
    done = np.flatnonzero(~images.failed)
    if not done.size:
        return np.empty(0), 0
    chosen = np.unique(done[np.linspace(0, done.size - 1, _IMAGES).astype(np.int64)])
    found = []
    for number in chosen.tolist():
        try:
            found.append(_middle(output, images.ids[number], band))
        # A report needs no histogram.
        except Exception as error:  # noqa: BLE001
            log.debug("no values of %s: %s", images.ids[number], error)
    return (np.concatenate(found) if found else np.empty(0)), len(found)


def _middle(output: Output, image_id: str, band: Any) -> NDArray[np.float64]:
    from maskloom.segcore.formats import open_image

    source = tuple(band) if isinstance(band, list) else band
    spec = select_source(output.source_spec(image_id), source)
    # Of a volume, the plane in its middle.
    sides = [*(1 for _ in spec.shape[:-2]), _SIDE, _SIDE]
    start = tuple(max(0, (n - side) // 2) for n, side in zip(spec.shape, sides, strict=True))
    stop = tuple(min(n, a + side) for n, a, side in zip(spec.shape, start, sides, strict=True))
    with open_image(spec) as reader:
        pixels, valid = reader.read(Box(start, stop))
    values = intensity(pixels, spec.location)[valid].astype(np.float64)
    return values[np.isfinite(values)]
