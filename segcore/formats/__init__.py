"""One file a format. Importing this package registers all formats.

The format of a file is chosen by its suffix and the signature of its content, by the signature
alone where no format claims the suffix (slides such as .svs are TIFF inside), or named by the user;
never by trying.
"""

from __future__ import annotations

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats import picture
from maskloom.segcore.formats.source import (
    format_by_content,
    require_claim,
    require_kind,
    suffix_of,
)
from maskloom.segcore.formats.tiff import geotiff
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.spec import FORMATS, Format

__all__ = ["format_of", "geotiff", "mask_endings", "mask_format", "picture", "sidecar_endings"]


def format_of(location: str, head: bytes, explicit: str | None = None) -> str:
    """The name of the format of a file whose content begins with `head` (512 bytes of it).

    `explicit` is the format that the user named; then the suffix does not matter. Raises
    `FormatError` where the content is not what the suffix or the named format says, or nothing that
    a format reads.
    """
    if explicit is not None:
        if explicit not in FORMATS:
            raise FormatError(f"There is no format {explicit!r}. Known: {', '.join(FORMATS)}.")
        require_kind(location, head, explicit)
        return explicit
    suffix = suffix_of(location)
    for name, image_format in FORMATS.items():
        if suffix in image_format.suffixes:
            require_claim(location, head)
            return name
    return format_by_content(location, head)


def mask_format(name: str, objects: int) -> Format:
    """The format of the mask of an image of the named format: its own, or TIFF where its own cannot
    number so many objects.
    """
    own = FORMATS[name]
    return own if objects <= own.most_objects else FORMATS["tiff"]


def mask_endings() -> set[str]:
    """What the names of masks of all formats, and of what lies beside them, add to the id of an
    image.
    """
    suffixes = {each.mask_suffix for each in FORMATS.values()}
    return suffixes | {suffix + ending for suffix in suffixes for ending in sidecar_endings()}


def sidecar_endings() -> set[str]:
    """What the names of files beside masks add to the mask's name."""
    return {
        ending for each in FORMATS.values() for ending in each.sidecars(ClassTable.of(("any",)))
    }
