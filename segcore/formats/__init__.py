"""Readers of image formats, one file or folder each.

The format of a file is chosen by its suffix and the signature of its content, by the signature
alone if no format claims the suffix (microscopes write TIFF as .lsm), or named by the user; never
by trial.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from maskloom.segcore.errors import FormatError
from maskloom.segcore.features.reader import open_features
from maskloom.segcore.formats.content import (
    claimed_format,
    claims,
    format_by_content,
    require_kind,
    suffix_of,
    tail_of,
)
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.formats.user_nodata import open_with
from maskloom.segcore.raster.source import list_folder
from maskloom.segcore.raster.spec import FORMATS, OptionsFormat, PyramidFormat, StoredFormat
from maskloom.segcore.raster.stored import ReadOptions, StoredImage, split_part, uri_of_part

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from maskloom.segcore.geometry import Shape
    from maskloom.segcore.raster.source import Source
    from maskloom.segcore.raster.spec import Format, RasterSpec, Reader

DEFAULT = ReadOptions()

__all__ = [
    "describe",
    "describe_images",
    "folder_markers",
    "folder_suffixes",
    "format_of",
    "format_of_folder",
    "image_folders",
    "images_of",
    "open_image",
    "open_reduced",
    "open_stored",
    "reduced_shapes",
    "suffix_of",
    "suffixes",
    "tail_of",
]


def suffixes(name: str) -> tuple[str, ...]:
    """The suffixes of a format, in lower case, each with its dot."""
    return tuple(suffix for kind in FORMATS[name].kinds for suffix in kind.suffixes)


def format_of(location: str, head: bytes, explicit: str | None = None) -> str:
    """The name of the format of a file whose content begins with `head` (512 bytes of it).

    `explicit` is a format named by the user; the suffix is then ignored. Raises `FormatError` if
    the content does not match the suffix or the named format, or if no format reads it.
    """
    if explicit is None:
        return claimed_format(location, head) or format_by_content(location, head)
    if explicit not in FORMATS:
        raise FormatError(f"There is no format {explicit!r}. Known: {', '.join(FORMATS)}.")
    require_kind(location, head, explicit)
    return explicit


def folder_suffixes() -> tuple[str, ...]:
    """Suffixes of folders that may be one image."""
    return tuple(
        suffix
        for image_format in FORMATS.values()
        for kind in image_format.kinds
        if kind.markers
        for suffix in kind.suffixes
    )


def format_of_folder(location: str, names: Iterable[str], explicit: str | None = None) -> str:
    """The name of the format of a folder that is one image; `names` are those of the files directly
    in it. Raises `FormatError` if no format, or not the named one, recognises it.
    """
    held = set(names)
    for name, image_format in FORMATS.items():
        if explicit in (None, name) and any(
            held.intersection(kind.markers) for kind in image_format.kinds
        ):
            return name
    raise FormatError(
        f"{location} is a folder that {'no format' if explicit is None else repr(explicit)} reads "
        "as one image. Name the files in it, or leave it out of `inputs`."
    )


def folder_markers() -> frozenset[str]:
    """Names of files that make the folder around them one image."""
    return frozenset(
        marker
        for image_format in FORMATS.values()
        for kind in image_format.kinds
        for marker in kind.markers
    )


def image_folders(paths: Iterable[str]) -> dict[str, list[str]]:
    """The folders around these files that are one image each, with their files; no folder contains
    another.
    """
    markers = folder_markers()
    paths = list(paths)
    marked = {
        folder for folder, _, name in (path.rpartition("/") for path in paths) if name in markers
    }
    folders: dict[str, list[str]] = {}
    for path in paths if marked else ():
        outermost = [folder for folder in _folders_around(path) if folder in marked][-1:]
        if outermost:
            folders.setdefault(outermost[0], []).append(path)
    return folders


def describe(location: str, version: str = "", explicit: str | None = None) -> RasterSpec:
    """The header of the image in a file of any format, in one part of a file (`uri_of_part`), or in
    a folder whose suffix a format claims; `explicit` as in `format_of`.

    Raises `FormatError`, and `Unavailable` if the store fails.
    """
    place, part, _ = split_part(location)
    image_format = FORMATS[_format_of_location(place, explicit)]
    if not part:
        return image_format.describe(place, version)
    if not isinstance(image_format, OptionsFormat):
        raise FormatError(f"{place} holds one image, so it has no part {part!r}.")
    return image_format.describe_image(StoredImage(place, version, part), DEFAULT)


def images_of(source: Source, options: ReadOptions = DEFAULT) -> list[Source]:
    """The images of a source: itself, or one for each of its parts. Only files that may hold
    several images are read. Raises as `describe_images`.
    """
    claiming = claims(source.location)
    if claiming and not any(isinstance(FORMATS[name], OptionsFormat) for name, _ in claiming):
        return [source]
    image_format, image = _stored(source, source.version, None)
    return _parts(source, image_format, image, options)


def describe_images(
    source: Source, version: str, explicit: str | None = None, options: ReadOptions = DEFAULT
) -> list[tuple[Source, RasterSpec | FormatError]]:
    """The images of a source, each with its header: one for most files, folders and series, several
    for those that hold several, some of which may be broken. `explicit` as in `format_of`.

    Raises `FormatError` for a broken image that is the only one, `Unavailable` if the store fails,
    and `FileNotFoundError`.
    """
    image_format, image = _stored(source, version, explicit)
    if isinstance(image_format, OptionsFormat):
        parts = _parts(source, image_format, image, options)
        if parts == [source]:
            return [(source, image_format.describe_image(image, options))]
        return [(each, _part(each, image_format, image, options)) for each in parts]
    if image.files:
        raise FormatError(
            f"The format {explicit!r} reads one file at a time; {source.uri} is a series of "
            f"{len(image.files)} files. Leave `format` out of the recipe."
        )
    return [(source, image_format.describe(source.location, version))]


def _stored(source: Source, version: str, explicit: str | None) -> tuple[Format, StoredImage]:
    """The format of a source, and its place."""
    files = tuple(each.uri for each in source.members)
    image = StoredImage(source.location, version, source.part, files)
    return FORMATS[_format_of_source(source, explicit)], image


def _parts(
    source: Source, image_format: Format, image: StoredImage, options: ReadOptions
) -> list[Source]:
    """The images of a source: itself, or one for each of its parts."""
    if source.part or not isinstance(image_format, OptionsFormat):
        return [source]
    parts = image_format.parts(image, options)
    return [
        replace(
            source,
            uri=uri_of_part(source.uri, part, len(parts)),
            image_id=f"{source.image_id}_{part}",
            part=part,
        )
        for part in parts
    ] or [source]


def _part(
    source: Source, image_format: OptionsFormat, image: StoredImage, options: ReadOptions
) -> RasterSpec | FormatError:
    try:
        return image_format.describe_image(replace(image, part=source.part), options)
    except FormatError as error:
        return error


def _format_of_location(location: str, explicit: str | None) -> str:
    for folder_format, kind in claims(location):
        if kind.markers and explicit in (None, folder_format):
            return folder_format
    return format_of(location, StoredFile.of(location).head(), explicit)


def _format_of_source(source: Source, explicit: str | None) -> str:
    if source.is_folder:
        below = len(source.location) + 1
        names = (each.uri[below:] for each in list_folder(source.location))
        return format_of_folder(source.location, names, explicit)
    first = source.members[0].uri if source.members else source.location
    return format_of(first, StoredFile.of(first).head(), explicit)


def open_image(spec: RasterSpec) -> Reader:
    """Open an image that was described; use as a context manager. Raises `ReadError`."""
    if spec.features is not None:
        return open_features(spec, open_image)
    if spec.user_nodata is not None:
        return open_with(spec, spec.user_nodata)
    return FORMATS[spec.format].open(spec)


def reduced_shapes(spec: RasterSpec) -> tuple[Shape, ...]:
    """Shapes of an image at the lower resolutions in its file, the finest first; see
    `PyramidFormat`.
    """
    image_format = FORMATS[spec.format]
    if not isinstance(image_format, PyramidFormat):
        return ()
    return tuple(image_format.reduced_shapes(spec))


def open_reduced(spec: RasterSpec, number: int, *, stored: bool = False) -> Reader:
    """Open an image at one of its `reduced_shapes`; use as a context manager. `stored`: with the
    numbers as stored, see `StoredFormat`. Raises `ReadError`.
    """
    image_format = FORMATS[spec.format]
    assert isinstance(image_format, PyramidFormat)
    if stored or spec.user_nodata is None:
        return image_format.open_reduced(spec, number, stored=stored)
    return open_with(spec, spec.user_nodata, lambda own: image_format.open_reduced(own, number))


def open_stored(spec: RasterSpec) -> Reader:
    """Open an image with the numbers as stored, to compare masks; see `StoredFormat`."""
    image_format = FORMATS[spec.format]
    return (
        image_format.open_stored(spec)
        if isinstance(image_format, StoredFormat)
        else image_format.open(spec)
    )


def _folders_around(path: str) -> Iterator[str]:
    """The folders around a path, the innermost first."""
    while path := path.rpartition("/")[0]:
        yield path
