"""Reading boxes of DICOM images: only the slices that a box touches are decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.formats.dicom.files import opened
from maskloom.segcore.formats.dicom.header import Header, number
from maskloom.segcore.formats.dicom.pixels import read_frame
from maskloom.segcore.formats.dicom.series import header_at
from maskloom.segcore.formats.dicom.slices import Slice, slices_of
from maskloom.segcore.raster.places import Place

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import RasterSpec

_KEPT_BYTES = 2**27
"""Of decoded slices: tiles side by side need the same ones."""

Decoded = tuple["NDArray[Any]", "NDArray[np.bool_] | None"]
"""Pixels (y, x, band) and where they are data; None: everywhere."""


@dataclass(slots=True)
class DicomReader:
    """An open image; files are open only while they are read."""

    spec: RasterSpec
    kept: dict[int, Decoded] = field(default_factory=dict)
    """Decoded slices by number, the oldest first."""
    last: tuple[tuple[str, int], Header, list[Slice]] | None = None
    """The file that was read last: an enhanced object holds all slices."""

    def __enter__(self) -> DicomReader:
        return self

    def __exit__(self, *exception: object) -> None:
        """Release the decoded slices."""
        self.kept.clear()

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        spec = self.spec
        pixels = np.empty((*box.shape, spec.channels), spec.dtype)
        valid = np.empty(box.shape, np.bool_)
        bands = [band - 1 for band in spec.bands]
        plane = box.slices[-2:]
        volume = len(spec.shape) == 3
        indices = range(box.start[0], box.stop[0]) if volume else range(1)
        for i, index in enumerate(indices):
            values, is_data = self._slice(index, indices)
            at: Any = i if volume else ...
            pixels[at] = values[plane][..., bands]
            valid[at] = True if is_data is None else is_data[plane]
        return pixels, valid

    def _slice(self, index: int, wanted: range) -> Decoded:
        """A decoded slice; `wanted` are those of the box, which the next tiles need too."""
        found = self.kept.get(index)
        if found is None:
            found = self._decoded(index)
            most = _KEPT_BYTES // _size(found)
            for other in [each for each in self.kept if each not in wanted]:
                if len(self.kept) >= most:
                    del self.kept[other]
            # Where a slab does not fit, its first slices stay: to drop the oldest would drop each
            # before it is needed again.
            if len(self.kept) < most:
                self.kept[index] = found
        return found

    def _decoded(self, index: int) -> Decoded:
        spec = self.spec
        place = Place.of(spec.files[index])
        name = spec.location
        if len(spec.files) > 1:
            name = f"slice {index + 1} of {len(spec.files)} of {name}"
        try:
            with opened(place.uri, place.entry) as stream:
                if self.last is None or self.last[0] != (place.uri, place.entry):
                    header = header_at(place, stream)
                    self.last = (place.uri, place.entry), header, slices_of(header, place)
                _, header, slices = self.last
                name += _in_viewers(header)
                inside = place.tile if place.tile >= 0 else place.frame
                if inside >= len(slices) or slices[inside].shape != spec.shape[-2:]:
                    raise SourceChanged(
                        f"{name} has changed since its header was read. Run the same command again."
                    )
                scale, dtype = slices[inside].scale, np.dtype(spec.dtype)
                values, valid = read_frame(stream, header, place.frame, scale, dtype)
        except FormatError as error:
            raise ReadError(f"{name}: {error}") from None
        except ReadError as error:
            raise ReadError(f"{name}: {error}") from None
        if place.tile >= 0:
            rows, columns = spec.shape[-2:]
            top, left = divmod(place.tile, header.shape[1] // columns)
            cut = np.s_[top * rows : (top + 1) * rows, left * columns : (left + 1) * columns]
            values, valid = values[cut].copy(), valid[cut]
        return values, None if valid.all() else valid


def _in_viewers(header: Header) -> str:
    """The number by which viewers show a slice: names of files may be those of persons."""
    found = number(header.elements, "InstanceNumber")
    return f" (InstanceNumber {found})" if found else ""


def _size(found: Decoded) -> int:
    """Bytes of a decoded slice."""
    return sum(part.nbytes for part in found if part is not None)
