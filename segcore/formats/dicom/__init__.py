"""DICOM: scans as volumes, pictures, and pictures over time.

Files that belong together are found by their headers (`grouping`), slices are sorted by their
positions (`series`, `geometry`), and boxes are read slice by slice (`reader`). Images are named by
pseudonyms; no name, number or date of a patient leaves the files.

DICOM PS3.3 (objects), PS3.5 (encoding), PS3.6 (elements); https://www.dicomstandard.org/current.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from maskloom.segcore.errors import FormatError, ImageError, MaskloomError, StoreError, Unavailable
from maskloom.segcore.formats.dicom.files import ARCHIVE, dicom_entries, may_be_dicom, opened
from maskloom.segcore.formats.dicom.grouping import (
    FileHeader,
    Key,
    groups,
    key_of,
    path_names_patient,
)
from maskloom.segcore.formats.dicom.header import (
    announces_image,
    check_image,
    kind_without_image,
    read_header,
)
from maskloom.segcore.formats.dicom.pseudonyms import key_version
from maskloom.segcore.formats.dicom.reader import DicomReader
from maskloom.segcore.formats.dicom.series import images_of
from maskloom.segcore.formats.source import StoredFile
from maskloom.segcore.processes.quiet_pydicom import pydicom
from maskloom.segcore.raster.places import Place
from maskloom.segcore.raster.source import Grouping, Series
from maskloom.segcore.raster.spec import FORMATS, FileKind
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

if TYPE_CHECKING:
    from maskloom.segcore.raster.source import Member
    from maskloom.segcore.raster.spec import RasterSpec, Reader

log = logging.getLogger(__name__)

_LAYOUT = 1
"""Version of the texts that `headers` makes."""
_FIRST_ELEMENTS = (
    *(bytes([8, 0, element, 0]) for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16)),
    *(bytes([0, 8, 0, element]) for element in (0x00, 0x01, 0x05, 0x08, 0x12, 0x16)),
    *(bytes([2, 0, element, 0]) for element in (0x00, 0x01, 0x02, 0x10)),
)
"""Of files without the preamble."""


@dataclass(frozen=True, slots=True)
class Dicom:
    """DICOM files, series of them, and ZIP archives of them (extra `medical`)."""

    kinds: tuple[FileKind, ...] = (
        FileKind(
            "DICOM",
            (".dcm", ".dicom", ".ima"),
            ((128, b"DICM"), *((0, each) for each in _FIRST_ELEMENTS)),
            sniffed=True,
        ),
        FileKind("ZIP", (".zip",)),
    )
    mask: str = "nifti"
    other_masks: tuple[str, ...] = ("seg", "seg_binary")

    def headers_version(self, options: ReadOptions) -> str:
        """See `SeriesFormat.headers_version`."""
        readable = "" if find_spec("pydicom") else "-without-pydicom"
        return f"{_LAYOUT}-{'uid' if options.identifiers else key_version()}{readable}"

    def headers(self, files: Sequence[Member], options: ReadOptions) -> Sequence[str]:
        """See `SeriesFormat.headers`."""
        return [_header_of(file.uri, options) for file in files]

    def group(
        self, files: Sequence[Member], headers: Sequence[str], options: ReadOptions
    ) -> Grouping:
        """See `SeriesFormat.group`."""
        known = [
            (file, FileHeader.of(header))
            for file, header in zip(files, headers, strict=True)
            if header
        ]
        if any(header.named for _, header in known):
            log.warning(
                "Paths of %d DICOM files hold the name or the number of their patient. Tables, "
                "plans and messages repeat paths as you give them: rename the folders or files "
                "before you pass results on.",
                sum(header.named for _, header in known),
            )
        found = groups([file for file, _ in known], [header for _, header in known])
        ending = ".dcm" if options.identifiers else ""  # the dots of a UID begin no suffix
        return Grouping(
            [
                *(Series(uri + ending, members) for uri, members in found.items()),
                *(Series(file.uri, (file,)) for file, header in known if header.damaged),
            ],
            {file.uri: header.without_image for file, header in known if header.without_image},
        )

    def describe(self, location: str, version: str) -> RasterSpec:
        """See `Format.describe`. Raises `FormatError` for files with several images."""
        return self.describe_image(StoredImage(location, version), ReadOptions())

    def parts(self, image: StoredImage, options: ReadOptions) -> Sequence[str]:
        """See `OptionsFormat.parts`: times `t0001` ..., and stacks `s1` ..."""
        pydicom()
        names = tuple(images_of(image, options))
        return () if names == ("",) else names

    def describe_image(self, image: StoredImage, options: ReadOptions) -> RasterSpec:
        """See `OptionsFormat.describe_image`."""
        pydicom()
        found = images_of(image, options)
        if image.part not in found:
            raise FormatError(
                f"{image.location} holds {len(found)} images ({', '.join(list(found)[:3])} ...); "
                f"expected {image.part or 'one'}."
            )
        spec = found[image.part]
        if isinstance(spec, MaskloomError):
            raise spec
        return replace(spec, part=image.part)

    def open(self, spec: RasterSpec) -> Reader:
        """See `Format.open`."""
        pydicom()
        return DicomReader(spec)


FORMATS.register("dicom")(Dicom())


def _header_of(uri: str, options: ReadOptions) -> str:
    """The header of a file or an archive; empty if its store fails."""
    certain = False
    try:
        head = StoredFile.of(uri).head()
        archive = head.startswith(ARCHIVE)
        certain = archive or head[128:132] == b"DICM"
        if archive:
            return _header_of_archive(uri, options)
        return _header_of_file(uri, options) if may_be_dicom(head) else str(FileHeader())
    except (Unavailable, StoreError):
        return ""
    except (ImageError, OSError):
        return str(FileHeader(damaged=certain))


def _header_of_file(uri: str, options: ReadOptions) -> str:
    """The image in a file. Raises `FormatError` if it cannot be read."""
    with opened(uri) as stream:
        header = read_header(stream, uri, for_grouping=True)
    if header.pixels is None and not announces_image(header):
        # Any bytes may look like an element.
        kind = kind_without_image(header) if header.sop_class else ""
        return str(FileHeader(without_image=kind))
    check_image(header, uri)
    named = path_names_patient(uri, header)
    key = key_of(header, Place(uri), options.identifiers)
    return str(FileHeader((key,), named=named))


def _header_of_archive(uri: str, options: ReadOptions) -> str:
    """The images in an archive. Raises `FormatError` if it cannot be read."""
    keys: dict[Key, None] = {}
    damaged = False
    for entry, stream in dicom_entries(uri):
        try:
            header = read_header(stream, f"a file in {uri}", for_grouping=True)
        except FormatError:
            damaged = True
            continue
        damaged |= header.pixels is None and announces_image(header)
        if header.pixels is not None:
            keys[key_of(header, Place(uri, entry), options.identifiers)] = None
    if not keys and not damaged:
        return str(FileHeader(without_image="ZIP without DICOM images"))
    return str(FileHeader(tuple(keys), damaged=damaged))
