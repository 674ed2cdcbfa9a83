"""The contents of a TIFF: whether its pages are one image, its channels, or several images.

One file is one picture of one or many bands. Reduced pages (levels of a pyramid) and transparency
masks belong to a picture; pages described as channels are its bands. Slices, times, scenes and
pages without a description are for `tiff.stack` (`SeveralPictures`): reading only one page of many
would give wrong numbers.

Three kinds of description are known: OME-XML, the lines of ImageJ, or the JSON of tifffile, each in
the first page. A description with sizes other than those of the page was left by a program that
cropped the picture, and is ignored.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.tiff.descriptions import (
    PlaneAxes,
    companion_of,
    imagej_axes,
    ome_axes,
    ome_pages,
    ome_planes,
    ome_root,
    refuse_other_files,
    tifffile_axes,
)
from maskloom.segcore.formats.tiff.pages import Page, Pages

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from maskloom.segcore.formats.source import StoredFile

_MOST_COUNTED = 20
"""Largest number of pages counted for a message; each may be one request to a remote store."""
_MOST_CHANNELS = 4096
ATTACHMENTS = re.compile(r"(label|macro|thumbnail|overview)( image)?", re.IGNORECASE)
"""Names of the pictures that slide scanners store with the slide."""
_CHANNELS_HELP = (
    "If they are channels of one picture, save them as OME-TIFF or as an ImageJ hyperstack, which "
    "say so."
)
SPLIT_HELP = (
    "Write each into a file of its own (with Fiji, bfconvert, tiffsplit, or gdal_translate "
    "GTIFF_DIR:2:FILE)"
)
_MOST_PICTURES = 2**20
"""Largest number of pictures that a description may claim."""
SLIDE_NOTE = (
    "the slide alone is segmented; the thumbnail, label and macro pictures in the file are not"
)


class SeveralPictures(FormatError):
    """The file holds more than one picture, which `tiff.stack` reads if they have a meaning."""


@dataclass(frozen=True, slots=True)
class Contents:
    """The image in a TIFF."""

    first: Page
    """The first page of the file."""
    pages: tuple[Page, ...]
    """One page with all bands, or a page for each channel in the order of the channels."""
    notes: tuple[str, ...] = ()
    """Notes for users on pictures that are not read."""

    @property
    def page(self) -> Page:
        """The page of the first channel, whose header is that of the image."""
        return self.pages[0]


def read_contents(source: StoredFile) -> Contents:
    """The contents of a TIFF. Raises `FormatError` if it has more than one picture or a broken
    structure, and `Unavailable`.
    """
    with source.stream() as stream:
        return _contents(Pages(stream, source.location), source)


def _contents(pages: Pages, source: StoredFile) -> Contents:
    chain = pages.chain()
    first = next(chain, None)
    if first is None:
        raise FormatError(f"{source.location} is a TIFF without a page. Write the file again.")
    if first.depth > 1:
        raise _stacked(source.location, PlaneAxes("a TIFF", unnamed=first.depth))
    ome = ome_root(source.location, first) if "<OME" in first.description else None
    if ome is not None:
        return _ome(pages, source, ome, [first, *_until(chain, _MOST_CHANNELS)])
    axes = imagej_axes(first) or tifffile_axes(first) or PlaneAxes("a TIFF")
    most = max(axes.channels, _MOST_COUNTED)
    found = [first, *_until(chain, most)]
    slide = first.description.startswith("Aperio") and first.tiled
    further = [
        page
        for page in found[1:]
        if page.content and not (slide and (not page.tiled or page.shrinks(first)))
    ]
    _refuse_hidden_originals(pages, first, further)
    if not further and axes.planes > 1:
        return _alone(source, first, axes)
    if axes.slices > 1 or axes.times > 1:
        raise _stacked(source.location, axes)
    if axes.channels > 1 and further:
        return Contents(first, _channels(source.location, axes, [first, *further]))
    if further:
        raise _unexplained(source.location, 1 + len(further), most)
    return Contents(
        first, (first,), (SLIDE_NOTE,) if slide and any(not page.tiled for page in found) else ()
    )


def _alone(source: StoredFile, page: Page, axes: PlaneAxes) -> Contents:
    """The only page of a file whose description lists more. Raises `FormatError` if further planes
    follow that page.
    """
    if not page.compressed and page.data_offset + 2 * page.plane_bytes <= source.size():
        raise _several(
            source.location,
            axes.planes,
            f"{source.location} is {axes.writer} of {axes.planes} pictures behind one directory, "
            f"which cannot be told apart. Save it as OME-TIFF. {_CHANNELS_HELP}",
        )
    # Programs that extract a page from a stack often keep the description.
    return Contents(
        page,
        (page,),
        (f"its description speaks of {axes.planes} pictures; the file holds one, which is read",),
    )


def _until(chain: Iterator[Page], most: int) -> Iterator[Page]:
    """The pages up to one more than `most` pictures."""
    pictures = 1
    for page in chain:
        yield page
        pictures += page.content
        if pictures > most:
            return


def _refuse_hidden_originals(pages: Pages, first: Page, further: Sequence[Page]) -> None:
    """Refuse files whose first page is a thumbnail of another picture in them, and pictures in
    sub-directories.
    """
    children = [pages.at(offset) for offset in first.children]
    strangers = [child for child in children if child.content and not child.shrinks(first)]
    if not strangers and (first.content or not further):
        return
    largest = max([*strangers, *further], key=lambda page: math.prod(page.shape))
    raise FormatError(
        f"{pages.location}: the first page has {_size(first)} "
        f"pixels{' and is a reduced picture' if first.reduced else ''}, another picture of "
        f"{_size(largest)} lies in a {'sub-directory' if strangers else 'later page'} (raw files "
        "of cameras are built so). "
        "Convert it to a plain TIFF."
    )


def _channels(location: str, axes: PlaneAxes, pages: Sequence[Page]) -> tuple[Page, ...]:
    if len(pages) != axes.channels:
        raise FormatError(
            f"{location} is {axes.writer} of {axes.channels} channels by its description, but has "
            f"{_number(len(pages), _MOST_CHANNELS)} pages. "
            "It is incomplete, or the description (tag 270) is of another file; write it again."
        )
    for number, page in enumerate(pages, 1):
        if not page.like(pages[0]) or page.samples != 1:
            raise FormatError(
                f"{location}: channel {number} has {_size(page)} pixels, {page.samples} sample(s) "
                f"of {page.bits[0]} bits; expected "
                f"{_size(pages[0])}, one of {pages[0].bits[0]}, as the first. Write channels of "
                "one size and type, or files of their own."
            )
    return tuple(pages)


def _ome(pages: Pages, source: StoredFile, root: Element, found: Sequence[Page]) -> Contents:
    """The channels of an OME-TIFF."""
    location, first = source.location, found[0]
    images = [
        (image.get("Name") or image.get("ID") or "", image.find("{*}Pixels"))
        for image in root.findall("{*}Image")
    ]
    pixels = images[0][1] if images else None
    if pixels is None:
        raise FormatError(
            f"{location} is OME-TIFF, but its metadata are in another file "
            f"({companion_of(root)}). "
            "Save it as one OME-TIFF with its metadata."
        )
    attached = [ATTACHMENTS.fullmatch(name.strip()) is not None for name, _ in images]
    if attached[0] or attached.count(False) > 1:
        named = ", ".join(repr(name) for name, _ in images[:5]) + (
            ", ..." if len(images) > 5 else ""
        )
        raise _several(
            location,
            sum(map(ome_planes, root.iterfind("{*}Image/{*}Pixels"))),
            f"{location} is an OME-TIFF of {len(images)} pictures ({named}), which cannot be told "
            f"apart. {SPLIT_HELP}.",
        )
    channels, slices, times = ome_axes(pixels)
    axes = PlaneAxes("an OME-TIFF", channels, slices, times)
    refuse_other_files(location, root, pixels)
    if axes.planes > first.samples and not any(page.content for page in found[1:]):
        return _alone(source, first, axes)
    if slices > 1 or times > 1:
        raise _stacked(location, axes)
    if channels % first.samples or channels // first.samples > _MOST_CHANNELS:
        raise FormatError(
            f"{location} has {first.samples} samples a pixel, which {channels} channels, as its "
            "OME metadata has it, cannot be made of. "
            "Write the file again."
        )
    numbers = ome_pages(pixels, channels // first.samples)
    beyond = [number for number in numbers if number >= len(found)]
    if beyond:
        raise FormatError(
            f"{location} is an OME-TIFF of {len(numbers)} pages by its metadata, but page "
            f"{beyond[0] + 1} is not in the file. "
            "It is incomplete, or the description (tag 270) is of another file; write it again."
        )
    chosen = [found[number] for number in numbers]
    rest = [page for number, page in enumerate(found) if page.content and number not in numbers]
    _refuse_hidden_originals(pages, chosen[0], [] if any(attached) else rest)
    if rest and not any(attached):
        raise _unexplained(location, len(chosen) + len(rest), _MOST_CHANNELS)
    chosen = (
        list(_channels(location, replace(axes, channels=len(chosen)), chosen))
        if len(chosen) > 1
        else chosen
    )
    return Contents(first, tuple(chosen), (SLIDE_NOTE,) if any(attached) else ())


def _stacked(location: str, axes: PlaneAxes) -> FormatError:
    sizes = (
        ("channels", axes.channels),
        ("slices (z)", axes.slices),
        ("times", axes.times),
        ("pictures", axes.unnamed),
    )
    held = " x ".join(f"{number} {name}" for name, number in sizes if number > 1)
    return _several(
        location,
        axes.planes,
        f"{location} is {axes.writer} of {held}, which its pages do not agree with. "
        f"{SPLIT_HELP}; channels may stay together.",
    )


def _unexplained(location: str, count: int, most: int) -> FormatError:
    return _several(
        location,
        count,
        f"{location} holds {_number(count, most)} pages, and does not say what they are; one file "
        f"is read as one picture. {SPLIT_HELP}. {_CHANNELS_HELP}",
    )


def _several(location: str, planes: int, message: str) -> FormatError:
    """The error for a file of several pictures; a permanent one if it claims too many."""
    if planes > _MOST_PICTURES:
        return FormatError(
            f"{location} claims {planes} pictures; the limit is {_MOST_PICTURES}. Its description "
            "(tag 270) is damaged, or cut it into several files."
        )
    return SeveralPictures(message)


def _number(count: int, most: int) -> str:
    return f"more than {most}" if count > most else str(count)


def _size(page: Page) -> str:
    return f"{page.shape[1]} x {page.shape[0]}"
