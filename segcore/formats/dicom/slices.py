"""The slices in DICOM files: one of each plain file, many of enhanced objects and mosaics."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import IO, Any

import numpy as np

from maskloom.segcore.errors import FormatError
from maskloom.segcore.formats.dicom.geometry import Directions
from maskloom.segcore.formats.dicom.grouping import is_placed
from maskloom.segcore.formats.dicom.header import Header, items, number, numbers, text
from maskloom.segcore.formats.dicom.mosaic import mosaic_of
from maskloom.segcore.formats.dicom.pseudonyms import pseudonym
from maskloom.segcore.formats.dicom.spacing import InPlane, in_plane, pair
from maskloom.segcore.formats.dicom.values import Scale, scale_of
from maskloom.segcore.raster.places import Place

_ORDER = (
    "AcquisitionNumber TemporalPositionIdentifier EchoNumbers ContentTime TriggerTime "
    "DiffusionBValue InstanceNumber"
)
"""What tells the slices at one place apart, the first difference counts."""
_TILED = "1.2.840.10008.5.1.4.1.1.77.1.6"
"""SOP class of microscope slides, whose frames are tiles."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice, or one picture without a position."""

    place: Place
    shape: tuple[int, int]
    scale: Scale
    spacing: InPlane | None
    position: tuple[float, ...] = ()
    """Of its first pixel in mm; empty if unknown."""
    orientation: tuple[float, ...] = ()
    stack: str = ""
    """Name of the stack among several in the file: free text, never shown."""
    order: tuple[float, ...] = ()
    """The order among slices at one place."""
    instance: str = ""
    """Equal for copies."""


def slices_of(header: Header, place: Place) -> list[Slice]:
    """The slices of a file in the order of its frames. Raises `FormatError`."""
    elements = header.elements
    if header.sop_class == _TILED:
        raise FormatError(
            "it is a microscope slide in DICOM, cut into tiles, which this format does not read. "
            "Convert it to a slide format or OME-TIFF."
        )
    size, _ = in_plane(header)
    scale = scale_of(elements)
    instance = text(elements, "SOPInstanceUID")
    order = tuple((numbers(elements, keyword) or (0.0,))[0] for keyword in _ORDER.split())
    orientation = numbers(elements, "ImageOrientationPatient")
    position = numbers(elements, "ImagePositionPatient")
    plain = Slice(place, header.shape, scale, size, order=order, instance=pseudonym(instance, 32))
    if not instance:
        plain = replace(plain, instance=str(place))
    if items(elements, "PerFrameFunctionalGroupsSequence"):
        return list(_enhanced(header, plain))
    offsets = numbers(elements, "GridFrameOffsetVector")
    if header.frames > 1:
        if is_placed(header) and len(offsets) == header.frames:
            return list(_dose(plain, offsets, position, orientation))
        return [
            replace(plain, place=replace(place, frame=i), instance=f"{plain.instance} {i}")
            for i in range(header.frames)
        ]
    if not is_placed(header):
        return [plain]
    placed = replace(plain, position=position, orientation=orientation)
    if "MOSAIC" in header.image_type:
        return list(_tiles(header, placed))
    return [placed]


def _tiles(header: Header, picture: Slice) -> Iterator[Slice]:
    if picture.spacing is None:
        raise FormatError("it is a mosaic without PixelSpacing, so its slices have no place.")
    mosaic = mosaic_of(header, Directions.of(picture.orientation), picture.spacing)
    rows, columns = (each // mosaic.side for each in picture.shape)
    for i, position in enumerate(mosaic.positions):
        yield replace(
            picture,
            place=replace(picture.place, tile=i),
            shape=(rows, columns),
            position=tuple(map(float, position)),
            instance=f"{picture.instance} {i}",
        )


def _dose(
    plain: Slice,
    offsets: Sequence[float],
    position: Sequence[float],
    orientation: tuple[float, ...],
) -> Iterator[Slice]:
    """The planes of a dose of radiotherapy (PS3.3 C.8.8.3.2)."""
    normal = Directions.of(orientation).normal
    # The first offset is 0 for relative ones, else a coordinate along the normal.
    for i, offset in enumerate(np.subtract(offsets, offsets[0])):
        yield replace(
            plain,
            place=replace(plain.place, frame=i),
            position=tuple(map(float, np.asarray(position) + offset * normal)),
            orientation=orientation,
            instance=f"{plain.instance} {i}",
        )


def _enhanced(header: Header, plain: Slice) -> Iterator[Slice]:
    """The frames of an enhanced object (PS3.3 C.7.6.16): what a frame does not state, all share."""
    elements = header.elements
    shared = next(iter(items(elements, "SharedFunctionalGroupsSequence")), None)
    frames = items(elements, "PerFrameFunctionalGroupsSequence")
    if len(frames) < header.frames:
        raise FormatError(
            f"it announces {header.frames} frames and describes {len(frames)}. Send it again from "
            "the archive (PACS)."
        )
    for i, frame in enumerate(frames[: header.frames]):

        def group(keyword: str, frame: Any = frame) -> Any:
            return next(
                (found[0] for each in (frame, shared) if (found := items(each, keyword))), None
            )

        content = group("FrameContentSequence")
        indices = numbers(content, "DimensionIndexValues")
        yield replace(
            plain,
            place=replace(plain.place, frame=i),
            scale=scale_of(group("PixelValueTransformationSequence"), otherwise=plain.scale),
            spacing=pair(group("PixelMeasuresSequence"), "PixelSpacing") or plain.spacing,
            position=numbers(group("PlanePositionSequence"), "ImagePositionPatient"),
            orientation=numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient"),
            stack=text(content, "StackID"),
            order=(float(number(content, "TemporalPositionIndex")), *indices, float(i)),
            instance=f"{plain.instance} {i}",
        )


def without_copies(slices: Sequence[Slice]) -> list[Slice]:
    """The slices without those that are stored twice."""
    return list({each.instance: each for each in reversed(slices)}.values())[::-1]


def digest_of_pixels(stream: IO[bytes], header: Header) -> str:
    """Equal for files with the same stored pixels."""
    assert header.pixels is not None
    stream.seek(header.pixels.offset)
    length = header.pixels.length
    hashed = hashlib.sha256()
    left = length if length is not None else 2**62
    while left > 0 and (part := stream.read(min(left, 2**20))):
        hashed.update(part)
        left -= len(part)
    return hashed.hexdigest()


def by_stack(slices: Sequence[Slice]) -> dict[str, list[Slice]]:
    """The slices of each stack of a file."""
    found: dict[str, list[Slice]] = defaultdict(list)
    for each in slices:
        found[each.stack].append(each)
    return dict(sorted(found.items()))
