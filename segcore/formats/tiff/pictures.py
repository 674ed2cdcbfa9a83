"""A picture in a TIFF file of several: the pages of its planes, bands and times, at one level."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.source import MAX_BANDS, MAX_PICTURE_PIXELS, MAX_PIXELS
from maskloom.segcore.formats.tiff.contents import SPLIT_HELP
from maskloom.segcore.formats.tiff.sizes import Sizes

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape

_UNNAMED = "IQ"
"""Letters of tifffile for axes without a meaning."""
POSITIONS = "RP"
"""Letters for axes of places: regions and positions."""
_IN_PAGE = "YXS"
_DELIVERED = {"bool": "uint8", "float16": "float32"}
_MIN_IS_WHITE, _RGB, PALETTE, _YCBCR = 0, 2, 3, 6
COLOURS = (_RGB, _YCBCR)
_ALPHA = (1, 2)
_ADVICE = (
    "If they are slices of a volume, set `axes: zyx` in the recipe; if they are images over time, "
    f"set `axes: tyx`. {SPLIT_HELP} otherwise."
)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a file at one level: the pages of its planes, bands and times."""

    location: str
    series: Any
    """The series of tifffile, which names the axes of its pages."""
    level: int
    grid: Mapping[str, int]
    """The length of each axis along which pages follow one another, in their order, if above 1."""
    sizes: Sizes
    """Of full resolution."""
    place: Mapping[str, int] = field(default_factory=dict)
    """Index along the axes that make images of their own: time and positions."""

    @classmethod
    def of(
        cls,
        location: str,
        series: Any,
        sizes: Sizes,
        axes: str | None,
        level: int = 0,
    ) -> Picture:
        """A picture of a series; `axes` is the meaning that the user gives to pages without one, as
        in `ReadOptions.axes`. Raises `FormatError` for what cannot be read.
        """
        grid = _grid(location, series.levels[level], axes)
        picture = cls(location, series, level, grid, sizes)
        picture.check()
        return picture

    @property
    def pages(self) -> Any:
        """The series of tifffile at the level."""
        return self.series.levels[self.level]

    @property
    def key(self) -> Any:
        """The page whose header is that of all."""
        return self.pages.keyframe

    @property
    def shape(self) -> Shape:
        """(y, x), or (z, y, x); a single slice is no volume."""
        _, depth, height, width, _ = self.key.shaped
        slices = max(depth, self.grid.get("Z", 1))
        return (height, width) if slices == 1 else (slices, height, width)

    @property
    def samples(self) -> int:
        """Samples of a pixel that are bands; alpha is not."""
        return int(self.key.samplesperpixel) - len(self.alpha)

    @property
    def alpha(self) -> tuple[int, ...]:
        """The sample that says where there is data, if any."""
        extra = tuple(int(each) for each in self.key.extrasamples)
        first = int(self.key.samplesperpixel) - len(extra)
        return tuple(first + i for i, each in enumerate(extra) if each in _ALPHA and first)[:1]

    @property
    def bands(self) -> int:
        """Number of bands: the channels, or the samples of each."""
        return self.grid.get("C", 1) * self.samples

    @property
    def stored(self) -> np.dtype[Any]:
        """The type of the stored values in the byte order of this machine."""
        found: np.dtype[Any] = np.dtype(self.key.dtype).newbyteorder("=")
        return found

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type of the delivered values."""
        return np.dtype(_DELIVERED.get(self.stored.name, self.stored))

    @property
    def white(self) -> int | None:
        """The number that means black where 0 means white; None elsewhere."""
        if self.key.photometric != _MIN_IS_WHITE or 262 not in self.key.tags:
            return None
        return (1 << int(self.key.bitspersample)) - 1 if self.stored.kind in "ub" else None

    @property
    def block(self) -> Shape:
        """The shape of the smallest box that can be read: of a tile, a strip, or a row."""
        pairs = zip(self.stored_block, self.key.shaped[1:4], strict=True)
        block = tuple(min(side, int(n)) for side, n in pairs)
        return block if len(self.shape) > 2 else block[1:]

    @property
    def stored_block(self) -> Shape:
        """The shape (z, y, x) of a block, which may reach beyond the page."""
        _, _, height, width, _ = self.key.shaped
        if self.pages.dataoffset is not None:
            return 1, 1, int(width)
        if self.key.is_tiled:
            return int(self.key.tiledepth), int(self.key.tilelength), int(self.key.tilewidth)
        return 1, min(int(self.key.rowsperstrip), int(height)), int(width)

    @property
    def blocks(self) -> int:
        """Number of tiles or strips of a page."""
        planes, depth, height, width, _ = self.key.shaped
        deep, rows, columns = self.stored_block
        return int(planes * -(-depth // deep) * -(-height // rows) * -(-width // columns))

    def check(self) -> None:
        """Raise `FormatError` for what cannot be read."""
        if min(*self.shape, *self.stored_block) < 1:
            raise FormatError(
                f"{self.location} is empty: its pages have the shape {self.shape}, and blocks of "
                f"{self.stored_block}. Write it again."
            )
        grid, location = self.grid, self.location
        strange = {
            letter: size
            for letter, size in grid.items()
            if size > 1 and letter not in "ZCT" + POSITIONS
        }
        if strange:
            number = max(len(self.series.parent.pages), math.prod(strange.values()))
            unnamed = any(letter in _UNNAMED for letter in strange)
            shown = " and ".join(f"{size} along {letter}" for letter, size in strange.items())
            raise FormatError(
                f"{location} holds {number} pages, and does not say what they are. {_ADVICE}"
                if unnamed
                else f"{location} has pictures {shown}, axes that are not read (z, channels and "
                "times are). Split it, e.g. with Fiji."
            )
        if self.dtype.kind not in "uif" or self.dtype.itemsize > 8:
            raise FormatError(
                f"{location} holds {self.stored}; expected whole numbers or floats. Convert it."
            )
        pixels, block = math.prod(self.shape), math.prod(self.stored_block)
        if pixels > MAX_PIXELS or self.bands > MAX_BANDS or block > MAX_PICTURE_PIXELS:
            raise FormatError(
                f"{location} claims {pixels} pixels, {self.bands} bands and blocks of {block} "
                f"pixels; the limits are {MAX_PIXELS}, {MAX_BANDS} and {MAX_PICTURE_PIXELS}."
            )
        if self.pages.dataoffset is not None:
            stop = self.pages.dataoffset + math.prod(grid.values()) * int(self.key.nbytes)
            size = int(self.series.parent.filehandle.size)
            if stop > size:
                raise FormatError(
                    f"{location} ends early: it has {size} bytes, its header promises {stop}. Copy "
                    "it again."
                )
            return
        if len(self.key.dataoffsets) < self.blocks:
            raise FormatError(
                f"{location} has {len(self.key.dataoffsets)} blocks in a page, too few for its "
                f"{self.shape[-1]} x {self.shape[-2]} pixels. It is damaged; write it again."
            )
        pages = list(self.pages.pages)
        missing = sum(page is None for page in pages)
        if missing or len(pages) != math.prod(grid.values()):
            raise FormatError(
                f"{location} should hold {math.prod(grid.values())} pages by its description, but "
                f"{missing or len(pages)} {'are not in it' if missing else 'are in it'}. It is "
                "incomplete, or one of several files; write it again as one file."
            )

    def page(self, band: int, slice_number: int) -> int:
        """The number of the page that has a band (from 0) of a slice."""
        grid = self.grid
        where = {"C": band // self.samples, "Z": slice_number, **self.place}
        if self.key.shaped[1] > 1:
            where["Z"] = 0
        number = 0
        for letter, size in grid.items():
            number = number * size + where.get(letter, 0)
        return number

    @property
    def reduction(self) -> tuple[float, ...]:
        """The size of a pixel of the level in pixels of full resolution, along each axis."""
        full = replace(self, level=0)
        return tuple(a / b for a, b in zip(full.shape, self.shape, strict=True))

    @property
    def level_sizes(self) -> dict[str, float]:
        """The size of a pixel of the level."""
        if not self.level:
            return dict(self.sizes)
        factors = dict(zip("xyz", reversed(self.reduction), strict=False))
        return {axis: size * factors.get(axis, 1.0) for axis, size in self.sizes.items()}


def _grid(location: str, pages: Any, axes: str | None) -> dict[str, int]:
    """See `Picture.grid`; `pages` is the series of tifffile at a level."""
    inside = _IN_PAGE + ("Z" if pages.keyframe.shaped[1] > 1 else "")
    grid: dict[str, int] = {}
    for letter, size in zip(pages.get_axes(False), pages.get_shape(False), strict=True):
        if letter in inside or size == 1:
            continue
        meaning = axes[0].upper() if axes and letter in _UNNAMED else letter
        if meaning in grid:
            raise FormatError(
                f"{location} has two axes {meaning} of its pages. Save it as OME-TIFF, with the "
                "name of each axis."
            )
        grid[meaning] = int(size)
    return grid
