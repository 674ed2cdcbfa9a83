"""A reader of features: those of any box, from the bands of a somewhat larger one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.features.evaluation import compute, reach_of
from maskloom.segcore.features.named import number_of
from maskloom.segcore.formulas import names_in, parse
from maskloom.segcore.geometry import Box

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from maskloom.segcore.formulas import Formula
    from maskloom.segcore.raster.spec import FeatureBands, RasterSpec, Reader

_parse = lru_cache(1024)(parse)
_SHOWN = 3


def source_of(spec: RasterSpec) -> RasterSpec:
    """The image that the features of `spec` are computed from, with its own bands."""
    features = spec.features
    assert features is not None
    return replace(
        spec,
        bands=features.bands,
        file_bands=features.file_bands,
        dtype=features.dtype,
        interpretation=features.interpretation,
        features=None,
    )


def shown(spec: RasterSpec) -> RasterSpec:
    """The image as pictures show it: for features the first bands of their source, which a reader
    of features delivers under numbers above those of the features.
    """
    if spec.features is None:
        return spec
    source, count = source_of(spec), len(spec.features.names)
    return replace(
        spec,
        bands=tuple(count + band for band in source.bands[:_SHOWN]),
        dtype=source.dtype,
        interpretation=source.interpretation,
    )


def open_features(spec: RasterSpec, opened: Callable[[RasterSpec], Reader]) -> Reader:
    """Open an image of features; `opened` opens their source. Raises as `opened`."""
    features = spec.features
    assert features is not None
    formulas = {
        band: _parse(features.formulas[band - 1])
        for band in spec.bands
        if band <= len(features.formulas)
    }
    # `shown` counts on.
    plain = tuple(
        band - len(features.formulas) for band in spec.bands if band > len(features.formulas)
    )
    used = {number_of(name) or 0 for each in formulas.values() for name in names_in(each)}
    source = replace(source_of(spec), bands=tuple(sorted(used.union(plain))))
    return _FeatureReader(
        opened(source),
        spec,
        source.bands,
        features,
        formulas,
        max(map(reach_of, formulas.values()), default=0),
    )


@dataclass(frozen=True, slots=True)
class _FeatureReader:
    """See `open_features`."""

    inner: Reader
    spec: RasterSpec
    read_bands: tuple[int, ...]
    """Bands of the source that the inner reader delivers."""
    features: FeatureBands
    formulas: dict[int, Formula]
    """By number of the feature."""
    reach: int
    """Pixels around a box that its features depend on."""

    def __enter__(self) -> _FeatureReader:
        self.inner.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self.inner.__exit__(*exception)

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Features, as float32, and `valid` of a box: where all of them are defined; see
        `segcore.raster.spec.Reader.read`.
        """
        around = box.grow((self.reach,) * len(box.shape)) & Box.whole(self.spec.shape)
        pixels, valid = self.inner.read(around)
        inside = box.relative_to(around).slices
        bands = {
            f"b{band}": self._values(band, pixels[..., channel])
            for channel, band in enumerate(self.read_bands)
        }
        found = np.zeros((*box.shape, len(self.spec.bands)), np.float32)
        known: NDArray[np.bool_] = valid[inside].copy()
        for channel, band in enumerate(self.spec.bands):
            if band not in self.formulas:
                stored = self.read_bands.index(band - len(self.features.formulas))
                found[..., channel] = pixels[..., stored][inside]
                continue
            values, defined = compute(self.formulas[band], bands, valid)
            with np.errstate(over="ignore"):
                found[..., channel] = np.where(defined, values, 0)[inside]
            known &= defined[inside] & np.isfinite(found[..., channel])
        found[~known] = 0
        return found, known

    def _values(self, band: int, stored: NDArray[np.generic]) -> NDArray[np.float64]:
        values = stored.astype(np.float64)
        if self.features.scaling:
            scale, offset = self.features.scaling[band - 1]
            values *= scale
            values += offset
        return values
