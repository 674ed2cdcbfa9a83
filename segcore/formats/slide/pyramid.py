"""The pyramid of a slide: its levels, their pixel sizes, and the one that is read.

A level has fewer pixels than full resolution, by a factor that sides rounded to whole pixels rarely
give exactly: 250 x 300 pixels at an eighth are 31 x 37. So the pixels of a level are as large as
those of full resolution times the true ratio of the widths, and of the heights.
"""

from __future__ import annotations

from dataclasses import dataclass

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.source import MAX_PICTURE_PIXELS
from maskloom.segcore.geometry import Affine, Shape
from maskloom.segcore.ground.space import MILLIMETRES, Metric, PixelSize, Space, is_plausible
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.raster.stored import ReadOptions

MAX_PIXELS = 2**40
"""Largest number of pixels of a slide; a header alone can claim any number."""
ATTACHED_NOTE = (
    "the slide alone is segmented; the thumbnail, label and macro pictures in the file are not"
)
NO_SIZE_NOTE = (
    "it does not state the size of a pixel (MPP, microns per pixel), so areas are in px; set "
    "`pixel_size`"
)
_ROUNDING = 1.01
"""Sides of levels are whole pixels: a level of 1.0004 um is one of 1 um."""
_AXES = ("y", "x")


@dataclass(frozen=True, slots=True)
class Pyramid:
    """The levels of a slide, full resolution first, according to its header."""

    location: str
    levels: tuple[Shape, ...]
    """Shape (y, x) of each level."""
    tiles: tuple[Shape, ...]
    """Shape (y, x) of the smallest box of each level that can be read without reading more."""
    spacing: tuple[float, float] | None
    """Size of a pixel of full resolution along (y, x) in um. None: not stated."""
    bands: int = 3
    dtype: str = "uint8"
    attached: bool = False
    """Whether the file has further pictures: a thumbnail, the label, the macro picture."""

    def __post_init__(self) -> None:
        for shape, tile in zip(self.levels, self.tiles, strict=True):
            if min(shape) < 1 or shape[0] * shape[1] > MAX_PIXELS:
                raise FormatError(
                    f"{self.location} claims {_size(shape)} pixels; expected at least one, and at "
                    f"most {MAX_PIXELS}. Export it again."
                )
            if min(tile) < 1 or tile[0] * tile[1] > MAX_PICTURE_PIXELS:
                raise FormatError(
                    f"{self.location} has tiles of {_size(tile)} pixels, which must be decoded at "
                    f"once; the limit is {MAX_PICTURE_PIXELS} pixels. Export it again."
                )

    def spec(self, version: str, options: ReadOptions) -> RasterSpec:
        """The level that the options ask for. Raises `FormatError` if there is no such level."""
        size = self._full_size(options)
        level = self._level(options.level, size)
        notes = (ATTACHED_NOTE,) * self.attached + (NO_SIZE_NOTE,) * (size is None)
        if isinstance(options.level, PixelSize) and not self._suits(options.level, size, level):
            notes += (f"its finest pixels are larger than {_words(options.level)}; they are read",)
        scale = self._scale(level)
        affine: Affine | None = None
        if level:
            # The mask of a level keeps its place on full resolution.
            affine = (scale[1], 0.0, 0.0, 0.0, scale[0], 0.0)
        return RasterSpec(
            location=self.location,
            format="slide",
            shape=self.levels[level],
            bands=tuple(range(1, self.bands + 1)),
            dtype=self.dtype,
            chunks=(
                min(self.tiles[level][0], self.levels[level][0]),
                min(self.tiles[level][1], self.levels[level][1]),
            ),
            version=version,
            file_bands=self.bands,
            interpretation="rgb" if self.bands == 3 else "bands",
            space=Space(affine=affine, metric=self._metric(size, level)),
            notes=notes,
            level=level,
            reduction=scale if level else (),
        )

    def _full_size(self, options: ReadOptions) -> Metric | None:
        """The size of a pixel of full resolution: the user's, or else the scanner's."""
        if isinstance(options.pixel_size, PixelSize):
            try:
                return options.pixel_size.metric(_AXES)
            except ValueError as error:
                raise FormatError(
                    f"pixel_size: {error}. {self.location} does not suit it."
                ) from error
        return None if self.spacing is None else Metric(self.spacing, "um")

    def _level(self, wanted: int | PixelSize, size: Metric | None) -> int:
        if isinstance(wanted, int):
            if wanted < len(self.levels):
                return wanted
            raise FormatError(
                f"{self.location} has no level {wanted}. Its levels are {self._listed(size)}. "
                "Change `level`, or leave the slide out of `inputs`."
            )
        if size is None:
            raise FormatError(
                f"{self.location} does not state the size of a pixel (MPP), so no level of "
                f"{_words(wanted)} can be chosen. Set `pixel_size` to that of full resolution, or "
                "`level` to a number."
            )
        suited = [k for k in range(len(self.levels)) if self._suits(wanted, size, k)]
        return max(suited, default=0)

    def _suits(self, wanted: PixelSize, size: Metric | None, level: int) -> bool:
        """Whether the pixels of a level are no larger than a size."""
        metric = self._metric(size, level)
        try:
            most = wanted.metric(_AXES)
        except ValueError as error:
            raise FormatError(f"level: {error}. {self.location} does not suit it.") from error
        return metric is not None and all(
            own * MILLIMETRES[metric.unit] <= limit * MILLIMETRES[most.unit] * _ROUNDING
            for own, limit in zip(metric.spacing, most.spacing, strict=True)
        )

    def _scale(self, level: int) -> tuple[float, float]:
        """Pixels of full resolution in one of a level, along (y, x)."""
        full, own = self.levels[0], self.levels[level]
        return full[0] / own[0], full[1] / own[1]

    def _metric(self, size: Metric | None, level: int) -> Metric | None:
        if size is None:
            return None
        scale = self._scale(level)
        return Metric((size.spacing[0] * scale[0], size.spacing[1] * scale[1]), size.unit)

    def _listed(self, size: Metric | None) -> str:
        named = []
        for level, shape in enumerate(self.levels):
            metric = self._metric(size, level)
            each = "" if metric is None else f", {metric.spacing[1]:.4g} {metric.unit}"
            named.append(f"{level} ({_size(shape)} pixels{each})")
        return ", ".join(named)


def plausible(spacing: tuple[float, float]) -> tuple[float, float] | None:
    """A spacing in um, or None for 0, negative, infinite and absurd ones."""
    known = all(is_plausible(each * MILLIMETRES["um"]) for each in spacing)
    return spacing if known else None


def _size(shape: Shape) -> str:
    return f"{shape[1]} x {shape[0]}"


def _words(size: PixelSize) -> str:
    return f"{' x '.join(f'{each:g}' for each in size.spacing)} {size.unit}"
