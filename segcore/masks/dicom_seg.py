"""Masks as DICOM segmentation objects (SEG), for scans that are DICOM themselves.

Written by highdicom, on request only: they copy the patient's data from the headers of the scans.
The numbers are segments. A class named background is 0; if there is none, classes count from 1.
No data is 0. Segments carry the names of the classes. UIDs are digests of the scans and of the
labels, so the same mask is the same file.

`seg` is a label map, compressed by run lengths: small, and from 2024 (DICOM Supplement 243).
`seg_binary` has one bit per segment and voxel, which older viewers read.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, NotInstalled, RunError
from maskloom.segcore.geometry import Grid
from maskloom.segcore.masks.protocol import (
    LABEL_TYPES,
    MASKS,
    EncodedBlock,
    PublishedMask,
    compressed_block,
)
from maskloom.segcore.processes.quiet_pydicom import pydicom
from maskloom.segcore.raster.classes import ClassTable
from maskloom.segcore.raster.colours import colours_of_objects
from maskloom.segcore.raster.places import Place
from maskloom.segcore.storage.filesystems import filesystem

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Shape, Tile
    from maskloom.segcore.raster.spec import RasterSpec
    from maskloom.segcore.storage.store import Store

_BACKGROUND = "background"
_NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "FrameOfReferenceUID",
)
_MAY_BE_EMPTY = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "StudyID",
    "StudyDate",
    "StudyTime",
)
"""Attributes of type 2 (PS3.3 C.7.1.1, C.7.2.1), which are there and empty if their value is
unknown. Programs that remove names often remove the attributes too.
"""
_RUN_LENGTHS = "1.2.840.10008.1.2.5"
_PLAIN = "1.2.840.10008.1.2.1"
_DAY, _TIME = "19700101", "000000"
"""Of the object, so that the same mask is the same file at any time."""


@dataclass(frozen=True, slots=True)
class SegMasks:
    """DICOM segmentation objects; highdicom holds the whole mask in memory."""

    kind: str
    """LABELMAP or BINARY."""
    most_segments: int
    most_objects: int = 2**32 - 1
    """More than `most_segments` are refused when the mask is written."""
    suffix: str = ".seg.dcm"
    beside: tuple[str, ...] = ()

    def encode(
        self,
        labels: NDArray[np.integer],
        tile: Tile,
        spec: RasterSpec,
        tile_shape: Shape,  # noqa: ARG002  the protocol has it
    ) -> list[EncodedBlock]:
        """The compressed labels of a tile's core; see `MaskWriter.encode`."""
        return [compressed_block(labels, tile, spec)]

    def publish(
        self,
        store: Store,
        name: str,
        blocks: Iterable[EncodedBlock],
        spec: RasterSpec,
        classes: ClassTable,
        tile_shape: Shape,
    ) -> PublishedMask:
        """Write the object; see `MaskWriter.publish`. Raises `FormatError` if the scans lack what
        a segmentation must refer to.
        """
        labels = _assembled(blocks, spec, Grid(spec.shape, tile_shape))
        if labels.dtype == np.uint32:
            ids = np.arange(1, int(labels.max()) + 1)
            segments, names = labels, [f"object {i}" for i in ids]
            colours = colours_of_objects(ids).tolist()
        else:
            segments, named = _as_segments(labels, classes)
            names, colours = list(named.names), list(named.colours)
        if len(names) > self.most_segments:
            raise FormatError(
                f"{spec.location} has {len(names)} objects or classes; a DICOM segmentation of "
                f"this kind has at most {self.most_segments}. Leave `masks` out of the recipe."
            )
        content = self._object(segments, names, colours, spec)
        return PublishedMask({"": store.publish(name, content)})

    def _object(
        self,
        segments: NDArray[Any],
        names: Sequence[str],
        colours: Sequence[Sequence[int]],
        spec: RasterSpec,
    ) -> bytes:
        library = pydicom()
        try:
            import highdicom
        except ImportError:
            raise NotInstalled(
                "DICOM segmentation objects need the extra 'medical': pip install "
                "'maskloom[medical]'."
            ) from None
        sources, frames = _sources(spec)
        planes = segments.reshape(-1, *spec.shape[-2:])
        dtype = np.uint8 if len(names) <= 255 else np.uint16
        ordered = np.zeros((len(frames), *planes.shape[1:]), dtype)
        ordered[frames] = planes
        words = [
            *(str(source.SOPInstanceUID) for source in sources),
            *names,
            self.kind,
            hashlib.sha256(ordered.tobytes()).hexdigest(),
        ]
        try:
            made = highdicom.seg.Segmentation(
                sources,
                ordered,
                self.kind,
                _descriptions(names, colours),
                series_instance_uid=library.uid.generate_uid(entropy_srcs=["series", *words]),
                series_number=1,
                sop_instance_uid=library.uid.generate_uid(entropy_srcs=words),
                instance_number=1,
                manufacturer="maskloom",
                manufacturer_model_name="maskloom",
                software_versions="1",
                device_serial_number="1",
                omit_empty_frames=self.kind == "BINARY",
                transfer_syntax_uid=_RUN_LENGTHS if self.kind == "LABELMAP" else _PLAIN,
            )
        except Exception as error:  # noqa: BLE001
            # Whatever highdicom refuses; its messages may quote the header.
            absent = error.name if isinstance(error, AttributeError) else None
            if absent is not None and library.datadict.tag_for_keyword(absent) is not None:
                raise _lacking(spec, [absent]) from None
            raise FormatError(
                f"No DICOM segmentation can be made for {spec.location} ({type(error).__name__}): "
                "its scans contradict each other or the standard in what it has to refer to. "
                "Leave `masks` out of the recipe for masks of the usual kind."
            ) from None
        _fix_times_and_uids(made, library.uid.generate_uid(entropy_srcs=["dimensions", *words]))
        out = io.BytesIO()
        made.save_as(out)
        return out.getvalue()


