"""The value that means "no data" because the user says so, in images of any format.

Rules for several bands are those of nodata in files: all bands of a colour picture must have the
value (a channel of 0 is an ordinary colour), or any band that is read of other images.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.raster.spec import FORMATS, RasterSpec, UserNodata

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import Reader


def with_user_nodata(spec: RasterSpec, value: float) -> RasterSpec:
    """The metadata of an image in which this value means "no data"."""
    if _typed(value, np.dtype(spec.dtype)) is None:
        note = f"`nodata` has no effect, since {spec.dtype} cannot hold {value:g}"
        return replace(spec, notes=(*spec.notes, note))
    bands = spec.bands if spec.interpretation == "rgb" else ()
    return replace(spec, user_nodata=UserNodata(value, bands))


def open_with(
    spec: RasterSpec, nodata: UserNodata, opened: Callable[[RasterSpec], Reader] | None = None
) -> Reader:
    """Open an image whose pixels with this value are not valid: with `opened`, or by its format.
    Raises `ReadError`.
    """
    read = tuple(dict.fromkeys((*spec.bands, *nodata.bands)))
    inner = (opened or FORMATS[spec.format].open)(replace(spec, bands=read))
    return _MarkingReader(
        inner,
        _typed(nodata.value, np.dtype(spec.dtype)),
        tuple(map(read.index, spec.bands)),
        tuple(map(read.index, nodata.bands)),
    )


def _typed(value: float, dtype: np.dtype[Any]) -> Any:
    """The value in this type: the nearest float, or exactly this integer. None: no such number."""
    if dtype.kind == "f":
        return dtype.type(value)
    limits = np.iinfo(dtype)
    held = value == math.floor(value) and limits.min <= value <= limits.max
    return dtype.type(int(value)) if held else None


@dataclass(frozen=True, slots=True)
class _MarkingReader:
    """A reader whose pixels with a value are not valid."""

    inner: Reader
    value: np.generic
    delivered: tuple[int, ...]
    """Channels of the inner reader that are delivered."""
    together: tuple[int, ...]
    """Channels that must all have the value. Empty: any of those that are delivered."""

    def __enter__(self) -> _MarkingReader:
        self.inner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.inner.__exit__(*exception)

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        pixels, valid = self.inner.read(box)
        absent: NDArray[np.bool_] | None = None
        for channel in self.together or self.delivered:
            same = pixels[..., channel] == self.value
            if absent is None:
                absent = same
            elif self.together:
                absent &= same
            else:
                absent |= same
        if absent is not None:
            valid &= ~absent
        if self.delivered != tuple(range(pixels.shape[-1])):
            pixels = np.ascontiguousarray(pixels[..., list(self.delivered)])
        return pixels, valid
