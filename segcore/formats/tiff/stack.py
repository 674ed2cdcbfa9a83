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
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.tiff.contents import ATTACHMENTS, SPLIT_HELP
from maskloom.segcore.formats.tiff.descriptions import ome_pixels
from maskloom.segcore.formats.tiff.opening import damage, in_tifffile
from maskloom.segcore.formats.tiff.pictures import COLOURS, PALETTE, POSITIONS, Picture
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
    from maskloom.segcore.raster.stored import StoredImage

T = TypeVar("T")
_DATE_TIME = 306
_OME_IMAGE = re.compile(r"<(?:\w+:)?Image\b")
_OME_DATE = re.compile(r"<(?:\w+:)?AcquisitionDate>([^<]+)<")
_PLACED = frozenset({33550, 33922, 34264})
"""Tags that place a picture on a map."""
_REDUCED_OR_MASK = 5
_KINDS = frozenset(
    {"ome", "imagej", "shaped", "stk", "lsm", "fluoview", "mmstack", "uniform", "generic"}
)
"""Kinds of series in tifffile that are stacks; others are slides and pictures of cameras."""


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
    metric, notes = metric_of(picture.level_sizes, axes)
    if picture.key.photometric == PALETTE:
        notes = (*notes, "its palette is for display; the stored numbers are read")
    rgb = picture.key.photometric in COLOURS and picture.samples >= 3
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
        reduction=picture.reduction if picture.level else (),
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
    with damage(location):
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
                if letter in "T" + POSITIONS and size > 1
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
        sizes = replace(picture, level=number).level_sizes
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
    if picture.key.photometric == PALETTE:
        raise FormatError(
            f"{picture.location} has a palette, whose colours a level does not have. Leave `level` "
            "out of the recipe."
        )
