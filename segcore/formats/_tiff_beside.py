"""What lies beside a TIFF, read only as what it must be.

    x.tif.msk                            which pixels are data: a TIFF, of the image's size
    x.tif.aux.xml                        what GDAL keeps of an image: nodata, colours, CRS, control points
    x.tfw, x.tifw, x.wld, x.tab          where it lies, for images that do not say so themselves
    x_RPC.TXT, x.RPB                     rational polynomials of its camera, likewise

Nothing else is looked at, and none of them can name a further file: GDAL is never asked for overviews, and opens `.msk` as TIFF only.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from segcore.errors import FormatError, ReadError
from segcore.formats._dataset import NAME, Dataset, errors, reason
from segcore.formats._open import Source, kind_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from segcore.geometry import Shape

MAX_TEXT_BYTES = 64 << 20
_WORLD_SUFFIXES = ("tfw", "tifw", "wld", "tab")
_CAMERA_ENDINGS = ("_RPC.TXT", ".RPB")
_OF_ALL_BANDS = 2
"""GDAL's flag of a mask that all bands share."""


def header_files(source: Source, placed: bool) -> dict[str, Source]:
    """The texts beside an image, by the names under which GDAL looks for them; those that place it only where it is not placed yet.

    Raises `FormatError` where one is larger than any such text, and `Unavailable`.
    """
    stem, dot, suffix = source.path.rpartition(".")
    stem, suffix = (stem, suffix) if dot and "/" not in suffix else (source.path, "")
    wanted = {f"{NAME}.aux.xml": f"{source.path}.aux.xml"}
    if not placed:
        # x.TIF has its x.TFW.
        wanted |= {f"image.{ending}": f"{stem}.{ending.upper() if suffix.isupper() else ending}" for ending in _WORLD_SUFFIXES}
        wanted |= {f"image{ending}": f"{stem}{ending}" for ending in _CAMERA_ENDINGS}
    found = {name: source.beside(path) for name, path in wanted.items()}
    files = {name: file for name, file in found.items() if file is not None}
    for file in files.values():
        if file.size() > MAX_TEXT_BYTES:
            raise FormatError(
                f"{file.location} beside {source.location} has {file.size()} bytes; the limit is {MAX_TEXT_BYTES}. Remove it."
            )
    return files


@dataclass(frozen=True, slots=True)
class SideMask:
    """An open `.msk`."""

    location: str
    dataset: Dataset
    shared: bool
    """Whether its first band is the mask of all bands of the image."""

    @classmethod
    def open(cls, source: Source, shape: Shape, bands: int) -> SideMask | None:
        """The mask beside an image of this shape; None where there is none, or a TIFF that is not GDAL's mask.

        Raises `FormatError` where it is no TIFF or of another size, and `Unavailable`.
        """
        file = source.beside(f"{source.path}.msk")
        if file is None:
            return None
        kind = kind_of(file.head())
        if kind != "TIFF":
            raise FormatError(
                f"{file.location}, the mask beside {source.location}, should be TIFF, but its content is {kind}. Remove it, or write it again."
            )
        with contextlib.ExitStack() as stack:
            try:
                dataset = stack.enter_context(contextlib.closing(Dataset.open(file)))
                raw = dataset.raw
                found, tags = dataset.run(lambda: (raw.shape, raw.tags()))
            except errors() as error:
                raise FormatError(
                    f"{file.location}, the mask beside {source.location}, cannot be read: {reason(error)}. Remove it, or write it again."
                ) from error
            flags = [str(tags.get(f"INTERNAL_MASK_FLAGS_{band}", "")) for band in range(1, bands + 1)]
            # GDAL too knows its masks by these; other programs use the suffix for other things.
            if not flags[0].isdecimal():
                return None
            shared = bool(int(flags[0]) & _OF_ALL_BANDS)
            if found != shape or not (shared or raw.count >= bands):
                raise FormatError(
                    f"{file.location} has {found[1]} x {found[0]} pixels and {raw.count} band(s), {source.location}, whose mask it is, "
                    f"{shape[1]} x {shape[0]} and {bands}. Remove it, or write it again."
                )
            stack.pop_all()
        return cls(file.location, dataset, shared)

    def valid(self, bands: Sequence[int], window: Any) -> NDArray[np.bool_]:
        """Where the mask shows these bands of the image. Raises `ReadError`."""
        try:
            planes = self.dataset.run(self.dataset.raw.read, [1] if self.shared else list(bands), window=window)
        except errors() as error:
            raise ReadError(f"{self.location} cannot be read: {reason(error)}. Remove it, or write it again.") from error
        return np.asarray((planes != 0).all(axis=0), np.bool_)

    def close(self) -> None:
        """Let the file go."""
        self.dataset.close()
