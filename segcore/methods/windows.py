"""Window statistics: the mean, Gaussian mean or median around each pixel, bit for bit the same for
any tiling.

As in scikit-image's `threshold_local`, a window is a square, in volumes a cube, with an odd side,
the Gaussian has sigma (side - 1) / 6 and is truncated at 4 sigma, and the image is reflected at its
border, edge pixels included. Pixels that are not usable are ignored: means are weighted over the
others, and the median of an even number of values is the mean of the middle two.

- Mean of 8- and 16-bit integers: exact running sums. Other types: sums in a fixed order.
- Gaussian: weighted sums along rows, then columns, in a fixed order. The weights are correctly
  rounded on every processor.
- Sums in volumes: those of each plane, added across planes in the same way.
- Median of uint8: OpenCV's or, if pixels are missing, our histograms, at a cost that hardly depends
  on the window. Other types, and volumes: sorted patches, at a cost that grows with the side of the
  window, in volumes with its square. A median is a value of the image or the mean of two, so no
  rounding depends on tiles.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Context, Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray

WindowStatistic = Literal["gaussian", "mean", "median"]
LARGEST_WINDOW = 9_999
"""In pixels. The cost of most statistics grows with the side of the window."""
_LARGEST_OF_OPENCV = 255
"""OpenCV's histograms count to 2**16 - 1."""
_ROUNDING = 2.0**-40
"""Relative accuracy of weighted sums of floats."""


