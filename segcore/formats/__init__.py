"""Readers of image formats, one file each. Importing this package fills `FORMATS`.

The format of a file is chosen by its suffix and the signature of its content, by the signature
alone where no format claims the suffix (slides with the suffix .svs are TIFF inside), or named by
the user; never by trying.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.content import claimed_format, format_by_content, require_kind
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.raster.spec import FORMATS
from maskloom.segcore.registry import import_modules

if TYPE_CHECKING:
    from maskloom.segcore.raster.spec import RasterSpec, Reader

import_modules(__name__)

__all__ = ["describe", "format_of", "open_image", "suffixes"]


def suffixes(name: str) -> tuple[str, ...]:
    """The suffixes that a format claims, in lower case, each with its dot."""
    return tuple(suffix for kind in FORMATS[name].kinds for suffix in kind.suffixes)


def format_of(location: str, head: bytes, explicit: str | None = None) -> str:
    """The name of the format of a file whose content begins with `head` (512 bytes of it).

    `explicit` is the format that the user named; then the suffix does not matter. Raises
    `FormatError` where the content is not what the suffix or the named format says, or nothing that
    a format reads.
    """
    if explicit is None:
        return claimed_format(location, head) or format_by_content(location, head)
    if explicit not in FORMATS:
        raise FormatError(f"There is no format {explicit!r}. Known: {', '.join(FORMATS)}.")
    require_kind(location, head, explicit)
    return explicit


def describe(location: str, version: str = "", explicit: str | None = None) -> RasterSpec:
    """The header of the image at a location, whichever its format; `explicit` as in `format_of`.

    Raises `FormatError`, and `Unavailable` where the store fails.
    """
    name = format_of(location, StoredFile.of(location).head(), explicit)
    return FORMATS[name].describe(location, version)


def open_image(spec: RasterSpec) -> Reader:
    """Open an image that was described; use as a context manager. Raises `ReadError`."""
    return FORMATS[spec.format].open(spec)
