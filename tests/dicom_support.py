"""DICOM files for tests, written by pydicom from numbers, positions and words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence as Items

CT = "1.2.840.10008.5.1.4.1.1.2"
IMPLICIT, EXPLICIT, BIG_ENDIAN = (f"1.2.840.10008.1.2{end}" for end in ("", ".1", ".2"))
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)


def uid(*parts: object) -> str:
    """A UID that depends on these words only."""
    return pydicom.uid.generate_uid(entropy_srcs=[str(part) for part in parts])


def slice_of(
    pixels: np.ndarray,
    position: Any = (0.0, 0.0, 0.0),
    orientation: Any = AXIAL,
    spacing: Any = (0.5, 0.8),
    series: str = "A",
    number: int = 1,
    **elements: Any,
) -> FileDataset:
    """One CT slice of (y, x) or (y, x, sample) stored numbers; None removes an element."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = elements.pop("syntax", EXPLICIT)
    meta.MediaStorageSOPClassUID = elements.get("SOPClassUID", CT)
    instance = elements.pop("SOPInstanceUID", uid(series, number))
    meta.MediaStorageSOPInstanceUID = instance
    found = FileDataset(
        "",
        {},
        file_meta=meta,
        preamble=bytes(128),
        is_implicit_VR=meta.TransferSyntaxUID == IMPLICIT,
        is_little_endian=meta.TransferSyntaxUID != BIG_ENDIAN,
    )
    found.SOPClassUID, found.SOPInstanceUID = CT, instance
    found.SeriesInstanceUID = uid(series)
    found.StudyInstanceUID = uid("study", series)
    found.Modality, found.InstanceNumber = "CT", number
    found.PatientName, found.PatientID = "Nobody^Known", "0"
    if position is not None:
        found.ImagePositionPatient = [f"{each:.10g}"[:16] for each in position]
        found.ImageOrientationPatient = [f"{each:.10g}"[:16] for each in orientation]
    if spacing is not None:
        found.PixelSpacing = list(spacing)
    found.Rows, found.Columns = pixels.shape[:2]
    samples = pixels.shape[2] if pixels.ndim == 3 else 1
    found.SamplesPerPixel = samples
    found.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"
    if samples > 1:
        found.PlanarConfiguration = 0
    if pixels.dtype.kind == "f":
        found.BitsAllocated = 32
        found.FloatPixelData = pixels.astype("<f4").tobytes()
    else:
        bits = pixels.dtype.itemsize * 8
        found.BitsAllocated, found.BitsStored, found.HighBit = bits, bits, bits - 1
        found.PixelRepresentation = int(pixels.dtype.kind == "i")
        content = pixels.tobytes()
        found.PixelData = content + b"\0" * (len(content) % 2)
        found["PixelData"].VR = "OW" if bits > 8 else "OB"
    for name, value in elements.items():
        if value is None:
            delattr(found, name)
        else:
            setattr(found, name, value)
    return found


def stack_of(
    pixels: np.ndarray, step: Any = (0.0, 0.0, 2.0), start: Any = (0.0, 0.0, 0.0), **elements: Any
) -> list[FileDataset]:
    """Slices of (z, y, x) stored numbers, `step` apart."""
    return [
        slice_of(plane, np.add(start, np.multiply(k, step)), number=k + 1, **elements)
        for k, plane in enumerate(pixels)
    ]


def items_of(**elements: Any) -> Items:
    """A sequence with one item."""
    item = Dataset()
    for name, value in elements.items():
        setattr(item, name, value)
    return Items([item])


def enhanced(
    pixels: np.ndarray,
    step: Any = (0.0, 0.0, 2.0),
    order: Any = None,
    stacks: Any = None,
    **elements: Any,
) -> FileDataset:
    """An enhanced object of (z, y, x) stored numbers; `order` is that of its frames."""
    order = range(len(pixels)) if order is None else order
    plain = slice_of(pixels[0], None, spacing=None, **elements)
    plain.SOPClassUID = plain.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2.1"
    plain.NumberOfFrames = len(pixels)
    plain.PixelData = np.stack([pixels[k] for k in order]).tobytes()
    plain.SharedFunctionalGroupsSequence = items_of(
        PixelMeasuresSequence=items_of(PixelSpacing=[0.5, 0.8]),
        PlaneOrientationSequence=items_of(ImageOrientationPatient=list(AXIAL)),
    )
    frames = []
    for k in order:
        content = {"StackID": stacks[k]} if stacks else {}
        [frame] = items_of(
            PlanePositionSequence=items_of(ImagePositionPatient=list(np.multiply(k, step))),
            FrameContentSequence=items_of(**content),
            PixelValueTransformationSequence=items_of(
                RescaleSlope=1, RescaleIntercept=int(100 * k), RescaleType="US"
            ),
        )
        frames.append(frame)
    plain.PerFrameFunctionalGroupsSequence = Items(frames)
    return plain


def encoded(dataset: FileDataset) -> bytes:
    """The bytes of the file."""
    out = io.BytesIO()
    dataset.save_as(out, enforce_file_format=True)
    return out.getvalue()


def save(folder: Path, datasets: list[FileDataset], names: str = "{:03}.dcm") -> list[Path]:
    """The files of a series, in this order of names."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / names.format(i) for i in range(len(datasets))]
    for path, dataset in zip(paths, datasets, strict=True):
        path.write_bytes(encoded(dataset))
    return paths