MASKS.register("seg")(SegMasks("LABELMAP", 2**16 - 1))
MASKS.register("seg_binary")(SegMasks("BINARY", 255))


def _descriptions(names: Sequence[str], colours: Sequence[Sequence[int]]) -> list[Any]:
    """The descriptions of the segments, numbered from 1."""
    import highdicom

    code = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    # The standard's list has no word for any method; this one is that for automatic ones.
    by = highdicom.AlgorithmIdentificationSequence(
        name="maskloom",
        family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence"),
        version="1",
    )
    return [
        highdicom.seg.SegmentDescription(
            number,
            name[:64],
            code,
            code,
            "AUTOMATIC",
            algorithm_identification=by,
            display_color=highdicom.color.CIELabColor(*lab),
        )
        for number, (name, lab) in enumerate(zip(names, _lab(colours), strict=True), 1)
    ]


def _fix_times_and_uids(made: Any, dimensions: str) -> None:
    """Replace what highdicom takes from the clock and from chance."""
    for when in ("Content", "Series", "InstanceCreation"):
        if f"{when}Date" in made:
            setattr(made, f"{when}Date", _DAY)
            setattr(made, f"{when}Time", _TIME)
    for item in made.get("ContributingEquipmentSequence", ()):
        item.ContributionDateTime = _DAY + _TIME
    for name in ("DimensionOrganizationSequence", "DimensionIndexSequence"):
        for item in made.get(name, ()):
            item.DimensionOrganizationUID = dimensions


def _assembled(blocks: Iterable[EncodedBlock], spec: RasterSpec, grid: Grid) -> NDArray[Any]:
    """The labels of all tiles."""
    payloads = {block.index: zlib.decompress(block.payload) for block in blocks}
    labels: NDArray[Any] | None = None
    for tile in grid:
        content = payloads.pop(tile.index, b"")
        size = len(content) // tile.core.size
        dtype = next((each for each in LABEL_TYPES if np.dtype(each).itemsize == size), None)
        if dtype is None or len(content) != tile.core.size * size:
            raise RunError(
                f"The mask of {spec.location} lacks its tile {tile.index}, or has a wrong one. Run "
                "the same command again."
            )
        labels = np.empty(spec.shape, dtype) if labels is None else labels
        labels[tile.core.slices] = np.frombuffer(content, dtype).reshape(tile.core.shape)
    if payloads or labels is None:
        raise RunError(f"The mask of {spec.location} has tiles that do not belong to it.")
    return labels


def _as_segments(labels: NDArray[Any], classes: ClassTable) -> tuple[NDArray[Any], ClassTable]:
    """Numbers of segments, and the classes of these from 1 on."""
    first = 0 if classes.names[0] == _BACKGROUND else 1
    segments = labels.astype(np.uint16) + first
    segments[labels == classes.nodata] = 0
    return segments, ClassTable(classes.names[1 - first :], classes.colours[1 - first :])


def _lab(colours: Sequence[Sequence[int]]) -> list[list[float]]:
    from skimage.color import rgb2lab

    lab = rgb2lab(np.reshape(colours, (1, -1, 3)) / 255)[0]
    # White may come out above 100.
    found: list[list[float]] = np.minimum(lab, (100, 127, 127)).tolist()
    return found


def _sources(spec: RasterSpec) -> tuple[list[Any], list[int]]:
    """The headers of the scans, and for each plane of the mask the number of its frame in them."""
    places = [Place.of(file) for file in spec.files]
    if any(place.entry >= 0 or place.tile >= 0 for place in places):
        raise FormatError(
            f"{spec.location}: DICOM segmentations refer to single files, not to archives or "
            "mosaics. Unpack the archive, or leave `masks` out of the recipe."
        )
    uris = list(dict.fromkeys(place.uri for place in places))
    sources = [_header(uri) for uri in uris]
    absent = [name for name in _NEEDED if any(not source.get(name) for source in sources)]
    if absent:
        raise _lacking(spec, absent)
    metric = spec.space.metric
    for source in sources:
        for name in _MAY_BE_EMPTY:
            if name not in source:
                setattr(source, name, None)
        # highdicom copies it; where it is not stated, slices are as thick as they are apart.
        if not source.get("SliceThickness") and metric is not None:
            source.SliceThickness = metric.spacing[0] if len(spec.shape) > 2 else 0
    if len(uris) == len(places):
        return sources, list(range(len(places)))
    frames = int(sources[0].get("NumberOfFrames") or 1)
    if len(uris) > 1 or frames != len(places):
        raise FormatError(
            f"{spec.location}: DICOM segmentations are made for whole objects, not for one of "
            "several times or stacks in a file. Leave `masks` out of the recipe."
        )
    return sources, [place.frame for place in places]


def _lacking(spec: RasterSpec, keywords: Sequence[str]) -> FormatError:
    """The error on attributes that the scans lack, with their tags."""
    named = ", ".join(
        f"{keyword} {pydicom().tag.Tag(keyword)}".replace(", ", ",") for keyword in keywords
    )
    return FormatError(
        f"{spec.location}: a DICOM segmentation has to refer to {named}, which the scans lack; "
        "programs that remove names often remove it. Let such a program keep or replace it, or "
        "leave `masks` out of the recipe for masks of the usual kind."
    )


def _header(uri: str) -> Any:
    fs, path = filesystem(uri)
    with fs.open(path, "rb") as stream:
        return pydicom().dcmread(stream, stop_before_pixels=True, force=True)
