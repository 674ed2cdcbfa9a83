"""How clusters look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.raster.colours import Colour, mean_colours

if TYPE_CHECKING:
    from maskloom.segcore.raster.spec import RasterSpec


def colours_of_means(
    means: Sequence[Sequence[float]],
    weights: Sequence[float],
    deviations: Sequence[float],
    spec: RasterSpec,
) -> tuple[Colour, ...] | None:
    """The colours of clusters with these means (cluster, band) in pictures of such an image. None:
    features have none.
    """
    if spec.features is not None:
        return None
    return mean_colours(
        np.array(means, np.float64),
        weights,
        deviations,
        rgb=spec.interpretation == "rgb",
        bits8=spec.dtype == "uint8",
    )
