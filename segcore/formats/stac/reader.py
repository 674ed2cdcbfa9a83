"""Reading boxes of several files as the bands of one image."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from maskloom.segcore.errors import FormatError, ReadError, SourceChanged
from maskloom.segcore.raster.source import Source
from maskloom.segcore.raster.stored import ReadOptions
from maskloom.segcore.storage.addresses import redacted

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from maskloom.segcore.geometry import Box
    from maskloom.segcore.raster.spec import RasterSpec, Reader


@dataclass(frozen=True, slots=True)
class _Part:
    """A file, and what it gives to the image."""

    spec: RasterSpec
    """With the bands that are read."""
    channels: tuple[int, ...]
    """Where these bands are among those of the image."""
    reader: Reader | None


@dataclass(slots=True)
class AssetsReader:
    """The open files of an item."""

    spec: RasterSpec
    parts: tuple[_Part, ...]
    resources: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __enter__(self) -> AssetsReader:
        return self

    def __exit__(self, *exception: object) -> None:
        """Close the files."""
        self.resources.close()

    def read(self, box: Box) -> tuple[NDArray[np.generic], NDArray[np.bool_]]:
        """Pixels and `valid` of a box; see `segcore.raster.spec.Reader.read`."""
        pixels = np.empty((*box.shape, self.spec.channels), self.spec.dtype)
        valid = np.ones(box.shape, np.bool_)
        for part in self.parts:
            assert part.reader is not None
            values, known = part.reader.read(box)
            pixels[..., list(part.channels)] = values
            valid &= known
        # Where one asset has no data, no method computes with the others.
        return pixels, valid


def described(uri: str, options: ReadOptions) -> RasterSpec:
    """The header of the file of an asset. Raises `FormatError`."""
    from maskloom.segcore.formats import describe_images

    found = describe_images(Source(uri, "asset", "", 0), "", None, replace(options, assets=()))
    if len(found) > 1:
        raise FormatError(f"{redacted(uri)} holds {len(found)} images; expected one in an asset.")
    header = found[0][1]
    if isinstance(header, FormatError):
        raise header
    if header.format == "stac":
        raise FormatError(f"{redacted(uri)} is an item in an item; expected an image.")
    return header


def opened(
    spec: RasterSpec, *, reduced: int | None = None, stored: bool = False, closed: bool = False
) -> AssetsReader:
    """Open the files of the bands of `spec`: at one of their reduced resolutions, with the numbers
    as stored, or only their headers (`closed`). Raises `ReadError`.
    """
    from maskloom.segcore.formats import open_image, open_reduced

    parts: list[_Part] = []
    with contextlib.ExitStack() as resources:
        for uri, channels in _by_file(spec).items():
            try:
                whole = described(uri, ReadOptions(level=spec.level))
            except FormatError as error:
                raise ReadError(str(error)) from error
            if whole.shape != spec.shape or spec.files.count(uri) != whole.file_bands:
                raise SourceChanged(
                    f"{redacted(uri)} has changed since its header was read. Run the same command "
                    "again."
                )
            first = spec.files.index(uri)
            own = whole.select([spec.bands[channel] - first for channel in channels])
            reader = None
            if reduced is not None:
                reader = resources.enter_context(open_reduced(own, reduced, stored=stored))
            elif not closed:
                reader = resources.enter_context(open_image(own))
            parts.append(_Part(own, channels, reader))
        return AssetsReader(spec, tuple(parts), resources.pop_all())


def _by_file(spec: RasterSpec) -> Mapping[str, tuple[int, ...]]:
    """The channels of the image that each file gives."""
    found: dict[str, tuple[int, ...]] = {}
    for channel, band in enumerate(spec.bands):
        uri = spec.files[band - 1]
        found[uri] = (*found.get(uri, ()), channel)
    return found
