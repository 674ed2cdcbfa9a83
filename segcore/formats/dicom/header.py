"""The header of a DICOM file: the elements that are used, and where the pixels begin.

Values are read by the functions here, never quoted: only tags and numbers of geometry appear in
messages.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import IO, Any, Literal

from maskloom.segcore.errors import FormatError, MaskloomError
from maskloom.segcore.formats.dicom.files import may_be_dicom, transfer_syntax
from maskloom.segcore.formats.source import MAX_PICTURE_PIXELS
from maskloom.segcore.processes.quiet_pydicom import pydicom

_MOSAIC = ((0x0029, 0x0010), (0x0029, 0x1010))
"""Creator and content of Siemens' private header with the number of tiles."""
_GROUPING = (
    "SOPClassUID SOPInstanceUID SeriesInstanceUID FrameOfReferenceUID ImageType PatientName "
    "PatientID ImageOrientationPatient ImagePositionPatient Rows Columns SamplesPerPixel "
    "NumberOfFrames SpecificCharacterSet"
)
_READING = (
    "Modality AcquisitionNumber InstanceNumber TemporalPositionIdentifier EchoNumbers ContentTime "
    "TriggerTime DiffusionBValue PixelSpacing ImagerPixelSpacing NominalScannedPixelSpacing "
    "PixelSpacingCalibrationType EstimatedRadiographicMagnificationFactor SpacingBetweenSlices "
    "PhotometricInterpretation PlanarConfiguration BitsAllocated BitsStored HighBit "
    "PixelRepresentation RescaleSlope RescaleIntercept ModalityLUTSequence PixelPaddingValue "
    "PixelPaddingRangeLimit RedPaletteColorLookupTableDescriptor "
    "GreenPaletteColorLookupTableDescriptor BluePaletteColorLookupTableDescriptor "
    "RedPaletteColorLookupTableData GreenPaletteColorLookupTableData "
    "BluePaletteColorLookupTableData SegmentedRedPaletteColorLookupTableData "
    "SegmentedGreenPaletteColorLookupTableData SegmentedBluePaletteColorLookupTableData "
    "BurnedInAnnotation SequenceOfUltrasoundRegions SharedFunctionalGroupsSequence "
    "PerFrameFunctionalGroupsSequence GridFrameOffsetVector DoseGridScaling ExtendedOffsetTable "
    "ExtendedOffsetTableLengths AcquisitionDateTime AcquisitionDate AcquisitionTime ContentDate "
    "SeriesDate SeriesTime StudyDate StudyTime TimezoneOffsetFromUTC"
)
_PIXELS = {
    0x7FE00008: "FloatPixelData",
    0x7FE00009: "DoubleFloatPixelData",
    0x7FE00010: "PixelData",
}
_OF_PIXELS = (b"OB", b"OD", b"OF", b"OW", b"UN")
"""Value representations of pixels."""
_UNDEFINED = 0xFFFFFFFF
_IMPLICIT = "1.2.840.10008.1.2"
_EXPLICIT = "1.2.840.10008.1.2.1"
_BIG_ENDIAN = "1.2.840.10008.1.2.2"


@dataclass(frozen=True, slots=True)
class Pixels:
    """Where the pixels of a file are."""

    keyword: str
    """PixelData, FloatPixelData or DoubleFloatPixelData."""
    vr: str
    offset: int
    """Bytes before the value."""
    length: int | None
    """Bytes. None: encapsulated."""


