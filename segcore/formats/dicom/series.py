"""The images of a series: its slices sorted into volumes, times and single pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import IO, Any

import numpy as np

from maskloom.segcore.errors import FormatError, MaskloomError, Unavailable
from maskloom.segcore.formats.dicom.dates import acquired
from maskloom.segcore.formats.dicom.files import dicom_entries, is_archive, opened
from maskloom.segcore.formats.dicom.geometry import (
    Directions,
    depths,
    place_of_slice,
    places,
    stack,
)
from maskloom.segcore.formats.dicom.grouping import SAME_DIRECTION, Key, classes, key_of
from maskloom.segcore.formats.dicom.header import Header, check_image, read_header, text
from maskloom.segcore.formats.dicom.pixels import bands_of, delivered_type
from maskloom.segcore.formats.dicom.slices import (
    Slice,
    by_stack,
    digest_of_pixels,
    slices_of,
    without_copies,
)
from maskloom.segcore.formats.dicom.spacing import in_plane
from maskloom.segcore.ground.space import Frame, Metric, Space
from maskloom.segcore.raster.places import Place
from maskloom.segcore.raster.spec import RasterSpec
from maskloom.segcore.raster.stored import ReadOptions, StoredImage

_NAMED = 5
_KEPT = 4
"""Descriptions that a process keeps, since those of a series' parts are asked for one by one."""


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a series without its elements, which can be large."""

    key: Key
    slices: tuple[Slice, ...]
    common: tuple[Any, ...]
    """What all files of a volume must share: colour system, bands, type of numbers."""
    kind: np.dtype[Any]
    bands: int
    notes: tuple[str, ...]
    acquired: str | None
    """Only where the user wants identifiers: a date is one."""


def images_of(image: StoredImage, options: ReadOptions) -> dict[str, RasterSpec | MaskloomError]:
    """The images in a file or series by the name of the part, an empty name if there is one; an
    error in place of one that cannot be read.

    Raises `FormatError` in words for people who make or keep scans, and `Unavailable`.
    """
    files = image.files or (image.location,)
    read = _kept_images if image.version else _images
    return dict(read(image.location, image.version, files, options.identifiers))


def _images(
    location: str, version: str, uris: tuple[str, ...], identifiers: bool
) -> tuple[tuple[str, RasterSpec | MaskloomError], ...]:
    try:
        files = _files(location, uris, identifiers)
        with np.errstate(all="ignore"):
            return tuple(_described(location, version, files))
    except Unavailable:
        raise
    except (ArithmeticError, ValueError) as error:
        if isinstance(error, MaskloomError):
            raise _naming(location, error) from None
        raise FormatError(
            f"{location}: its positions or sizes are numbers that cannot be computed with "
            f"({type(error).__name__}). Send it again from the archive (PACS)."
        ) from None
    except MaskloomError as error:
        raise _naming(location, error) from None


_kept_images = lru_cache(maxsize=_KEPT)(_images)


def _naming(location: str, error: MaskloomError) -> MaskloomError:
    """The error, with the name of the image in its text."""
    return error if location in str(error) else FormatError(f"{location}: {error}")


def _files(location: str, uris: Sequence[str], identifiers: bool) -> list[_File]:
    """The files of the image, those in archives included."""
    name = location.rpartition("/")[2].removesuffix(".dcm") if location not in uris else None
    found: list[_File] = []
    for uri in uris:
        if is_archive(uri):
            for entry, stream in dicom_entries(uri):
                try:
                    header = read_header(stream, f"a file in {uri}")
                except FormatError:
                    if name is None:
                        raise
                    continue  # the archive has a failed row of its own
                if header.pixels is not None:
                    found.append(_file(header, Place(uri, entry), identifiers))
        else:
            with opened(uri) as stream:
                header = read_header(stream, uri)
                check_image(header, uri)
                found.append(_file(header, Place(uri), identifiers))
    if name is not None:
        of_key = classes(file.key for file in found)
        found = [file for file in found if of_key[file.key].name == name]
    if not found:
        raise FormatError(f"{location} holds no DICOM image. Leave it out of `inputs`.")
    return found


def _file(header: Header, place: Place, identifiers: bool) -> _File:
    check_image(header, place.uri)
    slices = tuple(slices_of(header, place))
    kind = delivered_type(header, [each.scale for each in slices])
    _, notes = in_plane(header)
    if all(each.spacing is not None for each in slices):
        notes = ()  # the frames state their own size
    if header.photometric == "MONOCHROME1":
        notes += ("low numbers are bright in it (MONOCHROME1); numbers are kept as they are",)
    if text(header.elements, "BurnedInAnnotation").upper() == "YES":
        notes += ("text is burned into its pixels, perhaps of a person; previews show it",)
    common = (header.photometric, bands_of(header))
    key, bands = key_of(header, place, identifiers), bands_of(header)
    return _File(key, slices, common, kind, bands, notes, acquired(header) if identifiers else None)


def _described(
    location: str, version: str, files: Sequence[_File]
) -> Iterator[tuple[str, RasterSpec | MaskloomError]]:
    slices = [each for file in files for each in file.slices]
    unique = without_copies(slices)
    notes = list(dict.fromkeys(note for file in files for note in file.notes))
    if len(unique) < len(slices):
        notes.append(f"slices that are copies of others are left out ({len(slices) - len(unique)})")
    if len({file.common for file in files}) > 1:
        raise FormatError(
            "its slices differ in their colours or their number of bands. Give them as folders of "
            "their own."
        )
    kind = files[0].kind
    for file in files:
        kind = np.promote_types(kind, file.kind)
    if kind == np.float64 and all(file.kind != np.float64 for file in files):
        kind = np.dtype(np.float32)
    blank = RasterSpec(
        location,
        "dicom",
        unique[0].shape,
        tuple(range(1, files[0].bands + 1)),
        kind.name,
        unique[0].shape,
        version,
        files[0].bands,
        interpretation="rgb" if files[0].bands == 3 else "bands",
        notes=tuple(notes),
        acquired=min((file.acquired for file in files if file.acquired), default=None),
    )
    stacks = by_stack(unique)
    # Numbered: their names in the file are free text.
    for number, of_stack in enumerate(stacks.values(), 1):
        prefix = f"s{number}-" if len(stacks) > 1 else ""
        try:
            parts = list(_of_stack(blank, of_stack))
        except FormatError as error:
            yield prefix.strip("-"), _naming(location, error)
            continue
        for i, spec in enumerate(parts):
            time = f"t{i + 1:0{max(4, len(str(len(parts))))}d}" if len(parts) > 1 else ""
            yield f"{prefix}{time}".strip("-"), spec


def _of_stack(blank: RasterSpec, slices: Sequence[Slice]) -> Iterator[RasterSpec]:
    """The images of slices with one orientation, one for each time."""
    if any(len(each.position) != 3 or len(each.orientation) != 6 for each in slices):
        yield from (_picture(blank, each) for each in slices)
        return
    _check_alike(slices)
    directions = Directions.of(slices[0].orientation)
    positions = np.array([each.position for each in slices])
    at = places(depths(directions, positions))
    sets, notes = _times([[slices[i] for i in indices] for indices in at], directions)
    blank = replace(blank, notes=(*blank.notes, *notes))
    if len(at) == 1:
        yield from (_picture(blank, each) for (each,) in sets)
        return
    for volume in sets:
        yield _volume(blank, volume, directions)


def _times(
    at: Sequence[Sequence[Slice]], directions: Directions
) -> tuple[list[list[Slice]], list[str]]:
    """The slices of each time, sorted along the normal; `at` are those at each place."""
    counts = {len(found) for found in at}
    notes = []
    if counts != {1}:
        single = _without_equal_pixels(at, only_if_single=len(counts) == 1)
        if single is not None:
            notes.append(
                "slices with other numbers but the same pixels as others at their place are left "
                f"out ({sum(map(len, at)) - len(single)})"
            )
            at, counts = [[each] for each in single], {1}
    if len(counts) > 1:
        usual = max(counts)
        short = [found[0] for found in at if len(found) < usual]
        along = depths(directions, np.array([each.position for each in short]))
        named = ", ".join(f"{place:.2f} mm" for place in along[:_NAMED])
        raise FormatError(
            f"it has up to {usual} slices at one place, but fewer at {len(short)} of {len(at)} "
            f"places along the normal ({named}{', ...' if len(short) > _NAMED else ''}): several "
            "scans are mixed, or a time is not complete. Give each scan its own folder."
        )
    ordered = [sorted(found, key=lambda each: each.order) for found in at]
    return [list(time) for time in zip(*ordered, strict=True)], notes


def _without_equal_pixels(
    at: Sequence[Sequence[Slice]], only_if_single: bool
) -> list[Slice] | None:
    """One slice of each place, if all slices there have the same pixels; None if they differ
    somewhere. `only_if_single`: a single place is enough to see that they differ.
    """
    if any(each.place.frame or each.place.tile >= 0 for found in at for each in found):
        return None
    single = []
    for found in at:
        if len(found) > 1 and len({_digest(each) for each in found}) > 1:
            return None
        single.append(found[0])
    # One slice that does not change over time is as likely as a copy of it.
    return None if only_if_single and len(at) == 1 else single


def _digest(found: Slice) -> str:
    with opened(found.place.uri, found.place.entry) as stream:
        return digest_of_pixels(stream, read_header(stream, found.place.uri))


def _check_alike(slices: Sequence[Slice]) -> None:
    """Raise `FormatError` unless the slices have one size, orientation and pixel size, and all or
    none state how their numbers are scaled.
    """
    if len({each.shape for each in slices}) > 1:
        raise FormatError("its slices have several sizes. Give them as folders of their own.")
    orientations = np.array([each.orientation for each in slices])
    if np.abs(orientations - orientations[0]).max() > 2 * SAME_DIRECTION:
        raise FormatError(
            "its slices have several orientations. Give them as folders of their own."
        )
    unscaled = sum(not each.scale.stated for each in slices)
    if 0 < unscaled < len(slices):
        raise FormatError(
            f"{unscaled} of its {len(slices)} slices state no RescaleSlope and RescaleIntercept, "
            "and the others do: their numbers have two meanings. Send the series again from the "
            "archive (PACS)."
        )
    sizes = {each.spacing for each in slices}
    if len(sizes) == 1:
        return
    known = [size for size in sizes if size is not None]
    if len(known) < len(sizes) or np.ptp(np.array(known), axis=0).max() > 1e-3 * max(known[0]):
        raise FormatError(
            "its slices differ in their PixelSpacing. Give them as folders of their own."
        )


def _picture(blank: RasterSpec, found: Slice) -> RasterSpec:
    """The metadata of a single slice: areas, and no volume."""
    metric = Metric(found.spacing) if found.spacing is not None else None
    frame = None
    if found.spacing is not None and len(found.position) == 3 and len(found.orientation) == 6:
        directions = Directions.of(found.orientation)
        frame = Frame(place_of_slice(directions, found.position, found.spacing))
    return replace(
        blank,
        shape=found.shape,
        chunks=found.shape,
        space=Space(metric=metric, frame=frame),
        files=(str(found.place),),
    )


def _volume(blank: RasterSpec, slices: Sequence[Slice], directions: Directions) -> RasterSpec:
    size = slices[0].spacing
    positions = np.array([each.position for each in slices])
    built = stack(directions, positions, size or (1.0, 1.0))
    notes = blank.notes + built.notes
    if size is None:
        notes += ("it does not state PixelSpacing: sizes are in px, and masks have no place",)
    shape = (len(slices), *slices[0].shape)
    assert math.prod(built.spacing) > 0
    return replace(
        blank,
        shape=shape,
        chunks=(1, *shape[1:]),
        space=Space(
            metric=Metric(built.spacing) if size is not None else None,
            frame=Frame(built.affine) if size is not None else None,
            axes=("z", "y", "x"),
        ),
        notes=notes,
        files=tuple(str(each.place) for each in slices),
    )


def header_at(place: Place, stream: IO[bytes]) -> Header:
    """The header of the file of a slice."""
    header = read_header(stream, place.uri)
    check_image(header, place.uri)
    return header
