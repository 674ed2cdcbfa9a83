"""What descriptions of TIFF files say of their planes: OME-XML, ImageJ and the JSON of tifffile."""

from __future__ import annotations

import itertools
import json
import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.tiff.pages import Page

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

    from maskloom.segcore.geometry import Shape


@dataclass(frozen=True, slots=True)
class PlaneAxes:
    """The planes of a file according to its description."""

    writer: str
    """The program, or format, in words."""
    channels: int = 1
    slices: int = 1
    times: int = 1
    unnamed: int = 1
    """Planes that the description does not explain."""

    @property
    def planes(self) -> int:
        """Number of planes."""
        return self.channels * self.slices * self.times * self.unnamed


def imagej_axes(page: Page) -> PlaneAxes | None:
    """The planes according to the description by ImageJ; None without one."""
    if not page.description.startswith("ImageJ="):
        return None
    found = dict(
        re.findall(
            r"^(images|channels|slices|frames)=(\d{1,9})\s*$", page.description, re.MULTILINE
        )
    )
    sizes = {name: max(1, int(value)) for name, value in found.items()}
    named = math.prod(sizes.get(name, 1) for name in ("channels", "slices", "frames"))
    unnamed = -(-sizes.get("images", 1) // named)
    return PlaneAxes(
        "an ImageJ stack",
        sizes.get("channels", 1),
        sizes.get("slices", 1),
        sizes.get("frames", 1),
        unnamed,
    )


def tifffile_axes(page: Page) -> PlaneAxes | None:
    """The planes according to the JSON of tifffile; None if it is absent or describes another
    picture.
    """
    if not page.description.startswith('{"'):
        return None
    try:
        record = json.loads(page.description)
        shape, axes = [int(n) for n in record["shape"]], str(record.get("axes", ""))
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    # The samples of a pixel are the last axis, or the first if stored in planes.
    if list(page.shape) not in (shape[-2:], shape[-3:-1]) or min(shape) < 1:
        return None
    planes = max(1, math.prod(shape) // (math.prod(page.shape) * page.samples))
    sizes = dict(zip(axes, shape, strict=True)) if len(axes) == len(shape) else {}
    channels, slices, times = (sizes.get(name, 1) for name in "CZT")
    # The samples of one page may also be called C.
    channels = channels if planes % channels == 0 else 1
    return PlaneAxes(
        "a stack of tifffile",
        channels,
        slices,
        times,
        max(1, planes // (channels * slices * times)),
    )


def ome_root(location: str, page: Page) -> Element | None:
    """The OME metadata of a page; None if it describes a picture of another size."""
    from xml.etree.ElementTree import ParseError, fromstring

    text = page.description
    # Without a document type there are no entities, so nothing expands or refers to other files.
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise FormatError(
            f"{location}: its OME metadata declares a document type, which OME never does. Write "
            "the file again."
        )
    try:
        root = fromstring(text.encode("utf-8", "replace"))  # noqa: S314
    except (ParseError, LookupError, ValueError) as error:
        raise FormatError(
            f"{location}: its OME metadata cannot be read: {error}. Write the file again."
        ) from error
    pixels = root.find("{*}Image/{*}Pixels")
    shape = (
        None if pixels is None else (_whole(pixels.get("SizeY"), 0), _whole(pixels.get("SizeX"), 0))
    )
    return root if shape in (None, page.shape) else None


def companion_of(root: Element) -> str:
    """The file that has the metadata in place of this one, in words."""
    binary = root.find("{*}BinaryOnly")
    return (binary.get("MetadataFile") if binary is not None else None) or "not named"


def refuse_other_files(location: str, root: Element, pixels: Element) -> None:
    """Raise `FormatError` if some planes are in other files."""
    own = (root.get("UUID") or "").strip()
    for uuid in pixels.iterfind("{*}TiffData/{*}UUID"):
        if (uuid.text or "").strip() != own:
            raise FormatError(
                f"{location} is one of several files of an OME-TIFF; a part is in "
                f"{uuid.get('FileName') or uuid.text}. "
                "Save the channels in one file."
            )


def ome_pages(pixels: Element, count: int) -> list[int]:
    """The page number of each of `count` channels, of one slice and one time."""
    where: dict[int, int] = {}
    following = 0
    for data in itertools.islice(pixels.iterfind("{*}TiffData"), count):
        start, channel = _whole(data.get("IFD"), following), _whole(data.get("FirstC"), 0)
        # Without a number of planes: one if the position is given, otherwise all.
        planes = _whole(data.get("PlaneCount"), 1 if data.get("IFD") is not None else count)
        where.update(
            (channel + i, start + i)
            for i in range(min(planes, count - channel))
            if channel + i not in where
        )
        following = start + planes
    return [where.get(channel, channel) for channel in range(count)]


def ome_pixels(description: str, shape: Shape | None = None) -> list[Element]:
    """The elements Pixels of OME metadata, one for each picture; none of other texts, or if the
    first has another `shape` (y, x).
    """
    from xml.etree.ElementTree import ParseError, fromstring

    if "<OME" not in description or "<!DOCTYPE" in description or "<!ENTITY" in description:
        return []
    try:
        # Without a document type there are no entities, so nothing expands.
        root = fromstring(description.encode("utf-8", "replace"))  # noqa: S314
    except (ParseError, LookupError, ValueError):
        return []
    found = root.findall("{*}Image/{*}Pixels")
    sizes = [(_whole(each.get("SizeY"), 0), _whole(each.get("SizeX"), 0)) for each in found[:1]]
    return found if shape is None or sizes == [shape] else []


def ome_axes(pixels: Element) -> tuple[int, int, int]:
    """Channels, slices and times."""
    channels, slices, times = (max(1, _whole(pixels.get(f"Size{axis}"), 1)) for axis in "CZT")
    return channels, slices, times


def ome_planes(pixels: Element) -> int:
    """Number of planes of a picture."""
    return math.prod(ome_axes(pixels))


def _whole(text: Any, default: int) -> int:
    return (
        int(text) if isinstance(text, str) and re.fullmatch(r"\d{1,9}", text.strip()) else default
    )