@dataclass(frozen=True, slots=True)
class Header:
    """The elements of a file."""

    elements: Any
    """A pydicom data set."""
    syntax: str
    """UID of the transfer syntax."""
    pixels: Pixels | None
    """None: it has none."""

    @property
    def sop_class(self) -> str:
        """UID of the kind of object, from the data set or the file meta information."""
        meta = getattr(self.elements, "file_meta", None)
        return text(self.elements, "SOPClassUID") or text(meta, "MediaStorageSOPClassUID")

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns; 0 where the file does not say."""
        return number(self.elements, "Rows"), number(self.elements, "Columns")

    @property
    def samples(self) -> int:
        """Numbers of each pixel."""
        return number(self.elements, "SamplesPerPixel") or 1

    @property
    def frames(self) -> int:
        """Number of frames."""
        return max(1, number(self.elements, "NumberOfFrames"))

    @property
    def image_type(self) -> tuple[str, ...]:
        """The values of ImageType."""
        return tuple(text(self.elements, "ImageType").upper().split("\\"))

    @property
    def photometric(self) -> str:
        """The colour system."""
        return text(self.elements, "PhotometricInterpretation").upper() or "MONOCHROME2"


def read_header(stream: IO[bytes], what: str, *, for_grouping: bool = False) -> Header:
    """The header of a DICOM file; `what` names the file in messages.

    Raises `FormatError` if it is no DICOM file or is damaged.
    """
    library = pydicom()
    head = stream.read(2**12)
    stream.seek(0)
    if not may_be_dicom(head):
        raise FormatError(
            f"{what} is no DICOM file: it has neither the mark DICM nor elements of DICOM. Leave "
            "it out of `inputs`."
        )
    try:
        found = library.dcmread(
            stream, stop_before_pixels=True, force=True, specific_tags=_tags(for_grouping)
        )
        implicit, little = found.original_encoding
        syntax = transfer_syntax(head)[0] or text(found.file_meta, "TransferSyntaxUID")
        if not syntax:
            syntax = _IMPLICIT if implicit else _EXPLICIT if little else _BIG_ENDIAN
        pixels = _pixels(stream, "little" if little else "big")
    except MaskloomError:
        raise
    except Exception as error:  # noqa: BLE001
        # pydicom raises whatever hostile bytes lead to, and its messages quote values.
        raise FormatError(
            f"The header of {what} cannot be read as DICOM ({type(error).__name__}): the file is "
            "damaged or cut off. Send it again from the archive (PACS)."
        ) from None
    return Header(found, syntax, pixels)


@cache
def _tags(for_grouping: bool) -> list[Any]:
    keywords = _GROUPING if for_grouping else f"{_GROUPING} {_READING}"
    return [*keywords.split(), *_MOSAIC]


def _pixels(stream: IO[bytes], order: Literal["little", "big"]) -> Pixels | None:
    """The element at which the reading of the header stopped."""
    start = stream.read(12)
    if len(start) < 8:
        return None
    group, element = (int.from_bytes(start[i : i + 2], order) for i in (0, 2))
    keyword = _PIXELS.get(group << 16 | element)
    if keyword is None:
        return None
    # Some files state a transfer syntax with value representations, and have none.
    implicit = start[4:6] not in _OF_PIXELS
    begin = stream.tell() - len(start) + (8 if implicit else 12)
    length = int.from_bytes(start[4:8] if implicit else start[8:12], order)
    vr = "OW" if implicit else start[4:6].decode("ascii", "replace")
    return Pixels(keyword, vr, begin, None if length == _UNDEFINED else length)


def check_image(header: Header, what: str) -> None:
    """Raise `FormatError` unless the file holds an image of a size that can be read."""
    rows, columns = header.shape
    if header.pixels is None:
        if announces_image(header):
            raise FormatError(
                f"{what} ends before its pixels. Send it again from the archive (PACS)."
            )
        raise FormatError(
            f"{what} holds no image: it is {kind_without_image(header)}. Leave it out of `inputs`."
        )
    if not rows or not columns:
        raise FormatError(f"{what} does not say how many rows and columns its image has.")
    if rows * columns > MAX_PICTURE_PIXELS:
        raise FormatError(
            f"{what} announces {rows} x {columns} pixels a slice; at most {MAX_PICTURE_PIXELS} are "
            "read."
        )


_KINDS = {
    "1.2.840.10008.1.3.10": "a directory of DICOM files (DICOMDIR)",
    "1.2.840.10008.5.1.4.1.1.88.59": "a selection of images (key objects)",
    "1.2.840.10008.5.1.4.1.1.88.": "a report (SR)",
    "1.2.840.10008.5.1.4.1.1.104.": "a document (PDF or the like)",
    "1.2.840.10008.5.1.4.1.1.11.": "a presentation state",
    "1.2.840.10008.5.1.4.1.1.9.": "a waveform (ECG or the like)",
    "1.2.840.10008.5.1.4.1.1.481.3": "contours (RT structure set)",
    "1.2.840.10008.5.1.4.1.1.481.": "a plan or record of radiotherapy",
    "1.2.840.10008.5.1.4.1.1.66": "registration, segments or raw data",
    "1.2.840.10008.5.1.4.1.1.4.2": "spectra",
}
"""What objects without pixels are, by the beginning of their SOP class; the first match counts."""
_IMAGES = tuple(
    f"1.2.840.10008.5.1.4.1.1.{kind}."
    for kind in (
        *("1", "2", "3", "4", "6", "7", "12", "13", "20", "30", "77", "128", "130"),
        *("481.1", "481.2"),
    )
)
"""Begins of the SOP classes of images; each is followed by a dot here."""


def announces_image(header: Header) -> bool:
    """Whether a file should hold an image, by its size or its SOP class."""
    uid = f"{header.sop_class}."
    without = uid.startswith(tuple(_KINDS))
    return all(header.shape) or (uid.startswith(_IMAGES) and not without)


def kind_without_image(header: Header) -> str:
    """What a file without pixels is."""
    uid = header.sop_class
    return next(
        (kind for begin, kind in _KINDS.items() if uid.startswith(begin)), "DICOM without pixels"
    )


# ---- values of elements
# --------------------------------------------------------------------------------------------------


def text(elements: Any, keyword: str) -> str:
    """The value as text, several joined by a backslash; empty if absent or unreadable."""
    try:
        value = elements.get(keyword)
        if value is None:
            return ""
        if isinstance(value, bytes):
            return value.decode("latin-1").strip("\0 ")
        several = not isinstance(value, str) and isinstance(value, Sequence)
        return "\\".join(map(str, value)) if several else str(value).strip("\0 ")
    except Exception:  # noqa: BLE001  whatever a broken value leads to, it is as good as absent
        return ""


def numbers(elements: Any, keyword: str) -> tuple[float, ...]:
    """The finite numbers of an element; empty if absent, or if one of them is no number."""
    try:
        found = tuple(float(part) for part in text(elements, keyword).split("\\"))
    except ValueError:
        return ()
    return found if all(map(math.isfinite, found)) else ()


def number(elements: Any, keyword: str) -> int:
    """A whole number; 0 if absent or unreadable."""
    found = numbers(elements, keyword)
    return int(found[0]) if found and abs(found[0]) < 2**53 else 0


def items(elements: Any, keyword: str) -> Sequence[Any]:
    """The items of a sequence; empty if absent or unreadable."""
    try:
        value = elements.get(keyword)
        return list(value) if value is not None else []
    except Exception:  # noqa: BLE001  as in `text`
        return []