@dataclass(frozen=True, slots=True)
class LocalWindow:
    """A square around each pixel, or a cube around each voxel, and the statistic of its values."""

    side: int
    """In pixels, odd."""
    statistic: WindowStatistic

    @property
    def radius(self) -> int:
        """Radius of the window along each axis, in pixels."""
        return (
            int(4 * ((self.side - 1) / 6) + 0.5) if self.statistic == "gaussian" else self.side // 2
        )

    def exceeded(
        self, values: NDArray[np.generic], usable: NDArray[np.bool_], core: Box, offset: float
    ) -> NDArray[np.bool_]:
        """True where the values of `core` exceed the local value minus `offset`.

        `values` and `usable`, (y, x) or (z, y, x), extend one radius beyond `core`, or to the
        border of the image. Differences within the rounding of weighted sums are ignored, so that
        uniform areas exceed nothing.
        """
        local = self.local_values(values, usable, core)
        own = values[core.slices].astype(np.float64)
        if self.statistic == "median" or self._runs(values):
            return np.asarray(own > local - offset)
        with np.errstate(invalid="ignore", over="ignore"):
            return np.asarray(own - (local - offset) > _ROUNDING * np.abs(local))

    def local_values(
        self, values: NDArray[np.generic], usable: NDArray[np.bool_], core: Box
    ) -> NDArray[np.float64]:
        """The statistic of the window around each pixel of `core`, of its shape; 0 if no pixel of
        the window is usable. `core` is in pixels of `values` (y, x), which have a margin around it.
        """
        plain = _plain(values)
        whole = bool(usable.all())
        if self.statistic == "median":
            return self._medians(plain, usable, core)
        sums = self._sums(plain if whole else np.where(usable, plain, plain.dtype.type(0)), core)
        # The total weight is the same sum over ones, in the same order: a window without missing
        # pixels gives the same result in every tile.
        ones = np.ones((1,) * plain.ndim, np.uint8) if whole else usable.view(np.uint8)
        weights = self._sums(ones, Box.whole(ones.shape) if whole else core)
        return np.divide(sums, weights, out=np.zeros_like(sums), where=weights > 0)

    def _runs(self, values: NDArray[np.generic]) -> bool:
        """Whether sums of these values are exact running sums."""
        return (
            self.statistic == "mean" and values.dtype.kind in "bui" and values.dtype.itemsize <= 2
        )

    def _sums(self, values: NDArray[Any], core: Box) -> NDArray[np.float64]:
        from maskloom.segcore.kernels import windows as kernels

        if values.ndim > len("yx"):
            return self._sums_across(values, core)
        out = np.empty(core.shape, np.float64)
        rows, columns = self._reflected(values, core)
        if self._runs(values):
            kernels.box_sums(values, rows, columns, out)
        else:
            kernels.weighted_sums(values, rows, columns, self._weights, out)
        return out

    def _sums_across(self, values: NDArray[Any], core: Box) -> NDArray[np.float64]:
        """Sums over cubes: the sums over the squares of each plane, weighted by the distance."""
        from maskloom.segcore.kernels import windows as kernels

        flat = Box(core.start[1:], core.stop[1:])
        squares = np.stack([self._sums(plane, flat) for plane in values])
        planes = self._reflected(values, core)[0]
        out = np.empty(core.shape, np.float64)
        if self._runs(values):
            kernels.box_sums_across(squares, planes, out)
        else:
            kernels.weighted_sums_across(squares, planes, self._weights, out)
        return out

    @property
    def _weights(self) -> NDArray[np.float64]:
        """Weights of distance 0, 1, and so on."""
        if self.statistic == "gaussian":
            return np.array(_gaussian(self.side))
        return np.ones(self.radius + 1)

    def _medians(
        self, values: NDArray[Any], usable: NDArray[np.bool_], core: Box
    ) -> NDArray[np.float64]:
        from maskloom.segcore.kernels import windows as kernels

        if values.ndim > len("yx"):
            out = np.empty(core.shape, np.float64)
            kernels.medians(values, usable, self._reflected(values, core), out)
            return out
        rows, columns = self._reflected(values, core)
        if values.dtype == np.uint8 and self.side <= _LARGEST_OF_OPENCV and usable.all():
            import cv2

            padded = values[rows][:, columns]
            found = cv2.medianBlur(padded, self.side)
            return np.asarray(
                found[self.radius :, self.radius :][: core.shape[0], : core.shape[1]].astype(
                    np.float64
                )
            )
        out = np.empty(core.shape, np.float64)
        if values.dtype == np.uint8:
            kernels.medians_of_bytes(values, usable, rows, columns, out)
        else:
            plane = np.zeros(1, np.int64)
            kernels.medians(values[None], usable[None], (plane, rows, columns), out[None])
        return out

    def _reflected(self, values: NDArray[Any], core: Box) -> tuple[NDArray[np.int64], ...]:
        """The positions along each axis of `values` in the windows around `core`, reflected beyond
        the edges.
        """
        return tuple(
            _mirrored(np.arange(start - self.radius, stop + self.radius), size)
            for start, stop, size in zip(core.start, core.stop, values.shape, strict=True)
        )


def _mirrored(places: NDArray[np.int64], size: int) -> NDArray[np.int64]:
    turned = places % (2 * size)
    return np.minimum(turned, 2 * size - 1 - turned)


def _plain(values: NDArray[np.generic]) -> NDArray[Any]:
    """The values, contiguous, in a type that the kernels can add (64-bit integers as floats)."""
    if values.dtype == np.bool_:
        return np.ascontiguousarray(values).view(np.uint8)
    if values.dtype.itemsize == 8 or values.dtype == np.float16:
        return np.ascontiguousarray(values, np.float64)
    return np.ascontiguousarray(values)


@lru_cache(maxsize=16)
def _gaussian(side: int) -> tuple[float, ...]:
    """Weights of distance 0, 1, and so on."""
    sigma = (side - 1) / 6
    radius = LocalWindow(side, "gaussian").radius
    # NumPy's exp differs between processors in the last bit.
    context = Context(prec=40)
    exact = [context.exp(Decimal(-0.5 * (distance / sigma) ** 2)) for distance in range(radius + 1)]
    total = exact[0] + 2 * sum(exact[1:])
    return tuple(float(context.divide(weight, total)) for weight in exact)
