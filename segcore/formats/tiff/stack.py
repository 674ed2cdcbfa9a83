"""TIFF files of several pictures: volumes, series over time, scenes, and levels of pyramids.

What the pictures are is taken from their description (OME-XML, ImageJ, tifffile, MetaMorph, Zeiss
LSM), read by tifffile: z makes a volume, channels and samples are bands, and each time, position
and series is an image of its own. Pages without a description are a volume or times only if the
user says so. Only the tiles and strips of a box are read.

Values are those stored, but integers whose 0 is white are inverted, as for other TIFFs. Colours of
channels and palettes are for display and are not used. Blocks that the file leaves out, NaN and
infinity are not data.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import math
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maskloom.segcore.errors import FormatError, ImageError
from maskloom.segcore.formats.source import (
    MAX_BANDS,
    MAX_PICTURE_PIXELS,
    MAX_PIXELS,
    StoredFile,
)
from maskloom.segcore.formats.tiff.contents import ATTACHMENTS, SPLIT_HELP, ome_pixels
from maskloom.segcore.formats.tiff.sizes import (
    Sizes,
    imagej_sizes,
    metric_of,
    ome_sizes,
    tagged_sizes,
)
from maskloom.segcore.ground.space import MILLIMETRES, Space
from maskloom.segcore.raster.dates import from_iso, from_tag
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.raster.stored import ReadOptions

if TYPE_CHECKING:
    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.stored import StoredImage

DAMAGE = (
    AssertionError,
    ArithmeticError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    EOFError,
    NotImplementedError,
    struct.error,
    zlib.error,
)
"""The errors of tifffile and its codecs for broken files."""
T = TypeVar("T")
_UNNAMED = "IQ"
"""Letters of tifffile for axes without a meaning."""
_POSITIONS = "RP"
"""Letters for axes of places: regions and positions."""
_IN_PAGE = "YXS"
_DELIVERED = {"bool": "uint8", "float16": "float32"}
_MIN_IS_WHITE, _RGB, _PALETTE, _YCBCR = 0, 2, 3, 6
_COLOURS = (_RGB, _YCBCR)
_DATE_TIME = 306
_OME_IMAGE = re.compile(r"<(?:\w+:)?Image\b")
_OME_DATE = re.compile(r"<(?:\w+:)?AcquisitionDate>([^<]+)<")
_PLACED = frozenset({33550, 33922, 34264})
"""Tags that place a picture on a map."""
_REDUCED_OR_MASK = 5
_ALPHA = (1, 2)
_ADVICE = (
    "If they are slices of a volume, set `axes: zyx` in the recipe; if they are images over time, "
    f"set `axes: tyx`. {SPLIT_HELP} otherwise."
)
_KINDS = frozenset(
    {"ome", "imagej", "shaped", "stk", "lsm", "fluoview", "mmstack", "uniform", "generic"}
)
"""Kinds of series in tifffile that are stacks; others are slides and pictures of cameras."""


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
            if size > 1 and letter not in "ZCT" + _POSITIONS
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


def parts(image: StoredImage, options: ReadOptions) -> list[str]:
    """The names of the images in a file of several pictures; empty if they are one. Raises
    `FormatError`.
    """
    found = _specs(image, options)
    return list(found) if len(found) > 1 else []


def describe(image: StoredImage, options: ReadOptions) -> RasterSpec:
    """The header of an image in a file of several pictures. Raises `FormatError`."""
    return _of_part(_specs(image, options), image.location, image.part)


def _specs(image: StoredImage, options: ReadOptions) -> Mapping[str, RasterSpec]:
    """The headers of all images in a file, by the names of their parts."""
    # Without a version, it cannot be told whether the file is the same.
    read = _known_specs if image.version else _read_specs
    return read(image.location, image.version, options)


def _read_specs(location: str, version: str, options: ReadOptions) -> Mapping[str, RasterSpec]:
    with _opened(StoredFile.of(location)) as file:
        pictures = _pictures(file, location, options)
        return {
            part: _spec(picture, version, part if len(pictures) > 1 else "", options)
            for part, picture in pictures.items()
        }


_known_specs = lru_cache(maxsize=4)(_read_specs)
"""A series may have thousands of times, and the structure of its file is read as a whole."""


def _spec(picture: Picture, version: str, part: str, options: ReadOptions) -> RasterSpec:
    if picture.level:
        _check_reduced(picture)
    axes = ("z", "y", "x")[-len(picture.shape) :]
    if options.pixel_size == "tags":
        tagged = tagged_sizes(*_resolution(picture.series.levels[0].keyframe))
        picture = replace(picture, sizes={**picture.sizes, **tagged})
    metric, notes = metric_of(_level_sizes(picture), axes)
    if picture.key.photometric == _PALETTE:
        notes = (*notes, "its palette is for display; the stored numbers are read")
    rgb = picture.key.photometric in _COLOURS and picture.samples >= 3
    return RasterSpec(
        location=picture.location,
        format="tiff",
        shape=picture.shape,
        bands=tuple(range(1, picture.bands + 1)),
        dtype=picture.dtype.name,
        chunks=picture.block,
        version=version,
        file_bands=picture.bands,
        interpretation="rgb" if rgb else "bands",
        space=Space(axes=axes, metric=metric),
        notes=notes,
        part=part,
        level=picture.level,
        reduction=_reduction(picture) if picture.level else (),
        mask="tiff_stack" if len(axes) > 2 else "",
        acquired=_acquired(picture),
    )


def _acquired(picture: Picture) -> str | None:
    """When a picture was acquired: by its entry in OME-XML, or else by the tag DateTime."""
    file, tag = picture.series.parent, picture.key.tags.get(_DATE_TIME)
    if file.is_ome:
        described = _OME_IMAGE.split(file.ome_metadata or "")[1:]
        found = [_OME_DATE.search(each) for each in described]
        number = next((i for i, each in enumerate(file.series) if each is picture.series), 0)
        own = found[number] if number < len(found) else None
        if own is not None:
            return from_iso(own[1])
    return from_tag(tag.value) if tag is not None else None


@contextlib.contextmanager
def _opened(source: StoredFile) -> Iterator[Any]:
    with source.stream() as stream, in_tifffile(stream, source.location) as file:
        yield file


@contextlib.contextmanager
def in_tifffile(stream: Any, location: str) -> Iterator[Any]:
    """The file in tifffile, which opens no other file."""
    import tifffile

    logger = logging.getLogger("tifffile")
    if not logger.handlers:
        # What it says about unusual files would go to the terminal.
        logger.addHandler(logging.NullHandler())
        logger.propagate = False
    with _damage(location):
        file = tifffile.TiffFile(stream, _multifile=False)
    yield file


def picture_of(file: Any, location: str, part: str, options: ReadOptions) -> Picture:
    """The only picture of an open file, or its part with this name. Raises `FormatError`."""
    return _of_part(_pictures(file, location, options), location, part)


def _of_part(found: Mapping[str, T], location: str, part: str) -> T:
    """The only one, or that of a part. Raises `FormatError`."""
    if part in found:
        return found[part]
    if not part and len(found) == 1:
        return next(iter(found.values()))
    raise FormatError(
        f"{location} holds {len(found)} images ({', '.join(itertools.islice(found, 3))} ...), and "
        f"{f'none called {part}' if part else 'one is expected'}."
    )


def _pictures(file: Any, location: str, options: ReadOptions) -> dict[str, Picture]:
    """The images of a file by the names of their parts. Raises `FormatError`."""
    with _damage(location):
        series = list(file.series)
        strange = next((each.kind for each in series if each.kind not in _KINDS), None)
        if strange is not None and len(file.pages) > 1 and options.level == 0:
            raise FormatError(
                f"{location} holds {len(file.pages)} pages of the kind {strange!r}, which are no "
                f"stack. {SPLIT_HELP}."
            )
        described = _described(file, location, series)
        shown = [
            (each, sizes)
            for each, sizes in zip(series, described, strict=True)
            if not _is_attached(each)
        ]
        found: dict[str, Picture] = {}
        for number, (each, sizes) in enumerate(shown, 1):
            names = [f"s{number:02}"] if len(shown) > 1 else []
            whole = Picture.of(location, each, sizes, options.axes)
            level = _level(whole, options)
            chosen = Picture.of(location, each, sizes, options.axes, level) if level else whole
            axes = [
                (letter, size)
                for letter, size in whole.grid.items()
                if letter in "T" + _POSITIONS and size > 1
            ]
            for index in np.ndindex(*(size for _, size in axes)):
                place = {letter: i for (letter, _), i in zip(axes, index, strict=True)}
                words = [
                    f"{'t' if letter == 'T' else 'p'}{i + 1:04}" for letter, i in place.items()
                ]
                found["_".join([*names, *words])] = replace(chosen, place=place)
    if not found:
        raise FormatError(f"{location} is a TIFF without a picture. Write the file again.")
    return found


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


def _is_attached(series: Any) -> bool:
    """Whether a series is a mask, a reduced copy, or a picture that scanners add to slides."""
    named = ATTACHMENTS.fullmatch((series.name or "").strip()) is not None
    return named or bool(int(series.keyframe.subfiletype) & _REDUCED_OR_MASK)


def _described(file: Any, location: str, series: Sequence[Any]) -> list[Sizes]:
    """The sizes of a pixel that the file states for each series. Raises `FormatError`."""
    first = file.pages[0]
    description = first.description or ""
    elements = ome_pixels(description, tuple(first.shape[:2]))
    if elements and series[0].kind != "ome":
        raise FormatError(
            f"The pages of {location} are not those of its OME metadata, or are in several files. "
            "Write it again as one OME-TIFF."
        )
    # Where some pictures of the description are absent, it cannot be told which.
    if len(elements) == len(series):
        return [ome_sizes(each) for each in elements]
    if series and series[0].kind == "imagej":
        resolution, _ = _resolution(first)
        return [imagej_sizes(description, resolution)] * len(series)
    return [{}] * len(series)


def _resolution(page: Any) -> tuple[tuple[float, float], int]:
    """Pixels per unit along x and y, 0 if not stated, and the unit."""
    values = []
    for code in (282, 283):
        tag = page.tags.get(code)
        numbers = tag.value if tag is not None else (0, 1)
        known = isinstance(numbers, tuple) and len(numbers) == 2 and numbers[1]
        values.append(float(numbers[0] / numbers[1]) if known else 0.0)
    unit = page.tags.get(296)
    return (values[0], values[1]), 2 if unit is None else int(unit.value)


def _level(picture: Picture, options: ReadOptions) -> int:
    """The number of the wanted level. Raises `FormatError`."""
    count, wanted = len(picture.series.levels), options.level
    if isinstance(wanted, int):
        if wanted >= count:
            raise FormatError(
                f"{picture.location} has {count} level(s), counted from 0; `level` asks for "
                f"{wanted}."
            )
        return wanted
    if not (picture.sizes.get("y") and picture.sizes.get("x")):
        raise FormatError(
            f"{picture.location} does not state the size of its pixels, so `level` must be a "
            f"number, from 0 to {count - 1}."
        )
    most = [distance * MILLIMETRES[wanted.unit] for distance in wanted.spacing]
    suiting = 0
    for number in range(count):
        sizes = _level_sizes(replace(picture, level=number))
        pairs = zip([sizes["y"], sizes["x"]], (most * 2)[-2:], strict=True)
        if all(size <= limit * (1 + 1e-6) for size, limit in pairs):
            suiting = number
    return suiting


def _check_reduced(picture: Picture) -> None:
    """Raise `FormatError` where a level would not be what full resolution is."""
    tags = picture.series.levels[0].keyframe.tags
    if not _PLACED.isdisjoint(tags.keys()):
        raise FormatError(
            f"{picture.location} is placed on a map, where `level` is not read. Write it at the "
            "wanted resolution (gdalwarp -tr), or leave `level` out of the recipe."
        )
    if picture.key.photometric == _PALETTE:
        raise FormatError(
            f"{picture.location} has a palette, whose colours a level does not have. Leave `level` "
            "out of the recipe."
        )


def _reduction(picture: Picture) -> tuple[float, ...]:
    """The size of a pixel of the level in pixels of full resolution, along each axis."""
    full = replace(picture, level=0)
    return tuple(a / b for a, b in zip(full.shape, picture.shape, strict=True))


def _level_sizes(picture: Picture) -> dict[str, float]:
    """The size of a pixel of the level."""
    if not picture.level:
        return dict(picture.sizes)
    factors = dict(zip("xyz", reversed(_reduction(picture)), strict=False))
    return {axis: size * factors.get(axis, 1.0) for axis, size in picture.sizes.items()}


@contextlib.contextmanager
def _damage(location: str) -> Iterator[None]:
    """Turn the errors of tifffile for broken pages into `FormatError`."""
    try:
        yield
    except ImageError:
        raise
    except (*DAMAGE, OSError) as error:
        # An offset that no file can have is an invalid argument; other such errors are the store's.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        raise FormatError(
            f"The pages of {location} cannot be read: {error}. The file is damaged or incomplete; "
            "copy or write it again."
        ) from error
