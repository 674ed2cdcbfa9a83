"""The size of a pixel in the plane, where the file can be trusted on it.

A radiograph is a shadow: `ImagerPixelSpacing` is the size at the detector, and the anatomy is
smaller by the unknown magnification (PS3.3 10.7). Sizes of ultrasound are stated by region.
"""

from __future__ import annotations

from typing import Any

from maskloom.segcore.formats.dicom.header import Header, items, number, numbers, text

InPlane = tuple[float, float]
"""Distances between rows and between columns in mm."""

_PROJECTIONS = ("CR", "DX", "MG", "XA", "RF", "IO", "PX", "RG", "XC")
"""Modalities whose pictures are projections."""
_CALIBRATED = ("GEOMETRY", "FIDUCIAL")
_SMALLEST, _LARGEST = 1e-6, 1e3
"""Millimetres."""
_CENTIMETRES = 3
_TWO_DIMENSIONS = 1
_NO_SIZE = "sizes are in px; `pixel_size` in the recipe sets one"
_AT_DETECTOR = "its pixel spacing is that at the detector, which is larger than in the patient"


def in_plane(header: Header) -> tuple[InPlane | None, tuple[str, ...]]:
    """The size of a pixel, None if unknown, and notes."""
    elements = header.elements
    regions = items(elements, "SequenceOfUltrasoundRegions")
    if regions:
        return _of_regions(regions)
    stated = pair(elements, "PixelSpacing")
    detector = pair(elements, "ImagerPixelSpacing") or pair(elements, "NominalScannedPixelSpacing")
    if text(elements, "PixelSpacing") and stated is None:
        return None, (f"its PixelSpacing is no size of a pixel: {_NO_SIZE}",)
    if detector is None and text(elements, "Modality").upper() not in _PROJECTIONS:
        return stated, ()
    return _of_projection(elements, stated, detector)


def _of_projection(
    elements: Any, stated: InPlane | None, detector: InPlane | None
) -> tuple[InPlane | None, tuple[str, ...]]:
    """The size in a projection that states one, or that of its detector."""
    if text(elements, "PixelSpacingCalibrationType").upper() in _CALIBRATED:
        return stated or detector, ()
    if stated is not None and detector is not None and not _equal(stated, detector):
        return stated, ()  # somebody has calibrated it
    magnification = numbers(elements, "EstimatedRadiographicMagnificationFactor")
    if detector is not None and len(magnification) == 1 and 1 <= magnification[0] < 10:
        rows, columns = (each / magnification[0] for each in detector)
        return (rows, columns), ("sizes use the estimated magnification of the radiograph",)
    if stated is None and detector is None:
        return None, ()
    return None, (f"{_AT_DETECTOR}: {_NO_SIZE}",)


def pair(elements: Any, keyword: str) -> InPlane | None:
    """Two plausible sizes in mm; None if absent."""
    found = numbers(elements, keyword)
    if len(found) != 2 or not all(_SMALLEST <= each <= _LARGEST for each in found):
        return None
    return found[0], found[1]


def _equal(a: InPlane, b: InPlane) -> bool:
    return all(abs(x - y) <= 1e-3 * y for x, y in zip(a, b, strict=True))


def _of_regions(regions: Any) -> tuple[InPlane | None, tuple[str, ...]]:
    """The size that all regions of an ultrasound picture with two dimensions state."""
    found = set()
    for region in regions:
        units = [number(region, f"PhysicalUnits{axis}Direction") for axis in "YX"]
        deltas = [numbers(region, f"PhysicalDelta{axis}") for axis in "YX"]
        if (
            number(region, "RegionSpatialFormat") == _TWO_DIMENSIONS
            and units == [_CENTIMETRES] * 2
            and all(len(delta) == 1 for delta in deltas)
        ):
            found.add(tuple(round(abs(delta[0]) * 10, 9) for delta in deltas))
    if len(found) == 1:
        rows, columns = found.pop()
        if all(_SMALLEST <= each <= _LARGEST for each in (rows, columns)):
            return (rows, columns), ()
    why = "state different sizes" if found else "state no size"
    return None, (f"its regions of ultrasound {why}: {_NO_SIZE}",)
