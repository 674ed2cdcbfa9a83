"""Which files belong together: by series, then by what all slices of a stack share.

A series may hold several stacks, localizers and single pictures. Workers make a small key for each
file (`key_of`); the driver puts files with equal keys together (`groups`). Keys hold hashes, and
nothing that tells who the patient is.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.formats.dicom.header import Header, numbers, text
from maskloom.segcore.formats.dicom.pseudonyms import appears_in, pseudonym
from maskloom.segcore.raster.places import Place
from maskloom.segcore.raster.stored import split_part

if TYPE_CHECKING:
    from maskloom.segcore.raster.source import Member

SAME_DIRECTION = 1e-3
"""Largest difference of the cosines of two slices of a stack."""
_COSINES = 6
_DIGITS = 5
_NAME = re.compile(r"(?:^|/)(?:series-[0-9a-f]{12}|[0-9.]+)-[0-9a-f]{4}$")
"""Names of series: see `Key.name`."""


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """What the files of one image share."""

    series: str
    """Pseudonym of the series, or its UID where the user wants that."""
    kind: str
    """Size, frame of reference and the like; unique for a file that is one image."""
    orientation: tuple[float, ...] = ()
    """The six cosines of rows and columns; of a group, the least of its files."""

    @property
    def name(self) -> str:
        """Name of the image: that of the series, and four digits that tell its images apart."""
        # Each image has them, so that a name does not depend on which other files are present.
        rounded = [round(cosine, 3) + 0.0 for cosine in self.orientation]
        return f"{self.series}-{pseudonym(f'{self.kind} {rounded}', 4)}"


def is_series(uri: str) -> bool:
    """Whether a URI names images that `groups` made from files.

    >>> is_series("ct/series-0123456789ab-0123#part=t0001/2"), is_series("ct/series.nii")
    (True, False)
    """
    return _NAME.search(split_part(uri)[0]) is not None


@dataclass(frozen=True, slots=True)
class FileHeader:
    """What is stored about a file, or about an archive of files."""

    keys: tuple[Key, ...] = ()
    """Of the images in it."""
    without_image: str = ""
    """What it is, if it holds no image."""
    damaged: bool = False
    """It is DICOM, and cannot be read."""
    named: bool = False
    """Its path holds the name or the number of the patient."""

    def __str__(self) -> str:
        return json.dumps({name: value for name, value in asdict(self).items() if value})

    @classmethod
    def of(cls, text: str) -> FileHeader:
        """The header from its text."""
        found = json.loads(text)
        keys = tuple(
            Key(each["series"], each["kind"], tuple(each["orientation"]))
            for each in found.pop("keys", ())
        )
        return cls(keys, **found)


def key_of(header: Header, place: Place, identifiers: bool) -> Key:
    """The key of a file with an image. `identifiers`: with the UID itself.

    Some programs that remove names remove the UIDs too: then a folder is a series.
    """
    elements = header.elements
    uid, instance = (text(elements, f"{each}InstanceUID") for each in ("Series", "SOP"))
    folder = place.uri if place.entry >= 0 else place.uri.rpartition("/")[0]
    series = uid if identifiers and uid else f"series-{pseudonym(uid or folder)}"
    orientation = numbers(elements, "ImageOrientationPatient")
    mosaic = "MOSAIC" in header.image_type
    if header.frames > 1 or not is_placed(header):
        return Key(series, f"alone {pseudonym(instance or str(place))}")
    frame = text(elements, "FrameOfReferenceUID")
    kind = [
        *map(str, (*header.shape, header.samples)),
        "localizer" if "LOCALIZER" in header.image_type else "mosaic" if mosaic else "slice",
        pseudonym(frame, 8) if frame else "",
    ]
    return Key(series, " ".join(kind), tuple(round(cosine, _DIGITS) for cosine in orientation))


def is_placed(header: Header) -> bool:
    """Whether the file states the position and orientation of a slice."""
    return (
        len(numbers(header.elements, "ImageOrientationPatient")) == _COSINES
        and len(numbers(header.elements, "ImagePositionPatient")) == 3
    )


def path_names_patient(path: str, header: Header) -> bool:
    """Whether the path of a file holds the name or the number of its patient."""
    return appears_in(path, *(text(header.elements, f"Patient{each}") for each in ("Name", "ID")))


def classes(keys: Iterable[Key]) -> dict[Key, Key]:
    """The key of the group of each key: orientations within `SAME_DIRECTION` are one."""
    found: dict[Key, Key] = {}
    of_kind: dict[tuple[str, str], list[Key]] = defaultdict(list)
    for key in sorted(set(keys)):
        known = of_kind[key.series, key.kind]
        near = next((each for each in known if _same_direction(key, each)), key)
        if near is key:
            known.append(key)
        found[key] = near
    return found


def _same_direction(a: Key, b: Key) -> bool:
    return len(a.orientation) == len(b.orientation) and bool(
        np.all(np.abs(np.subtract(a.orientation, b.orientation)) <= SAME_DIRECTION)
    )


def groups(files: Sequence[Member], headers: Sequence[FileHeader]) -> dict[str, tuple[Member, ...]]:
    """The files of each image, by its URI: its name below the common folder of its files."""
    of_key = classes(key for header in headers for key in header.keys)
    members: dict[Key, dict[str, Member]] = defaultdict(dict)
    for file, header in zip(files, headers, strict=True):
        for key in header.keys:
            members[of_key[key]][file.uri] = file
    return {
        f"{_common_folder(list(found))}/{key.name}": tuple(found.values())
        for key, found in members.items()
    }


def _common_folder(uris: Sequence[str]) -> str:
    """The deepest folder around these files; an archive is the folder of what it holds."""
    if len(uris) == 1 and uris[0].lower().endswith(".zip"):
        return uris[0]
    common = uris[0].split("/")[:-1]
    for uri in uris:
        parts = uri.split("/")[:-1]
        same = [a == b for a, b in zip(common, parts, strict=False)]
        common = common[: [*same, False].index(False)]
    return "/".join(common)
