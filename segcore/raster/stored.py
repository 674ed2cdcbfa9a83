"""Where an image is stored, and what the user says about reading it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from maskloom.segcore.ground.space import PixelSize
from maskloom.segcore.raster.dates import DateInName

GroundControl = Literal["keep", "affine"]
"""Ground control points are kept as they are, or replaced by the affine transform that fits them
best.
"""
_NAME = re.compile(r"[\w.-]+", re.ASCII)
_PART = re.compile(rf"#part=({_NAME.pattern})/(\d+)$", re.ASCII)


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The place of one image: a file, a folder, several files, or a part of one of these."""

    location: str
    """URI of the file or folder, or the name of a series."""
    version: str = ""
    """Changes whenever the bytes change."""
    part: str = ""
    """Name of the image among several in the file or folder, such as `t0003`. Empty: it is the only
    one.
    """
    files: tuple[str, ...] = ()
    """URIs of the files of a series."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the user says about how images are read."""

    ground_control: GroundControl = "keep"
    """The use of ground control points in images that have no other position."""
    pixel_size: PixelSize | Literal["tags"] | None = None
    """The size of a pixel, in place of the one that the file states. `tags`: that of the resolution
    tags of TIFF files, which are usually sizes for printing. None: as stated.
    """
    level: int | PixelSize = 0
    """Level of a pyramid: its number, or the coarsest one with pixels no larger than a size."""
    axes: Literal["zyx", "tyx"] | None = None
    """The meaning of the pages of a file that does not name its axes: a volume, or images over
    time. None: unknown.
    """
    nodata: float | None = None
    """A value of pixels that means "no data", besides what the file says. None: no such value."""
    identifiers: bool = False
    """Whether images of patients are named by the identifiers in their files instead of by keyed
    hashes, and keep their dates.
    """
    acquired: DateInName | None = None
    """The date in names of files, in place of the one that files state."""
    assets: tuple[str, ...] = ()
    """Names of the assets of STAC items that are read, in the order of their bands. Empty: those
    that hold the data.
    """
    features: tuple[str, ...] = ()
    """Formulas and names of what segmenters see in place of the bands. Empty: the bands."""
    sensor: str | None = None
    """Name in `segcore.features.sensors` of what took the images. None: unknown."""
    band_names: tuple[str, ...] = ()
    """Names of the bands of the files, in place of those that they state."""
    values: Literal["stored", "physical"] | tuple[float, float] = "stored"
    """Numbers as stored; or times the scale plus the offset of the file's header, or these."""


def uri_of_part(uri: str, part: str, count: int) -> str:
    """The URI of one of `count` images in a file or folder. Raises `ValueError` for a name with
    other characters than letters, digits, `_`, `-` and `.`.

    >>> uri_of_part("scans/a.nii.gz", "t0003", 12)
    'scans/a.nii.gz#part=t0003/12'
    """
    if _NAME.fullmatch(part) is None:
        raise ValueError(f"part: expected letters, digits, '_', '-' and '.'; got {part!r}")
    return f"{uri}#part={part}/{count}"


def split_part(uri: str) -> tuple[str, str, int]:
    """The URI of the file or folder, the name of the part, and the number of parts; without a
    part, an empty name and 1.

    >>> split_part("scans/a.nii.gz#part=t0003/12"), split_part("scans/b#1.png")
    (('scans/a.nii.gz', 't0003', 12), ('scans/b#1.png', '', 1))
    """
    if "#part=" not in uri:
        return uri, "", 1
    found = _PART.search(uri)
    return (uri[: found.start()], found[1], int(found[2])) if found else (uri, "", 1)
