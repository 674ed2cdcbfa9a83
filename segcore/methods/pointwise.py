"""Labels from values alone: each pixel gets the class with the highest score, a quadratic function
of its bands.

If there are few possible values, each score is computed once per value, whatever its cost: one or
two 8-bit bands or one 16-bit band use a complete table; colours of 3 x 8 bits use a table that is
filled as colours occur. A process keeps a few tables at a time; they are not part of a model. Other
pixels are scored one by one. All ways give the same labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import ModelMismatch
from maskloom.segcore.geometry import in_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.raster.spec import RasterSpec

_MEMO_PAYS_FROM = 2**16
"""In smaller blocks (in pixels), scoring is faster than a table that is still empty."""
_TABLES_KEPT = 2

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Scores:
    """Score k of x is constants[k] - |factors[k] (x - means[k])|² / 2, with lower triangular
    factors. It is the key of the cached tables.
    """

    constants: tuple[float, ...]
    means: Rows
    factors: tuple[Rows, ...] | None = None
    """None: identity matrices, so the nearest mean wins if constants are equal."""

    @property
    def channels(self) -> int:
        """Number of bands of a pixel."""
        return len(self.means[0])

    def label(self, pixels: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Classes of a (y, x, band) or (z, y, x, band) array, the first of equals. At most 250
        classes.
        """
        from maskloom.segcore.kernels import pixels as kernels

        plain = pixels.view(np.uint8) if pixels.dtype == np.bool_ else pixels
        kind, shape = plain.dtype, plain.shape[:-1]
        if kind == np.uint8 and self.channels == 3 and plain.size // 3 >= _MEMO_PAYS_FROM:
            out = np.empty(shape, np.uint8)
            scorer, diagonal = _arrays(self)
            kernels.label_colours(in_rows(plain, 3), scorer, diagonal, _memo(self), in_rows(out))
            return out
        if kind.kind in "iu" and kind.itemsize * self.channels <= 2:
            return np.asarray(_table(self, kind.name)[_index(plain)])
        return self.evaluate(plain.reshape(-1, self.channels)).reshape(shape)

    def evaluate(self, values: NDArray[np.generic]) -> NDArray[np.uint8]:
        """Classes of the rows of `values` (n, band), shape (n,), scored one by one."""
        from maskloom.segcore.kernels import pixels as kernels

        scorer, diagonal = _arrays(self)
        out = np.empty(len(values), np.uint8)
        if values.dtype == np.float16:
            values = values.astype(np.float32)
        kernels.label_pixels(values, scorer, diagonal, out)
        return out


def merged(labels: NDArray[np.uint8], class_of: tuple[int, ...] | None) -> NDArray[np.uint8]:
    """Labels with the class of each cluster in place of its number; `class_of` None: unchanged."""
    return labels if class_of is None else np.asarray(np.array(class_of, np.uint8)[labels])


@lru_cache(maxsize=16)
def _arrays(
    scores: Scores,
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]], bool]:
    means = np.array(scores.means, np.float64)
    classes, channels = means.shape
    if scores.factors is None:
        factors = np.broadcast_to(np.eye(channels), (classes, channels, channels)).copy()
    else:
        factors = np.array(scores.factors, np.float64)
    diagonal = not np.any(np.tril(factors, -1))
    return (np.array(scores.constants, np.float64), means, factors), diagonal


# Threads that fill one table concurrently write the same values.
@lru_cache(maxsize=_TABLES_KEPT)
def _memo(scores: Scores) -> NDArray[np.uint8]:  # noqa: ARG001  the cache's key
    """Class + 1 by Morton code of a colour; 0: not computed yet."""
    return np.zeros(2**24, np.uint8)


@lru_cache(maxsize=_TABLES_KEPT)
def _table(scores: Scores, dtype: str) -> NDArray[np.uint8]:
    """The class of every possible pixel of one 16-bit band, or of one or two 8-bit bands, by the
    pixel's bits.
    """
    kind = np.dtype(dtype)
    bits = np.arange(
        2 ** (8 * kind.itemsize * scores.channels), dtype=f"u{kind.itemsize * scores.channels}"
    )
    return scores.evaluate(bits[:, None].view(kind))


def _index(pixels: NDArray[np.generic]) -> NDArray[np.unsignedinteger]:
    """The bits of each pixel as one number."""
    contiguous = np.ascontiguousarray(pixels)
    bits: NDArray[np.unsignedinteger] = contiguous.view(
        f"u{contiguous.itemsize * contiguous.shape[-1]}"
    )[..., 0]
    return bits


def select_fitted(spec: RasterSpec, bands: tuple[int, ...] | None, channels: int) -> RasterSpec:
    """The image with these bands. Raises `ModelMismatch` if their number differs from that of the
    fit.
    """
    selected = spec.select(bands)
    if selected.channels != channels:
        raise ModelMismatch(
            f"{spec.location}: the clusters were fitted on {channels} band(s); this image has "
            f"{selected.channels}. "
            "Choose `bands` that all images have, or fit them apart."
        )
    return selected
